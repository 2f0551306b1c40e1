"""The floor: the work that no implementation avoids (docs/cpu.md), at the fastest rates this machine shows in the run."""

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
    """An amount of work: multiply-add flops (two to a multiply-add), hyperbolic tangents, bytes read from memory."""

    flops: float
    tanh: float
    bytes: float = 0.0

    def plus(self, other: Work) -> Work:
        return Work(*(one + another for one, another in zip(self, other, strict=True)))

    def times(self, factor: float) -> Work:
        return Work(*(factor * amount for amount in self))


class Rates(NamedTuple):
    """What the machine gives a second, and whether matrix products and tanh run on separate units."""

    flops: float
    tanh: float
    bytes: float
    overlap: bool = False

    def faster(self, other: Rates) -> Rates:
        """The larger rate of each kind."""
        return Rates(*(max(one, another) for one, another in zip(self[:3], other[:3], strict=True)), self.overlap)

    def seconds(self, work: Work) -> float:
        """Least time for the work. Matrix products and tanh add up where they share the vector units; reading runs beside them."""
        parts = work.flops / self.flops, work.tanh / self.tanh
        return max(max(parts) if self.overlap else sum(parts), work.bytes / self.bytes)


def pair_work(m: float, n: float, width: int, hidden: int) -> Work:
    """One pair of m regions and n words: the contexts of both sides, V affinity Uᵀ, pooling, and (m + n)H tanh."""
    contexts = context_flops(m, n, hidden) + context_flops(n, m, hidden)
    return Work(contexts + 2 * m * n * width + 2 * (m + n) * width, (m + n) * hidden)


def context_flops(own: float, other: float, hidden: int) -> float:
    """One side of `own` rows: three products with the attention by association, or the Gram matrix of its rows and two products."""
    associated = 6 * own * other * hidden
    gram = 2 * own**2 * other + 2 * own * (own + other) * hidden
    return min(associated, gram)


def pairs_work(
    region_counts: Sequence[int], word_counts: Sequence[int], pairs: Sequence[tuple[int, int]] | None, width: int, hidden: int
) -> Work:
    """Sum of `pair_work` over real lengths; pairs None means every image with every caption."""
    if pairs is None:
        sides = Counter(region_counts).items(), Counter(word_counts).items()
        histogram = {(m, n): images * captions for m, images in sides[0] for n, captions in sides[1]}
    else:
        histogram = Counter((region_counts[image], word_counts[caption]) for image, caption in pairs)
    total = Work(0.0, 0.0)
    for (m, n), count in histogram.items():
        total = total.plus(pair_work(m, n, width, hidden).times(count))
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


def list_reading(
    region_counts: Sequence[int],
    word_counts: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    width: int,
    hidden: int,
    number_bytes: int,
) -> Work:
    """What a list of pairs with a projected gallery reads from memory when no cache holds any of it.

    Each image that the list names counts once, V with V Q1 and V Q4, each caption's words once, and the three matrices by
    which words are projected. An image that several queries name would count once for each only if no cache could keep it.
    """
    regions = sum(region_counts[image] for image in {image for image, _ in pairs})
    words = sum(word_counts[caption] for caption in {caption for _, caption in pairs})
    numbers = regions * (width + 2 * hidden) + words * width + width * (width + 2 * hidden)
    return Work(0.0, 0.0, float(number_bytes * numbers))


# Of a GPU whose clock torch does not tell: an H100's.
ASSUMED_CLOCK_KHZ = 1_980_000
MATRIX_SHAPES = ((512, 512, 512), (1024, 1024, 1024), (2304, 1024, 1024), (1024, 1024, 2048), (2048, 2048, 1024))
# Images of 36 regions whose projections are the products of our own kernels.
OWN_SIZES = (16, 64)
# Larger than the caches.
READ_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}


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
    """Measures matrix products, tanh and reading of a device, again and again, beside the kernels that it judges.

    Each is the fastest at hand, torch's or the one inside this package's kernels.

    On the CPU matrix products and tanh are taken in float32 for half-precision inputs, whose arithmetic is float32 there. On
    CUDA the tanh rate is not measured but computed: 16 a clock and multiprocessor, in parallel with the matrix units.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device = device
        if device.type == "cpu" and dtype != torch.float64:
            dtype = torch.float32
        self.dtype = dtype
        products = [self.library_product(*shape) for shape in MATRIX_SHAPES]
        if dtype == torch.float32 and device.type == "cpu":
            products += own_products()
        speeds = [max(self.matrix_rate(product) for _ in range(3)) for product in products]
        # Later samples keep to the two fastest, so that one costs little beside what it is compared with.
        self.products = [products[index] for index in sorted(range(len(speeds)), key=speeds.__getitem__)[-2:]]
        self.matrix_name = self.products[-1].name
        self.tanh_name, self.tanh, tanh = self.fastest_tanh()
        self.memory = torch.ones(READ_BYTES[device.type] // 4, device=device)
        self.read_name, self.read, reading = self.fastest_read()
        self.best = Rates(max(speeds), tanh, reading, overlap=device.type == "cuda")
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

    def fastest_tanh(self) -> tuple[str, Callable[[], float], float]:
        """The fastest float32/float64 tanh at hand: its name, a measurement of its rate, and the rate found."""
        if self.device.type == "cuda":
            properties = torch.cuda.get_device_properties(self.device)
            known = getattr(properties, "clock_rate", None)
            clock_khz = known or ASSUMED_CLOCK_KHZ
            rate = 16.0 * properties.multi_processor_count * clock_khz * 1e3
            name = f"computed: 16 a clock and multiprocessor at {clock_khz / 1e3:.0f} MHz{'' if known else ', assumed'}"
            return name, lambda: rate, rate
        # 512 KiB a thread stay in a core's second-level cache. A quarter of it showed half the rate: the call itself takes 7 us.
        values = torch.empty(131072 * torch.get_num_threads(), dtype=self.dtype).uniform_(-2, 2)
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
        return name, lambda: rate(candidates[name]), speeds[name]

    def fastest_read(self) -> tuple[str, Callable[[], object], float]:
        """The reduction by which torch goes through memory fastest: its name, a call, and the rate found."""
        table = self.memory.view(-1, 4096)
        candidates: dict[str, Callable[[], object]] = {
            "torch.sum": lambda: torch.sum(self.memory),
            "torch.amax": lambda: torch.amax(table, 1),
            "torch.linalg.vector_norm": lambda: torch.linalg.vector_norm(self.memory),
        }
        speeds = {name: max(self.read_rate(call) for _ in range(3)) for name, call in candidates.items()}
        name = max(speeds, key=speeds.__getitem__)
        return name, candidates[name], speeds[name]

    def read_rate(self, call: Callable[[], object]) -> float:
        start = self.clock()
        call()
        return 4 * self.memory.numel() / (self.clock() - start)

    def empty_caches(self) -> None:
        """Leave in the caches nothing of what was computed with."""
        torch.sum(self.memory)

    def sample(self) -> Rates:
        """The rates of this moment; `best` keeps the highest seen."""
        flops = max(self.matrix_rate(product) for product in self.products for _ in range(2))
        rates = Rates(flops, self.tanh(), self.read_rate(self.read), self.best.overlap)
        self.best = self.best.faster(rates)
        return rates
