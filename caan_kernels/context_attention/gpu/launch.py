"""The operators of operators.py on a GPU: what every backend there shares. Plans are tensors on the device, memory is bounded by
going through a call in pieces, and a backend's `Kernels` do the work."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...core.autocast import without_autocast
from ...core.gpu.limits import whole
from ...core.gpu.plan import Plan, Schedule, Wanted, exist
from ...core.ragged import new_scores
from ..call import Call, CallGradient, Options, Projection, ProjectionGradient, Side, Vectors, beside
from .checks import check_call, check_gradient, check_projection, check_projection_gradient
from .limits import Shape

# Bytes that a call may take beside its result where features come unprojected, for the matrices of a side beside each other,
# blocks of products, and the copies of a list's items; with plans and scratch that stays within 64 MiB.
BLOCK_BYTES = 38 * 2**20
# Bytes of rows that the gradient of a projection copies at once, so as to leave out what lies beyond lengths.
ROW_BYTES = 64 * 2**20
# Bytes of scratch for the pairs that one launch works on one by one, for derivatives and for scores.
SCRATCH_BYTES = 128 * 2**20
SCORE_SCRATCH_BYTES = 20 * 2**20
# Pairs of a list that are put in order at once, and pairs with or without a gradient: about 70 bytes each.
MOST_LISTED = 2**18
MOST_ORDERED = 2**20
# Scores that are planned at once.
MOST_SCORED = 2**32

# Backends by the name that is the operators' last argument.
KERNELS: dict[str, "Kernels"] = {}


class Kernels(Protocol):
    """What a backend launches. Tensors are contiguous unless said otherwise, and no method synchronises with the GPU."""

    def plan(self, wanted: Wanted) -> Plan:
        """Sort both sides and the list, and fill scores."""

    def plan_schedule(self, grad: Tensor, pairs: Tensor | None, region_lengths: Tensor, word_lengths: Tensor) -> Schedule:
        """Find the pairs whose gradient, (I, T) or (P,) with pairs, is not 0, and that have regions and words."""

    def product(self, left: Tensor, right: Tensor, lengths: Tensor, item_rows: int) -> Tensor:
        """(rows, depth) times (depth, columns), of any strides, in their dtype; what scores are made of.

        Row r of `left` is row r % item_rows of item r // item_rows: at and beyond the item's length it may hold anything and counts
        as 0.
        """

    def score_tiles(self, call: "PlannedCall", scores: Tensor) -> bool:
        """Score the pairs that lie in tiles of many, whatever else is there; whether that may leave some out."""

    def slot_numbers(self, call: "PlannedCall", gradient: bool) -> int:
        """float32 numbers of scratch memory for a pair that is worked on alone, for its derivatives or without."""

    def score_rest(self, slots: "Slots", scores: Tensor) -> None:
        """Score the pairs that `score_tiles` leaves out, however many, in no more than `slots.count` slots."""

    def fill(self, slots: "Slots", first: int, count: int) -> None:
        """Work on `count` pairs of the call's list from `first`, each in a slot, where `maps` finds what it reads."""

    def maps(self, slots: "Slots", count: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """f (count, M), g (count, N), A, C and R (count, M, N) of the pairs last worked on; anything beyond lengths."""

    def differentiate(self, slots: "Slots", schedule: Schedule, grad: Tensor, sums: tuple[Tensor, ...]) -> None:
        """Add to float32 `sums` what the schedule's pairs give, from the gradients of all scores.

        Sums are of the features and the products of both sides, and (I, H) of both score vectors.
        """


def project(call: Projection) -> Tensor:
    """`reference.project`."""
    check_projection(call)
    items, weight = call.items, call.weight
    return _products(items, weight, call.lengths, KERNELS[call.backend])


def _products(items: Tensor, weight: Tensor, lengths: Tensor | None, kernels: Kernels) -> Tensor:
    # Of an item whose length is out of range nobody reads the products.
    count, rows, width = items.shape
    if lengths is None:
        lengths = torch.full((count,), rows, device=items.device)
    product = kernels.product(items.view(count * rows, width), weight, lengths, rows)
    return product.view(count, rows, weight.shape[1])


def project_backward(call: ProjectionGradient) -> tuple[Tensor, Tensor]:
    """Gradients of `project`; an empty tensor for one that nobody needs.

    torch's products: deterministic on one stream, and gradients need no batch invariance.
    """
    check_projection_gradient(call)
    # Autograd may run where autocast is on.
    with without_autocast(call.grad.device):
        return _project_backward(call)


def _project_backward(call: ProjectionGradient) -> tuple[Tensor, Tensor]:
    items, weight, lengths, _ = call.projection
    count, rows, width = items.shape
    of_items = torch.empty_like(items) if call.need_items else items.new_empty(0)
    of_weight = weight.new_zeros(weight.shape) if call.need_weight and not count else weight.new_empty(0)
    exists = None
    if lengths is not None:
        real = torch.where(lengths > rows, 0, lengths)
        exists = torch.arange(rows, device=items.device).view(rows, 1) < real.view(count, 1, 1)

    def real_rows(x: Tensor, some: slice) -> Tensor:
        """Below each other, those beyond lengths 0: they may hold NaN, which no product with 0 makes 0."""
        x = _some(x, some)
        return (x if exists is None else torch.where(_some(exists, some), x, 0)).flatten(0, 1)

    step = max(1, ROW_BYTES // max(1, rows * (width + weight.shape[1]) * items.itemsize))
    for first in range(0, count, step):
        some = slice(first, first + step)
        grad = real_rows(call.grad, some)
        if call.need_items:
            torch.mm(grad, weight.mT, out=_some(of_items, some).flatten(0, 1))
        if call.need_weight:
            own = real_rows(items, some).mT @ grad
            of_weight = own if first == 0 else of_weight.float() + own
    return of_items, of_weight.to(weight.dtype)


def _some(x: Tensor, some: slice) -> Tensor:
    return x if some.stop - some.start >= x.shape[0] else x[some]


def pair_scores(call: Call) -> Tensor:
    """`reference.pair_scores`; NaN for a pair whose index, or an item's length, is out of range.

    Sides that come without products are projected block by block.
    """
    planned = _planned(call)
    V, U, pairs = planned.V, planned.U, planned.pairs
    scores = new_scores(V.features, U.features, pairs)
    if not (len(V) and len(U)):
        return scores.fill_(torch.nan)
    images, captions = _blocks(V, U)
    if images >= len(V) and captions >= len(U):
        _score(planned.of(V.projected(planned.kernels), U.projected(planned.kernels), pairs), scores)
        return scores
    if pairs is not None:
        # A gallery is not projected for a few pairs, nor kept for many: each block of the list brings its own items.
        listed = max(1, _room(V, U) // max(1, V.copy_bytes + U.copy_bytes))
        for start in range(0, len(pairs), listed):
            some = pairs[start : start + listed]
            own = torch.arange(len(some), device=pairs.device)[:, None].repeat(1, 2)
            sides = (side.chosen(some[:, column]).projected(planned.kernels) for column, side in enumerate((V, U)))
            _score(planned.of(*sides, own), scores[start : start + len(some)])
        return scores
    # Images pass by once for each block of captions.
    some_U = some_V = None
    for t in range(0, len(U), captions):
        # Two blocks of one side have no room.
        some_U = None
        some_U = U.part(t, captions).projected(planned.kernels)
        for i in range(0, len(V), images):
            if some_V is None or images < len(V):
                some_V = None
                some_V = V.part(i, images).projected(planned.kernels)
            _score(planned.of(some_V, some_U, None), scores[i : i + images, t : t + captions])
    return scores


def _room(V: "PlannedSide", U: "PlannedSide") -> int:
    """Bytes that are left for products beside the matrices that make them."""
    return BLOCK_BYTES - sum(x.weight.nbytes for x in (V, U) if x.weight is not None)


def _blocks(V: "PlannedSide", U: "PlannedSide") -> tuple[int, int]:
    """Images and captions whose products are made at once: all of a side that has them.

    Captions get more of the room: there are more of them, and images are projected once for each block of captions.
    """
    room = _room(V, U)
    of_V, of_U = (room, room) if V.weight is None or U.weight is None else (room * 2 // 5, room * 3 // 5)
    images = len(V) if V.weight is None else max(1, of_V // max(1, V.item_bytes))
    captions = len(U) if U.weight is None else max(1, of_U // max(1, U.item_bytes))
    return images, captions


def pair_scores_backward(call: CallGradient) -> tuple[Tensor, ...]:
    """Gradients of the six tensors of `pair_scores`; a pair whose score has the gradient 0 is not looked at."""
    grad, planned = call.grad, _with_products(call.call)
    check_gradient(call)
    V, U = planned.V, planned.U
    # Sums over pairs are float32 and go on from one launch to the next.
    of_vectors = (len(V), planned.vectors.region_score.shape[0])
    shapes = *(x.shape for x in (V.features, V.products, U.features, U.products)), of_vectors, of_vectors
    sums = [V.features.new_empty(shape, dtype=torch.float32) for shape in shapes]
    # One launch, where a call for each tensor would be six.
    torch._foreach_zero_(sums)
    if grad.numel() and V.features.numel() and U.features.numel():
        _differentiate(planned, grad, tuple(sums))
    gradients = *sums[:4], *(x.sum(0) for x in sums[4:])
    if V.features.dtype == torch.float32:
        return gradients
    narrow = [torch.empty_like(x, dtype=V.features.dtype) for x in gradients]
    torch._foreach_copy_(narrow, gradients)
    return tuple(narrow)


def pair_maps(call: Call) -> tuple[Tensor, ...]:
    """Scores, those of `pair_scores`, and f, g, A, C and Rᵀ."""
    planned, scores = _with_products(call), pair_scores(call)
    V, U = planned.V, planned.U
    count, m, n = len(call.pairs), V.features.shape[1], U.features.shape[1]
    f, g, A, C, R = (scores.new_zeros(count, *shape) for shape in ((m,), (n,), (m, n), (m, n), (m, n)))
    if R.numel() and len(V) and len(U):
        _trace(planned, (f, g, A, C, R))
    return scores, f, g, A, C, R.mT.contiguous()


@dataclass
class PlannedSide:
    """Regions or words on their way to being scored; its length is the number of items.

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

    def __len__(self) -> int:
        return self.features.shape[0]

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

    def part(self, start: int, count: int) -> "PlannedSide":
        return self if count >= len(self) else self._of(lambda x: x[start : start + count])

    def chosen(self, items: Tensor) -> "PlannedSide":
        # An index out of range has no item: neither has one whose length is out of range.
        inside = (items >= 0) & (items < len(self.features))
        items = torch.where(inside, items, 0)
        side = self._of(lambda x: x.index_select(0, items))
        rows = self.features.shape[1]
        lengths = torch.full_like(items, rows) if side.lengths is None else side.lengths
        side.lengths = torch.where(inside, lengths, -1)
        return side

    def projected(self, kernels: Kernels) -> "PlannedSide":
        if self.weight is None:
            return self
        products = _products(self.features, self.weight, self.lengths, kernels)
        return PlannedSide(self.kind, self.features, products, None, self.lengths)

    def _of(self, some) -> "PlannedSide":
        tensors = (None if x is None else some(x) for x in (self.features, self.products, self.lengths))
        features, products, lengths = tensors
        return PlannedSide(self.kind, features, products, self.weight, lengths)


class PlannedCall(NamedTuple):
    """A call whose sides may still have to be projected, the kernels that run it, and its plan; None before it is planned."""

    V: PlannedSide
    U: PlannedSide
    vectors: Vectors
    pairs: Tensor | None
    options: Options
    kernels: Kernels
    plan: Plan | None = None

    def of(self, V: PlannedSide, U: PlannedSide, pairs: Tensor | None) -> "PlannedCall":
        """The same call of other items, without a plan."""
        return PlannedCall(V, U, self.vectors, pairs, self.options, self.kernels)

    def planned(self, scores: Tensor | None = None) -> "PlannedCall":
        """With its plan, which fills scores; without scores only its sides are planned."""
        V, U = self.V, self.U
        written = (None, V.features.new_empty(0, dtype=torch.float32)) if scores is None else (self.pairs, scores)
        plan = self.kernels.plan(Wanted(V.features, V.lengths, U.features, U.lengths, *written))
        return PlannedCall(*self[:-1], plan)


def shape_of(call: PlannedCall) -> Shape:
    (m, width), n = call.V.features.shape[1:], call.U.features.shape[1]
    return Shape(m, n, width, call.vectors.region_score.shape[0], call.V.features.itemsize, call.options.cosine)


def _planned(call: Call) -> PlannedCall:
    V = _planned_side("region", call.regions, call.matrices.of_regions())
    U = _planned_side("word", call.words, call.matrices.of_words())
    check_call(V, U, call.vectors, call.pairs)
    return PlannedCall(V, U, call.vectors, call.pairs, call.options, KERNELS[call.backend])


def _planned_side(kind: str, side: Side, matrices: dict[str, Tensor | None]) -> PlannedSide:
    weight = None if side.products is not None else beside(matrices)
    return PlannedSide(kind, side.features, side.products, weight, side.lengths)


def _with_products(call: Call) -> PlannedCall:
    for name, side in (("region", call.regions), ("word", call.words)):
        if side.products is None:
            raise RuntimeError(f"{name}_products: expected a tensor, got None")
    return _planned(call)


def _score(call: PlannedCall, scores: Tensor) -> None:
    """Write the scores of projected sides: in tiles where tiles hold them, else one by one."""
    V, U, pairs = call.V, call.U, call.pairs
    if scores.numel() == 0:
        return
    if pairs is not None and len(pairs) > MOST_LISTED:
        for start in range(0, len(pairs), MOST_LISTED):
            some = slice(start, start + MOST_LISTED)
            _score(call.of(V, U, pairs[some]), scores[some])
        return
    # Of so many images that views begin where copies of 16 bytes may.
    images = whole(max(1, MOST_SCORED // len(U)), 8)
    if pairs is None and len(V) > images:
        for start in range(0, len(V), images):
            _score(call.of(V.part(start, images), U, None), scores[start : start + images])
        return
    call = call.planned(scores)
    if V.features.numel() and U.features.numel() and call.kernels.score_tiles(call, scores):
        call.kernels.score_rest(Slots(call, SCORE_SCRATCH_BYTES, gradient=False), scores)


class Slots:
    """Scratch memory for pairs that are worked on one by one, and the sizes that its kernels need.

    Attributes:
        call: whose pairs they are, with its plan.
        most_bytes: that they may take.
        regions, words: the plans of its sides.
        rows: M and N.
        width: D.
        numbers: float32 numbers of a slot.
        count: slots that there may be.
        scratch: (slots, numbers), as many as were needed so far.
    """

    def __init__(self, call: PlannedCall, most_bytes: int, gradient: bool):
        self.call, self.most_bytes = call, most_bytes
        self.regions, self.words, _ = call.plan
        self.rows = call.V.features.shape[1], call.U.features.shape[1]
        self.width = call.V.features.shape[2]
        self.numbers = call.kernels.slot_numbers(call, gradient)
        self.count = max(1, most_bytes // (4 * max(1, self.numbers)))
        self.scratch = call.V.features.new_empty(0, self.numbers, dtype=torch.float32)

    def reserve(self, count: int) -> int:
        """See that there is scratch memory for so many pairs, or for as many as there may be slots: how many."""
        count = min(self.count, count)
        if len(self.scratch) < count:
            self.scratch = self.scratch.new_empty(count, self.numbers)
        return count


def _differentiate(call: PlannedCall, grad: Tensor, sums: tuple[Tensor, ...]) -> None:
    """Add to the sums what every pair with a gradient gives: window by window of rows of images, or of the list."""
    V, U, pairs = call.V, call.U, call.pairs
    if len(grad) > 1 and grad.numel() > MOST_ORDERED:
        step = max(1, MOST_ORDERED // (grad.numel() // len(grad)))
        for start in range(0, len(grad), step):
            some = slice(start, start + step)
            if pairs is not None:
                _differentiate(call.of(V, U, pairs[some]), grad[some], sums)
                continue
            of_V, of_VQ, of_U, of_UQ, *of_vectors = sums
            window = of_V[some], of_VQ[some], of_U, of_UQ, *(x[some] for x in of_vectors)
            _differentiate(call.of(V.part(start, step), U, None), grad[some], window)
        return
    slots = Slots(call.planned(), SCRATCH_BYTES, gradient=True)
    schedule = call.kernels.plan_schedule(grad, pairs, slots.regions.lengths, slots.words.lengths)
    call.kernels.differentiate(slots, schedule, grad, sums)


def _trace(call: PlannedCall, maps: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]) -> None:
    """Write f, g, A, C and R of the pairs that have any."""
    slots, pairs = Slots(call.planned(), SCRATCH_BYTES, gradient=False), call.pairs
    regions, words = (torch.arange(x, device=pairs.device) for x in slots.rows)
    for first in range(0, len(pairs), slots.count):
        some = pairs[first : first + slots.reserve(len(pairs) - first)]
        call.kernels.fill(slots, first, len(some))
        real = exist(some, len(call.V), len(call.U))
        image, caption = torch.where(real[:, None], some, 0).unbind(1)
        v_exists = real[:, None] & (regions < slots.regions.lengths[image, None])
        u_exists = real[:, None] & (words < slots.words.lengths[caption, None])
        v_exists, u_exists = v_exists & u_exists.any(1, keepdim=True), u_exists & v_exists.any(1, keepdim=True)
        exists = v_exists[:, :, None] & u_exists[:, None, :]
        found = zip((v_exists, u_exists, exists, exists, exists), call.kernels.maps(slots, len(some)), strict=True)
        for target, (mask, x) in zip(maps, found, strict=True):
            target[first : first + len(some)] = torch.where(mask, x, 0)
