"""How the Triton kernels are launched: `Kernels` of gpu/launch.py."""

import torch
from torch import Tensor

from ...core.gpu.plan import Plan, Wanted, plan_schedule
from ...core.triton.capture import refuse_in_capture
from ...core.triton.plan import plan_kernel, planning
from ..gpu.launch import Rows, Search, Terms
from .kernels import add_kernel, document_gradients_kernel, query_gradients_kernel, search_kernel

refuse_in_capture(globals())

__all__ = ["add_largest", "find_largest", "find_places", "plan", "plan_schedule", "sum_document_gradients", "sum_query_gradients"]

SEARCH = {"QUERY_ROWS": 32, "DOCUMENT_ROWS": 64}
ADD = {"PAIRS": 128, "CHAIN": 32}
QUERY_SUMS = {"ROWS": 16, "COLUMNS": 64}
# Each block of a document's rows goes through all rows of its queries. Left alone, NVIDIA's assembler would rather spill a register
# than lose a program.
DOCUMENT_SUMS = {"ROWS": 64, "COLUMNS": 64, "maxnreg": 255}
# Threads that hold the same sum would fuse different products into it, and which of them is written is chance.
COMPILED = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": False}


def plan(wanted: Wanted) -> Plan:
    made, programs, arguments, constants = planning(wanted)
    plan_kernel[programs](*arguments, **constants)
    return made


def find_largest(search: Search, largest: Tensor) -> None:
    _search(search, largest, placed=False)


def find_places(search: Search, places: Tensor) -> None:
    _search(search, places, placed=True)


def _search(search: Search, out: Tensor, placed: bool) -> None:
    queries, documents, pairs, over_regions = search
    count, rows = out.shape
    unused = queries.lengths
    search_kernel[(count * -(-rows // SEARCH["QUERY_ROWS"]),)](
        queries.features,
        queries.lengths,
        unused if pairs is not None else _source_rows(queries, rows),
        documents.features,
        documents.lengths,
        unused if pairs is None else pairs,
        out,
        rows,
        len(queries.features),
        len(documents.features),
        queries.features.shape[1],
        documents.features.shape[1],
        LISTED=pairs is not None,
        PLACED=placed,
        DOCUMENT_COLUMN=int(over_regions),
        WIDTH=queries.features.shape[2],
        # Without tensor cores Triton keeps both factors of a product in registers.
        DEPTH=16 if queries.features.dtype == torch.float32 else 64,
        **SEARCH,
        **COMPILED,
    )


def _source_rows(side: Rows, count: int) -> Tensor:
    """Which of all rows each of `count` packed ones is, (count,) int64; -1 beyond the last."""
    starts = side.starts - side.starts[0]
    row = torch.arange(count, device=starts.device)
    item = torch.searchsorted(starts[1:], row, right=True)
    exists = item < len(side.lengths)
    item = torch.where(exists, item, 0)
    return torch.where(exists, item * side.features.shape[1] + row - starts[item], -1)


def add_largest(search: Search, largest: Tensor, scores: Tensor, mean: bool) -> None:
    queries, documents, pairs, over_regions = search
    unused, count = queries.lengths, scores.numel()
    add_kernel[(-(-count // ADD["PAIRS"]),)](
        queries.lengths,
        unused if queries.starts is None else queries.starts,
        documents.lengths,
        unused if pairs is None else pairs,
        largest,
        scores,
        count,
        largest.shape[1],
        len(queries.features),
        len(documents.features),
        queries.features.shape[1],
        *((0, 0) if pairs is not None else scores.stride()),
        LISTED=pairs is not None,
        MEAN=mean,
        DOCUMENT_COLUMN=int(over_regions),
        **ADD,
        **COMPILED,
    )


def sum_query_gradients(search: Search, terms: Terms) -> None:
    queries, documents = search[:2]
    _sum(query_gradients_kernel, QUERY_SUMS, queries, (queries.lengths, documents.features), search, terms)


def sum_document_gradients(search: Search, terms: Terms) -> None:
    queries, documents = search[:2]
    read = queries.features, queries.lengths, documents.lengths
    _sum(document_gradients_kernel, DOCUMENT_SUMS, documents, read, search, terms)


def _sum(kernel, blocks: dict[str, int], side: Rows, read: tuple[Tensor, ...], search: Search, terms: Terms) -> None:
    """Run a kernel that adds to a side's sums."""
    count, rows, width = side.features.shape
    programs = count * -(-rows // blocks["ROWS"]) * -(-width // blocks["COLUMNS"])
    kernel[(programs,)](
        *read,
        search.pairs,
        terms.coefficients,
        terms.places,
        terms.starts,
        terms.starts if terms.order is None else terms.order,
        terms.sums,
        len(terms.coefficients),
        terms.first,
        search.queries.features.shape[1],
        search.documents.features.shape[1],
        ORDERED=terms.order is not None,
        DOCUMENT_COLUMN=int(search.over_regions),
        WIDTH=width,
        **blocks,
        **COMPILED,
    )
