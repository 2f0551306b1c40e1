"""The operators of operators.py on a GPU: what every backend there shares. Plans are tensors on the device, memory is bounded by
going through a call in pieces, and a backend's `Kernels` do the work.

Rows of queries look for their largest product with a row of a document: words are the queries and images the documents, or with
`over_regions` the other way round.
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ...core.gpu import aligned
from ...core.gpu.limits import times
from ...core.gpu.plan import Plan, Schedule, Wanted
from ...core.ragged import new_scores
from ...core.records import Items
from ..call import Call, CallGradient
from . import limits
from .checks import check_call, check_gradient

# Bytes of the largest products of one launch, which the L2 cache of a data centre's GPU holds. With plans that stays within 64 MiB.
LARGEST_BYTES = 16 * 2**20
# Rows of queries of one launch, of which a block takes 128, and items of a side or pairs that are planned at once.
QUERY_ROWS = 2**15
MOST_PLANNED = 2**19
# Of the 256 MiB that backward may take: float32 sums of narrower gradients, places of one launch, and pairs whose order is planned
# at once, some 60 bytes each.
SUMS_BYTES = 96 * 2**20
PLACES_BYTES = 32 * 2**20
MOST_ORDERED = 2**20

# Backends by the name that is the operators' last argument.
KERNELS: dict[str, "Kernels"] = {}


class Rows(NamedTuple):
    """One side of a piece of a call.

    Attributes:
        features: (B, L, D).
        lengths: (B,) int64 from 0 to L.
        starts: (B + 1,) int64, how many rows lie before each item; None for a list of pairs.
    """

    features: Tensor
    lengths: Tensor
    starts: Tensor | None


class Search(NamedTuple):
    """Rows of queries that look for their largest products.

    Attributes:
        queries, documents: both sides.
        pairs: (P, 2) int64 of (image, caption), or None for all of them. One that names an item which does not exist, or that has
            an empty side, is left out.
        over_regions: queries are images.
    """

    queries: Rows
    documents: Rows
    pairs: Tensor | None
    over_regions: bool


class Terms(NamedTuple):
    """What the items of one side add up: of a list of pairs, coefficient times the row of the other side.

    Attributes:
        coefficients: (P,) float32.
        places: (P, N) int32, for every row of a pair's query the row of its document.
        starts: (B + 1,) int64, where in the order of summing each item's pairs begin.
        order: int64, pairs in that order; None: as they are counted.
        first: what the first pair of the list counts as.
        sums: (B, L, D) float32.
    """

    coefficients: Tensor
    places: Tensor
    starts: Tensor
    order: Tensor | None
    first: int
    sums: Tensor


class Kernels(Protocol):
    """What a backend launches. Tensors are contiguous unless said otherwise, and no method synchronises with the GPU."""

    def plan(self, wanted: Wanted) -> Plan:
        """Sort both sides, and fill scores."""

    def plan_schedule(self, grad: Tensor, pairs: Tensor | None, region_lengths: Tensor, word_lengths: Tensor) -> Schedule:
        """Find the pairs whose gradient, (I, T) or (P,) with pairs, is not 0, and that have regions and words."""

    def find_largest(self, search: Search, largest: Tensor) -> None:
        """Write the largest product of every row of queries: NaN if one is.

        Of all pairs, to (documents, rows): row r of query q is in column starts[q] - starts[0] + r. Of a list, to (pairs, N).
        """

    def add_largest(self, search: Search, largest: Tensor, scores: Tensor, mean: bool) -> None:
        """Write the sums of what `find_largest` wrote, rows rising: scores (documents, queries) of any strides, or (pairs,)."""

    def find_places(self, search: Search, places: Tensor) -> None:
        """Write where the largest product of every row of a list's queries is, the lowest of equals, to (pairs, N) int32."""

    def sum_query_gradients(self, search: Search, terms: Terms) -> None:
        """Add to the sums of queries, whose row r gets the rows at places[:, r], pair after pair."""

    def sum_document_gradients(self, search: Search, terms: Terms) -> None:
        """Add to the sums of documents, whose row r gets the rows of queries with this place, pair after pair in rising order."""


