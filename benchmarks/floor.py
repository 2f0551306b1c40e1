"""The floor: the arithmetic that no implementation avoids, at the rates this machine shows in the same run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

import caan_kernels as ck


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
# Images of 36 regions whose projections are the products of our own kernels.
OWN_SIZES = (16, 64)


class MatrixProduct(NamedTuple):
    """A matrix product, by torch or by this package."""

    name: str
    flops: float
    call: Callable[[], object]


def own_products() -> list[MatrixProduct]:
    """Those inside this package's CPU kernels, where they can run; a library does not know every processor's best instructions."""
    if not ck.available_backends()["cpu"][0]:
        return []
    width = 1024
    square, vector = torch.randn(width, width) / width**0.5, torch.randn(width)
    weights = ck.ContextAttentionWeights(*[square] * 5, vector, vector)
    items = [torch.randn(size, 36, width) for size in OWN_SIZES]
    return [
        MatrixProduct("caan_kernels.project_regions", 4.0 * 36 * len(regions) * width**2, partial(project, regions, weights))
        for regions in items
    ]


@torch.no_grad()
def project(regions: Tensor, weights: ck.ContextAttentionWeights) -> ck.ProjectedRegions:
    return ck.project_regions(regions, weights)


class Probe:
    """Measures matrix-product and tanh rates of a device, again and again, beside the kernels that it judges.

    Each is the fastest at hand, torch's or the one inside this package's kernels.

    On the CPU both are taken in float32 for half-precision inputs, whose arithmetic is float32 there. On CUDA the tanh
    rate is not measured but computed: 16 a clock and multiprocessor, in parallel with the matrix units.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        if device.type == "cpu" and dtype != torch.float64:
            dtype = torch.float32
        self.dtype = dtype
        self.best = Rates(0.0, 0.0, overlap=device.type == "cuda")
        products = [self.library_product(*shape) for shape in MATRIX_SHAPES]
        if dtype == torch.float32 and device.type == "cpu":
            products += own_products()
        speeds = [max(self.matrix_rate(product) for _ in range(3)) for product in products]
        # Later samples keep to the two fastest, so that one costs little beside what it is compared with.
        self.products = [products[index] for index in sorted(range(len(speeds)), key=speeds.__getitem__)[-2:]]
        self.matrix_name = self.products[-1].name
        self.tanh_name, self.tanh = self.fastest_tanh()
        self.sample()

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def library_product(self, m: int, n: int, k: int) -> MatrixProduct:
        scale = 1 if self.device.type == "cpu" else 8
        a, b = (torch.randn(*shape, device=self.device).to(self.dtype) for shape in ((m * scale, k), (k, n * scale)))
        result = torch.mm(a, b)
        return MatrixProduct("torch.mm", 2.0 * result.numel() * k, lambda: torch.mm(a, b, out=result))

    def matrix_rate(self, product: MatrixProduct) -> float:
        # One product of a GPU is not much longer than its launch.
        repeats = 4 if self.device.type == "cuda" else 1
        start = self.clock()
        for _ in range(repeats):
            product.call()
        return repeats * product.flops / (self.clock() - start)

    def fastest_tanh(self) -> tuple[str, Callable[[], float]]:
        """The fastest float32/float64 tanh at hand."""
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
        flops = max(self.matrix_rate(product) for product in self.products for _ in range(2))
        rates = Rates(flops, self.tanh(), self.best.overlap)
        self.best = self.best.faster(rates)
        return rates
