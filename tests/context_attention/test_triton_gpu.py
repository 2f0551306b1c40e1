"""What only a GPU can tell of the Triton backend alone: TF32, and what is compiled."""

import cases
import pytest
import torch
from on_gpu import drawn, on_device

from caan_kernels.core.gpu import plan

triton = pytest.importorskip("triton")

pytestmark = pytest.mark.skipif(cases.KERNELS.get("triton") != "cuda", reason="there is no GPU")


def test_tf32_is_used_where_it_is_allowed():
    case = drawn()
    exact = cases.oracle(case)[0]
    precise = case.call(backend="triton")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        quick = case.call(backend="triton")
    finally:
        torch.set_float32_matmul_precision(before)
    assert cases.score_error(precise, exact) <= 2e-6
    assert 2e-6 < cases.score_error(quick, exact) <= 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_batches_of_any_size_run_the_same_kernels(dtype):
    """Sizes that vary from batch to batch compile nothing anew."""
    compiled = []

    def hook(*, repr, **_):
        compiled.append(repr)

    generator = torch.Generator().manual_seed(0)

    def batch(seed):
        images, captions = torch.randint(2, 40, (2,), generator=generator).tolist()
        regions, words = torch.randint(2, plan.SMALLEST + 1, (2,), generator=generator).tolist()
        case = on_device(cases.problem((images, regions, captions, words, 16, 24), dtype, seed=seed, pairs=seed % 2 == 0))
        cases.run(case, backend="triton")
        case.call(backend="triton")

    for seed in range(4):
        batch(seed)
    triton.knobs.runtime.jit_cache_hook, before = hook, triton.knobs.runtime.jit_cache_hook
    try:
        for seed in range(4, 40):
            batch(seed)
    finally:
        triton.knobs.runtime.jit_cache_hook = before
    assert not compiled
