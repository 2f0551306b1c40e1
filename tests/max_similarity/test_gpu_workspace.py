"""What the GPU backends hold beside inputs and results, found without a GPU."""

import pytest
import torch
from held import Held, Unlaunched

from caan_kernels.core import cuda as core_cuda
from caan_kernels.core.records import Items, flatten
from caan_kernels.max_similarity import cuda
from caan_kernels.max_similarity.call import Call, CallGradient, Options
from caan_kernels.max_similarity.gpu import launch

# Images, regions, captions, words, width: what would grow if it were held for all at once is above the bound.
FORWARD = {
    "many_pages": (100_000, 8, 40, 32, 8),
    "many_captions": (1, 1, 1_000_000, 1, 1),
    "long_captions": (8, 1, 2, 1_000_000, 1),
    "many_pairs": (4000, 4, 4000, 4, 4),
    "list": (2000, 5, 2000, 5, 16, 2_000_000),
}
BACKWARD = {
    "many_pairs": (3000, 2, 3000, 40, 4),
    "many_pages": (100_000, 8, 10, 32, 8),
    "both_sides": (2000, 1050, 2000, 1050, 8),
    "list": (2000, 5, 2000, 5, 16, 2_000_000),
}


def held_by(operator, shape, dtype, gradient=False) -> float:
    """MiB beside inputs and results."""
    images, m, captions, n, width, *listed = shape
    lengths = torch.randint(1, m + 1, (images,)), torch.randint(1, n + 1, (captions,))
    features = torch.empty(images, m, width, dtype=dtype), torch.empty(captions, n, width, dtype=dtype)
    pairs = torch.stack([torch.randint(x, (listed[0],)) for x in (images, captions)], dim=1) if listed else None
    call = Call(*map(Items, features, lengths), pairs, Options(over_regions=False, mean=True), "cuda")
    if gradient:
        call = CallGradient(torch.ones(listed or (images, captions)), call, True, True)
    with Held(*flatten(call)) as held:
        results = operator(call)
    results = results if gradient else [results]
    return (held.peak - sum(x.untyped_storage().nbytes() for x in results)) / 2**20


class Unplaced(Unlaunched):
    """The host reads what gradients there are at the places of a schedule."""

    def cuda_plan_schedule(self, grad, region_lengths, word_lengths, numbers, *others):
        numbers.zero_()


@pytest.fixture(autouse=True)
def no_kernels(monkeypatch):
    for module in (cuda, core_cuda):
        monkeypatch.setattr(module, "_ops", Unplaced())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", FORWARD.values(), ids=FORWARD)
def test_forward(shape, dtype):
    assert held_by(launch.max_similarity, shape, dtype) <= 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", BACKWARD.values(), ids=BACKWARD)
def test_backward(shape, dtype):
    assert held_by(launch.max_similarity_backward, shape, dtype, gradient=True) <= 256
