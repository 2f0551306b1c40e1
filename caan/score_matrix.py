"""The file of all scores of an evaluation, while it is being filled."""

import os
from pathlib import Path

import numpy as np
from torch import Tensor

from .files import allocate, hold, keep_mode
from .kept import forget
from .processes import Processes

# In the folder of what is kept: which file holds the scores, all of them.
_WHOLE = "scores"


class ScoreMatrix:
    """The file of all scores, while it is being filled.

    Args:
        path: where it is to be when it is whole.
        identity: of the evaluation.
        shape: (I, T).
        kept: the folder with the evaluation's finished work. That continues with the unfinished file, or, where the last try was
            stopped after its scores were whole, with the finished one; anything else is begun anew.
        processes: those that fill it.

    Raises:
        OSError: there is no room for it, or another evaluation is at it.
        ValueError: the path is no file's, or this process does not see the file that the first one made.
    """

    def __init__(self, path: Path, identity: str, shape: tuple[int, int], kept: Path | None, processes: Processes):
        if path.exists() and not path.is_file():
            raise ValueError(f"save_scores: expected a file, which can be written to at any place, got {path}")
        path = path.resolve()
        self.path, self.unfinished, self.processes = path, path.with_name(f"{path.name}.{identity}.unfinished"), processes
        self._kept, self._lock = kept, None
        continued = kept is not None and kept.is_dir() and self.unfinished.is_file()
        record = kept and kept / _WHOLE
        whole = not continued and bool(record and record.is_file()) and record.read_text() == self._stamp(path)
        if processes.first and not whole:
            # Held as long as this is: two evaluations would write over each other's scores.
            self._lock = self.unfinished.open("ab")
            try:
                mine = hold(self._lock) and os.fstat(self._lock.fileno()).st_ino == self.unfinished.stat().st_ino
            except FileNotFoundError:
                mine = False
            if not mine:
                raise BlockingIOError(f"save_scores: expected a file that no other evaluation is writing, found {path} in use")
        anew, whole = processes.gather_values([not continued and not whole, whole])[0]
        if anew:
            forget(kept)
        if processes.first and anew:
            with self.unfinished.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
                header = file.tell()
            allocate(self.unfinished, header + 4 * shape[0] * shape[1])
        processes.wait()
        current = path if whole else self.unfinished
        if not current.is_file():
            raise ValueError(
                f"save_scores: expected a folder that all processes see, found no {current} in process {processes.number}"
            )
        self._rows = np.lib.format.open_memmap(current, "r+")

    def write(self, images: slice, captions: Tensor, scores: Tensor) -> None:
        """Write a tile."""
        self._rows[images, captions.numpy()] = scores.cpu().numpy()

    def flush(self) -> None:
        """Have everything on the disk."""
        self._rows.flush()

    def finish(self) -> None:
        """Give the file its name; all processes call this when they have written their tiles."""
        self.flush()
        self.processes.wait()
        if self.processes.first and self._lock:
            if self._kept:
                self._kept.mkdir(parents=True, exist_ok=True)
                (self._kept / _WHOLE).write_text(self._stamp(self.unfinished))
            if self.path.exists():
                keep_mode(self.unfinished, self.path.stat().st_mode)
            self.unfinished.replace(self.path)
            self._lock.close()

    def remove(self) -> None:
        """Remove what is unfinished."""
        self.unfinished.unlink(missing_ok=True)

    @staticmethod
    def _stamp(path: Path) -> str | None:
        """What tells a file from another, whatever its name."""
        if not path.is_file():
            return None
        status = path.stat()
        return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"
