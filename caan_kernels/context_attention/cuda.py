"""The CUDA C++ backend: the kernels of csrc/context_attention/cuda, launched as gpu/launch.py asks (docs/cuda.md)."""

import torch
from torch import Tensor

from ..core.cuda import product
from ..core.gpu import aligned, stream_of
from ..core.gpu.plan import Walk, plan_list
from ..core.registration import define
from .gpu.launch import Options, Side, Slots, Vectors

__all__ = ["fill", "maps", "product", "score_rest", "score_tiles", "slot_numbers", "sum_gradients"]

# Panels of both sides' rows lie in shared memory: what every GPU since compute capability 8.0 has of it.
MOST_ROWS = 340

# Regions of an image and words of a caption that lie in a tile (csrc/context_attention/cuda/kernels.h).
MOST_REGIONS = 64
MOST_WORDS = 32
MOST_TILED_ROWS = 2**32 - 1

_SIDES = (
    "Tensor regions, Tensor region_products, Tensor words, Tensor word_products, Tensor region_score, Tensor word_score, "
    "Tensor region_lengths, Tensor word_lengths"
)
_OPTIONS = "bool cosine, bool inter, bool intra, int stream"
# Launches, not operators: they write into what they are given and are called by the operators' implementation only.
for _schema in (
    f"cuda_score_pairs({_SIDES}, Tensor(a!) scores, Tensor(b!) scratch, Tensor? pairs, Tensor? keys, Tensor? order, "
    f"Tensor? walked, int first, int count, int score_row, bool skip_tiles, {_OPTIONS}) -> ()",
    f"cuda_score_tiles({_SIDES}, Tensor(a!) scores, Tensor word_order, Tensor word_starts, Tensor? pairs, Tensor? order, "
    f"Tensor? keys, Tensor? ranks, int score_row, int bucket, int word_buckets, int buckets, int together, {_OPTIONS}) -> ()",
    f"cuda_sum_gradients({_SIDES}, Tensor scratch, Tensor keys, Tensor image_starts, Tensor by_caption, Tensor caption_starts, "
    "Tensor walked, Tensor(a!) of_regions, Tensor(b!) of_region_products, Tensor(c!) of_words, Tensor(d!) of_word_products, "
    f"Tensor(e!) of_region_score, Tensor(f!) of_word_score, int first, int slots, {_OPTIONS}) -> ()",
):
    define(_schema)

_ops = torch.ops.caan_kernels


def score_tiles(scores: Tensor, V: Side, U: Side, vectors: Vectors, pairs: Tensor | None, options: Options) -> bool:
    if not _tiled(V, U, vectors):
        return True
    regions, words = V.plan(), U.plan()
    listed = None if pairs is None else plan_list(pairs, regions, words)
    sides = *(aligned(x) for x in (V.features, V.products, U.features, U.products)), *vectors, regions.lengths, words.lengths
    for bucket, size in enumerate(words.sizes):
        if size <= MOST_WORDS:
            _ops.cuda_score_tiles(
                *sides,
                scores,
                words.order,
                words.starts,
                pairs,
                *((None,) * 3 if listed is None else listed),
                0 if listed is not None else scores.stride(0),
                bucket,
                len(words.sizes),
                len(words.sizes) * len(regions.sizes),
                MOST_WORDS // size,
                *options,
                stream_of(scores),
            )
    return V.features.shape[1] > MOST_REGIONS or U.features.shape[1] > MOST_WORDS


def _tiled(V: Side, U: Side, vectors: Vectors) -> bool:
    """Whether there are tiles for such a call: rows are counted in 32 bits and copied 16 bytes at a time."""
    copied = V.features.shape[2] % 8 == 0 and len(vectors.region_score) % 8 == 0
    rows = max(x.features.shape[0] * x.features.shape[1] for x in (V, U))
    return V.features.dtype != torch.float32 and copied and rows < MOST_TILED_ROWS


def _fours(count: int) -> int:
    return -(-count // 4) * 4


def _parts(regions: int, words: int) -> list[int]:
    """Sizes of what lies in a slot before derivatives (csrc/context_attention/cuda/kernels.h, Slot)."""
    return [regions * _fours(words)] * 5 + [_fours(regions)] * 4 + [_fours(words)] * 4


def slot_numbers(regions: int, words: int, width: int, gradient: bool) -> int:
    return sum(_parts(regions, words)) + (5 * regions * _fours(words) + 2 * _fours(width) if gradient else 0)


def score_rest(slots: Slots, scores: Tensor, vectors: Vectors, pairs: Tensor | None, options: Options) -> None:
    slots.reserve(scores.numel())
    _score_pairs(slots, 0, scores.numel(), scores, vectors, pairs, None, _tiled(slots.V, slots.U, vectors), options)


def fill(
    slots: Slots,
    first: int,
    count: int,
    scores: Tensor,
    vectors: Vectors,
    pairs: Tensor | None,
    walk: Walk | None,
    options: Options,
) -> None:
    _score_pairs(slots, first, count, scores, vectors, pairs, walk, False, options)


def _score_pairs(
    slots: Slots,
    first: int,
    count: int,
    scores: Tensor,
    vectors: Vectors,
    pairs: Tensor | None,
    walk: Walk | None,
    skip_tiles: bool,
    options: Options,
) -> None:
    _ops.cuda_score_pairs(
        *_sides(slots, vectors),
        scores,
        slots.scratch,
        pairs,
        *((None,) * 3 if walk is None else (walk.keys, walk.order, walk.count)),
        first,
        count,
        scores.stride(0) if walk is None and pairs is None else 0,
        skip_tiles,
        *options,
        stream_of(scores),
    )


def maps(slots: Slots, count: int, options: Options) -> tuple[Tensor, ...]:
    m, n = slots.rows
    A, C, R, _, _, _, _, f, _, _, _, g, _ = slots.scratch[:count].split(_parts(m, n), dim=1)
    A, C, R = (x.unflatten(1, (m, _fours(n)))[..., :n] for x in (A, C, R))
    return f[:, :m], g[:, :n], A, C, R


def sum_gradients(slots: Slots, walk: Walk, first: int, vectors: Vectors, sums: tuple[Tensor, ...], options: Options) -> None:
    places = walk.keys, walk.image_starts, walk.by_caption, walk.caption_starts, walk.count
    _ops.cuda_sum_gradients(
        *_sides(slots, vectors), slots.scratch, *places, *sums, first, slots.count, *options, stream_of(slots.scratch)
    )


def _sides(slots: Slots, vectors: Vectors) -> tuple[Tensor, ...]:
    V, U = slots.V, slots.U
    return V.features, V.products, U.features, U.products, *vectors, slots.regions.lengths, slots.words.lengths


def too_large(regions: int, words: int) -> str:
    """Why pairs of so many regions and words are not for this backend, or an empty string."""
    if regions + words <= MOST_ROWS:
        return ""
    return f"it takes at most {MOST_ROWS} regions and words together, an image and a caption here have {regions + words}"
