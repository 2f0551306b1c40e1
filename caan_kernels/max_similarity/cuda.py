"""The CUDA C++ backend: the kernels of csrc/max_similarity/cuda, launched as gpu/launch.py asks (docs/max-similarity.md)."""

from typing import NamedTuple

from torch import Tensor

from ..core.cuda import plan, plan_schedule
from ..core.gpu import stream_of
from ..core.gpu.limits import steps
from ..core.namespace import ops as _ops
from ..core.records import Written, flatten
from ..core.registration import define
from .gpu import limits
from .gpu.launch import Search, Terms

__all__ = ["add_largest", "find_largest", "find_places", "plan", "plan_schedule", "sum_document_gradients", "sum_query_gradients"]

# Rows of documents that a block goes through, unless blocks were too few to fill the largest GPU a few times over.
MOST_ROWS = 2048
ENOUGH_BLOCKS = 1024


class LargestLaunch(NamedTuple):
    """`Search` and the other arguments of `find_largest` in csrc/max_similarity/cuda/kernels.h."""

    search: Search
    largest: Written
    together: int
    stream: int


class AddLaunch(NamedTuple):
    """The same of `add_largest`."""

    search: Search
    largest: Tensor
    scores: Written
    mean: bool
    stream: int


class PlacesLaunch(NamedTuple):
    """The same of `find_places`."""

    search: Search
    places: Written
    stream: int


class SumLaunch(NamedTuple):
    """The same of `sum_query_gradients` and `sum_document_gradients`; the fields between are those of `Terms`."""

    search: Search
    coefficients: Tensor
    places: Tensor
    item_starts: Tensor
    order: Tensor | None
    first: int
    sums: Written
    stream: int


# Launches, not operators: they write into what they are given and are called by the operators' implementation only.
define("cuda_find_largest", LargestLaunch, "()")
define("cuda_add_largest", AddLaunch, "()")
define("cuda_find_places", PlacesLaunch, "()")
define("cuda_sum_query_gradients", SumLaunch, "()")
define("cuda_sum_document_gradients", SumLaunch, "()")


def find_largest(search: Search, largest: Tensor) -> None:
    _ops.cuda_find_largest(*flatten(LargestLaunch(search, largest, _together(search, largest.shape[1]), stream_of(largest))))


def _together(search: Search, query_rows: int) -> int:
    """Documents that a block goes through; scores do not depend on it."""
    documents, rows = search.documents.features.shape[:2]
    tiles = steps(query_rows, limits.TILE_ROWS)
    return max(1, min(documents * tiles // ENOUGH_BLOCKS, MOST_ROWS // rows))


def add_largest(search: Search, largest: Tensor, scores: Tensor, mean: bool) -> None:
    _ops.cuda_add_largest(*flatten(AddLaunch(search, largest, scores, mean, stream_of(largest))))


def find_places(search: Search, places: Tensor) -> None:
    _ops.cuda_find_places(*flatten(PlacesLaunch(search, places, stream_of(places))))


def sum_query_gradients(search: Search, terms: Terms) -> None:
    _ops.cuda_sum_query_gradients(*flatten(SumLaunch(search, *terms, stream_of(terms.sums))))


def sum_document_gradients(search: Search, terms: Terms) -> None:
    _ops.cuda_sum_document_gradients(*flatten(SumLaunch(search, *terms, stream_of(terms.sums))))
