"""How the Triton kernels are launched: `Kernels` of gpu/launch.py."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...core.gpu import aligned, multiprocessors
from ...core.gpu import limits as launches
from ...core.gpu.limits import whole
from ...core.gpu.plan import Items, Listed, Plan, Schedule, Wanted, parts_of, plan_schedule, size_of, sort_list
from ...core.triton.capture import refuse_in_capture
from ...core.triton.plan import plan_kernel, planning
from ...core.triton.product import product_kernel
from ..call import Options, Vectors
from ..gpu import limits
from ..gpu.launch import PlannedCall, Slots, shape_of
from . import configurations
from .attention import map_kernel
from .gradients import gradient_kernel
from .pairs import large_kernel
from .plan import SMALL_REGIONS, SMALL_WORDS, Class, Launches, Ranks, classes_of, rank
from .slots import pair_numbers
from .tiles import tile_kernel

# Bytes that programs have to keep what they know of the pairs they are at: it should stay in the L2 cache.
WORKSPACE_BYTES = 24 * 2**20
# Programs that take turns: more than any GPU runs of them at once. Those that begin late find no turn left.
MOST_PROGRAMS = 1024

refuse_in_capture(globals())

__all__ = ["differentiate", "fill", "maps", "plan", "plan_schedule", "product", "score_tiles", "slot_numbers"]


def precision_of(dtype: torch.dtype) -> str:
    """How tl.dot takes float32: as it is, unless torch's own float32 products may use TF32."""
    # torch.get_float32_matmul_precision raises once somebody has made the newer setting of one backend.
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"


def score_precision(dtype: torch.dtype) -> str:
    """`precision_of` for scores.

    Where nobody has chosen, three TF32 products stand for one of float32 (docs/triton.md); IEEE products are for who asks.
    """
    chosen = torch.backends.cuda.matmul.fp32_precision
    if dtype != torch.float32 or chosen == "ieee":
        return "ieee"
    return "tf32" if chosen == "tf32" else "tf32x3"


def gradient_precision(dtype: torch.dtype) -> str:
    """`precision_of` for derivatives, whose factors are float32: TF32 holds all that a half-precision number does."""
    return precision_of(dtype) if dtype == torch.float32 else "tf32"


def programs_of(device: torch.device) -> int:
    """Programs of a launch that scores: as many as run at once.

    An odd number: tiles of a list may begin at every second or fourth pair, and every program should meet some of these.
    """
    return configurations.PROGRAMS * multiprocessors(device) - 1


def plan(wanted: Wanted) -> Plan:
    half = wanted.regions.dtype != torch.float32
    made, programs, arguments, constants = planning(wanted, *((SMALL_REGIONS, SMALL_WORDS) if half else (0, 0)))
    plan_kernel[programs](*arguments, **constants)
    return made


