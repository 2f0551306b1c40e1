"""The CUDA C++ backend: the kernels of csrc/context_attention/cuda, launched as gpu/launch.py asks (docs/cuda.md)."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.cuda import plan, plan_schedule, product
from ..core.gpu import aligned, multiprocessors, stream_of
from ..core.gpu.limits import steps, times
from ..core.gpu.plan import SMALLEST, Listed, Schedule, size_of, sizes_up_to, sort_list
from ..core.namespace import ops as _ops
from ..core.records import Written, flatten
from ..core.registration import define
from ..core.tracing import constant_while_traced
from .call import Options, Vectors
from .gpu import limits
from .gpu.launch import PlannedCall, Slots, shape_of

__all__ = ["differentiate", "fill", "maps", "plan", "plan_schedule", "product", "score_rest", "score_tiles", "slot_numbers"]

# Panels of both sides' rows lie in shared memory: what every GPU since compute capability 8.0 has of it.
MOST_ROWS = 340
_TOGETHER = f"at most {MOST_ROWS} regions and words together"

# Regions of an image and words of a caption that lie in a tile, in half precision and in float32
# (csrc/context_attention/cuda/kernels.h).
MOST_REGIONS = 64
MOST_WORDS = 32
SINGLE_REGIONS = 40
SINGLE_WORDS = 16
# Words of a caption that tensor cores score with a block for each pair, in half precision and in float32.
MOST_LARGE_WORDS = 128
MOST_SINGLE_WORDS = 64
MOST_TILED_ROWS = 2**32 - 1

# Words of a caption, padding included, up to which tensor cores differentiate, in half precision and in float32.
MOST_GRADIENT_WORDS = 112
MOST_SINGLE_GRADIENT_WORDS = 80
# bfloat16 numbers that stand for one that these kernels make (csrc/context_attention/cuda/kernels.h, Parts).
MADE_PARTS = {torch.float16: 2, torch.bfloat16: 2, torch.float32: 3}

# Images of a launch of tiles, of which blocks that follow each other share captions, and a multiple of the captions of every block.
BAND, CAPTIONS = 32, 24
# Blocks of pair.cu that share a multiprocessor.
SCORING_BLOCKS = 4
# Columns that a block sums up of an item's gradients, on tensor cores and in float32 arithmetic.
TILED_COLUMNS, COLUMNS = 64, 32


class Sides(NamedTuple):
    """Both sides as kernels take them, lengths of every item among them."""

    regions: Tensor
    region_products: Tensor
    words: Tensor
    word_products: Tensor
    vectors: Vectors
    region_lengths: Tensor
    word_lengths: Tensor


class PairLaunch(NamedTuple):
    """`Pairs` and the arguments of `score_pairs` in csrc/context_attention/cuda/kernels.h."""

    sides: Sides
    scores: Written
    scratch: Written
    pairs: Tensor | None
    first: int
    count: int
    score_row: int
    launch_pairs: int
    rest: bool
    options: Options
    stream: int


class LargeLaunch(NamedTuple):
    """`Pairs` and the arguments of `score_large`."""

    sides: Sides
    scores: Written
    scratch: Written
    pairs: Tensor | None
    score_row: int
    blocks: int
    launch_pairs: int
    options: Options
    stream: int


class TileLaunch(NamedTuple):
    """`Tiles` and the arguments of `score_tiles`."""

    sides: Sides
    scores: Written
    word_order: Tensor
    word_starts: Tensor
    pairs: Tensor | None
    order: Tensor | None
    keys: Tensor | None
    score_row: int
    blocks: int
    launch_images: int
    bucket: int
    strips: int
    options: Options
    stream: int


class GradientLaunch(NamedTuple):
    """`Schedule`, `Sums` and the arguments of `differentiate`."""

    sides: Sides
    score_gradients: Tensor
    scratch: Written
    turns: Written
    keys: Tensor
    order: Tensor
    count: Tensor
    image_starts: Tensor
    by_caption: Tensor
    caption_starts: Tensor
    of_regions: Written
    of_region_products: Written
    of_words: Written
    of_word_products: Written
    of_region_score: Written
    of_word_score: Written
    first: int
    most: int
    tiled: bool
    options: Options
    stream: int


# Launches, not operators: they write into what they are given and are called by the operators' implementation only.
define("cuda_score_pairs", PairLaunch, "()")
define("cuda_score_large", LargeLaunch, "()")
define("cuda_score_tiles", TileLaunch, "()")
define("cuda_differentiate", GradientLaunch, "()")


def score_tiles(call: PlannedCall, scores: Tensor) -> bool:
    V, U = call.V, call.U
    if not _on_tensor_cores(call) or (_single(call) and call.options.cosine):
        return True
    most_regions, most_words = (SINGLE_REGIONS, SINGLE_WORDS) if _single(call) else (MOST_REGIONS, MOST_WORDS)
    words, listed = call.plan.words, sort_list(call.plan)
    sides = _copied_sides(call)
    for bucket, size in enumerate(words.sizes):
        if size > most_words:
            continue
        for part in _tile_parts(call, listed, bucket, size):
            launch = TileLaunch(
                sides,
                scores,
                words.order,
                part.word_starts,
                call.pairs,
                *((None,) * 2 if part.listed is None else (part.listed.order, part.listed.keys)),
                score_row=0 if listed is not None else scores.stride(0),
                blocks=multiprocessors(scores.device),
                launch_images=part.images,
                bucket=part.bucket,
                strips=size // SMALLEST,
                options=call.options,
                stream=stream_of(scores),
            )
            _ops.cuda_score_tiles(*flatten(launch))
    return V.features.shape[1] > most_regions or U.features.shape[1] > most_words


class TilePart(NamedTuple):
    """The captions of a launch, from word_starts[bucket] to the next, and at most how many images; or places of a sorted list."""

    word_starts: Tensor
    bucket: int
    images: int
    listed: Listed | None = None


def _tile_parts(call: PlannedCall, listed: Listed | None, bucket: int, size: int) -> Iterator[TilePart]:
    starts, captions = call.plan.words.starts, len(call.U)
    regions, _, *rest = shape_of(call)
    shape = limits.Shape(min(regions, MOST_REGIONS), size, *rest)
    if listed is not None:
        most = times(limits.listed_tile(shape))
        count = listed.keys.shape[0]
        for first in range(0, count, most):
            yield TilePart(starts, bucket, 0, listed if count <= most else Listed(*(x[first : first + most] for x in listed)))
        return
    most, images = times(limits.tile(shape)), min(BAND, len(call.V))
    step = max(CAPTIONS, most // images // CAPTIONS * CAPTIONS)
    if captions > step:
        # How many captions a bucket has, only the device knows.
        edges = starts[bucket] + step * torch.arange(steps(captions, step) + 1, device=starts.device)
        edges = torch.minimum(edges, starts[bucket + 1])
        yield from (TilePart(edges, part, images) for part in range(len(edges) - 1))
    else:
        yield TilePart(starts, bucket, most // captions)


def _copied_sides(call: PlannedCall) -> Sides:
    V, U, (regions, words, _) = call.V, call.U, call.plan
    tensors = (aligned(x) for x in (V.features, V.products, U.features, U.products))
    return Sides(*tensors, call.vectors, regions.lengths, words.lengths)


def _on_tensor_cores(call: PlannedCall) -> bool:
    """Whether tensor cores score such a call: rows are counted in 32 bits and copied 16 bytes at a time."""
    features = call.V.features
    (images, region_rows, width), (captions, word_rows, _) = features.shape, call.U.features.shape
    rows = max(images * region_rows, captions * word_rows)
    widths = copied(width, call.vectors.region_score.shape[0], features.dtype)
    return not exact(features.dtype) and widths and rows < MOST_TILED_ROWS


def exact(dtype: torch.dtype) -> bool:
    """Whether products are IEEE's: in float32, for who asks torch for them. Else several on tensor cores stand for one."""
    return dtype == torch.float32 and _asked_for_exact()


