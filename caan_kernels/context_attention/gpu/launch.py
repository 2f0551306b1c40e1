"""The operators of operators.py on a GPU: what every backend there shares. Plans are tensors on the device, memory is bounded by
going through a call in pieces, and a backend's `Kernels` do the work."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...core.gpu.plan import Items, Walk, exist, plan_items, plan_lengths, plan_walk
from .checks import check_call, check_items

# Bytes that a call may take beside its result where features come unprojected, for the matrices of a side beside each other,
# blocks of products, and the copies of a list's items; with plans and scratch that stays within 64 MiB.
BLOCK_BYTES = 50 * 2**20
# Bytes of scratch for the pairs that one launch works on one by one, for derivatives and for scores.
SCRATCH_BYTES = 128 * 2**20
SCORE_SCRATCH_BYTES = 8 * 2**20
# Pairs of a list that are put in order at once.
MOST_LISTED = 2**18

# Backends by the name that is the operators' last argument.
KERNELS: dict[str, "Kernels"] = {}


class Options(NamedTuple):
    """How pairs are scored, as `reference.attend` has it."""

    cosine: bool
    inter: bool
    intra: bool


class Vectors(NamedTuple):
    """The score vectors, (H,) each."""

    region_score: Tensor
    word_score: Tensor


class Kernels(Protocol):
    """What a backend launches. Tensors are contiguous unless said otherwise, and nothing waits for the device."""

    def product(
        self, left: Tensor, right: Tensor, lengths: Tensor, item_rows: int, *, along_depth: bool = False, forward: bool = False
    ) -> Tensor:
        """(rows, depth) times (depth, columns), of any strides, in their dtype.

        Row r of `left`, or column r with `along_depth`, is row r % item_rows of item r // item_rows: at and beyond the item's
        length it may hold anything and counts as 0. `forward` marks what scores are made of, not gradients.
        """

    def score_tiles(self, scores: Tensor, V: "Side", U: "Side", vectors: Vectors, pairs: Tensor | None, options: Options) -> bool:
        """Score the pairs that lie in tiles of many, whatever else is there; whether that may leave some out."""

    def slot_numbers(self, regions: int, words: int, width: int, gradient: bool) -> int:
        """float32 numbers of scratch memory for a pair that is worked on alone."""

    def score_rest(self, slots: "Slots", scores: Tensor, vectors: Vectors, pairs: Tensor | None, options: Options) -> None:
        """Score the pairs that `score_tiles` leaves out, however many, in no more than `slots.count` slots."""

    def fill(
        self, slots: "Slots", first: int, count: int, scores: Tensor, vectors: Vectors, pairs: Tensor | None, walk: Walk | None,
        options: Options,
    ) -> None:  # fmt: skip
        """Work on `count` pairs from `first`, those of a walk or of a list, each in a slot.

        With a walk, `scores` are gradients, and slots get what `sum_gradients` reads. Else scores are written, and slots get what
        `maps` reads.
        """

    def maps(self, slots: "Slots", count: int, options: Options) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """f (count, M), g (count, N), A, C and R (count, M, N) of the pairs last worked on; anything beyond lengths."""

    def sum_gradients(
        self, slots: "Slots", walk: Walk, first: int, vectors: Vectors, sums: tuple[Tensor, ...], options: Options
    ) -> None:
        """Add to float32 `sums` what the walk's pairs in slots give, `first` lying in the first of them.

        Sums are of the features and the products of both sides, and (I, H) of both score vectors.
        """


def project(items: Tensor, weight: Tensor, lengths: Tensor | None, backend: str) -> Tensor:
    """`reference.project`."""
    check_items(items, weight, lengths)
    lengths = plan_lengths(items, lengths)
    product = KERNELS[backend].product(items.flatten(0, 1), weight, lengths, items.shape[1], forward=True)
    return product.view(*items.shape[:2], weight.shape[1])


def project_backward(
    grad: Tensor, items: Tensor, weight: Tensor, lengths: Tensor | None, need_items: bool, need_weight: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """Gradients of `project`; an empty tensor for one that nobody needs."""
    check_items(items, weight, lengths)
    product, rows, lengths = KERNELS[backend].product, items.shape[1], plan_lengths(items, lengths)
    flat, of_items, of_weight = grad.flatten(0, 1), items.new_empty(0), weight.new_empty(0)
    if need_items:
        of_items = product(flat, weight.mT, lengths, rows).view(items.shape)
    if need_weight:
        of_weight = product(items.flatten(0, 1).mT, flat, lengths, rows, along_depth=True)
    return of_items, of_weight


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
    *options: bool | str,
) -> Tensor:
    """`reference.pair_scores`; NaN for a pair whose index, or an item's length, is out of range."""
    V = Side("region", regions, region_products, None, region_lengths)
    U = Side("word", words, word_products, None, word_lengths)
    check_call(V, U, region_score, word_score, pairs)
    scores = _unscored(V, U, pairs)
    _score(scores, V, U, Vectors(region_score, word_score), pairs, *options)
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
    *options: bool | str,
) -> Tensor:
    """`pair_scores` of sides that may come unprojected: those are projected block by block."""
    of_regions = {"region_intra": region_intra, "word_inter": word_inter}
    of_words = {"affinity": affinity, "region_inter": region_inter, "word_intra": word_intra}
    V = Side("region", regions, region_products, None if region_products is not None else beside(of_regions), region_lengths)
    U = Side("word", words, word_products, None if word_products is not None else beside(of_words), word_lengths)
    check_call(V, U, region_score, word_score, pairs)
    scores, vectors, backend = _unscored(V, U, pairs), Vectors(region_score, word_score), options[-1]
    images, captions, listed = _blocks(V, U)
    if pairs is not None and len(regions) and len(words) and (len(regions) > images or len(words) > captions):
        # A gallery is not projected for a few pairs, nor kept for many: each block of the list brings its own items.
        for start in range(0, len(pairs), listed):
            some = pairs[start : start + listed]
            own = torch.arange(len(some), device=pairs.device)[:, None].repeat(1, 2)
            _score(
                scores[start : start + len(some)],
                V.chosen(some[:, 0]).projected(backend),
                U.chosen(some[:, 1]).projected(backend),
                vectors,
                own,
                *options,
            )
        return scores
    # Images pass by once for each block of captions. What is planned of them is planned once.
    parts = [(i, V.part(i, images)) for i in range(0, len(regions), images)]
    some_U = some_V = None
    for t in range(0, len(words), captions):
        # Two blocks of one side have no room.
        some_U = None
        some_U = U.part(t, captions).projected(backend)
        for i, part in parts:
            if some_V is None or len(parts) > 1:
                some_V = None
                some_V = part.projected(backend)
            block = scores if pairs is not None else scores[i : i + images, t : t + captions]
            _score(block, some_V, some_U, vectors, pairs, *options)
    return scores


