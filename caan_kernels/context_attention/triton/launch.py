"""How the Triton kernels are launched: `Kernels` of gpu/launch.py."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.gpu import aligned
from ...core.gpu.plan import Walk, parts_of, plan_list, size_of
from ...core.triton.product import product_kernel
from ...core.triton.tuning import fastest
from ..call import Options, Vectors
from ..gpu.launch import PlannedCall, Slots
from . import configurations
from .configurations import Configuration, TileLimits
from .gradients import (
    caption_features_kernel,
    caption_hidden_kernel,
    image_features_kernel,
    image_hidden_kernel,
    pair_kernel,
    slot_numbers,
)
from .scores import scores_kernel

# Programs of one launch, which CUDA counts in 31 bits.
MOST_PROGRAMS = 2**31 - 1

__all__ = ["fill", "maps", "product", "score_rest", "score_tiles", "slot_numbers", "sum_gradients"]


def precision_of(dtype: torch.dtype) -> str:
    """How tl.dot takes float32: as it is, unless torch's own float32 products may use TF32."""
    # torch.get_float32_matmul_precision raises once somebody has made the newer setting of one backend.
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"


def capability_of(device: torch.device) -> tuple[int, int]:
    """What the kernels are shaped for; the interpreter takes the shapes of a Hopper GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def gradient_precision(dtype: torch.dtype) -> str:
    """The same for what is differentiated: TF32 holds all that a half-precision number does."""
    return precision_of(dtype) if dtype == torch.float32 else "tf32"


def product(left: Tensor, right: Tensor, lengths: Tensor, item_rows: int) -> Tensor:
    # A small alignment is a difference of large terms, and where it stands alone its relative error goes to the gradients.
    exact = left.dtype == torch.float32 and precision_of(left.dtype) == "ieee"
    (rows, depth), columns = left.shape, right.shape[1]
    product = left.new_empty(rows, columns)
    if product.numel() == 0 or depth == 0:
        return product.zero_()
    config = configurations.product(left.dtype, exact)
    row_blocks, column_blocks = (-(-x // config.blocks[name]) for x, name in ((rows, "ROW_BLOCK"), (columns, "COLUMN_BLOCK")))
    product_kernel[(row_blocks * column_blocks,)](
        left,
        right,
        product,
        lengths,
        rows,
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
    """The score vectors as `scores_kernel` multiplies by them.

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
    V, U, vectors, pairs, options, _ = call
    dtype = V.features.dtype
    regions, words = V.plan(halfway=True), U.plan()
    blocks = list(itertools.product(enumerate(regions.sizes), enumerate(words.sizes)))
    limits = _tile_limits(call)
    fused = [block for block in blocks if limits.hold(block[0][1], block[1][1])]
    scaled = _scaled(vectors) if fused else None
    sides = [aligned(x) for x in (V.features, V.products, U.features, U.products)] if fused else []
    listed = plan_list(pairs, regions, words) if fused and pairs is not None else None
    for (region_bucket, region_size), (word_bucket, word_size) in fused:
        shape = {
            "LISTED": listed is not None,
            **_constants(options),
            "WIDTH": V.features.shape[2],
            "HIDDEN": len(vectors.region_score),
            "REGIONS": parts_of(region_size)[0],
            "TAIL": parts_of(region_size)[1],
            "WORDS": word_size,
        }

        def run(config: Configuration, buckets=(region_bucket, word_bucket), shape=shape) -> None:
            for first_image, programs in _grids(len(regions.order), len(words.order), config, pairs):
                scores_kernel[(programs,)](
                    *sides,
                    *scaled.halves,
                    scaled.scales,
                    regions.lengths,
                    words.lengths,
                    regions.order,
                    regions.starts,
                    words.order,
                    words.starts,
                    *((regions.order,) * 4 if listed is None else (pairs, listed.order, listed.keys, listed.ranks)),
                    scores,
                    len(regions.order),
                    len(words.order),
                    0 if listed is not None else scores.stride(0),
                    V.features.shape[1],
                    U.features.shape[1],
                    first_image,
                    *buckets,
                    buckets[0] * len(words.sizes) + buckets[1],
                    **shape,
                    **config.arguments(),
                )

        candidates = configurations.score_candidates(region_size, word_size, capability_of(V.features.device))
        run(fastest((V.features.device, dtype, *shape.values()), candidates, run))
    return len(fused) < len(blocks)


def _constants(options: Options) -> dict[str, bool]:
    """The options as kernels are compiled for them."""
    return {"COSINE": options.cosine, "INTER": options.inter, "INTRA": options.intra}


def _tile_limits(call: PlannedCall) -> TileLimits:
    features = call.V.features
    capability = capability_of(features.device) if features.device.type == "cuda" else None
    return configurations.tile_limits(features.dtype, features.shape[2], len(call.vectors.region_score), capability)


