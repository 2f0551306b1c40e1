"""The PTX that Triton makes of its kernels for sm_80, executed: a golden case, classes of shapes, and planted faults."""

import itertools
import re
from unittest import mock

import cases
import pytest
import torch
from ptx_cases import HALF, SINGLE, Case, assert_accurate, assert_golden, slow

import caan_kernels as ck
from caan_kernels.context_attention.gpu import launch as gpu_launch

pytest.importorskip("triton")
import compile_report
from support.ptx import PtxError, triton_launches

from caan_kernels.context_attention.triton import launch

# Kernels by their names; which class of shapes a pair is of depends on the lengths alone.
CASES = {
    # Every block of regions with either block of words, of which a program takes one to four captions.
    "small": Case(("plan_kernel", "product_kernel", "tile_kernel"), HALF, (36, 7), (9, 20)),
    "small_list": Case(("plan_kernel", "tile_kernel"), HALF, (36, 7), (9, 20), listed=True),
    "small_powers": Case(("tile_kernel",), HALF, (64, 20, 49), (9, 20, 4)),
    "small_powers_list": Case(("tile_kernel",), HALF, (64, 20, 49, 7), (9, 20, 4), listed=True),
    # Every block of words.
    "large": Case(("plan_kernel", "large_kernel"), HALF + SINGLE, (66,), (40, 9)),
    "large_list": Case(("plan_kernel", "large_kernel"), HALF + SINGLE, (66,), (40, 9), listed=True),
    "large_words": Case(("large_kernel",), HALF + SINGLE, (66,), (20, 70), (40, 40)),
    "large_words_list": Case(("large_kernel",), HALF + SINGLE, (66,), (20, 70), listed=True),
    "large_ieee": Case(("large_kernel",), SINGLE, (34,), (9, 20, 40, 70), ieee=True),
    "large_ieee_list": Case(("large_kernel",), SINGLE, (34, 3), (9, 20, 40, 70), listed=True, ieee=True),
    # An empty item and one with a single row beside full ones.
    "small_one_term": Case(("tile_kernel",), HALF, (36, 0, 1), (9, 0, 1, 20), (72, 40), cases.OPTIONS["inter_only"], listed=True),
    **{
        f"large_{name}": Case(("large_kernel",), dtypes, (66, 0), (40, 0, 1), (72, 40), cases.OPTIONS[name])
        for name, dtypes in (("cosine", HALF[1:]), ("inter_only", HALF[:1]), ("intra_only", SINGLE))
    },
    # In float32, of several rounds.
    "gradients": Case(("product_kernel", "gradient_kernel"), SINGLE + HALF, (5, 3), (6, 4, 2), (40, 40), scratch=20000),
    # The other blocks of regions, the last with IEEE products alone.
    **{
        f"gradients_{m}_{n}": Case(("gradient_kernel",), HALF + SINGLE, (m,), (n,), scratch=2**24)
        for m, n in ((20, 6), (36, 6), (100, 6), (65, 33), (129, 65))
    },
}

# The same blocks.
MAPS = {
    f"maps_{m}_{n}": Case(("map_kernel",), SINGLE + HALF, (m, 3), (n, 4, 2), (40, 40) if m == 5 else (16, 16), listed=True)
    for m, n in ((5, 6), (20, 6), (36, 6), (100, 6), (65, 33), (129, 65))
}


@pytest.mark.release
@pytest.mark.parametrize("name", ["square_small", "cosine", "inter_only", "intra_only"])
def test_golden(name):
    with triton_launches.interpreted(launch) as launched:
        assert_golden(name, "triton")
    assert {"tile_kernel", "gradient_kernel"} <= set(launched)


def in_classes():
    for name, case in CASES.items():
        for place, dtype in enumerate(case.dtypes):
            yield pytest.param(name, dtype, marks=[] if name == "small" and place == 0 else pytest.mark.release)


