"""Instructions that the lanes of a warp run together: shuffles, votes, matrices, tensor-core products and the warp's barrier.

Which lane holds which number of a matrix is as the PTX ISA's figures have it. With g = lane / 4 and t = lane % 4, a register of two
16-bit numbers, or of one TF32 number, holds of

    left (16 x 16), 16 bits     rows g, g + 8, g, g + 8     columns 2t and 2t + 1, the last two registers 8 further
    left (16 x 8), 16 bits      rows g, g + 8               columns 2t and 2t + 1
    left (16 x 8), TF32         rows g, g + 8, g, g + 8     column t, the last two registers 4 further
    right (16 x 8), 16 bits     column g                    rows 2t and 2t + 1, the second register 8 further
    right (8 x 8), TF32         column g                    row t, the second register 4 further
    sums (16 x 8)               rows g, g, g + 8, g + 8     columns 2t, 2t + 1, 2t, 2t + 1
    left (8 x 4), float64       row g                       column t
    right (4 x 8), float64      column g                    row t
    sums (8 x 8), float64       row g                       columns 2t and 2t + 1
"""

import re
from collections.abc import Callable

import numpy as np

from .access import load
from .arithmetic import from_bfloat, tf32
from .memory import WARP, Fault
from .parser import Instruction, PtxError

_G, _T = np.divmod(np.arange(WARP), 4)


def step(program, x: Instruction) -> tuple[Callable, Callable] | None:
    """The instruction as a function, and what gives the lanes that must run it together, or None if it is none of these."""
    kind = x.operation.split(".")[0]
    if x.operation == "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64":
        return _multiply_doubles(program, x), _whole_warp
    if kind == "mma":
        return _multiply(program, x), _whole_warp
    if kind == "ldmatrix":
        return _load_matrices(program, x), _whole_warp
    if x.operation == "movmatrix.sync.aligned.m8n8.trans.b16":
        return _turn_matrix(program, x), _whole_warp
    if x.operation.startswith("shfl.sync."):
        return _shuffle(program, x), _named(program, x.operands[-1])
    if x.operation.startswith("vote.sync."):
        return _vote(program, x), _named(program, x.operands[-1])
    if x.operation.startswith("redux.sync."):
        return _reduce(program, x), _named(program, x.operands[-1])
    if x.operation == "bar.warp.sync":
        return _warp_barrier, _named(program, x.operands[0])
    return None


def _whole_warp(m) -> np.ndarray:
    return np.ones(m.threads, bool)


def _named(program, operand) -> Callable:
    """The lanes that a mask of bits names, where it is one number for all."""
    read = program.source(operand, "u32")

    def members(m):
        return np.broadcast_to(read(m) >> m.lane.astype(np.uint32) & np.uint32(1), m.threads) == 1

    return members


def _shuffle(program, x: Instruction) -> Callable:
    mode, target = x.operation.split(".")[2], x.operands[0]
    if mode not in ("up", "down", "bfly", "idx") or not x.operation.endswith(".b32"):
        raise PtxError("such a shuffle is not")
    target, _, inside = target.partition("|")
    write, read = program.target(target, "b32"), program.source(x.operands[1], "b32")
    by, clamp, members = (program.source(operand, "u32") for operand in x.operands[2:])
    write_inside = program.target(inside, "pred") if inside else None

    def run(m, mask):
        # The PTX ISA's own steps: a part of the warp, and the lane in it that a number comes from.
        step_, limits, lane = (np.broadcast_to(of, m.threads).astype(np.int64) for of in (by(m), clamp(m), m.lane))
        part, step_ = limits >> 8 & 31, step_ & 31
        highest, lowest = (lane & part) | (limits & 31 & ~part), lane & part
        source = {"up": lane - step_, "down": lane + step_, "bfly": lane ^ step_, "idx": lowest | (step_ & ~part)}[mode]
        there = source >= highest if mode == "up" else source <= highest
        source = np.arange(m.threads) - lane + np.where(there, source, lane)
        active = np.ones(m.threads, bool) if mask is None else mask
        gone = active & ~active[source]
        gone |= active & (members(m) >> source.astype(np.uint32) % np.uint32(WARP) & np.uint32(1) == 0)
        if gone.any():
            raise Fault(gone.argmax(), f"the number of lane {source[gone.argmax()] % WARP} is asked for, which takes no part")
        write(m, np.broadcast_to(read(m), m.threads)[source], mask)
        if write_inside:
            write_inside(m, there, mask)

    return run


