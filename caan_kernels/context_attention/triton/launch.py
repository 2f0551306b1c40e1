"""The operators of operators.py, by Triton kernels."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from . import configurations
from .checks import check_call, check_items
from .configurations import Configuration
from .gradients import (
    caption_features_kernel,
    caption_hidden_kernel,
    image_features_kernel,
    image_hidden_kernel,
    pair_kernel,
    slot_numbers,
)
from .plan import Walk, exist, parts_of, plan_items, plan_list, plan_walk, size_of
from .projection import product_kernel
from .scores import scores_kernel
from .tuning import fastest

# Bytes that the products of a block of items may take where features come unprojected: two blocks, the sorted order of
# the items and the copies of a list's items stay within 64 MiB.
BLOCK_BYTES = 12 * 2**20
# Bytes of scratch for the pairs that one launch works on one by one, for derivatives and for scores.
SCRATCH_BYTES = 128 * 2**20
SCORE_SCRATCH_BYTES = 16 * 2**20
# Pairs of a list that are put in order at once.
MOST_LISTED = 2**18
# Programs of one launch, which CUDA counts in 31 bits.
MOST_PROGRAMS = 2**31 - 1


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


def project(items: Tensor, weight: Tensor, lengths: Tensor | None) -> Tensor:
    """`reference.project`."""
    check_items(items, weight, lengths)
    # A small alignment is a difference of large terms, and where it stands alone its relative error goes to the gradients.
    exact = items.dtype == torch.float32 and precision_of(items.dtype) == "ieee"
    product = _product(items.flatten(0, 1), weight, plan_items(items, lengths).lengths, items.shape[1], exact=exact)
    return product.view(*items.shape[:2], weight.shape[1])


def project_backward(
    grad: Tensor, items: Tensor, weight: Tensor, lengths: Tensor | None, need_items: bool, need_weight: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of `project`; an empty tensor for one that nobody needs."""
    check_items(items, weight, lengths)
    rows, lengths = items.shape[1], plan_items(items, lengths).lengths
    flat, of_items, of_weight = grad.flatten(0, 1), items.new_empty(0), weight.new_empty(0)
    if need_items:
        of_items = _product(flat, weight.mT, lengths, rows).view(items.shape)
    if need_weight:
        of_weight = _product(items.flatten(0, 1).mT, flat, lengths, rows, along_depth=True)
    return of_items, of_weight


def _product(
    left: Tensor, right: Tensor, lengths: Tensor, item_rows: int, *, along_depth: bool = False, exact: bool = False
) -> Tensor:
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
        ALONG_DEPTH=along_depth,
        EXACT=exact,
        PRECISION=precision_of(left.dtype),
        **config.arguments(),
    )
    return product


def pair_scores(
    regions: Tensor,
    region_products: Tensor,
    words: Tensor,
    word_products: Tensor,
    region_score: Tensor,
    word_score: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    pairs: Tensor | None,
    *options: bool | float | str,
) -> Tensor:
    """`reference.pair_scores`; NaN for a pair whose index, or an item's length, is out of range."""
    V = Side("region", regions, region_products, None, region_lengths)
    U = Side("word", words, word_products, None, word_lengths)
    check_call(V, U, region_score, word_score, pairs)
    scores = _unscored(V, U, pairs)
    _score(scores, V, U, _vectors(region_score, word_score), pairs, *options[:-1])
    return scores


def raw_scores(
    regions: Tensor,
    region_products: Tensor | None,
    words: Tensor,
    word_products: Tensor | None,
    affinity: Tensor | None,
    region_intra: Tensor | None,
    region_inter: Tensor | None,
    word_intra: Tensor | None,
    word_inter: Tensor | None,
    region_score: Tensor,
    word_score: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    pairs: Tensor | None,
    *options: bool | float | str,
) -> Tensor:
    """`pair_scores` of sides that may come unprojected: those are projected block by block."""
    of_regions = {"region_intra": region_intra, "word_inter": word_inter}
    of_words = {"affinity": affinity, "region_inter": region_inter, "word_intra": word_intra}
    V = Side("region", regions, region_products, None if region_products is not None else beside(of_regions), region_lengths)
    U = Side("word", words, word_products, None if word_products is not None else beside(of_words), word_lengths)
    check_call(V, U, region_score, word_score, pairs)
    scores, vectors, options = _unscored(V, U, pairs), _vectors(region_score, word_score), options[:-1]
    images, captions = V.block(), U.block()
    if pairs is not None and (len(regions) > images or len(words) > captions):
        # A gallery is not projected for a few pairs, nor kept for many: each block of the list brings its own items.
        for start in range(0, len(pairs), min(images, captions)):
            some = pairs[start : start + min(images, captions)]
            own = torch.arange(len(some), device=pairs.device)[:, None].repeat(1, 2)
            _score(
                scores[start : start + len(some)],
                V.chosen(some[:, 0]).projected(),
                U.chosen(some[:, 1]).projected(),
                vectors,
                own,
                *options,
            )
        return scores
    for t in range(0, len(words), captions):
        some_U = U.part(t, captions).projected()
        for i in range(0, len(regions), images):
            if i > 0 or t == 0 or images < len(regions):
                some_V = V.part(i, images).projected()
            block = scores if pairs is not None else scores[i : i + images, t : t + captions]
            _score(block, some_V, some_U, vectors, pairs, *options)
    return scores