def _blocks(V: "Side", U: "Side") -> tuple[int, int, int]:
    """Images, captions, and pairs of a list, whose products are made at once.

    Captions get more of the room: there are more of them, and images are projected once for each block of captions.
    """
    left = BLOCK_BYTES - sum(0 if x.weight is None else x.weight.numel() * x.weight.element_size() for x in (V, U))
    items = []
    for side, share in ((V, 2 / 5), (U, 3 / 5)):
        whole = (U if side is V else V).weight is not None
        fit = int(left * (share if whole else 1)) // max(1, side.item_bytes)
        items.append(max(1, len(side.features) if side.weight is None else fit))
    return *items, max(1, left // max(1, sum(x.copy_bytes for x in (V, U))))


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
    *options: bool | str,
) -> tuple[Tensor, ...]:
    """Gradients of the six tensors of `pair_scores`; a pair whose score has the gradient 0 is not looked at."""
    V = Side("region", regions, region_products, None, region_lengths)
    U = Side("word", words, word_products, None, word_lengths)
    check_call(V, U, region_score, word_score, pairs)
    tensors = regions, region_products, words, word_products
    # Sums over pairs are float32 and go on from one launch to the next.
    sums = [torch.zeros_like(x, dtype=torch.float32) for x in tensors]
    vector_sums = [torch.zeros(len(regions), len(x), dtype=torch.float32, device=x.device) for x in (region_score, word_score)]
    if grad.numel() and regions.shape[0] and words.shape[0] and regions.shape[1] and words.shape[1]:
        _differentiate(grad.contiguous(), V, U, Vectors(region_score, word_score), pairs, (*sums, *vector_sums), *options)
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
    *options: bool | str,
) -> tuple[Tensor, ...]:
    """Scores, those of `pair_scores`, and f, g, A, C and Rᵀ."""
    scores = pair_scores(
        regions, region_products, words, word_products, region_score, word_score, region_lengths, word_lengths, pairs, *options
    )
    V, U = Side("region", regions, region_products, None, region_lengths), Side("word", words, word_products, None, word_lengths)
    count, m, n = len(pairs), regions.shape[1], words.shape[1]
    f, g, A, C, R = (scores.new_zeros(count, *shape) for shape in ((m,), (n,), (m, n), (m, n), (m, n)))
    if R.numel() and len(regions) and len(words):
        _trace(V, U, Vectors(region_score, word_score), pairs, (f, g, A, C, R), *options)
    return scores, f, g, A, C, R.mT.contiguous()


