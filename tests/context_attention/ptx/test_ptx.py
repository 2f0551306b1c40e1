"""The PTX that nvcc makes of the kernels, executed: golden cases, and every kernel at the classes of shapes it is for."""

from functools import partial

import cases
import pytest
import torch
from ptx_cases import CASES, assert_golden, product
from support.ptx import compilers, cuda_launches


@pytest.mark.parametrize("name", ["square_small", "one_region", pytest.param("full_36x13", marks=pytest.mark.release)])
def test_golden(name):
    """Widths that tensor cores take, and others; one piece of columns, and whole tiles of rows."""
    with cuda_launches.interpreted() as launched:
        assert_golden(name, "cuda")
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
    expected, plain = (of(problem, **case.options) for of in (cases.oracle, partial(cases.run, backend="reference")))
    error = cases.score_error(found, expected[0])
    assert error <= (1e-6 if dtype == torch.float32 else 2.5 * cases.score_error(plain[0], expected[0]) + 1e-6)
    for tensor, gradient in gradients.items():
        of_plain = cases.gradient_error(plain[1][tensor], expected[1][tensor])
        assert cases.gradient_error(gradient, expected[1][tensor]) <= 3 * of_plain + 1e-5, tensor


def test_every_kernel_has_a_case():
    known = set().union(*(case.kernels_for(dtype) for case in CASES.values() for dtype in case.dtypes))
    assert known == compilers.shipped("context_attention") | compilers.shipped("core")


def test_product():
    found, expected = product()
    torch.testing.assert_close(found, expected, rtol=2**-8, atol=1e-5)