def max_similarity(call: Call) -> Tensor:
    """`reference.max_similarity`, for float16, bfloat16 and float32."""
    check_call(call)
    scores = new_scores(call.regions.features, call.words.features, call.pairs)
    for part, some in pieces_of(call, scores):
        search = search_of(part, some)
        queries, documents = search.queries.features, search.documents.features
        if some.numel() == 0 or queries.shape[1] == 0 or documents.shape[1] == 0:
            continue
        rows = queries.shape[1] * (len(queries) if part.pairs is None else 1)
        largest = scores.new_empty(len(documents) if part.pairs is None else len(part.pairs), rows)
        kernels = KERNELS[call.backend]
        kernels.find_largest(search, largest)
        table = some.mT if search.over_regions and part.pairs is None else some
        kernels.add_largest(search, largest, table, call.options.mean)
    return scores


def search_of(call: Call, scores: Tensor) -> Search:
    """A call, or a piece of one, as kernels take it; its scores are filled."""
    wanted = Wanted(*call.regions, *call.words, call.pairs, scores)
    made = KERNELS[call.backend].plan(wanted)
    packed = call.pairs is None
    regions, words = (_rows(x, y.lengths, packed) for x, y in zip((call.regions, call.words), made[:2], strict=True))
    queries, documents = (regions, words) if call.options.over_regions else (words, regions)
    return Search(queries, documents, call.pairs, call.options.over_regions)


def _rows(side: Items, lengths: Tensor, packed: bool) -> Rows:
    starts = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)) if packed else None
    return Rows(aligned(side.features), lengths, starts)


