"""Workspace that does not grow with the call, and tensors of more than 2³¹ elements."""

import cases
import memory_growth
import pytest
import torch

import caan_kernels as ck

M, N = 36, 5
# MiB, where less than what is promised shows that the workspace does not grow with the call.
BOUNDS = {"backward_pair_list": 128}


@pytest.fixture(scope="module")
def growths():
    return memory_growth.measured(memory_growth.__file__)


@pytest.mark.skipif(
    cases.INTERPRETED or cases.EMULATED, reason="memory that stands for a GPU's is beside the point: test_triton.py counts tensors"
)
@pytest.mark.parametrize("name", memory_growth.CASES)
def test_workspace(name, growths):
    """At most 64 MiB forward and 256 MiB backward beyond inputs and outputs."""
    assert growths[name] <= BOUNDS.get(name, 64 if name.startswith("forward") else 256)


# Few, because kernels are compiled for the widths of each.
ON_A_GPU = (
    "forward_many_pairs",
    "forward_paper_sizes",
    "forward_bfloat16",
    "forward_pair_list",
    "backward_paper_sizes",
    "backward_bfloat16",
)


@pytest.mark.skipif(cases.KERNELS.get("triton") != "cuda", reason="there is no GPU")
@pytest.mark.parametrize("name", ON_A_GPU)
def test_workspace_of_triton(name):
    """The same bounds, for what PyTorch's allocator gives on the GPU."""
    growth = memory_growth.on_a_gpu(name, "triton")
    assert growth <= (64 if name.startswith("forward") else 256)


def tail_of(items, count):
    """`items` at the end of a tensor of `count` items, whose rest is memory that nothing touches."""
    large = items.new_empty(count, *items.shape[1:])
    large[count - len(items) :] = items
    return large


backends = pytest.mark.parametrize("backend", cases.KERNELS)
# The interpreter has no bfloat16.
HALF = torch.float16 if cases.INTERPRETED else torch.bfloat16


@backends
@pytest.mark.parametrize("side", ["regions", "words"])
def test_products_beyond_the_32_bit_index(backend, side):
    """Pairs at the end of a projected gallery of more than 2³¹ numbers."""
    case = cases.problem((3, M, 3, N, 8, 64), HALF, lengths=False, near_zero=True).on(backend)
    V, U = case.project(backend)
    expected = ck.context_attention(V, U, case.weights, backend=backend)
    gallery = V if side == "regions" else U
    count = 2**31 // gallery.products[0].numel() + 2
    large = gallery._replace(features=tail_of(gallery.features, count), products=tail_of(gallery.products, count))
    assert large.products.numel() > 2**31
    pairs = torch.tensor([[2, 1], [0, 0], [1, 2]])
    far = pairs.clone()
    far[:, 0 if side == "regions" else 1] += count - 3
    V, U = (large, U) if side == "regions" else (V, large)
    found = ck.context_attention(V, U, case.weights, pairs=far, backend=backend)
    assert torch.equal(found, expected[pairs[:, 0], pairs[:, 1]])


@pytest.mark.skipif(cases.INTERPRETED or cases.EMULATED, reason="one thread doing a GPU's work would be at it for minutes")
@backends
def test_features_beyond_the_32_bit_index(backend):
    """All pairs of raw features of more than 2³¹ numbers, nearly all of them padding."""
    case = cases.problem((3, M, 2, N, 64, 4), HALF, lengths=False, near_zero=True).on(backend)
    count = 2**31 // case.regions[0].numel() + 2
    lengths = torch.zeros(count, dtype=torch.int64)
    lengths[-3:] = M
    scores = ck.context_attention(tail_of(case.regions, count), case.words, case.weights, lengths, backend=backend)
    assert not scores[:-3].any()
    assert torch.equal(scores[-3:], case.call(backend=backend))
