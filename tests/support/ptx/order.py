"""What a block of the grid knows of the others: which of their accesses come before its own, through atomics and fences.

It knows of another block the epochs below a number. A release hands on what its block did before its last barrier, and what
that knew by then; what a thread acquires is the block's from its next barrier on. This is less than PTX orders, where one thread
alone hands on or takes, and never more.
"""

import numpy as np


class Order:
    """Of a launch's blocks.

    Args:
        grid: how many there are.
        block: threads of each.

    Attributes:
        known: (grid, grid), row c: of which epochs of each block the accesses come before those of block c.
    """

    def __init__(self, grid: int, block: int):
        self.block = block
        self.known = np.zeros((grid, grid), np.int64)
        self._acquired = np.zeros((grid, grid), np.int64)
        # By place in memory; and by thread, what a fence makes of relaxed accesses after it and before it.
        self._released: dict[int, np.ndarray] = {}
        self._fenced: dict[int, np.ndarray] = {}
        self._seen: dict[int, np.ndarray] = {}

    def read(self, at: int, thread: int, acquires: bool) -> None:
        """A thread has read what lies at a place."""
        if at in self._released:
            acquired = self._acquired[thread // self.block]
            found = acquired if acquires else self._seen.setdefault(thread, np.zeros_like(acquired))
            np.maximum(found, self._released[at], out=found)

    def write(self, at: int, thread: int, epoch: int, releases: bool, adds: bool) -> None:
        """A thread has written there, or added to what it found, which hands on what that handed on."""
        given = self._done(thread, epoch) if releases else self._fenced.get(thread, np.zeros_like(self.known[0]))
        self._released[at] = np.maximum(given, self._released.get(at, 0)) if adds else given

    def fence(self, thread: int, epoch: int) -> None:
        self._fenced[thread] = self._done(thread, epoch)
        if thread in self._seen:
            acquired = self._acquired[thread // self.block]
            np.maximum(acquired, self._seen.pop(thread), out=acquired)

    def pass_barrier(self, blocks: np.ndarray) -> None:
        """All threads of some blocks have passed one of their barriers."""
        self.known[blocks] = np.maximum(self.known[blocks], self._acquired[blocks])

    def _done(self, thread: int, epoch: int) -> np.ndarray:
        block = thread // self.block
        done = self.known[block].copy()
        done[block] = epoch
        return done