def pieces_of(call: Call, scores: Tensor) -> Iterator[tuple[Call, Tensor]]:
    """Calls whose largest products have room and do not take long, and their scores, which are views."""
    numbers = LARGEST_BYTES // 4
    queries, documents = (call.regions, call.words) if call.options.over_regions else (call.words, call.regions)
    rows, of_document = max(1, queries.features.shape[1]), _document_of(documents.features)
    if call.pairs is not None:
        step = max(1, min(MOST_PLANNED, numbers // rows, times(limits.largest_of_pair(rows, *of_document))))
        for start in range(0, len(call.pairs), step):
            yield call._replace(pairs=call.pairs[start : start + step]), scores[start : start + step]
        return
    tiles = times(limits.largest(limits.TILE_ROWS, *of_document))
    most_queries = max(1, min(len(queries.features), QUERY_ROWS // rows, tiles * limits.TILE_ROWS // rows))
    of_queries = limits.largest(most_queries * rows, *of_document)
    most_documents = max(1, min(MOST_PLANNED, numbers // (most_queries * rows), times(of_queries)))
    for query in range(0, len(queries.features), most_queries):
        for document in range(0, len(documents.features), most_documents):
            some = slice(query, query + most_queries), slice(document, document + most_documents)
            of_regions, of_words = some if call.options.over_regions else some[::-1]
            part = call._replace(regions=part_of(call.regions, of_regions), words=part_of(call.words, of_words))
            yield part, scores[of_regions, of_words]


def _document_of(features: Tensor) -> tuple[int, int, torch.dtype]:
    """Rows, width and dtype: at least one of each, so that something takes time."""
    return max(1, features.shape[1]), max(1, features.shape[2]), features.dtype


def part_of(side: Items, some: slice) -> Items:
    """Some items of a side."""
    return Items(side.features[some], None if side.lengths is None else side.lengths[some])


def max_similarity_backward(gradient: CallGradient) -> tuple[Tensor, Tensor]:
    """Gradients of regions and words, an empty tensor for one that is not needed; a pair with the gradient 0 is not looked at."""
    grad, call = gradient.grad, gradient.call
    check_call(call)
    check_gradient(grad, call)
    features = call.regions.features, call.words.features
    needed = gradient.need_regions, gradient.need_words
    results = [x.new_zeros(x.shape if wanted else (0,)) for x, wanted in zip(features, needed, strict=True)]
    if grad.numel() and all(x.numel() for x in features):
        for some in _sweeps(features, needed):
            _sweep(call, grad, results, some)
    return results[0], results[1]


def _sweeps(features: tuple[Tensor, Tensor], needed: tuple[bool, bool]) -> Iterator[tuple[slice | None, slice | None]]:
    """Items of each side whose sums are made at one time; None: of no item.

    float32 sums are made in the result, those of narrower gradients beside it.
    """
    beside = [4 * x.numel() if wanted and x.dtype != torch.float32 else 0 for x, wanted in zip(features, needed, strict=True)]
    if sum(beside) <= SUMS_BYTES:
        yield tuple(slice(0, len(x)) if wanted else None for x, wanted in zip(features, needed, strict=True))
        return
    for side, x in enumerate(features):
        step = max(1, SUMS_BYTES // (4 * x[0].numel()))
        for start in range(0, len(x), step) if needed[side] else ():
            some = slice(start, min(start + step, len(x)))
            yield (some, None) if side == 0 else (None, some)


def _sweep(call: Call, grad: Tensor, results: list[Tensor], some: tuple[slice | None, slice | None]) -> None:
    """Write the gradients of some items of each side."""
    targets = [None if x is None else result[x] for x, result in zip(some, results, strict=True)]
    sums = [None if x is None else x if x.dtype == torch.float32 else torch.zeros_like(x, dtype=torch.float32) for x in targets]
    of_regions, of_words = (slice(0, len(x.features)) if part is None else part for x, part in zip(call[:2], some, strict=True))
    part = call._replace(regions=part_of(call.regions, of_regions), words=part_of(call.words, of_words))
    if call.pairs is None:
        _add_table(part, grad[of_regions, of_words], sums)
    else:
        # A pair of other items names none of these.
        image, caption = call.pairs.unbind(1)
        _add_list(part._replace(pairs=torch.stack([image - of_regions.start, caption - of_words.start], dim=1)), grad, sums)
    for target, x in zip(targets, sums, strict=True):
        if target is not None and x is not target:
            target.copy_(x)


def _add_table(call: Call, grad: Tensor, sums: list[Tensor | None]) -> None:
    """Add what all pairs give, images after each other and captions within: every item sees the others in rising order."""
    images, captions = grad.shape
    # An item's pairs are summed one after another.
    in_one_sum = _most_in_one_sum(call)
    most_captions = min(captions, MOST_ORDERED, in_one_sum)
    most_images = max(1, min(MOST_ORDERED // most_captions, in_one_sum))
    for image in range(0, images, most_images):
        for caption in range(0, captions, most_captions):
            some = slice(image, image + most_images), slice(caption, caption + most_captions)
            part = call._replace(regions=part_of(call.regions, some[0]), words=part_of(call.words, some[1]))
            _add(part, grad[some], [None if x is None else x[y] for x, y in zip(sums, some, strict=True)])


def _most_in_one_sum(call: Call) -> int:
    """Pairs of one item that a launch adds up."""
    queries = call.regions if call.options.over_regions else call.words
    return times(limits.step_of_sum(queries.features.shape[1]))


def _add_list(call: Call, grad: Tensor, sums: list[Tensor | None]) -> None:
    """Add what a list gives, in an order that does not depend on that of the list: equal pairs go by their gradients' bits."""
    order = torch.sort(grad.view(torch.int32), stable=True).indices
    _add(call._replace(pairs=call.pairs[order]), grad[order], sums)


def _add(call: Call, grad: Tensor, sums: list[Tensor | None]) -> None:
    """Find the pairs with a gradient, the places of their largest products, and add what they give."""
    kernels, captions = KERNELS[call.backend], len(call.words.features)
    made = kernels.plan(Wanted(*call.regions, *call.words, None, grad.new_empty(0)))
    regions, words = (_rows(x, y.lengths, False) for x, y in zip(call[:2], made[:2], strict=True))
    over_regions = call.options.over_regions
    queries, documents = (regions, words) if over_regions else (words, regions)
    schedule = kernels.plan_schedule(grad, call.pairs, regions.lengths, words.lengths)
    orders = (schedule.image_starts, None), (schedule.caption_starts, schedule.by_caption)
    flat, rows = grad.flatten(), queries.features.shape[1]
    step = max(1, min(PLACES_BYTES // (4 * rows), times(limits.largest_of_pair(rows, *_document_of(documents.features)))))
    if call.pairs is not None:
        # They may all be of one item.
        step = min(step, _most_in_one_sum(call))
    for first in range(0, len(flat), step):
        # How many pairs have a gradient only the device knows; the keys beyond name an image that does not exist.
        keys = schedule.keys[first : first + step]
        pairs = torch.stack([keys // captions, keys % captions], dim=1)
        coefficients = flat[schedule.order[first : first + step]]
        if call.options.mean:
            query = pairs[:, 0 if over_regions else 1].clamp_max(len(queries.lengths) - 1)
            coefficients = coefficients / queries.lengths[query]
        search = Search(queries, documents, pairs, over_regions)
        places = torch.empty(len(keys), rows, dtype=torch.int32, device=grad.device)
        kernels.find_places(search, places)
        for of_regions, side, (starts, order) in zip((True, False), sums, orders, strict=True):
            if side is not None:
                add = kernels.sum_query_gradients if of_regions == over_regions else kernels.sum_document_gradients
                add(search, Terms(coefficients, places, starts, order, first, side))