def pair_scores_backward(
    grad: Tensor,
    regions: Tensor,
    region_products: Tensor,
    words: Tensor,
    word_products: Tensor,
    region_score: Tensor,
    word_score: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    pairs: Tensor | None,
    *options: bool | float | str,
) -> tuple[Tensor, ...]:
    """Gradients of the six tensors of `pair_scores`; a pair whose score has the gradient 0 is not looked at."""
    V = Side("region", regions, region_products, None, region_lengths)
    U = Side("word", words, word_products, None, word_lengths)
    check_call(V, U, region_score, word_score, pairs)
    tensors = regions, region_products, words, word_products
    # Sums over pairs are float32 and go on from one launch to the next.
    sums = [torch.zeros_like(x, dtype=torch.float32) for x in tensors]
    vector_sums = [torch.zeros(len(regions), len(x), dtype=torch.float32, device=x.device) for x in (region_score, word_score)]
    if grad.numel() and regions.shape[1] and words.shape[1]:
        _differentiate(grad.contiguous(), V, U, region_score, word_score, pairs, sums, vector_sums, *options[:-1])
    gradients = *sums, *(x.sum(0) for x in vector_sums)
    return tuple(x.to(regions.dtype) for x in gradients)


def pair_maps(
    regions: Tensor,
    region_products: Tensor,
    words: Tensor,
    word_products: Tensor,
    region_score: Tensor,
    word_score: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    pairs: Tensor | None,
    *options: bool | float | str,
) -> tuple[Tensor, ...]:
    """Scores, those of `pair_scores`, and f, g, R and Cᵀ."""
    scores = pair_scores(
        regions, region_products, words, word_products, region_score, word_score, region_lengths, word_lengths, pairs, *options
    )
    V, U = Side("region", regions, region_products, None, region_lengths), Side("word", words, word_products, None, word_lengths)
    count, m, n = len(pairs), regions.shape[1], words.shape[1]
    f, g, R = (scores.new_zeros(count, *shape) for shape in ((m,), (n,), (m, n)))
    C = torch.zeros_like(R)
    if R.numel():
        _trace(V, U, region_score, word_score, pairs, (f, g, R, C), *options[:-1])
    return scores, f, g, R, C.mT.contiguous()


