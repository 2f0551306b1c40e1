"""Sums over numbered units of work, kept while the work is under way, so that the next try goes on from them."""

import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from . import checkpoint
from .processes import Processes

# Units that have ended are written down that often, in seconds.
_SAVE_SECONDS = 10.0


class KeptSums:
    """What units of work add up to, over all processes and all tries.

    Every process of every try writes one file, with the numbers of its units and the sums over just these. Files of disjoint units
    can be added in any order, by any number of processes.

    Args:
        folder: where files are kept, made with the first one; None keeps nothing. Processes may see the same folder, or each its
            own.
        name: the first part of the files' names.
        sums: by name, on the CPU, all 0 yet. A unit adds to them in place, and then says `finish`.
        processes: those that share the work; all must make this at the same time.
        before_saving: brings to the disk what else the units have written.

    Attributes:
        done: the units that earlier tries have finished.

    Raises:
        FormatError: a file in the folder is none of ours.
    """

    def __init__(
        self,
        folder: Path | None,
        name: str,
        sums: dict[str, Tensor],
        processes: Processes,
        before_saving: Callable[[], None] | None = None,
    ):
        self._sums, self._processes, self._units, self._before_saving = sums, processes, [], before_saving
        self._path = folder and folder / f"{name}-{secrets.token_hex(8)}.safetensors"
        self._saved, self._unsaved = time.monotonic(), False
        self.done: set[int] = set()
        self._earlier = {key: torch.zeros_like(tensor) for key, tensor in sums.items()}
        files = {path.name: checkpoint.read(path) for path in sorted(folder.glob(f"{name}-*.safetensors"))} if folder else {}
        found = processes.gather_values({file: content.facts["units"] for file, content in files.items()})
        seen = set()
        for number, lists in enumerate(found):
            for file, units in lists.items():
                # Two tries at the same time may have done the same units.
                if file in seen or not self.done.isdisjoint(units):
                    continue
                seen.add(file)
                self.done.update(units)
                if number == processes.number:
                    for key, tensor in self._earlier.items():
                        tensor += files[file].tensors[key]

    def finish(self, unit: int) -> None:
        """Count a unit as done; its sums are on the disk some seconds later.

        Raises:
            OSError: the file cannot be written.
        """
        self._units.append(unit)
        self._unsaved = True
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Write what is not written yet.

        Raises:
            OSError: the file cannot be written.
        """
        if self._path and self._unsaved:
            if self._before_saving:
                self._before_saving()
            self._path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write(self._path, self._sums, {"units": self._units})
            self._saved, self._unsaved = time.monotonic(), False

    def total(self) -> dict[str, Tensor]:
        """The sums over all units, in every process; to be called by all when their units are done.

        Raises:
            OSError: the file cannot be written.
            LostProcessError: another process has ended before.
        """
        if self._processes.count > 1:
            self.save()
        return {key: self._processes.sum(tensor + self._earlier[key]) for key, tensor in self._sums.items()}


def forget(kept: Path | None) -> None:
    """Remove what an evaluation has kept; its figures are safe, or it is to begin anew."""
    if kept:
        shutil.rmtree(kept, ignore_errors=True)