def product(left: Tensor, right: Tensor, lengths: Tensor, item_rows: int) -> Tensor:
    # A small alignment is a difference of large terms, and where it stands alone its relative error goes to the gradients.
    exact = left.dtype == torch.float32 and precision_of(left.dtype) == "ieee"
    depth, columns = right.shape
    product = left.new_empty(len(left), columns)
    if product.numel() == 0 or depth == 0:
        return product.zero_()
    left, right = aligned(left), aligned(right)
    config = configurations.product(left.dtype, exact)
    step = launches.times(launches.product(item_rows, depth, columns, left.dtype))
    for first in range(0, len(lengths), step):
        some = slice(first * item_rows, (first + step) * item_rows)
        count = len(product[some])
        row_blocks, column_blocks = (-(-x // config.blocks[name]) for x, name in ((count, "ROW_BLOCK"), (columns, "COLUMN_BLOCK")))
        product_kernel[(row_blocks * column_blocks,)](
            left[some],
            right,
            product[some],
            lengths[first : first + step],
            count,
            columns,
            depth,
            item_rows,
            *left.stride(),
            *right.stride(),
            EXACT=exact,
            PRECISION=precision_of(left.dtype),
            **config.arguments(),
        )
    return product


class Scaled(NamedTuple):
    """The score vectors as `tile_kernel` multiplies by them.

    Attributes:
        halves: (2, H) float16, both vectors over a power of two.
        scales: (2,) float32, those powers.
    """

    halves: Tensor
    scales: Tensor


def _scaled(vectors: Vectors) -> Scaled:
    # They meet tanh in float16. A power of two takes them to its range, and what bfloat16 holds loses nothing there.
    both = torch.stack(vectors).float()
    exponents = torch.frexp(both.abs().amax(1)).exponent
    return Scaled(torch.ldexp(both, -exponents[:, None]).half(), torch.ldexp(torch.ones_like(both[:, 0]), exponents))


def score_tiles(call: PlannedCall, scores: Tensor) -> bool:
    """Every pair, so that nothing is left out."""
    V, U, vectors, *_ = call
    half = V.features.dtype != torch.float32
    regions, words, _ = call.plan
    listed = sort_list(call.plan)
    classes = classes_of(regions, words, (V.features.shape[1], U.features.shape[1]), half)
    ranks = None if listed is None else rank(listed, len(V), classes)
    sides = Sides(*(aligned(x) for x in (V.features, V.products, U.features, U.products)))
    scoring = Scoring(call, sides, regions, words, listed, ranks, scores)
    scaled = _scaled(vectors) if any(each.small for each in classes) else None
    for each in classes:
        if each.small:
            scoring.score_small(each, scaled)
        else:
            scoring.score_large(each)
    return False


class Sides(NamedTuple):
    """Features and products of both sides, aligned."""

    regions: Tensor
    region_products: Tensor
    words: Tensor
    word_products: Tensor


class Scoring(NamedTuple):
    """One call of `score_tiles`: what its launches share."""

    call: PlannedCall
    sides: Sides
    regions: Items
    words: Items
    listed: Listed | None
    ranks: Ranks | None
    scores: Tensor

    def score_small(self, kind: Class, scaled: Scaled) -> None:
        """Pairs of a class of which a program takes several at once."""
        config = configurations.tiles(*kind.sizes)
        together = config.blocks["TOGETHER"]
        # A tile may hold one pair of a list.
        images, captions = self.scores.shape if self.listed is None else (1, together * len(self.scores))
        launches = self._launches(images * -(-captions // together), together * self._pair_seconds(kind))
        workspace = self.scores.new_empty(launches.programs * 2 * together * kind.sizes[0] * kind.sizes[1])
        regions, tail = parts_of(kind.sizes[0])
        for number, programs in launches.grids():
            tile_kernel[(programs,)](
                *self.sides,
                *scaled.halves,
                scaled.scales,
                *self._places(),
                self.regions.order if self.listed is None else self.ranks.ranks,
                workspace,
                self.scores,
                *self._piece(kind, launches, number),
                REGIONS=regions,
                TAIL=tail,
                WORDS=kind.sizes[1],
                **self._compiled_for(),
                **config.arguments(),
            )

    def score_large(self, kind: Class) -> None:
        """Pairs of any other class."""
        (m, n), words, dtype = kind.rows, kind.sizes[1], self.sides.regions.dtype
        precision, gram = score_precision(dtype), configurations.gram(dtype, words)
        stride = whole(m, 16)
        # What a program keeps of its pair: S; Ĉ and R̂; Hᵘ; norms, g, and the logits of regions in two places.
        cells, gram_cells, numbers = stride * n, words * words if gram else 0, 3 * stride + 2 * n
        slots = max(1, WORKSPACE_BYTES // (4 * (cells + numbers) + dtype.itemsize * (2 * cells + gram_cells)))
        launches = self._launches(self.scores.numel(), self._pair_seconds(kind), slots)
        own = [(cells, torch.float32), (2 * cells, dtype), (gram_cells, dtype), (numbers, torch.float32)]
        workspace = [self.scores.new_empty(launches.programs * size, dtype=of) for size, of in own]
        for number, programs in launches.grids():
            large_kernel[(programs,)](
                *self.sides,
                *map(aligned, self.call.vectors),
                *self._places(),
                *workspace,
                self.scores,
                *self._piece(kind, launches, number),
                stride,
                n,
                GRAM=gram,
                HALF=dtype != torch.float32,
                WORDS=words,
                PRECISION=precision,
                **self._compiled_for(),
                **configurations.large(dtype, precision, words).arguments(),
            )

    def _launches(self, count: int, seconds: float, most: int | None = None) -> Launches:
        """For so many tiles or pairs that take such seconds, `most` of them at once."""
        programs = min(count, programs_of(self.scores.device), most or count)
        size = limits.of_blocks(seconds, programs, configurations.PROGRAMS)
        # Kernels count a launch's in 32 bits.
        return Launches(count, min(size, count, 2**31 - 1), programs)

    def _pair_seconds(self, kind: Class) -> float:
        shape = shape_of(self.call)._replace(regions=kind.rows[0], words=kind.rows[1])
        dtype = self.sides.regions.dtype
        exact = dtype == torch.float32 and score_precision(dtype) == "ieee"
        return limits.in_triton(shape, kind.small, exact, self.listed is not None)

    def _places(self) -> tuple[Tensor, ...]:
        """Lengths, and what says which pairs there are."""
        regions, words, listed = self.regions, self.words, self.listed
        of_list = (regions.order,) * 3 if listed is None else (self.call.pairs, listed.order, self.ranks.starts)
        return regions.lengths, words.lengths, regions.order, regions.starts, words.order, words.starts, *of_list

    def _piece(self, kind: Class, launches: Launches, number: int) -> tuple[int, ...]:
        """Which of a call's pairs a launch takes, and where their rows and scores lie."""
        bucket = kind.word_bucket if self.listed is None else kind.number
        score_row = self.scores.stride(0) if self.listed is None else 0
        rows = self.sides.regions.shape[1], self.sides.words.shape[1]
        return *kind.region_buckets, bucket, number, launches.size, score_row, *rows

    def _compiled_for(self) -> dict[str, int]:
        """Of both kernels."""
        width, hidden = self.sides.regions.shape[2], len(self.call.vectors.region_score)
        options = self.call.options
        return {"LISTED": self.listed is not None, "COSINE": options.cosine, **_constants(options, width, hidden)}


def _constants(options: Options, width: int, hidden: int) -> dict[str, int]:
    """What every kernel of pairs is compiled for."""
    return {"INTER": options.inter, "INTRA": options.intra, "WIDTH": width, "HIDDEN": hidden}


def slot_numbers(call: PlannedCall, gradient: bool) -> int:
    (m, width), n = call.V.features.shape[1:], call.U.features.shape[1]
    return pair_numbers(m, n, width, gradient)


def fill(slots: Slots, first: int, count: int) -> None:
    V, U, vectors, pairs, *_ = slots.call
    config = configurations.maps(slots.rows[0], _differentiated_in(slots))
    step = launches.times(_derivatives(slots).pair)
    for start in range(0, count, step):
        map_kernel[(min(step, count - start),)](
            *map(aligned, (V.features, V.products, U.products, *vectors)),
            *(slots.regions.lengths, slots.words.lengths, pairs, slots.scratch[start:]),
            *(len(V), len(U), first + start, *slots.rows, slots.numbers),
            **_compiled_for(slots),
            **config.arguments(),
        )


def _differentiated_in(slots: Slots) -> str:
    # TF32 products of so many regions spill registers.
    return "ieee" if slots.rows[0] > 128 else gradient_precision(slots.call.V.features.dtype)


def _compiled_for(slots: Slots) -> dict[str, int | str]:
    """What kernels with slots are compiled for."""
    rows = {"REGIONS": size_of(slots.rows[0]), "WORDS": size_of(slots.rows[1])}
    hidden = len(slots.call.vectors.region_score)
    return {**_constants(slots.call.options, slots.width, hidden), **rows, "PRECISION": _differentiated_in(slots)}


def _derivatives(slots: Slots) -> limits.Derivatives:
    """Seconds of a pair: rows come in whole blocks."""
    shape = shape_of(slots.call)
    return limits.derivatives(shape._replace(regions=size_of(shape.regions), words=size_of(shape.words)), tiled=False)


def differentiate(slots: Slots, schedule: Schedule, grad: Tensor, sums: tuple[Tensor, ...]) -> None:
    slots.reserve(grad.numel())
    V, U, vectors, _, options, *_ = slots.call
    config = configurations.gradients(slots.rows[0], _differentiated_in(slots))
    hidden = len(vectors.region_score)
    of_width, of_hidden = (-(-x // config.blocks[b]) for x, b in ((slots.width, "WIDTH_SUMS"), (hidden, "HIDDEN_SUMS")))
    tasks = (len(V) + len(U)) * (of_width + (of_hidden if options.inter or options.intra else 0))
    # A list may have one item's pairs only.
    most = limits.most_pairs(_derivatives(slots), max(grad.shape), slots.count, tasks)
    firsts = range(0, grad.numel(), most)
    turns = torch.zeros(len(firsts), 2, dtype=torch.int64, device=grad.device)
    for first, own in zip(firsts, turns, strict=True):
        gradient_kernel[(min(min(most, slots.count) + tasks, MOST_PROGRAMS),)](
            *map(aligned, (V.features, V.products, U.features, U.products, *vectors)),
            *(slots.regions.lengths, slots.words.lengths),
            *(schedule.keys, schedule.order, schedule.count, schedule.image_starts, schedule.by_caption, schedule.caption_starts),
            *(grad, slots.scratch, own, *sums),
            *(len(V), len(U), first, first + most, slots.count, *slots.rows, slots.numbers),
            COSINE=options.cosine,
            **_compiled_for(slots),
            **config.arguments(),
        )


def maps(slots: Slots, count: int) -> tuple[Tensor, ...]:
    m, n = slots.rows
    numbers = slots.scratch[:count].split([m * n, *[m] * 4, *[n] * 4], dim=1)
    A, (row_norm, _, f, _), (column_norm, _, g, _) = numbers[0].unflatten(1, (m, n)), numbers[1:5], numbers[5:]
    P = A.relu()
    return f, g, A, P / column_norm[:, None, :], P / row_norm[:, :, None]