@pytest.mark.parametrize(("name", "dtype"), list(in_classes()), ids=str)
def test_class_of_shapes(name, dtype):
    case = CASES[name]
    problem = case.problem(dtype)
    with triton_launches.interpreted(launch) as launched, mock.patch.object(gpu_launch, "SCRATCH_BYTES", case.scratch):
        if case.scratch is None:
            found, gradients = problem.call(**case.options, backend="triton"), {}
        else:
            found, gradients = cases.run(problem, **case.options, backend="triton")
    assert set(case.kernels) <= set(launched)
    assert_accurate(case, problem, found, gradients)


@pytest.mark.release
@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, case in MAPS.items() for dtype in case.dtypes], ids=str)
def test_maps(name, dtype):
    case = MAPS[name]
    problem = case.problem(dtype)
    with triton_launches.interpreted(launch) as launched:
        found = problem.call(ck.attention_maps, backend="triton")
    assert set(case.kernels) <= set(launched)
    bound = 1e-4 if dtype == torch.float32 else 2**-4
    for of, expected in problem.call(ck.attention_maps, backend="reference")._asdict().items():
        assert torch.allclose(getattr(found, of).double(), expected.double(), rtol=bound, atol=bound), of


def classes(found):
    """Launches with their dtypes, without what kernels are compiled for beside the class: widths, options and tile sizes."""
    constants = "LISTED", "REGIONS", "TAIL", "WORDS", "EXACT", "PRECISION"
    return {(each.kernel, dtype, *((x, each.constants[x]) for x in constants if x in each.constants)) for dtype, each in found}


def classes_of(case, dtype):
    """A pair has the class that its own lengths need; derivatives and maps have that of the largest."""
    images, captions = range(len(case.regions)), range(len(case.words))
    pairs = case.problem(dtype).pairs.tolist() if case.listed else itertools.product(images, captions)
    sizes = {(case.regions[i], case.words[t]) for i, t in pairs}
    with compile_report.float32_products("ieee" if case.ieee else "none"):
        found = compile_report.launches_of(dtype, max(case.regions), max(case.words), listed=case.listed)
        found = [each for each in found if each.kernel not in ("tile_kernel", "large_kernel")]
        for m, n in sizes:
            found += compile_report.launches_of(dtype, m, n, listed=case.listed, gradient=False) if m and n else []
    name = str(dtype).removeprefix("torch.")
    return classes((name, each) for each in found if each.kernel in case.kernels)


def test_every_class_has_a_case(monkeypatch):
    """TF32 alone has none: only who asks for it gets it in float32."""
    for name, value in (("WIDTH", 16), ("HIDDEN", 16), ("SEARCHED", ()), ("PRECISIONS", ("none", "ieee"))):
        monkeypatch.setattr(compile_report, name, value)
    cases_of = [*CASES.values(), *MAPS.values()]
    known = set().union(*(classes_of(case, dtype) for case in cases_of for dtype in case.dtypes))
    wanted = classes(compile_report.wanted(check=False))
    assert {each[0] for each in wanted} == set(triton_launches.kernels_of(launch))
    assert sorted(map(str, wanted - known)) == []


def editing(kernel: str, pattern: str, replacement: str, matches: int = 1):
    """Puts something else for the first matches of a pattern in the PTX of a kernel, or for all where they are 0."""

    def edit(name: str, text: str) -> str:
        if name != kernel:
            return text
        edited, count = re.subn(pattern, replacement, text, count=matches)
        assert count
        return edited

    return edit


