"""Instructions by which blocks wait for each other: atomics, fences, and loads and stores that the PTX ISA calls strong."""

from collections.abc import Callable

import numpy as np

from .access import threads_of
from .memory import among
from .parser import SIZES, Instruction, PtxError

_TYPES = {"ld": ("u32", "s32", "b32", "u64", "b64"), "atom": ("u32", "s32", "u64"), "red": ("u32", "s32", "u64")}
_TYPES["st"] = _TYPES["ld"]
_STRONG = {"relaxed", "acquire", "release", "acq_rel", "volatile"}
# Those of a block's own order nothing for others.
_SCOPES, _FENCES = {"cta", "gpu", "sys"}, {"gl", "gpu", "sys"}


def is_strong(x: Instruction) -> bool:
    """Whether it accesses memory that others access at once. A thread there lets others go first, since it may wait for them."""
    if x.operation.startswith(("ld.", "st.")):
        parts = x.operation.split(".")
        return "global" in parts and not _STRONG.isdisjoint(parts)
    return x.operation.startswith(("atom.", "red."))


def step(program, x: Instruction) -> tuple[Callable, None] | None:
    """The instruction as a function of the machine and of the threads that take part, or None if it is none of these."""
    parts = x.operation.split(".")
    if x.operation == "nanosleep.u32":
        return lambda m, mask: None, None
    if x.operation in ("membar.cta", "membar.gl", "membar.sys") or parts[:2] in (["fence", "acq_rel"], ["fence", "sc"]):
        return _fence if parts[-1] in _FENCES else lambda m, mask: None, None
    if not is_strong(x):
        return None
    if parts[-1] not in _TYPES[parts[0]] or "global" not in parts or set(parts[1:-1]) - {*_STRONG, *_SCOPES, "global", "add"}:
        raise PtxError("such an access is not")
    return _access(program, x, parts), None


def _fence(m, mask) -> None:
    if m.memory.order is not None:
        for thread in threads_of(m, mask):
            m.memory.order.fence(int(m.ids[thread]), m.epochs[thread])


def _access(program, x: Instruction, parts: list[str]) -> Callable:
    what, kind = parts[0], parts[-1]
    operands = list(x.operands)
    write = program.target(operands.pop(0), kind) if what in ("ld", "atom") else None
    address, size, dtype = program.address(operands.pop(0)), SIZES[kind], np.dtype(f"u{SIZES[kind]}")
    read = program.source(operands.pop(0), kind) if operands else None
    wide = "cta" not in parts
    acquires, releases = (wide and not {one, "acq_rel"}.isdisjoint(parts) for one in ("acquire", "release"))

    def run(m, mask):
        who, memory = threads_of(m, mask), m.memory
        with among(who):
            at = memory.find(address(m)[who], size, what != "ld")
            numbers = memory.strong(at, size, what != "st")
        given = None if read is None else np.broadcast_to(read(m), m.threads).view(dtype)[who]
        before = np.zeros(m.threads, dtype)
        # One thread after another, as a GPU has them, in some order.
        for i, (thread, place) in enumerate(zip(who, at // size, strict=True)):
            before[thread] = numbers[place]
            if what != "st":
                memory.order.read(int(at[i]), int(m.ids[thread]), acquires)
            if what != "ld":
                numbers[place] = given[i] if what == "st" else before[thread] + given[i]
                memory.order.write(int(at[i]), int(m.ids[thread]), m.epochs[thread], releases, what != "st")
        if write is not None:
            write(m, before, mask)

    return run