# Where a graph was traced before somebody asked for them, `_check_panels` refuses what they do not take.
@constant_while_traced
def _asked_for_exact() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "ieee"


def _single(call: PlannedCall) -> bool:
    return call.V.features.dtype == torch.float32


def _fours(count: int) -> int:
    return -(-count // 4) * 4


def _parts(regions: int, words: int) -> list[int]:
    """Sizes of what lies in a slot before derivatives (csrc/context_attention/cuda/kernels.h, Slot)."""
    return [regions * _fours(words)] * 5 + [_fours(regions)] * 4 + [_fours(words)] * 4


def slot_numbers(call: PlannedCall, gradient: bool) -> int:
    (m, width), n = call.V.features.shape[1:], call.U.features.shape[1]
    parts = MADE_PARTS[call.V.features.dtype] if gradient and _differentiated_on_tensor_cores(call) else 0
    return pair_numbers(m, n, width, gradient=gradient, parts=parts)


def pair_numbers(regions: int, words: int, width: int, *, gradient: bool, parts: int = 0) -> int:
    """A pair's float32 numbers in scratch memory; for derivatives on tensor cores with `parts` of a made number."""
    if parts:
        regions, words = (-(-x // SMALLEST) * SMALLEST for x in (regions, words))
    numbers = sum(_parts(regions, words))
    if gradient:
        numbers += 5 * regions * _fours(words) + 2 * _fours(width)
    # Ten matrices again, so many bfloat16 numbers a cell (TiledShape).
    return numbers + 5 * parts * regions * words


def _differentiated_on_tensor_cores(call: PlannedCall) -> bool:
    most = MOST_SINGLE_GRADIENT_WORDS if _single(call) else MOST_GRADIENT_WORDS
    return not exact(call.V.features.dtype) and call.U.features.shape[1] <= most


def score_rest(slots: Slots, scores: Tensor) -> None:
    on_tensor_cores = _on_tensor_cores(slots.call)
    if on_tensor_cores:
        _score_large(slots, scores)
    if not on_tensor_cores or slots.rows[1] > most_words(slots.call.V.features.dtype):
        _check_panels(slots)
        slots.reserve(scores.numel())
        _score_pairs(slots, 0, scores.numel(), scores, slots.scratch, rest=on_tensor_cores)


def _score_large(slots: Slots, scores: Tensor) -> None:
    call, (m, n) = slots.call, slots.rows
    blocks = multiprocessors(scores.device)
    single = _single(call)
    # What the blocks of every multiprocessor want, in slots of csrc/context_attention/cuda/large.h for the longest caption.
    strips, region_strips = size_of(min(n, most_words(call.V.features.dtype))) // SMALLEST, -(-m // SMALLEST)
    per_block, factor = (5 * 256, 256) if single else (3 * 256, 128)
    numbers = region_strips * (strips * per_block + 32) + strips * strips * factor
    most = max(1, min(_large_blocks(SMALLEST, single) * blocks, slots.most_bytes // (4 * numbers)))
    launch = LargeLaunch(
        _copied_sides(call),
        scores,
        scores.new_empty(most * numbers),
        call.pairs,
        score_row=scores.stride(0) if call.pairs is None else 0,
        blocks=blocks,
        launch_pairs=_large_pairs(call, most),
        options=call.options,
        stream=stream_of(scores),
    )
    _ops.cuda_score_large(*flatten(launch))


def _large_blocks(words: int, single: bool) -> int:
    """Blocks of large.cu that share a multiprocessor where captions have up to `words` words."""
    if single:
        return 3 if words == SMALLEST else 2
    return 2 if words <= MOST_WORDS else 1


def _large_pairs(call: PlannedCall, slots: int) -> int:
    """Pairs of a launch of large.cu, whatever its class of captions."""
    shape, device = shape_of(call), call.V.features.device
    read = 0 if call.pairs is None else shape.read

    def most(size: int) -> int:
        resident = _large_blocks(size, _single(call))
        pair = limits.large(shape._replace(words=size)) + read
        return limits.of_blocks(pair, min(slots, resident * multiprocessors(device)), resident)

    return min(most(size) for size in sizes_up_to(min(shape.words, most_words(call.V.features.dtype)), False))


def fill(slots: Slots, first: int, count: int) -> None:
    _check_panels(slots, maps=True)
    step = _launch_pairs(slots)
    # The kernel writes scores too, each at its pair's place in the list.
    scores = slots.scratch.new_empty(len(slots.call.pairs))
    for start in range(0, count, step):
        _score_pairs(slots, first + start, min(step, count - start), scores, slots.scratch[start:], rest=False)


def _check_panels(slots: Slots, **wanted: bool) -> None:
    """Before float32 arithmetic: a call may have been taken before somebody asked torch for IEEE products."""
    if sum(slots.rows) > MOST_ROWS:
        reason = too_large(*shape_of(slots.call)[:4], slots.call.V.features.dtype, **wanted)
        reason = reason or f"it takes {_TOGETHER} where images or captions have {MOST_TILED_ROWS} rows or more in all"
        raise RuntimeError(f"backend 'cuda' cannot run this call: {reason}")


def _launch_pairs(slots: Slots) -> int:
    """Pairs of a launch of pair.cu."""
    call = slots.call
    shape = shape_of(call)
    pair = limits.in_float32(shape) + (0 if call.pairs is None else shape.read)
    blocks = min(slots.count, SCORING_BLOCKS * multiprocessors(call.V.features.device))
    return limits.of_blocks(pair, blocks, SCORING_BLOCKS)


def _score_pairs(slots: Slots, first: int, count: int, scores: Tensor, scratch: Tensor, rest: bool) -> None:
    pairs, options, stream = slots.call.pairs, slots.call.options, stream_of(scores)
    row = scores.stride(0) if pairs is None else 0
    launch = PairLaunch(_sides(slots), scores, scratch, pairs, first, count, row, _launch_pairs(slots), rest, options, stream)
    _ops.cuda_score_pairs(*flatten(launch))


def maps(slots: Slots, count: int) -> tuple[Tensor, ...]:
    m, n = slots.rows
    A, C, R, _, _, _, _, f, _, _, _, g, _ = slots.scratch[:count].split(_parts(m, n), dim=1)
    A, C, R = (x.unflatten(1, (m, _fours(n)))[..., :n] for x in (A, C, R))
    return f[:, :m], g[:, :n], A, C, R


def differentiate(slots: Slots, schedule: Schedule, grad: Tensor, sums: tuple[Tensor, ...]) -> None:
    slots.reserve(grad.numel())
    tiled = _differentiated_on_tensor_cores(slots.call)
    if not tiled:
        _check_panels(slots, gradient=True)
    shape, columns = shape_of(slots.call), TILED_COLUMNS if tiled else COLUMNS
    turns = (len(slots.call.V) + len(slots.call.U)) * (steps(shape.width, columns) + steps(shape.hidden, columns))
    # A list may have one item's pairs only.
    longest_sum = max(grad.shape)
    most = limits.most_pairs(limits.derivatives(shape, tiled), longest_sum, slots.count, turns)
    firsts = range(0, grad.numel(), most)
    turns = torch.zeros(len(firsts), 2, dtype=torch.int64, device=grad.device)
    places = schedule.keys, schedule.order, schedule.count, schedule.image_starts, schedule.by_caption, schedule.caption_starts
    sides = _sides(slots)
    for first, own in zip(firsts, turns.unbind(0), strict=True):
        given = grad, slots.scratch, own, *places, *sums
        launch = GradientLaunch(sides, *given, first, most, tiled, slots.call.options, stream_of(grad))
        _ops.cuda_differentiate(*flatten(launch))


def _sides(slots: Slots) -> Sides:
    V, U, vectors = slots.call.V, slots.call.U, slots.call.vectors
    return Sides(V.features, V.products, U.features, U.products, vectors, slots.regions.lengths, slots.words.lengths)


def too_large(
    regions: int, words: int, width: int, hidden: int, dtype: torch.dtype, *, gradient: bool = False, maps: bool = False
) -> str:
    """Why pairs of so many regions and words are not for this backend, or an empty string."""
    if regions + words <= MOST_ROWS:
        return ""
    limit = _limit(words, width, hidden, dtype, gradient, maps)
    return f"{limit}; these have {regions} and {words}" if limit else ""


def _limit(words: int, width: int, hidden: int, dtype: torch.dtype, gradient: bool, maps: bool) -> str:
    """Why tensor cores do not take a call, or an empty string. They take any number of regions."""
    if maps:
        return f"it has maps for {_TOGETHER}"
    if exact(dtype):
        return f'it takes {_TOGETHER} where torch.backends.cuda.matmul.fp32_precision is "ieee"'
    kind = "float32" if dtype == torch.float32 else "half precision"
    if not copied(width, hidden, dtype):
        return f"it takes {_TOGETHER} in {kind} where a width is no multiple of {16 // dtype.itemsize}"
    most = most_words(dtype, gradient)
    if words > most:
        does = "takes" if most == most_words(dtype) else "has derivatives for"
        return f"it {does} at most {most} words a caption in {kind} where regions and words are more than {MOST_ROWS} together"
    return ""


def most_words(dtype: torch.dtype, gradient: bool = False) -> int:
    """Words of a caption up to which tensor cores score pairs, and with `gradient` differentiate them, too."""
    if dtype == torch.float32:
        return MOST_SINGLE_WORDS
    return MOST_GRADIENT_WORDS if gradient else MOST_LARGE_WORDS


def copied(width: int, hidden: int, dtype: torch.dtype) -> bool:
    """Whether rows of such widths can be copied 16 bytes at a time."""
    return width * dtype.itemsize % 16 == 0 and hidden * dtype.itemsize % 16 == 0
