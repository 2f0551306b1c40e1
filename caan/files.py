"""Files that are never seen half written, and texts whose faults are named."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import FormatError, MissingFileError


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Have a write that fails say of which file: the system's error does not, and NumPy's, on a full disk, says only how little was
    written.

    Raises:
        OSError: a write in the block failed.
    """
    try:
        yield
    except OSError as error:
        short = "requested and" in str(error)
        if error.filename is not None or type(error) is not OSError or not (error.errno or short):
            raise
        reason = error.strerror or f"{error}; the disk may be full"
        raise OSError(f"{path}: expected to be able to write it: {reason}") from None


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a path beside `path` to write to; when the block ends without an error, that file takes the place of `path`.

    A reader, or a run that continues after a power cut, sees the old file or the new one. After an error the old one
    stays and the new one is removed. A link stays, and its file is replaced; what is no file, a pipe or /dev/stdout, is written to.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        with naming(path):
            yield path
        return
    path = path.resolve()
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        with naming(path):
            yield unfinished
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def check_writable(name: str, path: Path) -> None:
    """See, before long work, that its result can be written.

    Raises:
        ValueError: the argument `name` is no path that can be written to.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise ValueError(f"{name}: expected a file in a folder that is there, got {path}")
    if path.is_dir():
        raise ValueError(f"{name}: expected a file, got the folder {path}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise ValueError(f"{name}: expected a file that can be written to, got {path}")


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes from what is being written in a folder.

    Raises:
        BlockingIOError: another process is at it.
    """
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"folder: expected {what} that nobody is at, found {folder} in use by another process") from None
        yield


def allocate(path: Path, size: int) -> None:
    """Give a file its size, and its room on the disk; a memory map of a file without room kills the process that writes to it.

    Raises:
        OSError: there is no room; the file is removed.
    """
    try:
        with path.open("rb+") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        path.unlink()
        raise OSError(error.errno, f"{error.strerror}: expected room for {size:,} bytes", str(path)) from None


def read_text(path: Path, expected: str = "a text file") -> str:
    """The text of a file, or of a pipe, in UTF-8, with or without a byte order mark.

    Raises:
        MissingFileError, FormatError: there is no such file, or its text is in another encoding.
    """
    if not path.exists() or path.is_dir():
        raise MissingFileError(f"{path}: expected {expected}, found no such file")
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FormatError(f"{path}: expected UTF-8, found other bytes in line {line}") from None