def _reduce(program, x: Instruction) -> Callable:
    _, _, mode, kind = x.operation.split(".")
    if mode not in ("add", "min", "max") or kind not in ("s32", "u32"):
        raise PtxError("such a reduction is not")
    write, read = program.target(x.operands[0], kind), program.source(x.operands[1], kind)
    over = {"add": np.add, "min": np.minimum, "max": np.maximum}[mode]

    def run(m, mask):
        active = np.ones(m.threads, bool) if mask is None else mask
        numbers = np.broadcast_to(read(m), m.threads)
        limits = np.iinfo(numbers.dtype)
        nothing = {"add": 0, "min": limits.max, "max": limits.min}[mode]
        held = np.where(active, numbers, numbers.dtype.type(nothing)).reshape(-1, WARP)
        write(m, np.repeat(over.reduce(held, axis=1, dtype=numbers.dtype), WARP), mask)

    return run


def _vote(program, x: Instruction) -> Callable:
    mode = ".".join(x.operation.split(".")[2:])
    if mode not in ("ballot.b32", "any.pred", "all.pred"):
        raise PtxError("such a vote is not")
    write, read = program.target(x.operands[0], mode.split(".")[1]), program.source(x.operands[1], "pred")

    def run(m, mask):
        active = np.ones(m.threads, bool) if mask is None else mask
        votes = (np.broadcast_to(read(m), m.threads) & active).reshape(-1, WARP)
        if mode == "ballot.b32":
            result = (votes.astype(np.uint64) << np.arange(WARP, dtype=np.uint64)).sum(1).astype(np.uint32)
        else:
            result = votes.any(1) if mode == "any.pred" else (votes | ~active.reshape(-1, WARP)).all(1)
        write(m, result.repeat(WARP), mask)

    return run


def _warp_barrier(m, mask) -> None:
    active = np.ones(m.threads, bool) if mask is None else mask
    clocks = np.where(active, m.clocks, -1).reshape(-1, WARP).max(1).repeat(WARP) + 1
    m.tick(active, clocks=clocks[active])


def _load_matrices(program, x: Instruction) -> Callable:
    match = re.fullmatch(r"ldmatrix\.sync\.aligned\.m8n8\.x([124])(\.trans)?\.shared(?:::cta)?\.b16", x.operation)
    if match is None:
        raise PtxError("such a load of matrices is not")
    count, turned = int(match[1]), match[2] is not None
    into = x.operands[0] if isinstance(x.operands[0], tuple) else (x.operands[0],)
    writes, address = [program.target(operand, "b32") for operand in into], program.address(x.operands[1])

    def run(m, mask):
        active = np.ones(m.threads, bool) if mask is None else mask
        # Lanes 8 i to 8 i + 7 name the rows of matrix i.
        who = np.flatnonzero(active & (m.lane < 8 * count))
        rows = load(m, "shared", address(m)[who], 16, who)
        matrices = rows.view(np.uint16).reshape(-1, count, 8, 8)
        if turned:
            matrices = matrices.swapaxes(2, 3)
        parts = np.ascontiguousarray(matrices).reshape(-1, count, 64).view(np.uint32)
        for i, write in enumerate(writes):
            value = np.zeros(m.threads, np.uint32)
            value[active] = parts[:, i].ravel()
            write(m, value, mask)

    return run


def _turn_matrix(program, x: Instruction) -> Callable:
    write, read = program.target(x.operands[0], "b32"), program.source(x.operands[1], "b32")

    def run(m, mask):
        matrices = np.ascontiguousarray(read(m)).view(np.uint16).reshape(-1, 8, 8).swapaxes(1, 2)
        write(m, np.ascontiguousarray(matrices).reshape(-1).view(np.uint32), mask)

    return run


