"""Memory that knows of each of its units whether it was written, and who accessed it after which barrier.

A unit is the least that a kernel's instructions access at once. A thread's key has its epoch, how many barriers of the block it
has passed, its clock, how many of the warp, and its number in the grid: an access is ordered before another if it is the same
thread's, or of the same block in an earlier epoch, or of the same warp at an earlier clock, or of a block's epoch that its own
block knows (order.py).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np

from .order import Order
from .parser import PtxError

# Places of a key's parts.
_CLOCK, _EPOCH = 31, 47
THREAD = (1 << _CLOCK) - 1
WARP = 32
# What a unit holds: nothing, a number, or what a copy will bring that nobody has waited for.
EMPTY, WRITTEN, COMING = 0, 1, 2
# Accesses of 16 bytes move as one number of numpy's widest type.
_WHOLE = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.complex128}
# How far apart readers of a unit are.
_ALONE, _IN_WARP, _IN_BLOCK, _IN_GRID = range(4)


class Fault(PtxError):
    """What one of several threads did wrong; `place` is where it stands among them."""

    def __init__(self, place: int, message: str):
        super().__init__(message)
        self.place = int(place)


@contextmanager
def among(threads: np.ndarray) -> Iterator[None]:
    """The place of a fault inside is among these threads; outside it is that of the thread."""
    try:
        yield
    except Fault as fault:
        raise Fault(threads[fault.place], str(fault)) from None


class Buffer(NamedTuple):
    """Global memory that a launch may use.

    Attributes:
        name: for messages.
        address: where the kernel sees it.
        memory: (bytes,) uint8, the memory itself.
        written: (bytes,) bool, what holds something, or None for all.
        writable: whether the kernel may write to it.
    """

    name: str
    address: int
    memory: np.ndarray
    written: np.ndarray | None
    writable: bool


def keys_of(epochs: np.ndarray, clocks: np.ndarray, threads: np.ndarray) -> np.ndarray:
    """int64 keys.

    Raises:
        PtxError: a thread passes more barriers than a key counts.
    """
    if max(epochs.max(), clocks.max()) >= 1 << 16:
        raise PtxError("a thread passes more barriers than are counted here")
    return (epochs << _EPOCH) | (clocks << _CLOCK) | threads


class Memory:
    """Bytes and their shadow; offsets are checked before they come here.

    Args:
        name: for messages.
        size: in bytes.
        unit: bytes of the smallest access, a power of two.
        block: threads of a block.
        replicated: whether several threads may do the same at once, as Triton has them: write one number, and read a number from
            global memory that one of them uses, and maybe changes.
    """

    # Whether no other block accesses what one does.
    of_one_block = False

    def __init__(self, name: str, size: int, unit: int, block: int, replicated: bool = False):
        size = -(-size // 16) * 16
        self.name, self.unit, self.block, self.replicated = name, unit, block, replicated
        self.data = np.full(size, 0xFF, np.uint8)
        self.state = np.zeros(size // unit, np.uint8)
        self.writer = np.full(size // unit, -1, np.int64)
        self.reader = np.full(size // unit, -1, np.int64)
        self.spread = np.zeros(size // unit, np.uint8)
        self._views = {bytes_: self.data.view(kind) for bytes_, kind in _WHOLE.items()}

    def load(self, at: np.ndarray, size: int, keys: np.ndarray) -> np.ndarray:
        """(n, size) uint8 at offsets (n,), multiples of `size`, for threads with keys (n,)."""
        units = self._units(at, size)
        self.see_written(units)
        self.see_read(units, keys[:, None])
        return self._views[size][at // size].view(np.uint8).reshape(-1, size)

    def store(self, at: np.ndarray, values: np.ndarray, keys: np.ndarray) -> None:
        """Write (n, size) uint8."""
        size = values.shape[1]
        units = self._units(at, size)
        self.see_write(units, keys[:, None])
        whole, view = np.ascontiguousarray(values).view(_WHOLE[size])[:, 0], self._views[size]
        view[at // size] = whole
        self.state[units] = WRITTEN
        last = self.writer[units]
        if (last == keys[:, None]).all():
            return
        # Lanes of a warp may write the same number at once.
        apart = self._relation(last, keys[:, None]) > (_IN_BLOCK if self.replicated else _IN_WARP)
        if apart.any():
            self._race(np.argwhere(apart)[0], units, last, "writes", "wrote")
        differs = (view[at // size].view(np.uint8).reshape(-1, size) != values).any(1)
        if differs.any():
            place = differs.argmax()
            self._fail(place, at[place], "is written at once by two threads, with other numbers")

    def expect(self, at: np.ndarray, size: int, keys: np.ndarray) -> None:
        """A copy has begun that will write here: until it is waited for, the memory holds nothing."""
        units = self._units(at, size)
        self.see_write(units, keys[:, None])
        self.state[units] = COMING

    def see_written(self, units: np.ndarray) -> None:
        state = self.state[units]
        if (state != WRITTEN).any():
            place, column = np.argwhere(state != WRITTEN)[0]
            coming = state[place, column] == COMING
            what = "is read while a copy to it is not waited for" if coming else "is read and was never written"
            self._fail(place, units[place, column] * self.unit, what)

    def see_read(self, units: np.ndarray, keys: np.ndarray) -> None:
        """Reads: after a write they need a barrier; readers are kept for the next write."""
        self._see_order(self.writer[units], units, keys, "reads", "wrote")
        before = self.reader[units]
        self.reader[units] = keys
        spread = None
        # A reader before a barrier of the block's is forgotten, since what follows the barrier follows it.
        if not self._forgotten(before, keys):
            relation = np.maximum(self._relation(before, keys), self.spread[units])
            passed = (before < 0) | (self._ordered(before, keys, relation) & (relation < _IN_GRID))
            spread = np.where(passed, _ALONE, relation)
        last = self.reader[units]
        if (last != keys).any():
            relation = self._relation(last, keys)
            spread = relation if spread is None else np.maximum(spread, relation)
        self.spread[units] = _ALONE
        if spread is not None and spread.any():
            np.maximum.at(self.spread, units, spread.astype(np.uint8))

    def see_write(self, units: np.ndarray, keys: np.ndarray) -> None:
        """Writes: after a write or a read of another thread they need a barrier."""
        self._see_order(self.writer[units], units, keys, "writes", "wrote")
        reader, spread = self.reader[units], self.spread[units]
        self._see_order(reader, units, keys, "writes", "read")
        if spread.any():
            # Of several readers the last alone is known by name.
            relation = self._relation(reader, keys)
            early = (reader >> _EPOCH < keys >> _EPOCH) | (relation == _IN_GRID)
            within = (spread == _IN_WARP) & (reader >> _CLOCK < keys >> _CLOCK) & (relation <= _IN_WARP)
            late = self._late(units, keys, spread == _IN_GRID) | ((spread > _ALONE) & (spread < _IN_GRID) & ~early & ~within)
            if late.any():
                self._race(np.argwhere(late)[0], units, reader, "writes", "read, and others,")
        self.writer[units] = keys

    def _late(self, units, keys, spread) -> np.ndarray:
        """Where among units that several blocks have read one of them may read when it is written."""
        return spread

    def _see_order(self, before, units, keys, now: str, then: str) -> None:
        if self._forgotten(before, keys):
            return
        wrong = (before >= 0) & ~self._ordered(before, keys, self._relation(before, keys))
        if wrong.any():
            self._race(np.argwhere(wrong)[0], units, before, now, then)

    def _forgotten(self, before, keys) -> bool:
        """Whether there were no accesses before, or only ones of the same block in earlier epochs."""
        if self.of_one_block:
            return bool((before < keys >> _EPOCH << _EPOCH).all())
        return before.max(initial=-1) < 0

    def _ordered(self, before, keys, relation) -> np.ndarray:
        of_block = (relation <= _IN_BLOCK) & (before >> _EPOCH < keys >> _EPOCH)
        of_warp = (relation <= _IN_WARP) & (before >> _CLOCK < keys >> _CLOCK)
        return (relation == _ALONE) | of_block | of_warp

    def _relation(self, before, keys) -> np.ndarray:
        differs = (before ^ keys) & THREAD
        apart = (differs > 0).astype(np.uint8)
        apart += differs >= WARP
        # As many threads to a block as a power of two have numbers that differ by less.
        if self.block & (self.block - 1) == 0:
            apart += differs >= self.block
        else:
            apart += (before & THREAD) // self.block != (keys & THREAD) // self.block
        return apart

    def _units(self, at: np.ndarray, size: int) -> np.ndarray:
        first = (at // self.unit)[:, None]
        return first if size == self.unit else first + np.arange(size // self.unit)

    def _race(self, found, units, before, now: str, then: str) -> None:
        place, column = found
        block, thread = divmod(int(before[place, column] & THREAD), self.block)
        what = f"is a race: it {now} what thread {thread} of block {block} {then}, and no barrier is in between"
        self._fail(place, units[place, column] * self.unit, what)

    def _fail(self, place, at, what: str) -> None:
        raise Fault(place, f"{self.describe(int(at))} {what}")

    def describe(self, at: int) -> str:
        """A byte in words."""
        return f"byte {at} of {self.name} memory"


class SharedMemory(Memory):
    """Shared memory of several blocks, one after another.

    Args:
        blocks: how many.
        size: what a block has, from address `FIRST` on.
        unit, block, replicated: as above.
    """

    of_one_block = True
    # Where a block's own part begins; what lies before is the system's.
    FIRST = 1024

    def __init__(self, blocks: int, size: int, unit: int, block: int, replicated: bool = False):
        self.size = -(-size // 16) * 16
        super().__init__("shared", max(1, blocks * self.size), unit, block, replicated)

    def find(self, addresses: np.ndarray, size: int, blocks: np.ndarray) -> np.ndarray:
        """Offsets of accesses of `size` bytes by threads of `blocks`, their places among those here."""
        at = addresses.astype(np.int64) - self.FIRST
        see_aligned(addresses, size)
        outside = (at < 0) | (at + size > self.size)
        if outside.any():
            place = outside.argmax()
            raise Fault(place, f"byte {at[place]} of shared memory is out of bounds: the block has {self.size}")
        return at + blocks * self.size

    def describe(self, at: int) -> str:
        return f"byte {at % self.size} of shared memory"


class GlobalMemory(Memory):
    """The buffers of a launch, copied; `leave` copies back what may have been written.

    Args:
        buffers: what there is.
        unit, block, replicated: as above.
    """

    def __init__(self, buffers: Sequence[Buffer], unit: int, block: int, replicated: bool = False):
        self.buffers = sorted(buffers, key=lambda x: x.address)
        # Each keeps its alignment, whatever that is.
        starts, end = [], 0
        for buffer in self.buffers:
            starts.append(end + (buffer.address - end) % 256)
            end = starts[-1] + len(buffer.memory)
        super().__init__("global", max(1, end), unit, block, replicated)
        self._addresses = np.array([x.address for x in self.buffers], np.int64)
        self._sizes = np.array([len(x.memory) for x in self.buffers], np.int64)
        self._starts = np.array(starts, np.int64)
        self._writable = np.array([x.writable for x in self.buffers], bool)
        filled = np.zeros(len(self.data), bool)
        for buffer, start in zip(self.buffers, starts, strict=True):
            self.data[start : start + len(buffer.memory)] = buffer.memory
            filled[start : start + len(buffer.memory)] = True if buffer.written is None else buffer.written
        self.state[:] = filled.reshape(-1, unit).all(1)
        self.order: Order | None = None

    def keep(self, order: Order) -> None:
        """From here on blocks wait for each other: accesses of several are no race where it orders them."""
        self.order = order
        self._is_strong = np.zeros(len(self.state), bool)
        # By block, 1 more than the epoch of its last read since a write.
        self._read_in = np.zeros((len(self.state), len(order.known)), np.uint16)

    def strong(self, at: np.ndarray, size: int, reads: bool) -> np.ndarray:
        """The whole memory as numbers, for strong accesses at offsets, which are no race among each other."""
        units = self._units(at, size)
        if reads:
            self.see_written(units)
        self._see_alike(units, (self.writer[units] < 0) & (self.reader[units] < 0))
        self._is_strong[units] = True
        self.state[units] = WRITTEN
        return self._views[size]

    def find(self, addresses: np.ndarray, size: int, writes: bool = False) -> np.ndarray:
        """Offsets of accesses of `size` bytes."""
        see_aligned(addresses, size)
        addresses = addresses.astype(np.int64)
        if not self.buffers:
            raise Fault(0, "global memory is accessed, and the launch has none")
        which = np.maximum(np.searchsorted(self._addresses, addresses, "right") - 1, 0)
        inside = addresses - self._addresses[which]
        outside = (inside < 0) | (inside + size > self._sizes[which])
        if outside.any():
            place = outside.argmax()
            buffer, at = self.buffers[which[place]], int(inside[place])
            raise Fault(place, f"byte {at} of {buffer.name} is out of bounds: it has {len(buffer.memory)}")
        if writes and not self._writable[which].all():
            place = (~self._writable[which]).argmax()
            raise Fault(place, f"{self.buffers[which[place]].name} is written, and is not among what the launch may write")
        return inside + self._starts[which]

    def see_read(self, units: np.ndarray, keys: np.ndarray) -> None:
        if self.replicated:
            self._see_order(self.writer[units], units, keys, "reads", "wrote")
            return
        super().see_read(units, keys)
        if self.order is not None:
            self._see_alike(units, ~self._is_strong[units])
            self._read_in[units, (keys & THREAD) // self.block] = (keys >> _EPOCH) + 1

    def see_write(self, units: np.ndarray, keys: np.ndarray) -> None:
        super().see_write(units, keys)
        if self.order is not None:
            self._see_alike(units, ~self._is_strong[units])
            # What follows this write follows what was before it.
            self.reader[units], self.spread[units], self._read_in[units] = -1, _ALONE, 0

    def _see_alike(self, units: np.ndarray, alike: np.ndarray) -> None:
        if not alike.all():
            place, column = np.argwhere(~alike)[0]
            self._fail(place, units[place, column] * self.unit, "is accessed by strong instructions, as atomics are, and by others")

    def _late(self, units, keys, spread) -> np.ndarray:
        if self.order is None or not spread.any():
            return spread
        late, (rows, columns) = spread.copy(), np.nonzero(spread)
        blocks = (keys[rows, 0] & THREAD) // self.block
        known = self.order.known[blocks]
        known[np.arange(len(rows)), blocks] = keys[rows, 0] >> _EPOCH
        late[rows, columns] = (self._read_in[units[rows, columns]] > known).any(1)
        return late

    def _ordered(self, before, keys, relation) -> np.ndarray:
        ordered = super()._ordered(before, keys, relation)
        if self.order is None or ordered.all():
            return ordered
        blocks, then = (np.where(x < 0, 0, x & THREAD) // self.block for x in (keys, before))
        return ordered | ((relation == _IN_GRID) & (self.order.known[blocks, then] > before >> _EPOCH))

    def leave(self) -> None:
        for buffer, start in zip(self.buffers, self._starts, strict=True):
            if buffer.writable:
                buffer.memory[:] = self.data[start : start + len(buffer.memory)]

    def describe(self, at: int) -> str:
        which = int(np.searchsorted(self._starts, at, "right")) - 1
        return f"byte {at - self._starts[which]} of {self.buffers[which].name}"


def see_aligned(addresses: np.ndarray, size: int) -> None:
    wrong = addresses & addresses.dtype.type(size - 1)
    if wrong.any():
        place = (wrong != 0).argmax()
        raise Fault(place, f"address {int(addresses[place]):#x} is misaligned: expected a multiple of {size}")