def product(pattern: str, replacement: str):
    """A product in bfloat16 by PTX in which something else stands for one match of a pattern, and what it should be."""
    edit = editing("product_kernel", pattern, replacement)
    # Triton copies rows of multiples of 16 without a register.
    generator = torch.Generator().manual_seed(0)
    items, weight = (torch.randn(shape, generator=generator).bfloat16() for shape in ((1, 40, 144), (144, 80)))
    with triton_launches.interpreted(launch, edit) as launched:
        found = torch.ops.caan_kernels.project(items, weight, None, "triton")
    assert launched == ["product_kernel"]
    return found.float(), items.float() @ weight.float()


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r"bar\.sync[^;]*;", "", "race.*no barrier is in between"),
        (r"cp\.async\.wait_group[^;]*;", "", "a copy to it is not waited for"),
        (r"(st\.global[^;]*\[ %rd\d+ \+ )0 ", r"\g<1>1073741824 ", "out of bounds"),
        (r"(cp\.async\.cg[^;]*\], \[ %rd\d+ \+ )0 ", r"\g<1>2 ", "misaligned: expected a multiple of 16"),
        (r"cp\.async\.cg[^;]*;", "", "shared memory is read and was never written"),
    ],
    ids=["no_barrier", "no_wait", "store_beyond", "copy_misaligned", "no_copy"],
)
def test_fault_is_found(pattern, replacement, message):
    with pytest.raises(PtxError, match=message):
        product(pattern, replacement)


@pytest.mark.parametrize(
    ("pattern", "replacement", "sound"),
    [
        (r"(mma\.sync)", r"\1", True),
        (r"(mma\.sync[^{]*\{[^}]*\}, \{ %\w+, )(%\w+), (%\w+)", r"\1\3, \2", False),
        (r"(mma\.sync[^{]*\{[^}]*\}, \{[^}]*\}, \{ )(%\w+), (%\w+)", r"\1\3, \2", False),
    ],
    ids=["none", "left", "right"],
)
def test_swapped_fragment_is_found(pattern, replacement, sound):
    """Two registers of a factor change places in one tensor-core product."""
    found, expected = product(pattern, replacement)
    assert torch.allclose(found, expected, rtol=2**-8, atol=1e-2) == sound


@pytest.mark.parametrize(
    ("pattern", "replacement", "error"),
    [
        (r"red\.global\.gpu\.release", "red.global.gpu.relaxed", PtxError),
        slow(r"ld\.global\.gpu\.acquire", "ld.global.gpu.relaxed", PtxError),
        slow(r"bar\.sync[^;]*;", "", PtxError),
        slow(r"(mma\.sync[^{]*\{[^}]*\}, \{ %\w+, )(%\w+), (%\w+)", r"\1\3, \2", AssertionError),
    ],
    ids=["no_release", "no_acquire", "no_barrier", "swapped_fragment"],
)
def test_fault_of_derivatives_is_found(pattern, replacement, error):
    case = CASES["gradients"]._replace(regions=(5,), words=(6,), widths=(16, 16), scratch=2**24)
    problem = case.problem(torch.bfloat16)
    with pytest.raises(error), triton_launches.interpreted(launch, editing("gradient_kernel", pattern, replacement, 0)):
        assert_accurate(case, problem, *cases.run(problem, **case.options, backend="triton"))


@pytest.mark.release
@pytest.mark.parametrize(("kernel", "name"), [("tile_kernel", "small"), ("large_kernel", "large")])
@pytest.mark.parametrize(
    ("pattern", "replacement", "error"),
    [
        (r"bar\.sync[^;]*;", "", PtxError),
        (r"(mma\.sync[^{]*\{[^}]*\}, \{ %\w+, )(%\w+), (%\w+)", r"\1\3, \2", AssertionError),
    ],
    ids=["no_barrier", "swapped_fragment"],
)
def test_fault_of_scores_is_found(kernel, name, pattern, replacement, error):
    case = CASES[name]._replace(words=(9,), widths=(16, 16))
    problem = case.problem(torch.bfloat16)
    with pytest.raises(error), triton_launches.interpreted(launch, editing(kernel, pattern, replacement, 0)):
        assert_accurate(case, problem, problem.call(**case.options, backend="triton"), {})
