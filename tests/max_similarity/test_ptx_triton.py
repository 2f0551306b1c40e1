"""The PTX that Triton makes of its kernels for sm_80, executed."""

import cases
import pytest
import torch

from .problems import OPTIONS, assert_accurate
from .test_ptx import Case, problem_of

pytest.importorskip("triton")
from support.ptx import triton_launches

from caan_kernels.max_similarity.triton import launch

pytestmark = [
    pytest.mark.skipif(not cases.EMULATED, reason="it runs beside the CUDA kernels: tests/test_emulated.py"),
    pytest.mark.usefixtures("poisoned_memory"),
]

KERNELS = "plan_kernel", "search_kernel", "add_kernel", "query_gradients_kernel", "document_gradients_kernel"
DTYPES = torch.bfloat16, torch.float16, torch.float32
CASES = {
    "all_pairs": Case(KERNELS, DTYPES, (70, 3), (40, 9), 72),
    "list": Case(KERNELS, DTYPES, (70, 3), (40, 9), 35, OPTIONS["regions_mean"], listed=True),
}


@pytest.mark.release
@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name, x in CASES.items() for dtype in x.dtypes], ids=str)
def test_class_of_shapes(name, dtype):
    case = CASES[name]
    with triton_launches.interpreted(launch) as launched:
        assert_accurate(problem_of(case, dtype), "triton", **case.options)
    assert set(case.kernels) <= set(launched)


def test_every_kernel_has_a_case():
    assert set(KERNELS) == set(triton_launches.kernels_of(launch))
