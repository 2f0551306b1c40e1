"""A parsed kernel made ready to run: every instruction a function of the machine and of the threads that take part."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import access, atomics, collectives
from .arithmetic import TABLE
from .memory import SharedMemory
from .parser import SIZES, Address, Instruction, Kernel, PtxError

DTYPES = {
    **{f"b{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"u{bits}": np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    "bf16": np.dtype("u2"),
    "f16x2": np.dtype("f2"),
    "pred": np.dtype(bool),
}
_SPECIAL = ("%tid", "%ntid", "%ctaid", "%nctaid", "%laneid", "%warpid")
# A thread of these waits for others, or goes on elsewhere.
_CONTROL = ("bra", "ret", "exit", "bar", "barrier")
_LIMIT = 1 << 32


class Step(NamedTuple):
    """An instruction; `members` gives (threads,) bool, which lanes must run it together, where it is a warp's."""

    run: Callable
    members: Callable | None


@dataclass(frozen=True)
class Control:
    """What ends a block of steps.

    Attributes:
        kind: "bra", "ret", "sync" or "arrive".
        guard: (machine) -> (threads,) bool, or None.
        target: of a branch.
        barrier: number, and threads that it waits for, or None for all of the block.
    """

    kind: str
    guard: Callable | None
    target: int = -1
    barrier: tuple[int, int | None] = (0, None)


