"""The floor: the arithmetic that no implementation avoids, at the rates this machine shows in the same run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Work(NamedTuple):
    """An amount of arithmetic: multiply-add flops (two to a multiply-add) and hyperbolic tangents."""

    flops: float
    tanh: float

    def plus(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.tanh + other.tanh)

    def times(self, factor: float) -> Work:
        return Work(self.flops * factor, self.tanh * factor)


class Rates(NamedTuple):
    """What the machine gives: flops and tangents a second, and whether the two run on separate units."""

    flops: float
    tanh: float
    overlap: bool = False

    def faster(self, other: Rates) -> Rates:
        """The larger rate of each kind."""
        return Rates(max(self.flops, other.flops), max(self.tanh, other.tanh), self.overlap)

    def seconds(self, work: Work) -> float:
        """Least time for the work: the sum where matrix products and tanh share the vector units, else the larger."""
        parts = work.flops / self.flops, work.tanh / self.tanh
        return max(parts) if self.overlap else sum(parts)


def pair_work(m: float, n: float, width: int, hidden: int) -> Work:
    """The design's floor of one pair of m regions and n words: 4mnD + 8mnH flops, (m + n)H tanh."""
    return Work(4 * m * n * width + 8 * m * n * hidden, (m + n) * hidden)


def strict_pair_work(m: float, n: float, width: int, hidden: int) -> Work:
    """What association leaves when V affinity Uᵀ is one product and pooling direct: 2mnD + 8mnH + 2(m + n)D flops."""
    return Work(2 * m * n * width + 8 * m * n * hidden + 2 * (m + n) * width, (m + n) * hidden)


PairWork = Callable[[float, float, int, int], Work]


def pairs_work(
    region_counts: Sequence[int],
    word_counts: Sequence[int],
    pairs: Sequence[tuple[int, int]] | None,
    width: int,
    hidden: int,
    per_pair: PairWork = pair_work,
) -> Work:
    """Sum of `per_pair` over real lengths; pairs None means every image with every caption."""
    if pairs is None:
        sides = Counter(region_counts).items(), Counter(word_counts).items()
        histogram = {(m, n): images * captions for m, images in sides[0] for n, captions in sides[1]}
    else:
        histogram = Counter((region_counts[image], word_counts[caption]) for image, caption in pairs)
    total = Work(0.0, 0.0)
    for (m, n), count in histogram.items():
        total = total.plus(per_pair(m, n, width, hidden).times(count))
    return total


def projection_work(regions: int, words: int, width: int, hidden: int) -> Work:
    """Products that each item needs once: two of D x H for a region, one of D x D and two of D x H for a word."""
    return Work(2.0 * regions * width * 2 * hidden + 2.0 * words * width * (width + 2 * hidden), 0.0)


def training_work(forward: Work, projection: Work, with_gradient: Work) -> Work:
    """One training step: every pair forward, pairs with a gradient twice again for backward, projections three times.

    Args:
        forward: all pairs of the batch, forward.
        projection: the batch's projections, forward.
        with_gradient: forward work of the pairs whose score receives a gradient. Recomputing them is not counted.
    """
    return forward.plus(projection.times(3)).plus(Work(2 * with_gradient.flops, 0.0))


# Of a GPU whose clock torch does not tell: an H100's.
ASSUMED_CLOCK_KHZ = 1_980_000
MATRIX_SHAPES = ((512, 512, 512), (1024, 1024, 1024), (2304, 1024, 1024), (1024, 1024, 2048), (2048, 2048, 1024))


class Probe:
    """Measures matrix-product and tanh rates of a device, again and again, beside the kernels that it judges.

    On the CPU both are taken in float32 for half-precision inputs, whose arithmetic is float32 there. On CUDA the tanh
    rate is not measured but computed: 16 a clock and multiprocessor, in parallel with the matrix units.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        if device.type == "cpu" and dtype != torch.float64:
            dtype = torch.float32
        self.dtype = dtype
        scale = 1 if device.type == "cpu" else 8
        self.operands = [
            (torch.randn(m * scale, k, device=device).to(dtype), torch.randn(k, n * scale, device=device).to(dtype))
            for m, n, k in MATRIX_SHAPES
        ]
        self.results = [torch.mm(a, b) for a, b in self.operands]
        self.best = Rates(0.0, 0.0, overlap=device.type == "cuda")
        speeds = [max(self.matrix_rate(index) for _ in range(3)) for index in range(len(self.operands))]
        # Later samples keep to the two fastest shapes, so that one costs little beside what it is compared with.
        self.shapes = sorted(range(len(speeds)), key=speeds.__getitem__)[-2:]
        self.tanh_name, self.tanh = self.fastest_tanh()
        self.sample()

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def matrix_rate(self, index: int) -> float:
        a, b = self.operands[index]
        # One product of a GPU is not much longer than its launch.
        repeats = 4 if self.device.type == "cuda" else 1
        start = self.clock()
        for _ in range(repeats):
            torch.mm(a, b, out=self.results[index])
        return repeats * 2.0 * a.shape[0] * a.shape[1] * b.shape[1] / (self.clock() - start)

    def fastest_tanh(self) -> tuple[str, Callable[[], float]]:
        """The fastest float32/float64 tanh at hand: torch's, or the one inside this package's kernels."""
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            known = getattr(properties, "clock_rate", None)
            clock_khz = known or ASSUMED_CLOCK_KHZ
            rate = 16.0 * properties.multi_processor_count * clock_khz * 1e3
            name = f"computed: 16 a clock and multiprocessor at {clock_khz / 1e3:.0f} MHz{'' if known else ', assumed'}"
            return name, lambda: rate
        # 32,768 numbers are the least that torch gives to a thread, and stay in a core's second-level cache.
        values = torch.empty(32768 * torch.get_num_threads(), dtype=self.dtype).uniform_(-2, 2)
        scratch = values.clone()
        candidates: dict[str, Callable[[], Tensor]] = {"torch.tanh": lambda: torch.tanh(values, out=scratch)}
        own = getattr(torch.ops.caan_kernels, "tanh_", None)
        if own is not None:
            candidates["caan_kernels::tanh_"] = lambda: own(scratch)

        def rate(call: Callable[[], Tensor], batches: int = 4, repeats: int = 4) -> float:
            best = float("inf")
            for _ in range(batches):
                start = time.perf_counter()
                for _ in range(repeats):
                    call()
                best = min(best, time.perf_counter() - start)
            return repeats * values.numel() / best

        speeds = {name: rate(call) for name, call in candidates.items()}
        name = max(speeds, key=speeds.__getitem__)
        return name, lambda: rate(candidates[name])

    def sample(self) -> Rates:
        """The rates of this moment; `best` keeps the highest seen."""
        flops = max(self.matrix_rate(index) for index in self.shapes for _ in range(2))
        rates = Rates(flops, self.tanh(), self.best.overlap)
        self.best = self.best.faster(rates)
        return rates