@dataclass(frozen=True)
class Side:
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
    _plans: dict[bool, Items] = field(default_factory=dict, repr=False)

    def plan(self, halfway: bool = False) -> Items:
        """`plan_items`, once for a side and what is projected of it."""
        if halfway not in self._plans:
            self._plans[halfway] = plan_items(self.features, self.lengths, halfway)
        return self._plans[halfway]

    @property
    def item_bytes(self) -> int:
        """What the products of an item take that are made here."""
        columns = 0 if self.weight is None else self.weight.shape[1]
        return self.features.shape[1] * columns * self.features.element_size()

    @property
    def copy_bytes(self) -> int:
        """What an item takes that is chosen for a pair and projected."""
        copied = sum(x.shape[2] for x in (self.features, self.products) if x is not None)
        return self.features.shape[1] * copied * self.features.element_size() + self.item_bytes

    def part(self, start: int, count: int) -> "Side":
        return self._of(lambda x: x[start : start + count])

    def chosen(self, items: Tensor) -> "Side":
        # An index out of range has no item; `_unscored` has marked its score, and an item without rows leaves it alone.
        inside = (items >= 0) & (items < len(self.features))
        items = torch.where(inside, items, 0)
        side = self._of(lambda x: x.index_select(0, items))
        rows = self.features.shape[1]
        lengths = torch.full_like(items, rows) if side.lengths is None else side.lengths
        return replace(side, lengths=torch.where(inside, lengths, 0))

    def projected(self, backend: str) -> "Side":
        if self.weight is None:
            return self
        # Every plan has the lengths.
        plan = next(iter(self._plans.values()), None) or self.plan()
        rows, item_rows = self.features.flatten(0, 1), self.features.shape[1]
        product = KERNELS[backend].product(rows, self.weight, plan.lengths, item_rows, forward=True)
        return replace(self, products=product.view(*self.features.shape[:2], self.weight.shape[1]), weight=None)

    def _of(self, some) -> "Side":
        tensors = (None if x is None else some(x) for x in (self.features, self.products, self.lengths))
        features, products, lengths = tensors
        return Side(self.kind, features, products, self.weight, lengths)


def beside(matrices: dict[str, Tensor | None]) -> Tensor:
    """The matrices of a side as `project` takes them; affinity transposed, because words are multiplied by it."""
    for name, matrix in matrices.items():
        if matrix is None:
            raise RuntimeError(f"{name}: expected a tensor, since its side is not projected, got None")
    return torch.cat([x.mT if name == "affinity" else x for name, x in matrices.items()], dim=1)


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