class Program:
    """A kernel, its instructions as steps, made when they are first reached.

    Args:
        kernel: as parsed.
        like: a program most of whose instructions this one has too, or None: what it has made of them is used.
    """

    def __init__(self, kernel: Kernel, like: "Program | None" = None):
        self.kernel, self.name = kernel, kernel.name
        self.registers = {name: (slot, _held(kind)) for slot, (name, kind) in enumerate(kernel.registers.items())}
        self.dtypes = [_held(kind) for kind in kernel.registers.values()]
        self.variables, self.static_shared = _placed(kernel)
        self._parameters = _parameter_places(kernel)
        # Where a thread lets others go first, and where it only writes then; the last place is behind the code.
        self.yields = np.array([*map(atomics.is_strong, kernel.instructions), False])
        self.writes = self.yields & np.array([*(x.operation.startswith(("red.", "st.")) for x in kernel.instructions), False])
        self._leaders = {*kernel.labels.values(), *np.flatnonzero(self.yields)}
        self._units: dict[str, int] = {}
        self._blocks: dict[int, tuple[list[Step], Control | None]] = {}
        declared = kernel.registers, self.variables, kernel.parameters
        alike = like is not None and declared == (like.kernel.registers, like.variables, like.kernel.parameters)
        self._steps: dict[str, Step] = like._steps if alike else {}

    def unit(self, space: str) -> int:
        """Bytes of the smallest access to "global" or "shared" memory."""
        if space not in self._units:
            sizes = [access.bytes_of(x) for x in self.kernel.instructions if space in access.spaces(x.operation)]
            self._units[space] = min(sizes, default=16)
        return self._units[space]

    def block_at(self, start: int) -> tuple[list[Step], Control | None]:
        """The steps from a place to the next that a branch leads to, and what ends them if it is not that.

        Raises:
            PtxError: an instruction that is not known.
        """
        if start not in self._blocks:
            code, end = self.kernel.instructions, start
            while end < len(code) and not _is_control(code[end]) and (end == start or end not in self._leaders):
                end += 1
            if end == len(code):
                raise PtxError(f"{self.name}: its code has no end")
            for x in code[start:end]:
                if x.text not in self._steps:
                    self._steps[x.text] = self._known(self._step, x)
            steps = [self._steps[x.text] for x in code[start:end]]
            self._blocks[start] = steps, self._known(self._control, code[end]) if _is_control(code[end]) else None
        return self._blocks[start]

    def source(self, operand, kind: str) -> Callable:
        """(machine) -> an array, or a number, of a PTX type."""
        dtype, size = DTYPES[kind], SIZES.get(kind, 4)
        if not isinstance(operand, str):
            raise PtxError(f"{operand} is not expected")
        if operand in self.registers:
            return _register_source(*self.registers[operand], dtype, size)
        name, _, axis = operand.partition(".")
        if name in _SPECIAL:
            return lambda m: m.special[name].view(dtype) if axis in ("", "x") else np.full_like(m.special[name], name == "%ntid")
        places = self.variables | self._parameters
        number = places[operand] if operand in places else _number(operand)
        if kind == "pred":
            return lambda m: np.bool_(number)
        value = np.array(number % (1 << (8 * size)), f"u{size}")
        if kind == "f16x2":
            return lambda m: np.full(m.threads, value).view(dtype)
        constant = value.view(dtype)[()]
        return lambda m: constant

    def target(self, operand, kind: str) -> Callable:
        """(machine, value, mask): writes a register, for all threads where the mask is None."""
        if operand == "_":
            return lambda m, value, mask: None
        if operand not in self.registers:
            raise PtxError(f"{operand} is not a register")
        slot, held = self.registers[operand]
        wider = np.dtype(DTYPES[kind].kind.replace("b", "u") + str(held.itemsize)) if SIZES.get(kind, 4) < held.itemsize else None

        def write(m, value, mask):
            if value.ndim == 0:
                value = np.full(m.threads, value)
            if wider is not None:
                value = value.astype(wider)
            if value.dtype != held:
                value = value.view(held)
            m.registers[slot] = value if mask is None else np.where(mask, value, m.registers[slot])

        return write

    def address(self, operand) -> Callable:
        """(machine) -> (threads,) addresses, uint32 in shared memory and uint64 in global."""
        if not isinstance(operand, Address):
            raise PtxError(f"{operand} is not an address")
        if operand.base in self.registers:
            slot, held = self.registers[operand.base]
            offset = np.array(operand.offset % (1 << (8 * held.itemsize)), held)[()]
            return (lambda m: m.registers[slot] + offset) if operand.offset else (lambda m: m.registers[slot])
        base = self.variables[operand.base] if operand.base in self.variables else _number(operand.base)
        return lambda m: np.full(m.threads, base + operand.offset, np.uint32 if base < _LIMIT else np.uint64)

    def parameter_at(self, address: int, size: int) -> tuple[str, int]:
        """The parameter that has so many bytes at an address, and how many of its own lie before them."""
        for (name, bytes_), place in zip(self.kernel.parameters, self._parameters.values(), strict=True):
            if place <= address and address + size <= place + bytes_ and address % size == 0:
                return name, address - place
        raise PtxError(f"{self.name}: no parameter has {size} bytes at {address:#x}")

    def _known(self, make: Callable, x: Instruction):
        try:
            return make(x, self._guard(x))
        except (PtxError, LookupError, ValueError) as error:
            raise PtxError(f"{self.name}: {x.text!r} is not known to the interpreter: {error}") from error

    def _guard(self, x: Instruction) -> Callable | None:
        if x.guard is None:
            return None
        read = self.source(x.guard, "pred")
        return (lambda m: ~read(m)) if x.negated else read

    def _step(self, x: Instruction, guard: Callable | None) -> Step:
        # Most instructions: looked up before what takes an operation's name apart.
        made = None
        if x.operation not in TABLE:
            made = atomics.step(self, x) or access.step(self, x) or collectives.step(self, x)
        run, members = made or (self._arithmetic(x), None)
        return Step(run if guard is None else _guarded(run, guard), members)

    def _control(self, x: Instruction, guard: Callable | None) -> Control:
        kind, *rest = x.operation.split(".")
        if kind == "bra":
            return Control("bra", guard, target=self.kernel.labels[x.operands[0]])
        if kind in ("ret", "exit"):
            return Control("ret", guard)
        if guard is not None:
            raise PtxError("a barrier that depends on a predicate")
        kind = next(x for x in ("arrive", "sync") if x in rest)
        number, *count = (_number(operand) for operand in x.operands)
        return Control(kind, None, barrier=(number, count[0] if count else None))

    def _arithmetic(self, x: Instruction) -> Callable:
        if x.operation.startswith("mov.b") and any(isinstance(operand, tuple) for operand in x.operands):
            return self._pieces(x)
        operation = TABLE[x.operation]
        target, *sources = x.operands
        if x.operation == "lop3.b32":
            *sources, table = sources
            function = lambda a, b, c: operation.function(a, b, c, _number(table))  # noqa: E731
        else:
            function = operation.function
        read = [self.source(operand, kind) for operand, kind in zip(sources, operation.sources[: len(sources)], strict=True)]
        write = self.target(target, operation.result)
        if len(read) == 1:
            (one,) = read
            return lambda m, mask: write(m, function(one(m)), mask)
        if len(read) == 2:
            one, two = read
            return lambda m, mask: write(m, function(one(m), two(m)), mask)
        return lambda m, mask: write(m, function(*[of(m) for of in read]), mask)

    def _pieces(self, x: Instruction) -> Callable:
        """A register taken apart, or put together, its lowest piece first."""
        whole = "b" + x.operation.removeprefix("mov.b")
        into, of = x.operands
        count = len(into if isinstance(into, tuple) else of)
        part = f"b{8 * SIZES[whole] // count}"
        if isinstance(into, tuple):
            read, writes = self.source(of, whole), [self.target(operand, part) for operand in into]

            def take_apart(m, mask):
                parts = np.ascontiguousarray(np.broadcast_to(read(m), m.threads)).view(DTYPES[part]).reshape(m.threads, count)
                for i, write in enumerate(writes):
                    write(m, np.ascontiguousarray(parts[:, i]), mask)

            return take_apart
        reads, write = [self.source(operand, part) for operand in of], self.target(into, whole)

        def put_together(m, mask):
            parts = np.empty((m.threads, count), DTYPES[part])
            for i, read in enumerate(reads):
                parts[:, i] = read(m)
            write(m, parts.view(DTYPES[whole])[:, 0], mask)

        return put_together


