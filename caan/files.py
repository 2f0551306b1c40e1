"""Files that are never seen half written, and texts whose faults are named."""

import errno
import fcntl
import json
import os
import reprlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import FormatError, MissingFileError
from .progress import warn

# Lustre mounted without -o flock, NFS without a lock daemon, some file systems of users' programs.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


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
    The new file has the permissions of the old one, or those of the user's umask.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        with naming(path):
            yield path
        return
    path = _resolved(path)
    unfinished = _unfinished(path)
    try:
        with naming(path):
            # Libraries that make a file themselves may let nobody else read it, and a kill leaves such a file behind.
            unfinished.unlink(missing_ok=True)
            unfinished.write_bytes(b"")
            mode = (path if path.exists() else unfinished).stat().st_mode
            yield unfinished
            with unfinished.open("rb+") as file:
                os.fsync(file.fileno())
            keep_mode(unfinished, mode)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _resolved(path: Path) -> Path:
    """Where a link leads.

    Raises:
        OSError: to itself.
    """
    try:
        return path.resolve()
    except RuntimeError:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None


def _unfinished(path: Path) -> Path:
    return path.with_name(f"{path.name}.unfinished")


def keep_mode(path: Path, mode: int) -> None:
    """Give a file the permissions in `mode`, where its file system has any."""
    # In some file systems, such as FAT, all files have the same.
    with suppress(PermissionError):
        path.chmod(stat.S_IMODE(mode))


def check_writable(name: str, path: Path) -> None:
    """See, before long work, that `replacing` can write its result.

    Raises:
        ValueError: the argument `name` is no path that can be written to.
    """
    if path.is_dir():
        raise ValueError(f"{name}: expected a file, got the folder {path}")
    if path.exists() and not path.is_file():
        if not os.access(path, os.W_OK):
            raise ValueError(f"{name}: expected a file that can be written to, got {path}")
        return
    try:
        path = _resolved(path)
    except OSError as error:
        raise ValueError(f"{name}: expected a file that can be written to, got {path}: {error.strerror}") from None
    if not path.parent.is_dir():
        raise ValueError(f"{name}: expected a file in a folder that is there, got {path}")
    unfinished = _unfinished(path)
    try:
        there = unfinished.exists()
        # Nothing else tells for sure: permissions, read-only file systems, quotas and names that are too long.
        unfinished.open("ab").close()
    except OSError as error:
        raise ValueError(f"{name}: expected a file that can be written to, got {path}: {error.strerror}") from None
    if not there:
        unfinished.unlink(missing_ok=True)


def make_folder(name: str, path: Path) -> None:
    """Have a folder to write to, before long work.

    Raises:
        ValueError: the argument `name` is none, and no name for a new one.
    """
    # Path.exists raises where a name is too long for a file.
    if os.path.exists(path) and not path.is_dir():
        raise ValueError(f"{name}: expected a folder, or a name for a new one, got the file {path}")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{name}: expected a folder that can be made, got {path}: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"{name}: expected a folder that can be written to, got {path}")


@contextmanager
def made_folder(name: str, path: Path) -> Iterator[None]:
    """As `make_folder`; a new folder that is still empty when the block fails is removed."""
    is_new = not os.path.lexists(path)
    make_folder(name, path)
    try:
        yield
    except BaseException:
        # Where it is not empty, it stays.
        with suppress(OSError):
            if is_new:
                path.rmdir()
        raise


def hold(file: IO) -> bool:
    """Lock a file that is open for writing until it is closed.

    Where the file system has no locks, a warning says so on stderr, and the file counts as locked.

    Returns:
        False if another process holds it.

    Raises:
        OSError: it cannot be locked for another reason; the message names the file.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise OSError(error.errno, f"{error.strerror}: expected to be able to lock it", file.name) from None
        warn(f"{file.name}: warning: this file system has no locks ({error.strerror}); see that no other process writes there")
    return True


@contextmanager
def locked(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes from what is being written in a folder.

    Raises:
        BlockingIOError: another process is at it.
        OSError: the lock cannot be had.
    """
    with (folder / "lock").open("w") as file:
        if not hold(file):
            raise BlockingIOError(f"folder: expected {what} that no other process uses, found {folder} in use")
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


def parse_json(path: Path, text: str, expected: str = "JSON") -> Any:
    """The content of a JSON text that was read from a file.

    Raises:
        FormatError: it is none, has a key twice, or is nested too deeply.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: expected {expected}: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError(f"found a key twice among {reprlib.repr([key for key, _ in pairs])}")
    return result