def _score(scores: Tensor, V: Side, U: Side, vectors: Vectors, pairs: Tensor | None, *options: bool | str) -> None:
    """Write the scores of projected sides: in tiles where tiles hold them, else one by one."""
    if scores.numel() == 0 or not len(V.features) or not len(U.features):
        return
    if pairs is not None and len(pairs) > MOST_LISTED:
        for start in range(0, len(pairs), MOST_LISTED):
            some = slice(start, start + MOST_LISTED)
            _score(scores[some], V, U, vectors, pairs[some], *options)
        return
    kernels, options = KERNELS[options[-1]], Options(*options[:-1])
    if kernels.score_tiles(scores, V, U, vectors, pairs, options):
        slots = Slots(kernels, V, U, SCORE_SCRATCH_BYTES, gradient=False)
        kernels.score_rest(slots, scores, vectors, pairs, options)


class Slots:
    """Scratch memory for pairs that are worked on one by one, and the sizes that its kernels need.

    Attributes:
        V, U: the sides.
        regions, words: their plans.
        rows: M and N.
        width: D.
        numbers: float32 numbers of a slot.
        count: slots that there may be.
        scratch: (slots, numbers), as many as were needed so far.
    """

    def __init__(self, kernels: Kernels, V: Side, U: Side, most_bytes: int, gradient: bool):
        self.kernels, self.V, self.U = kernels, V, U
        self.regions, self.words = V.plan(), U.plan()
        self.rows = V.features.shape[1], U.features.shape[1]
        self.width = V.features.shape[2]
        self.numbers = kernels.slot_numbers(*self.rows, self.width, gradient)
        self.count = max(1, most_bytes // (4 * max(1, self.numbers)))
        self.scratch = V.features.new_empty(0, self.numbers, dtype=torch.float32)

    def reserve(self, count: int) -> int:
        """See that there is scratch memory for so many pairs, or for as many as there may be slots: how many."""
        count = min(self.count, count)
        if len(self.scratch) < count:
            self.scratch = self.scratch.new_empty(count, self.numbers)
        return count


def _differentiate(
    grad: Tensor, V: Side, U: Side, vectors: Vectors, pairs: Tensor | None, sums: tuple[Tensor, ...], *options: bool | str
) -> None:
    """Add to the sums what every pair with a gradient gives."""
    kernels, options = KERNELS[options[-1]], Options(*options[:-1])
    slots = Slots(kernels, V, U, SCRATCH_BYTES, gradient=True)
    walk = plan_walk(grad != 0, pairs, slots.regions, slots.words)
    for first in range(0, grad.numel(), slots.count):
        # How many pairs have a gradient only the device knows: later launches may find none left.
        count = slots.reserve(grad.numel() - first)
        kernels.fill(slots, first, count, grad, vectors, None, walk, options)
        kernels.sum_gradients(slots, walk, first, vectors, sums, options)


def _trace(
    V: Side,
    U: Side,
    vectors: Vectors,
    pairs: Tensor,
    maps: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    *options: bool | str,
) -> None:
    """Write f, g, A, C and R of the pairs that have any."""
    kernels, options = KERNELS[options[-1]], Options(*options[:-1])
    slots = Slots(kernels, V, U, SCRATCH_BYTES, gradient=False)
    unused = torch.empty(len(pairs), dtype=torch.float32, device=pairs.device)
    regions, words = (torch.arange(x, device=pairs.device) for x in slots.rows)
    for first in range(0, len(pairs), slots.count):
        some = pairs[first : first + slots.reserve(len(pairs) - first)]
        kernels.fill(slots, first, len(some), unused, vectors, pairs, None, options)
        real = exist(some, len(V.features), len(U.features))
        image, caption = torch.where(real[:, None], some, 0).unbind(1)
        v_exists = real[:, None] & (regions < slots.regions.lengths[image, None])
        u_exists = real[:, None] & (words < slots.words.lengths[caption, None])
        v_exists, u_exists = v_exists & u_exists.any(1, keepdim=True), u_exists & v_exists.any(1, keepdim=True)
        exists = v_exists[:, :, None] & u_exists[:, None, :]
        found = zip((v_exists, u_exists, exists, exists, exists), kernels.maps(slots, len(some), options), strict=True)
        for target, (mask, x) in zip(maps, found, strict=True):
            target[first : first + len(some)] = torch.where(mask, x, 0)