def _grids(images: int, captions: int, config: Configuration, pairs: Tensor | None) -> list[tuple[int, int]]:
    """First image and programs of each launch: a program for each tile there may be."""
    if pairs is not None:
        return [(0, len(pairs))]
    tiles, group = -(-captions // config.blocks["TOGETHER"]), config.blocks["IMAGE_GROUP"]
    step = max(MOST_PROGRAMS // (tiles * group), 1) * group
    return [(first, -(-min(step, images - first) // group) * group * tiles) for first in range(0, images, step)]


def score_rest(slots: Slots, scores: Tensor) -> None:
    for first in range(0, scores.numel(), slots.count):
        count = slots.reserve(scores.numel() - first)
        _run_pairs(slots, first, count, scores, None, _tile_limits(slots.call))


def fill(slots: Slots, first: int, count: int, scores: Tensor, walk: Walk | None) -> None:
    _run_pairs(slots, first, count, scores, walk, TileLimits(0, 0))


def _run_pairs(slots: Slots, first: int, count: int, scores: Tensor, walk: Walk | None, left_out: TileLimits) -> None:
    """Run `pair_kernel` for `count` pairs from `first`, those that tiles of these limits hold aside."""
    V, U, vectors, pairs, options, _ = slots.call
    pairs = None if walk is not None else pairs
    dtype, unused = V.features.dtype, slots.regions.lengths
    pair_kernel[(count,)](
        V.features,
        V.products,
        U.features,
        U.products,
        *vectors,
        slots.regions.lengths,
        slots.words.lengths,
        unused if pairs is None else pairs,
        *((unused,) * 3 if walk is None else (walk.keys, walk.order, walk.count)),
        scores,
        slots.scratch,
        len(V),
        len(U),
        scores.stride(0) if walk is None and pairs is None else 0,
        first,
        *slots.rows,
        slots.numbers,
        LISTED=pairs is not None,
        GRADIENT=walk is not None,
        **_constants(options),
        WIDTH=slots.width,
        HIDDEN=len(vectors.region_score),
        REGIONS=size_of(slots.rows[0]),
        WORDS=size_of(slots.rows[1]),
        MOST_WORDS=left_out.words,
        MOST_CELLS=left_out.cells,
        PRECISION=gradient_precision(dtype),
        **configurations.pairs(
            dtype, walk is not None, slots.rows[0], gradient_precision(dtype), capability_of(V.features.device)
        ).arguments(),
    )


def maps(slots: Slots, count: int) -> tuple[Tensor, ...]:
    m, n = slots.rows
    numbers = slots.scratch[:count].split([m * n, *[m] * 4, *[n] * 4], dim=1)
    A, (row_norm, _, f, _), (column_norm, _, g, _) = numbers[0].unflatten(1, (m, n)), numbers[1:5], numbers[5:]
    P = A.relu()
    return f, g, A, P / column_norm[:, None, :], P / row_norm[:, :, None]


def sum_gradients(slots: Slots, walk: Walk, first: int, sums: tuple[Tensor, ...]) -> None:
    V, U, (region_score, word_score), _, (_, inter, intra), _ = slots.call
    vector_sums = sums[4:]
    lengths = slots.regions.lengths, slots.words.lengths
    images, captions, hidden = len(V), len(U), len(region_score)
    config = configurations.items(V.features.dtype, capability_of(V.features.device))
    width_blocks, hidden_blocks = (-(-x // config.blocks[b]) for x, b in ((slots.width, "WIDTH_BLOCK"), (hidden, "HIDDEN_BLOCK")))
    shape = {"WIDTH": slots.width, "HIDDEN": hidden, "REGIONS": size_of(slots.rows[0]), **config.arguments()}
    shape["PRECISION"] = gradient_precision(V.features.dtype)
    of_width = {name: x for name, x in shape.items() if name != "HIDDEN_BLOCK"}
    of_hidden = {name: x for name, x in shape.items() if name != "WIDTH_BLOCK"}
    of_hidden |= {"INTER": inter, "INTRA": intra}
    place = captions, first, slots.count, *slots.rows, slots.numbers
    along_images = walk.keys, walk.image_starts, walk.count, slots.scratch
    along_captions = walk.keys, walk.by_caption, walk.caption_starts, walk.count, slots.scratch
    image_features_kernel[(images * width_blocks,)](U.products, *lengths, *along_images, sums[0], *place, **of_width)
    caption_features_kernel[(captions * width_blocks,)](V.features, *lengths, *along_captions, sums[2], sums[3], *place, **of_width)
    if inter or intra:
        read = V.products, U.products, region_score, word_score, *lengths
        image_hidden_kernel[(images * hidden_blocks,)](*read, *along_images, sums[1], *vector_sums, *place, **of_hidden)
        caption_hidden_kernel[(captions * hidden_blocks,)](*read, *along_captions, sums[3], *place, **of_hidden)
