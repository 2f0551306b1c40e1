"""What the GPU backends hold beside inputs and results, found without a GPU: tensors are PyTorch's, kernels are left out."""

import cases
import pytest
import torch
from held import Held, Unlaunched
from torch.utils._pytree import tree_leaves

from caan_kernels.context_attention import cuda
from caan_kernels.context_attention.call import Call, CallGradient, Matrices, Side, Vectors
from caan_kernels.context_attention.gpu import launch as operators
from caan_kernels.core import cuda as core_cuda
from caan_kernels.core.records import flatten


def operands(images, captions, width, hidden, dtype, backend, *, words=16, pairs=0, projected=True):
    """A call whose numbers are not read."""
    V, U = torch.empty(images, 36, width, dtype=dtype), torch.empty(captions, words, width, dtype=dtype)
    lengths = torch.randint(1, 37, (images,)), torch.randint(1, words + 1, (captions,))
    listed = torch.stack([torch.randint(images, (pairs,)), torch.randint(captions, (pairs,))], dim=1) if pairs else None
    vectors, matrices, V_products, U_products = Vectors(*torch.ones(2, hidden, dtype=dtype).unbind()), Matrices(), None, None
    if projected:
        V_products, U_products = V.new_empty(images, 36, 2 * hidden), U.new_empty(captions, words, width + 2 * hidden)
    else:
        matrices = Matrices(*(torch.empty(width, x, dtype=dtype) for x in (width, *[hidden] * 4)))
    sides = (Side(*x) for x in zip((V, U), (V_products, U_products), lengths, strict=True))
    return Call(*sides, vectors, matrices, listed, cases.PAPER, backend)


# Operator, and images, captions, width and hidden width: what would grow if it were held for all at once is above the bound.
WORKSPACES = {
    "pairs": (operators.pair_scores, (9000, 9000, 2, 2), {}),
    "pair_list": (operators.pair_scores, (2000, 2000, 8, 8), {"pairs": 1_000_000}),
    "paper": (operators.pair_scores, (400, 400, 1024, 1024), {"projected": False}),
    "paper_list": (operators.pair_scores, (900, 1500, 1024, 1024), {"projected": False, "pairs": 300}),
    "gradients": (operators.pair_scores_backward, (1000, 1000, 8, 8), {}),
    "gradients_of_many_images": (operators.pair_scores_backward, (4000, 3, 64, 256), {}),
    "gradients_of_long_captions": (operators.pair_scores_backward, (128, 128, 1024, 1024), {"words": 140}),
    "gradients_of_a_list": (operators.pair_scores_backward, (1000, 1000, 8, 8), {"pairs": 500_000}),
}


@pytest.mark.parametrize("kernels", ["triton", "cuda"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", WORKSPACES)
def test_workspace(name, dtype, kernels, monkeypatch):
    """At most 64 MiB beside inputs and scores, and 256 MiB beside gradients; the kernels need no memory and are left out."""
    if kernels == "triton":
        pytest.importorskip("triton")
        from caan_kernels.context_attention.triton import launch

        for kernel in [x for x in vars(launch) if x.endswith("_kernel")]:
            monkeypatch.setattr(launch, kernel, Unlaunched())
    else:
        for module in (cuda, core_cuda):
            monkeypatch.setattr(module, "_ops", Unlaunched())
    operator, sizes, given = WORKSPACES[name]
    call = operands(*sizes, dtype, kernels, **given)
    backward = operator is operators.pair_scores_backward
    if backward:
        call = CallGradient(torch.ones(given.get("pairs", sizes[:2])), call)
    with Held(*flatten(call)) as held:
        results = operator(call)
    given_back = sum(x.untyped_storage().nbytes() for x in tree_leaves(results))
    # The sums behind half-precision gradients are float32.
    beside = held.peak - given_back * (3 if backward and dtype != torch.float32 else 1)
    assert beside / 2**20 <= (256 if backward else 64)


@pytest.mark.parametrize(("images", "captions", "expected"), [(128, 128, 1), (600, 600, 6)])
def test_launches_of_a_backward(images, captions, expected, monkeypatch):
    """They follow what one may take at most, not the slots of scratch memory: how many pairs there are, only the device knows."""
    launched = []

    class Counted(Unlaunched):
        def __getattr__(self, name):
            return lambda *arguments: launched.append(name)

    for module in (cuda, core_cuda):
        monkeypatch.setattr(module, "_ops", Counted())
    call = operands(images, captions, 1024, 8, torch.bfloat16, "cuda")
    operators.pair_scores_backward(CallGradient(torch.eye(images, captions), call))
    assert launched == ["cuda_plan", "cuda_plan_schedule", *["cuda_differentiate"] * expected]


@pytest.fixture
def triton_launch():
    pytest.importorskip("triton")
    from caan_kernels.context_attention.triton import launch

    return launch


def differentiate_in_triton(items, words):
    """A backward of as many images as captions at the paper's widths, of tensors that hold nothing."""
    with torch.device("meta"):
        call = operands(items, items, 1024, 1024, torch.bfloat16, "triton", words=words)
        operators.pair_scores_backward(CallGradient(torch.empty(items, items), call))


@pytest.fixture
def triton_launches(triton_launch, monkeypatch):
    """Names of kernels that would be launched, as on a GPU with the multiprocessors of an H100."""
    launched = []

    class Counted(Unlaunched):
        def __init__(self, name):
            self.name = name

        def __getitem__(self, grid):
            return lambda *arguments, **options: launched.append(self.name)

    for name in [x for x in vars(triton_launch) if x.endswith("_kernel")]:
        monkeypatch.setattr(triton_launch, name, Counted(name))
    monkeypatch.setattr(triton_launch, "multiprocessors", lambda device: 132)
    return launched


@pytest.mark.parametrize(("items", "words", "expected"), [(128, 16, 3), (128, 64, 13), (2000, 16, 2290)])
def test_launches_of_a_backward_in_triton(items, words, expected, triton_launches):
    """docs/triton.md, "Backward"."""
    differentiate_in_triton(items, words)
    # At most so many pairs are sorted at a time, each time after a plan.
    plans = -(-items * items // operators.MOST_ORDERED)
    assert sorted(triton_launches) == ["gradient_kernel"] * expected + ["plan_kernel"] * plans


@pytest.mark.parametrize(
    ("images", "captions", "words", "dtype", "tiles", "large"),
    [
        (128, 128, 52, torch.bfloat16, 2, 1),
        (5000, 25_000, 16, torch.bfloat16, 139, 0),
        (5000, 25_000, 52, torch.bfloat16, 356, 1364),
        (5000, 25_000, 52, torch.float32, 0, 8969),
    ],
)
def test_launches_of_scores_in_triton(images, captions, words, dtype, tiles, large, triton_launches):
    """docs/triton.md, "Launches": as many as the time of one asks for, whatever a workspace holds."""
    with torch.device("meta"):
        call = operands(images, captions, 1024, 1024, dtype, "triton", words=words)
        operators.pair_scores(call._replace(regions=call.regions._replace(lengths=None)))
    assert [triton_launches.count(x) for x in ("plan_kernel", "tile_kernel", "large_kernel")] == [1, tiles, large]
