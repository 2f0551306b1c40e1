"""The parts of a multiprocessor that an instruction keeps busy, and for how long.

Two numbers bound a pair: with full overlap the largest sum over all phases of one pipe; without, the sum over phases of each one's
largest pipe. Phases are what barriers part: products, weights, contexts.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

MULTIPROCESSORS, GIGAHERTZ = 132, 1.755

# Clocks of a multiprocessor for a warp's instruction, by pipe. Rates of benchmarks/gpu_rates.cu on an H200
# (results/cuda_nvidia_h200.json, "rates"), whose multiprocessor is an H100's. Those marked * are of one instruction that was
# measured; NVIDIA's throughput tables give the others the same rate. Those marked + were not measured: they move as many bytes a
# clock as the instruction beside them, since L1 and shared memory are one unit.
RATES: list[tuple[str, str, float]] = [
    (r"HMMA\.16816", "tensor", 16 * 8 * 16 / 1355.5),
    (r"HMMA\.1688\.F32\.TF32", "tensor", 16 * 8 * 8 / 677.78),
    (r"HMMA\.1688", "tensor", 16 * 8 * 8 / 1011.2),
    (r"MUFU", "special", 32 / 15.998),
    (r"LDSM\S*\.2", "shared", 256 / 125.92),  # + four matrices
    (r"LDSM", "shared", 512 / 125.92),
    (r"LDGSTS", "shared", 512 / 123.22),  # + STS.128
    (r"LDS\.128", "shared", 512 / 126.19),
    (r"(LDS|STS)\.64", "shared", 256 / 126.19),  # + LDS.128
    (r"LDS|STS", "shared", 128 / 63.977),
    (r"SHFL|MOVM", "shared", 32 / 32.021),
    (r"LDG\.E\.128|STG\.E\.128", "shared", 512 / 126.19),  # + LDS.128
    (r"LDG|STG|LD|ST", "shared", 128 / 63.977),  # + LDS
    (r"F2FP|LOP3|SHF|PRMT|SEL|FSEL|ISETP|FSETP|FMNMX|IMNMX|IADD3|LEA|IABS|VIADD|PLOP3|R2P|P2R", "integer", 32 / 63.434),  # *
    (r"FFMA|FMUL|FADD|IMAD|HFMA2|MOV", "multiply", 32 / 124.83),  # *
]
ISSUE = 1 / 4
# Bytes a clock and multiprocessor: 8.1 TB/s from the L2 cache.
L2_BYTES = 8.1e12 / MULTIPROCESSORS / (GIGAHERTZ * 1e9)

Pipes = Counter  # clocks of a multiprocessor by the pipe's name


@functools.cache
def pipe_of(text: str) -> tuple[str, float] | None:
    # What never runs: the assembler puts it before asynchronous copies.
    if text.startswith("@!PT"):
        return None
    operation = re.sub(r"^@\S+\s+", "", text)
    return next(((pipe, clocks) for pattern, pipe, clocks in RATES if re.match(rf"(?:{pattern})\b", operation)), None)


def count(code: Iterable[tuple[int, str]], times: Callable[[int], float]) -> Pipes:
    """Clocks of one warp, each instruction as often as `times` says of its address."""
    clocks: Pipes = Counter()
    for address, text in code:
        runs = times(address)
        clocks["issue"] += runs * ISSUE
        if found := pipe_of(text):
            clocks[found[0]] += runs * found[1]
    return clocks


def scaled(clocks: Pipes, by: float) -> Pipes:
    return Counter({pipe: value * by for pipe, value in clocks.items()})


class Estimate(NamedTuple):
    """Nanoseconds of a pair.

    Attributes:
        overlapped: all phases side by side: the largest pipe.
        apart: phases one after another: the largest pipe of each.
        phases: clocks of a multiprocessor, by phase and pipe.
    """

    overlapped: float
    apart: float
    phases: dict[str, dict[str, float]]


def estimate_of(phases: dict[str, Pipes]) -> Estimate:
    total: Pipes = sum(phases.values(), Counter())
    to_ns = 1 / MULTIPROCESSORS / GIGAHERTZ
    apart = sum(max(clocks.values()) for clocks in phases.values())
    rounded = {phase: {pipe: round(value, 1) for pipe, value in clocks.items()} for phase, clocks in phases.items()}
    return Estimate(max(total.values()) * to_ns, apart * to_ns, rounded)
