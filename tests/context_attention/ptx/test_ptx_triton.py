"""The PTX that Triton makes of its kernels for sm_80, executed: a golden case, and planted faults."""

import re

import pytest
import torch
from ptx_cases import assert_golden

pytest.importorskip("triton")
from support.ptx import PtxError, triton_launches

from caan_kernels.context_attention.triton import launch

pytestmark = pytest.mark.usefixtures("triton_on_cpu")


def test_golden():
    with triton_launches.interpreted(launch) as launched:
        assert_golden("square_small", "triton")
    assert {"products_kernel", "tile_kernel", "finish_kernel", "pair_kernel"} <= set(launched)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (r"bar\.sync[^;]*;", "race.*no barrier is in between"),
        (r"cp\.async\.wait_group[^;]*;", "a copy to it is not waited for"),
    ],
    ids=["no_barrier", "no_wait"],
)
def test_fault_is_found(pattern, message):
    def edit(name: str, text: str) -> str:
        edited, count = re.subn(pattern, "", text, count=1)
        assert count
        return edited

    # Triton copies rows of multiples of 16 without a register.
    items, weight = torch.ones(1, 40, 144, dtype=torch.bfloat16), torch.ones(144, 80, dtype=torch.bfloat16)
    with pytest.raises(PtxError, match=message), triton_launches.interpreted(launch, edit):
        torch.ops.caan_kernels.project(items, weight, None, "triton")