class Side(NamedTuple):
    """Regions or words on their way to being scored.

    Attributes:
        kind: "region" or "word".
        features: (B, L, D).
        products: (B, L, E), or None before they are made.
        weight: (D, E), what makes them, or None.
        lengths: (B,) or None.
    """

    kind: str
    features: Tensor
    products: Tensor | None
    weight: Tensor | None
    lengths: Tensor | None

    def block(self) -> int:
        """Items whose products are made at once."""
        if self.weight is None:
            return max(1, len(self.features))
        rows = max(1, self.features.shape[1])
        return max(1, BLOCK_BYTES // (rows * self.weight.shape[1] * self.weight.element_size()))

    def part(self, start: int, count: int) -> "Side":
        return self._of(lambda x: x[start : start + count])

    def chosen(self, items: Tensor) -> "Side":
        # An index out of range has no item; `_unscored` has marked its score, and an item without rows leaves it alone.
        inside = (items >= 0) & (items < len(self.features))
        items = torch.where(inside, items, 0)
        side = self._of(lambda x: x.index_select(0, items))
        rows = self.features.shape[1]
        lengths = torch.full_like(items, rows) if side.lengths is None else side.lengths
        return side._replace(lengths=torch.where(inside, lengths, 0))

    def projected(self) -> "Side":
        if self.weight is None:
            return self
        return self._replace(products=project(self.features, self.weight, self.lengths), weight=None)

    def _of(self, some) -> "Side":
        tensors = (None if x is None else some(x) for x in (self.features, self.products))
        features, products = tensors
        return self._replace(features=features, products=products, lengths=None if self.lengths is None else some(self.lengths))


def beside(matrices: dict[str, Tensor | None]) -> Tensor:
    """The matrices of a side as `project` takes them; affinity transposed, because words are multiplied by it."""
    for name, matrix in matrices.items():
        if matrix is None:
            raise RuntimeError(f"{name}: expected a tensor, since its side is not projected, got None")
    return torch.cat([x.mT if name == "affinity" else x for name, x in matrices.items()], dim=1)


class Vectors(NamedTuple):
    """The score vectors, and as `scores_kernel` multiplies by them.

    Attributes:
        region_score: (H,).
        word_score: (H,).
        halves: (2, H) float16, both vectors over a power of two.
        scales: (2,) float32, those powers.
    """

    region_score: Tensor
    word_score: Tensor
    halves: Tensor | None = None
    scales: Tensor | None = None


def _vectors(region_score: Tensor, word_score: Tensor) -> Vectors:
    if region_score.dtype == torch.float32:
        return Vectors(region_score, word_score)
    # They meet tanh in float16. A power of two takes them to its range, and what bfloat16 holds loses nothing there.
    both = torch.stack([region_score, word_score]).float()
    exponents = torch.frexp(both.abs().amax(1)).exponent
    halves = torch.ldexp(both, -exponents[:, None]).half()
    return Vectors(region_score, word_score, halves, torch.ldexp(torch.ones_like(both[:, 0]), exponents))


def _unscored(V: Side, U: Side, pairs: Tensor | None) -> Tensor:
    """Scores before any is made: 0, which is that of a pair with an empty side, or NaN for what does not exist."""
    wrong = [None if x.lengths is None else (x.lengths < 0) | (x.lengths > x.features.shape[1]) for x in (V, U)]
    count = (len(V.features), len(U.features)) if pairs is None else (len(pairs),)
    scores = V.features.new_zeros(count, dtype=torch.float32)
    if pairs is not None:
        inside = exist(pairs, len(V.features), len(U.features))
        scores.masked_fill_(~inside, torch.nan)
    for column, items in enumerate(wrong):
        if items is None or scores.numel() == 0:
            continue
        if pairs is None:
            scores.masked_fill_(items[:, None] if column == 0 else items[None, :], torch.nan)
        elif len(items):
            scores.masked_fill_(items[torch.where(inside, pairs[:, column], 0)], torch.nan)
    return scores


def _score(
    scores: Tensor,
    V: Side,
    U: Side,
    vectors: Vectors,
    pairs: Tensor | None,
    cosine: bool,
    softmax: bool,
    temperature: float,
    inter: bool,
    intra: bool,
) -> None:
    """Write the scores of projected sides: block by block of sizes where tiles hold them, else one by one."""
    if scores.numel() == 0:
        return
    if pairs is not None and len(pairs) > MOST_LISTED:
        for start in range(0, len(pairs), MOST_LISTED):
            some = slice(start, start + MOST_LISTED)
            _score(scores[some], V, U, vectors, pairs[some], cosine, softmax, temperature, inter, intra)
        return
    dtype, options = V.features.dtype, (cosine, softmax, temperature, inter, intra)
    regions, words = plan_items(V.features, V.lengths, halfway=True), plan_items(U.features, U.lengths)
    blocks = list(itertools.product(enumerate(regions.sizes), enumerate(words.sizes)))
    fused = [block for block in blocks if configurations.fused(dtype, block[0][1], block[1][1])]
    listed = plan_list(pairs, regions, words) if fused and pairs is not None else None
    for (region_bucket, region_size), (word_bucket, word_size) in fused:
        shape = {
            "LISTED": listed is not None,
            "COSINE": cosine,
            "SOFTMAX": softmax,
            "INTER": inter,
            "INTRA": intra,
            "WIDTH": V.features.shape[2],
            "HIDDEN": len(vectors.region_score),
            "REGIONS": parts_of(region_size)[0],
            "TAIL": parts_of(region_size)[1],
            "WORDS": word_size,
        }

        def run(config: Configuration, buckets=(region_bucket, word_bucket), shape=shape) -> None:
            for first_image, programs in _grids(len(regions.order), len(words.order), config, pairs):
                scores_kernel[(programs,)](
                    V.features,
                    V.products,
                    U.features,
                    U.products,
                    *vectors.halves,
                    vectors.scales,
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
                    temperature,
                    **shape,
                    **config.arguments(),
                )

        candidates = configurations.score_candidates(region_size, word_size, capability_of(V.features.device))
        run(fastest((V.features.device, dtype, *shape.values()), candidates, run))
    if len(fused) < len(blocks):
        slots = Slots(V, U, SCORE_SCRATCH_BYTES, gradient=False)
        for first in range(0, scores.numel(), slots.count):
            slots.fill(first, scores.numel(), scores, *vectors[:2], pairs, None, not fused, *options)


def _grids(images: int, captions: int, config: Configuration, pairs: Tensor | None) -> list[tuple[int, int]]:
    """First image and programs of each launch: a program for each tile there may be."""
    if pairs is not None:
        return [(0, len(pairs))]
    tiles, group = -(-captions // config.blocks["TOGETHER"]), config.blocks["IMAGE_GROUP"]
    step = max(MOST_PROGRAMS // (tiles * group), 1) * group
    return [(first, -(-min(step, images - first) // group) * group * tiles) for first in range(0, images, step)]


class Slots:
    """Scratch memory for pairs that are worked on one by one, and the sizes that its kernels need."""

    def __init__(self, V: Side, U: Side, most_bytes: int, gradient: bool):
        self.V, self.U = V, U
        self.regions, self.words = plan_items(V.features, V.lengths), plan_items(U.features, U.lengths)
        self.rows = V.features.shape[1], U.features.shape[1]
        self.width = V.features.shape[2]
        self.numbers = slot_numbers(*self.rows, self.width, gradient)
        self.count = max(1, most_bytes // (4 * max(1, self.numbers)))
        self.scratch = V.features.new_empty(0, self.numbers, dtype=torch.float32)

    def fill(
        self,
        first: int,
        last: int,
        scores: Tensor,
        region_score: Tensor,
        word_score: Tensor,
        pairs: Tensor | None,
        walk: Walk | None,
        every: bool,
        *options: bool | float,
    ) -> None:
        """Run `pair_kernel` on as many pairs from `first` as there are slots: those of a walk, or of the call.

        Of the call's pairs, those that `scores_kernel` takes are left out unless `every` is wanted.
        """
        cosine, softmax, temperature, inter, intra = options
        programs = min(self.count, last - first)
        if len(self.scratch) < programs:
            self.scratch = self.scratch.new_empty(programs, self.numbers)
        dtype, unused = self.V.features.dtype, self.regions.lengths
        pair_kernel[(programs,)](
            *self.V[1:3],
            *self.U[1:3],
            region_score,
            word_score,
            self.regions.lengths,
            self.words.lengths,
            unused if pairs is None else pairs,
            *((unused,) * 3 if walk is None else (walk.keys, walk.order, walk.count)),
            scores,
            self.scratch,
            len(self.V.features),
            len(self.U.features),
            scores.stride(0) if walk is None and pairs is None else 0,
            first,
            *self.rows,
            self.numbers,
            temperature,
            LISTED=pairs is not None,
            GRADIENT=walk is not None,
            COSINE=cosine,
            SOFTMAX=softmax,
            INTER=inter,
            INTRA=intra,
            WIDTH=self.width,
            HIDDEN=len(region_score),
            REGIONS=size_of(self.rows[0]),
            WORDS=size_of(self.rows[1]),
            MOST_WORDS=0 if every else configurations.MOST_WORDS,
            MOST_CELLS=0 if every else configurations.MOST_CELLS,
            PRECISION=gradient_precision(dtype),
            **configurations.pairs(dtype, walk is not None).arguments(),
        )


def _differentiate(
    grad: Tensor,
    V: Side,
    U: Side,
    region_score: Tensor,
    word_score: Tensor,
    pairs: Tensor | None,
    sums: list[Tensor],
    vector_sums: list[Tensor],
    *options: bool | float,
) -> None:
    """Add to the sums what every pair with a gradient gives."""
    _, softmax, temperature, inter, intra = options
    slots = Slots(V, U, SCRATCH_BYTES, gradient=True)
    walk = plan_walk(grad != 0, pairs, slots.regions, slots.words)
    lengths = slots.regions.lengths, slots.words.lengths
    images, captions, hidden = len(V.features), len(U.features), len(region_score)
    config = configurations.items(V.features.dtype, capability_of(V.features.device))
    width_blocks, hidden_blocks = (-(-x // config.blocks[b]) for x, b in ((slots.width, "WIDTH_BLOCK"), (hidden, "HIDDEN_BLOCK")))
    shape = {"WIDTH": slots.width, "HIDDEN": hidden, "REGIONS": size_of(slots.rows[0]), **config.arguments()}
    shape["PRECISION"] = gradient_precision(V.features.dtype)
    of_width = {name: x for name, x in shape.items() if name != "HIDDEN_BLOCK"}
    of_hidden = {name: x for name, x in shape.items() if name != "WIDTH_BLOCK"}
    of_hidden |= {"SOFTMAX": softmax, "INTER": inter, "INTRA": intra}
    for first in range(0, grad.numel(), slots.count):
        # How many pairs have a gradient only the device knows: later launches may find none left.
        slots.fill(first, grad.numel(), grad, region_score, word_score, None, walk, True, *options)
        place = captions, first, slots.count, *slots.rows, slots.numbers
        along_images = walk.keys, walk.image_starts, walk.count, slots.scratch
        along_captions = walk.keys, walk.by_caption, walk.caption_starts, walk.count, slots.scratch
        image_features_kernel[(images * width_blocks,)](U.products, *lengths, *along_images, sums[0], *place, **of_width)
        caption_features_kernel[(captions * width_blocks,)](
            V.features, *lengths, *along_captions, sums[2], sums[3], *place, **of_width
        )
        if inter or intra:
            read = V.products, U.products, region_score, word_score, *lengths
            image_hidden_kernel[(images * hidden_blocks,)](
                *read, *along_images, sums[1], *vector_sums, *place, temperature, **of_hidden
            )
            caption_hidden_kernel[(captions * hidden_blocks,)](*read, *along_captions, sums[3], *place, temperature, **of_hidden)


def _trace(
    V: Side,
    U: Side,
    region_score: Tensor,
    word_score: Tensor,
    pairs: Tensor,
    maps: tuple[Tensor, Tensor, Tensor, Tensor],
    *options: bool | float,
) -> None:
    """Write f, g, R and C of the pairs that have any."""
    slots = Slots(V, U, SCRATCH_BYTES, gradient=False)
    (m, n), (_, softmax, temperature, *_) = slots.rows, options
    unused = torch.empty(len(pairs), dtype=torch.float32, device=pairs.device)
    regions, words = (torch.arange(x, device=pairs.device) for x in slots.rows)
    for first in range(0, len(pairs), slots.count):
        slots.fill(first, len(pairs), unused, region_score, word_score, pairs, None, True, *options)
        some = pairs[first : first + slots.count]
        real = exist(some, len(V.features), len(U.features))
        image, caption = torch.where(real[:, None], some, 0).unbind(1)
        v_exists = real[:, None] & (regions < slots.regions.lengths[image, None])
        u_exists = real[:, None] & (words < slots.words.lengths[caption, None])
        v_exists, u_exists = v_exists & u_exists.any(1, keepdim=True), u_exists & v_exists.any(1, keepdim=True)
        exists = v_exists[:, :, None] & u_exists[:, None, :]
        numbers = slots.scratch[: len(some)].split([m * n, *[m] * 4, *[n] * 4], dim=1)
        A, (row_shift, row_scale, f, _), (column_shift, column_scale, g, _) = numbers[0], numbers[1:5], numbers[5:]
        A = A.unflatten(1, (m, n))
        found = (
            (v_exists, f),
            (u_exists, g),
            (exists, _weights(A, row_shift[:, :, None], row_scale[:, :, None], temperature, softmax)),
            (exists, _weights(A, column_shift[:, None, :], column_scale[:, None, :], temperature, softmax)),
        )
        for target, (mask, x) in zip(maps, found, strict=True):
            target[first : first + len(some)] = torch.where(mask, x, 0)


def _weights(A: Tensor, shift: Tensor, scale: Tensor, temperature: float, softmax: bool) -> Tensor:
    """`gradients.attention_weights`, where they exist."""
    return (torch.exp(temperature * A - shift) if softmax else A.relu()) * scale