def _places(rows, columns, width: int) -> np.ndarray:
    """Where in a matrix's rows, one after another, stands what lane after lane holds."""
    return (np.stack(rows, 1) * width + np.stack(columns, 1)).ravel()


_PAIR = [2 * _T, 2 * _T + 1]
_SUMS = _places([_G, _G, _G + 8, _G + 8], _PAIR * 2, 8)
# Left and right: registers of a lane, and where their numbers stand.
_HALVES = {
    16: (
        _places([_G, _G, _G + 8, _G + 8] * 2, [*_PAIR * 2, *(x + 8 for x in _PAIR * 2)], 16),
        _places([*_PAIR, *(x + 8 for x in _PAIR)], [_G] * 4, 8),
    ),
    8: (_places([_G, _G, _G + 8, _G + 8], _PAIR * 2, 8), _places(_PAIR, [_G] * 2, 8)),
}
_TF32 = (_places([_G, _G + 8] * 2, [_T, _T, _T + 4, _T + 4], 8), _places([_T, _T + 4], [_G] * 2, 8))


def _multiply(program, x: Instruction) -> Callable:
    match = re.fullmatch(r"mma\.sync\.aligned\.m16n8k(8|16)\.row\.col\.f32\.(f16|bf16|tf32)\.\2\.f32", x.operation)
    if match is None:
        raise PtxError("such a product is not")
    depth, kind = int(match[1]), match[2]
    if kind == "tf32" and depth != 8:
        raise PtxError("such a product is not")
    left_places, right_places = _TF32 if kind == "tf32" else _HALVES[depth]
    writes = [program.target(operand, "f32") for operand in x.operands[0]]
    left, right = ([program.source(operand, "b32") for operand in operands] for operands in x.operands[1:3])
    sums = [program.source(operand, "f32") for operand in x.operands[3]]
    per_register = 1 if kind == "tf32" else 2
    if (len(left) * per_register, len(right) * per_register, len(sums)) != (len(left_places) // 32, len(right_places) // 32, 4):
        raise PtxError("other numbers of registers are expected")

    def numbers(m, reads):
        registers = np.empty((m.threads, len(reads)), np.uint32)
        for i, read in enumerate(reads):
            registers[:, i] = read(m)
        if kind == "tf32":
            return tf32(registers)
        halves = registers.view(np.uint16)
        return halves.view(np.float16).astype(np.float32) if kind == "f16" else from_bfloat(halves)

    def matrix(held, places, shape):
        whole = np.empty((len(held) // WARP, shape[0] * shape[1]), np.float32)
        whole[:, places] = held.reshape(len(whole), -1)
        return whole.reshape(-1, *shape)

    def run(m, mask):
        product = matrix(numbers(m, left), left_places, (16, depth)) @ matrix(numbers(m, right), right_places, (depth, 8))
        held = product.reshape(-1, 128)[:, _SUMS].reshape(m.threads, 4)
        for i, (write, before) in enumerate(zip(writes, [of(m) for of in sums], strict=True)):
            write(m, before + held[:, i], mask)

    return run


_DOUBLES = _places([_G], [_T], 4), _places([_T], [_G], 8), _places([_G, _G], _PAIR, 8)


def _multiply_doubles(program, x: Instruction) -> Callable:
    writes = [program.target(operand, "f64") for operand in x.operands[0]]
    reads = [[program.source(operand, "f64") for operand in operands] for operands in x.operands[1:]]

    def run(m, mask):
        matrices = []
        for read, places, shape in zip(reads, _DOUBLES, ((8, 4), (4, 8), (8, 8)), strict=True):
            whole = np.empty((m.threads // WARP, shape[0] * shape[1]))
            whole[:, places] = np.stack([np.broadcast_to(of(m), m.threads) for of in read], 1).reshape(len(whole), -1)
            matrices.append(whole.reshape(-1, *shape))
        left, right, sums = matrices
        held = (left @ right + sums).reshape(-1, 64)[:, _DOUBLES[2]].reshape(m.threads, 2)
        for i, write in enumerate(writes):
            write(m, np.ascontiguousarray(held[:, i]), mask)

    return run
