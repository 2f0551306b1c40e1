"""The PTX that nvcc makes of the kernels, executed: golden cases, and every kernel at the classes of shapes it is for."""

import cases
import pytest
import torch
from ptx_cases import CASES, assert_accurate, assert_golden, product
from support.ptx import compilers, cuda_launches

# The cosine and its derivatives; one term alone; widths that tensor cores do not take.
QUICK_GOLDEN = ("cosine", "intra_only", "one_region")


def golden():
    for path in cases.GOLDEN:
        for dtype in (torch.bfloat16, torch.float32):
            quick = path.stem in QUICK_GOLDEN and dtype == torch.bfloat16
            yield pytest.param(path.stem, dtype, marks=[] if quick else pytest.mark.release)


@pytest.mark.parametrize(("name", "dtype"), list(golden()), ids=str)
def test_golden(name, dtype):
    with cuda_launches.interpreted() as launched:
        assert_golden(name, "cuda", dtype)
    assert launched


def in_classes():
    for name, case in CASES.items():
        for place, dtype in enumerate(case.dtypes):
            yield pytest.param(name, dtype, marks=[] if case.quick and place == 0 else pytest.mark.release)


@pytest.mark.parametrize(("name", "dtype"), list(in_classes()), ids=str)
def test_class_of_shapes(name, dtype):
    case = CASES[name]
    problem = case.problem(dtype)
    found, gradients, launched = case.run(problem)
    assert case.kernels_for(dtype) <= set(launched)
    assert_accurate(case, problem, found, gradients)


def test_every_kernel_has_a_case():
    known = set().union(*(case.kernels_for(dtype) for case in CASES.values() for dtype in case.dtypes))
    assert known == compilers.shipped("context_attention") | compilers.shipped("core")


def test_product():
    found, expected = product()
    torch.testing.assert_close(found, expected, rtol=2**-8, atol=1e-5)
