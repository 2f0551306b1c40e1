"""Runs a program: all threads of some blocks in step, those whose place in the code comes first before the others."""

from collections.abc import Mapping

import numpy as np

from .memory import WARP, Fault, GlobalMemory, SharedMemory, keys_of
from .order import Order
from .parser import PtxError
from .program import Control, Program

# Threads that run at once, of as many blocks as that takes.
_TOGETHER = 4096
# Blocks of steps after which a kernel counts as endless.
_MOST_BLOCKS = 2_000_000
# How often a thread that spins may look between two writes of others.
_MOST_TRIES = 4
_READY, _AT_BARRIER, _APART, _ENDED = range(4)


def run(program: Program, grid: int, threads: int, shared: int, parameters: Mapping[str, bytes], memory: GlobalMemory) -> None:
    """Run a kernel.

    Args:
        program: the kernel.
        grid: blocks, along x.
        threads: of a block, a multiple of 32.
        shared: bytes of shared memory that the launch asks for.
        parameters: by name, as many bytes as the kernel declares of each.
        memory: made for the program's smallest access, `program.unit("global")`.

    Raises:
        PtxError: what a thread did wrong, and at which instruction.
    """
    if threads % WARP:
        raise PtxError(f"{program.name}: expected whole warps, got {threads} threads")
    for name, size in program.kernel.parameters:
        if len(parameters[name]) != size:
            raise PtxError(f"{program.name}: expected {size} bytes for {name}, got {len(parameters[name])}")
    if program.yields.any():
        memory.keep(Order(grid, threads))
    together = max(1, _TOGETHER // threads)
    with np.errstate(all="ignore"):
        for first in range(0, grid, together):
            Machine(program, range(first, min(grid, first + together)), grid, threads, shared, parameters, memory).run()


class Machine:
    """Some blocks at work. Arrays have a number for each thread, block after block."""

    def __init__(self, program, blocks: range, grid: int, block: int, shared: int, parameters, memory: GlobalMemory):
        self.program, self.parameters, self.first, self.block = program, parameters, blocks.start, block
        self.threads = n = len(blocks) * block
        self.everyone = numbers = np.arange(n)
        self.places = numbers // block
        self.thread = numbers % block
        self.lane = numbers % WARP
        self.special = {
            "%tid": self.thread,
            "%ntid": np.full(n, block),
            "%ctaid": self.places + blocks.start,
            "%nctaid": np.full(n, grid),
            "%laneid": self.lane,
            "%warpid": self.thread // WARP,
        }
        self.special = {name: x.astype(np.uint32) for name, x in self.special.items()}
        # No array is written into that a register has: a new one takes its place.
        zeros = {dtype: np.zeros(n, dtype) for dtype in set(program.dtypes)}
        self.registers = [zeros[dtype] for dtype in program.dtypes]
        self.memory = memory
        self.shared = SharedMemory(len(blocks), program.static_shared + shared, program.unit("shared"), block, memory.replicated)
        self.ids = numbers + blocks.start * block
        self.epochs, self.clocks = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self.keys = keys_of(self.epochs, self.clocks, self.ids)
        # Copies under way: offsets, bytes, threads and groups; and how many groups each thread has closed.
        self.copies: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
        self.closed = np.zeros(n, np.int64)
        self._place = np.zeros(n, np.int64)
        self._status = np.full(n, _READY)
        # When a thread that lets others go first has last gone on, and how often since the last write that others may wait for.
        self._went, self._tries = np.zeros(n, np.int64), np.zeros(n, np.int64)
        self._barrier = np.zeros((2, n), np.int64)
        self._arrived: dict[tuple[int, int], list[int]] = {}

    def run(self) -> None:
        at, mask = 0, None
        for _ in range(_MOST_BLOCKS):
            at, mask = self._run_block(at, mask)
            if at is None:
                if (self._status == _ENDED).all():
                    return
                at, mask = self._chosen()
        raise PtxError(f"{self.program.name}: it does not end")

    def tick(self, members: np.ndarray | slice, epochs=None, clocks=None) -> None:
        """Threads have passed a barrier, of the block or of the warp."""
        if epochs is not None:
            self.epochs[members] = epochs
        if clocks is not None:
            self.clocks[members] = clocks
        self.keys = keys_of(self.epochs, self.clocks, self.ids)

    def _run_block(self, at: int, mask):
        """Where the same threads go on, and which, or (None, None) where others may come first."""
        steps, control = self.program.block_at(at)
        place = at
        try:
            for place, step in enumerate(steps, at):
                if mask is not None and step.members is not None:
                    mask = self._met(place, step.members(self), mask)
                    if mask is None:
                        return None, None
                    if mask.all():
                        mask = None
                step.run(self, mask)
            place = at + len(steps)
            if control is None:
                return self._go(place, mask)
            return self._controlled(control, place + 1, mask)
        except Fault as fault:
            block, thread = divmod(fault.place, self.block)
            self._fail(place, f"block {block + self.first}, thread {thread}: {fault}")

    def _fail(self, place: int, message: str):
        raise PtxError(f"{self.program.name}, {self.program.kernel.instructions[place].text!r}: {message}")

    def _go(self, place: int, mask):
        if mask is None:
            return place, None
        self._place[mask] = place
        return None, None

    def _chosen(self):
        """The threads that are first in the code among those that wait for nobody.

        One at an instruction that lets others go first comes when no others are left. A write that others may wait for comes late,
        so that a wait that is not there is missed; but before loads that spin, which are tried some times between two writes. Of
        several the thread that has waited longest comes first, with those beside it.
        """
        ready = self._status == _READY
        if not ready.any():
            self._fail_waiting()
        first = ready & ~self.program.yields[self._place]
        if first.any():
            at = int(self._place[first].min())
            mask = first & (self._place == at)
        else:
            writes = ready & self.program.writes[self._place]
            tries = ready & ~writes & (self._tries < _MOST_TRIES)
            some = next((x for x in (tries, writes) if x.any()), ready)
            at = self._place[np.where(some, self._went, np.iinfo(np.int64).max).argmin()]
            mask = ready & (self._place == at)
            self._went[mask] = self._went.max() + 1
            self._tries[mask] += 1
            if self.program.writes[at]:
                self._tries[:] = 0
        return at, None if mask.all() else mask

    def _fail_waiting(self):
        waiting = np.flatnonzero(self._status != _ENDED)[0]
        block, thread = divmod(int(waiting), self.block)
        at_barrier = self._status[waiting] == _AT_BARRIER
        what = "at a barrier that others do not reach" if at_barrier else "for lanes of its warp that do not come"
        # A thread at a barrier goes on behind it.
        place = self._place[waiting] - (1 if at_barrier else 0)
        self._fail(place, f"block {block + self.first}, thread {thread}: it waits {what}")

    def _met(self, place: int, members: np.ndarray, mask: np.ndarray) -> np.ndarray | None:
        """The threads at a warp's instruction in warps whose members are all there; the others wait."""
        mask = mask | ((self._status == _APART) & (self._place == place))
        missing = (members & ~mask).reshape(-1, WARP).any(1).repeat(WARP)
        apart, whole = mask & missing, mask & ~missing
        self._status[apart], self._place[apart] = _APART, place
        self._status[whole] = _READY
        return whole if whole.any() else None

    def _controlled(self, control: Control, after: int, mask):
        if control.kind in ("sync", "arrive"):
            return self._at_barrier(control, after, mask)
        if control.kind == "bra":
            taken = None if control.guard is None else control.guard(self)
            if taken is not None and mask is not None:
                taken = taken & mask
            count = self.threads if taken is None else np.count_nonzero(taken)
            if mask is None and count in (0, self.threads):
                return (control.target if count else after), None
            active = np.ones(self.threads, bool) if mask is None else mask
            self._place[active] = after
            self._place[active if taken is None else taken] = control.target
            return None, None
        leave = np.ones(self.threads, bool) if control.guard is None else control.guard(self)
        if mask is not None:
            leave = leave & mask
        self._place[slice(None) if mask is None else mask] = after
        self._status[leave] = _ENDED
        for number in np.unique(self._barrier[0, self._status == _AT_BARRIER]):
            self._release(int(number))
        return None, None

    def _at_barrier(self, control: Control, after: int, mask):
        number, count = control.barrier
        if mask is None and count in (None, self.block) and control.kind == "sync" and not self._arrived:
            # Of all blocks at once, each has an epoch of its own.
            epochs = self.epochs.reshape(-1, self.block).max(1) + 1
            self.tick(slice(None), epochs=epochs.repeat(self.block))
            self._learn(slice(None))
            return after, None
        mask = np.ones(self.threads, bool) if mask is None else mask
        self._place[mask] = after
        if control.kind == "arrive":
            for place in np.unique(self.places[mask]):
                these = mask & (self.places == place)
                arrived = self._arrived.setdefault((int(place), number), [0, 0])
                arrived[0] += np.count_nonzero(these)
                arrived[1] = max(arrived[1], int(self.epochs[these].max()))
            self.tick(mask, epochs=self.epochs[mask] + 1)
        else:
            self._status[mask] = _AT_BARRIER
            self._barrier[0, mask], self._barrier[1, mask] = number, count or 0
        self._release(number)
        return None, None

    def _release(self, number: int) -> None:
        """Let those go on at a barrier that all have reached."""
        waits = ((self._status == _AT_BARRIER) & (self._barrier[0] == number)).reshape(-1, self.block)
        arrived, epochs = np.zeros((2, len(waits)), np.int64)
        for (place, of), (threads, epoch) in self._arrived.items():
            if of == number:
                arrived[place], epochs[place] = threads, epoch
        expected = np.where(waits, self._barrier[1].reshape(waits.shape), 0).max(1)
        expected = np.where(expected > 0, expected, (self._status != _ENDED).reshape(waits.shape).sum(1))
        released = waits.any(1) & (waits.sum(1) + arrived >= expected)
        if not released.any():
            return
        for place in np.flatnonzero(released & (arrived > 0)):
            del self._arrived[int(place), number]
        these = waits & released[:, None]
        epochs = np.maximum(epochs, np.where(these, self.epochs.reshape(waits.shape), 0).max(1)) + 1
        self._learn(these.all(1))
        these = these.ravel()
        self._status[these] = _READY
        self.tick(these, epochs=epochs.repeat(self.block)[these])

    def _learn(self, places: np.ndarray | slice) -> None:
        """All threads of some blocks have passed a barrier."""
        if self.memory.order is not None:
            self.memory.order.pass_barrier(self.first + np.unique(self.places)[places])