def _is_control(x: Instruction) -> bool:
    return x.operation.split(".")[0] in _CONTROL and not x.operation.startswith("bar.warp")


def _guarded(run: Callable, guard: Callable) -> Callable:
    def guarded(m, mask):
        on = guard(m) if mask is None else guard(m) & mask
        count = np.count_nonzero(on)
        if count:
            run(m, None if count == m.threads else on)

    return guarded


def _register_source(slot: int, held: np.dtype, dtype: np.dtype, size: int) -> Callable:
    if held == dtype:
        return lambda m: m.registers[slot]
    if held.itemsize == size:
        return lambda m: m.registers[slot].view(dtype)
    if held.itemsize < size or held.kind == "b":
        raise PtxError(f"a register of {held.itemsize} bytes as an operand of {size}")
    narrow = np.dtype(f"u{size}")
    return lambda m: m.registers[slot].view(f"u{held.itemsize}").astype(narrow).view(dtype)


def _held(kind: str) -> np.dtype:
    """How a register's numbers are kept."""
    return np.dtype("u2") if kind == "f16" else DTYPES[kind]


def _number(text: str) -> int:
    """Of a literal, its bits where it is a float."""
    if text[:2] in ("0f", "0F", "0d", "0D"):
        return int(text[2:], 16)
    try:
        return int(text.removesuffix("U"), 0)
    except ValueError:
        raise PtxError(f"{text!r} is neither a register nor a number") from None


def _parameter_places(kernel: Kernel) -> dict[str, int]:
    """Addresses of the parameters in a space of their own, none behind another's end."""
    places, end = {}, SharedMemory.FIRST
    for name, size in kernel.parameters:
        places[name] = end
        end += -(-size // 16) * 16 + 16
    return places


def _placed(kernel: Kernel) -> tuple[dict[str, int], int]:
    """Addresses of shared variables, those of a launch's own size last, and bytes of the others."""
    places, end = {}, SharedMemory.FIRST
    for variable in sorted(kernel.shared, key=lambda x: x.size is None):
        end = -(-end // variable.align) * variable.align
        places[variable.name] = end
        end += variable.size or 0
    return places, end - SharedMemory.FIRST
