"""Instructions that read and write memory: ld, st and cp.async."""

from collections.abc import Callable

import numpy as np

from .memory import among
from .parser import SIZES, Instruction, PtxError

_SPACES = ("global", "shared", "param")
_ACCESSES = ("ld.", "st.", "cp.", "ldmatrix.", "atom.", "red.")
# What an access may be hinted with; only time depends on it.
_HINTS = {"nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt", "volatile", "weak"}


def spaces(operation: str) -> tuple[str, ...]:
    """The kinds of memory that an instruction touches."""
    if not operation.startswith(_ACCESSES):
        return ()
    parts = operation.split(".")
    return tuple(x for x in _SPACES if x in parts or f"{x}::cta" in parts)


def bytes_of(x: Instruction) -> int:
    """Bytes that a thread accesses at once."""
    parts = x.operation.split(".")
    if parts[0] == "cp":
        return int(x.operands[2], 0)
    return 16 if parts[0] == "ldmatrix" else _vector(parts) * SIZES[parts[-1]]


def step(program, x: Instruction) -> tuple[Callable, None] | None:
    """The instruction as a function of the machine and of the threads that take part, or None if it is none of these."""
    if x.operation.startswith("cp.async"):
        return _copy(program, x), None
    parts = x.operation.split(".")
    if parts[0] not in ("ld", "st"):
        return None
    named = spaces(x.operation)
    known = {*_HINTS, *_SPACES, "shared::cta", "v2", "v4"}
    if len(named) != 1 or any(part not in known and not part.startswith(("L1::", "L2::")) for part in parts[1:-1]):
        raise PtxError("such an access is not")
    if parts[0] == "ld":
        return (_load_parameter if named == ("param",) else _load)(program, x, named[0], parts), None
    return _store(program, x, named[0], parts), None


def _vector(parts: list[str]) -> int:
    return 4 if "v4" in parts else 2 if "v2" in parts else 1


def _list(operand) -> tuple:
    return operand if isinstance(operand, tuple) else (operand,)


def _load_parameter(program, x, space, parts):
    kind, count = parts[-1], _vector(parts)
    writes = [program.target(operand, kind) for operand in _list(x.operands[0])]
    named, size = x.operands[1], SIZES[kind]
    dtype = np.dtype(("i" if kind[0] == "s" else "f" if kind[0] == "f" else "u") + str(size))
    if named.base in dict(program.kernel.parameters):
        address = None
    elif named.base in program.registers:
        address = program.address(named)
    else:
        raise PtxError(f"{named.base} is not a parameter")

    def run(m, mask):
        if address is None:
            name, offset = named.base, named.offset
        else:
            places = np.unique(address(m)[threads_of(m, mask)])
            if len(places) > 1:
                raise PtxError(f"{program.name}: {x.text!r} reads parameters at several places, which is not known")
            name, offset = program.parameter_at(int(places[0]), count * size)
        values = np.frombuffer(m.parameters[name], dtype, count, offset)
        for write, value in zip(writes, values, strict=True):
            write(m, np.full(m.threads, value), mask)

    return run


def _load(program, x, space, parts):
    kind, count = parts[-1], _vector(parts)
    writes = [program.target(operand, kind) for operand in _list(x.operands[0])]
    address, size = program.address(x.operands[1]), count * SIZES[kind]
    dtype = np.dtype(("i" if kind[0] == "s" else "f" if kind[0] == "f" else "u") + str(SIZES[kind]))

    def run(m, mask):
        who = threads_of(m, mask)
        values = load(m, space, address(m)[who], size, who).view(dtype)
        for i, write in enumerate(writes):
            value = np.ascontiguousarray(values[:, i])
            if mask is not None:
                value, some = np.zeros(m.threads, dtype), value
                value[who] = some
            write(m, value, mask)

    return run


def _store(program, x, space, parts):
    kind, count = parts[-1], _vector(parts)
    address, size = program.address(x.operands[0]), SIZES[kind]
    reads = [program.source(operand, kind) for operand in _list(x.operands[1])]

    def run(m, mask):
        who = threads_of(m, mask)
        values = np.empty((m.threads, count), f"u{size}")
        for i, read in enumerate(reads):
            values[:, i] = read(m).view(f"u{size}")
        with among(who):
            memory = m.memory if space == "global" else m.shared
            memory.store(_find(m, space, address(m)[who], count * size, who, True), values[who].view(np.uint8), m.keys[who])

    return run


def _copy(program, x: Instruction):
    operation = x.operation.removeprefix("cp.async.")
    if operation == "commit_group":
        return _close_copies
    if operation in ("wait_group", "wait_all"):
        still = int(x.operands[0]) if operation == "wait_group" else 0
        everything = operation == "wait_all"
        return lambda m, mask: _arrive(m, mask, still, everything)
    if operation.split(".")[0] not in ("ca", "cg") or len(x.operands) > 4:
        raise PtxError("such a copy is not")
    target, source, size = program.address(x.operands[0]), program.address(x.operands[1]), int(x.operands[2], 0)
    real = program.source(x.operands[3], "u32") if len(x.operands) == 4 else lambda m: np.uint32(size)

    def run(m, mask):
        who = threads_of(m, mask)
        to, source_, bytes_ = target(m)[who], source(m)[who], np.broadcast_to(real(m), m.threads)[who]
        values = np.zeros((len(who), size), np.uint8)
        # What is not copied is 0, and not read.
        for count in np.unique(bytes_[bytes_ > 0]):
            some = bytes_ == count
            values[some, :count] = load(m, "global", source_[some], int(count), who[some])
        with among(who):
            at = _find(m, "shared", to, size, who)
            m.shared.expect(at, size, m.keys[who])
        m.copies.append((at, values, who, m.closed[who]))

    return run


def _close_copies(m, mask):
    m.closed[threads_of(m, mask)] += 1


def _arrive(m, mask, still: int, everything: bool):
    """Copies that the active threads wait for are in memory; `still` groups of each may be under way."""
    left = []
    for at, values, who, groups in m.copies:
        due = np.ones(len(who), bool) if everything else groups < m.closed[who] - still
        if mask is not None:
            due &= mask[who]
        if due.any():
            with among(who[due]):
                m.shared.store(at[due], values[due], m.keys[who[due]])
        if not due.all():
            left.append((at[~due], values[~due], who[~due], groups[~due]))
    m.copies = left


def threads_of(m, mask) -> np.ndarray:
    """Numbers of the threads that take part."""
    return m.everyone if mask is None else np.flatnonzero(mask)


def load(m, space: str, addresses, size: int, who: np.ndarray) -> np.ndarray:
    """(n, size) uint8 that threads `who` read."""
    with among(who):
        memory = m.memory if space == "global" else m.shared
        return memory.load(_find(m, space, addresses, size, who), size, m.keys[who])


def _find(m, space: str, addresses, size: int, who, writes: bool = False) -> np.ndarray:
    if space == "global":
        return m.memory.find(addresses, size, writes)
    return m.shared.find(addresses, size, m.places[who])
