"""The PTX that nvcc makes of the kernels, executed: every kernel at the classes of shapes it is for, and planted faults."""

from typing import NamedTuple

import cases
import pytest
import torch
from support.ptx import PtxError, compilers, cuda_launches
from support.ptx.faults import BARRIER, WAIT, assert_needed, editing

from .problems import OPTIONS, Problem, assert_accurate, run

HALF, ALL = cases.HALF_DTYPES, (*cases.HALF_DTYPES, torch.float32)

pytestmark = [
    pytest.mark.skipif(not cases.EMULATED, reason="launches are taken from the emulator: tests/test_emulated.py"),
    pytest.mark.skipif(compilers.find_nvcc() is None, reason="there is no nvcc"),
    pytest.mark.usefixtures("poisoned_memory"),
]


class Case(NamedTuple):
    """A call that is differentiated, and kernels that it has to launch.

    Attributes:
        kernels: keys, {} for the dtype.
        dtypes: what it is run in; CI runs the first, tools/release_check.sh the others.
        regions: of each image.
        words: of each caption.
        width: of both.
        options: of the call.
        listed: whether pairs are a list, in no order.
    """

    kernels: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    regions: tuple[int, ...]
    words: tuple[int, ...]
    width: int
    options: dict = OPTIONS["words"]
    listed: bool = False


TILES, SCALAR = "search_tiles_kernel<{{}},{},{}>", "search_kernel<{{}},{}>"
ALL_PAIRS, LIST, PLACES = "false,false,float", "true,false,float", "true,true,int"
SUMS = "query_gradients_kernel<{}>", "document_gradients_kernel<{}>"
PLACES_IN_TILES, PLACES_OF_ANY = TILES.format("Tile<1,64>", PLACES), SCALAR.format(PLACES)
CASES = {
    # Several blocks of documents and tiles of queries, and three pieces of the width.
    "tiles": Case((TILES.format("Tile<4,112>", ALL_PAIRS), "add_kernel<{},false>"), HALF, (50, 3, 70), (70, 20, 61), 136),
    "few_queries": Case(
        (TILES.format("Tile<1,112>", ALL_PAIRS), PLACES_IN_TILES, *SUMS), HALF, (50, 3, 70), (16, 9), 72, OPTIONS["words"]
    ),
    "list": Case(
        (TILES.format("Tile<1,64>", LIST), PLACES_IN_TILES, "add_kernel<{},true>"),
        HALF,
        (70, 3),
        (40, 9),
        72,
        OPTIONS["regions_mean"],
        True,
    ),
    "any_width": Case((SCALAR.format(ALL_PAIRS), PLACES_OF_ANY, "add_kernel<{},false>", *SUMS), ALL, (70, 3), (40, 30), 35),
    "list_of_any_width": Case((SCALAR.format(LIST), PLACES_OF_ANY, "add_kernel<{},true>"), ALL, (70, 3), (40, 9), 35, listed=True),
}


def problem_of(case: Case, dtype: torch.dtype) -> Problem:
    generator = torch.Generator().manual_seed(0)
    sides = []
    for lengths in (case.regions, case.words):
        items = torch.randn(len(lengths), max(lengths), case.width, generator=generator).to(dtype)
        items[torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]] = torch.nan
        sides.append(items)
    pairs = torch.cartesian_prod(torch.arange(len(case.regions)), torch.arange(len(case.words))).flip(0) if case.listed else None
    return Problem(*sides, torch.tensor(case.regions), torch.tensor(case.words), pairs)


def in_classes():
    for name, case in CASES.items():
        for place, dtype in enumerate(case.dtypes):
            yield pytest.param(name, dtype, marks=pytest.mark.release if place else [])


@pytest.mark.parametrize(("name", "dtype"), list(in_classes()), ids=str)
def test_class_of_shapes(name, dtype):
    case = CASES[name]
    with cuda_launches.interpreted() as launched:
        assert_accurate(problem_of(case, dtype), "cuda", **case.options)
    assert {x.format(compilers.name_of(dtype)) for x in case.kernels} <= set(launched)


def test_every_kernel_has_a_case():
    known = {x.format(compilers.name_of(dtype)) for case in CASES.values() for x in case.kernels for dtype in case.dtypes}
    assert known == compilers.shipped("max_similarity")


TILES_OF_ALL = "search_tiles_kernel<bfloat16,Tile<4,112>,false,false,float>"
TILES_OF_LIST = "search_tiles_kernel<bfloat16,Tile<1,64>,true,false,float>"
SCALAR_OF_ALL = "search_kernel<bfloat16,false,false,float>"


@pytest.mark.parametrize(
    ("name", "kernel", "patterns"),
    [("tiles", TILES_OF_ALL, (BARRIER, WAIT)), ("list", TILES_OF_LIST, (BARRIER, WAIT)), ("any_width", SCALAR_OF_ALL, (BARRIER,))],
)
def test_order_is_needed(name, kernel, patterns):
    """Each barrier and each wait."""
    problem = problem_of(CASES[name], torch.bfloat16)

    def run(edit):
        with cuda_launches.interpreted(edit):
            problem.call(**CASES[name].options, backend="cuda")

    for pattern in patterns:
        assert_needed(kernel, pattern, run)


def test_missing_place_is_found():
    """Backward reads where every row's largest product was."""
    missing = editing("search_tiles_kernel<bfloat16,Tile<1,64>,true,true,int>", r"st\.global\.u32[^;]*;", "", None)
    with pytest.raises(PtxError, match="places is read and was never written"), cuda_launches.interpreted(missing):
        run(problem_of(CASES["list"], torch.bfloat16), backend="cuda")


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"(mma[^{]*\{[^}]*\}, )\{(%\w+), (%\w+),", r"\1{\3, \2,"),
        (r"(mma[^{]*(?:\{[^}]*\}, ){2})\{(%\w+), (%\w+)\}", r"\1{\3, \2}"),
    ],
    ids=["left", "right"],
)
def test_swapped_fragment_is_found(pattern, replacement):
    problem = problem_of(CASES["list"], torch.bfloat16)
    expected = problem.call(backend="reference")
    with cuda_launches.interpreted(editing(TILES_OF_LIST, pattern, replacement, None)):
        assert not torch.allclose(problem.call(backend="cuda"), expected, rtol=1e-2)
    with cuda_launches.interpreted():
        assert torch.allclose(problem.call(backend="cuda"), expected, rtol=1e-2)
