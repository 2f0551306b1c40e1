"""What only a GPU can tell of the backends for it: graphs, streams, waiting."""

from dataclasses import replace

import cases
import pytest
import torch
from gpu_streams import captured, no_waiting

import caan_kernels as ck

from .problems import OPTIONS, Problem, problem

GPU_BACKENDS = [name for name, device in cases.KERNELS.items() if device == "cuda"] or ["none"]
pytestmark = [
    pytest.mark.skipif(GPU_BACKENDS == ["none"], reason="there is no GPU"),
    # Not "backend": conftest.py leaves out tests of one on a GPU, whose tensors mostly lie on the CPU.
    pytest.mark.parametrize("gpu_backend", GPU_BACKENDS),
]
dtypes = pytest.mark.parametrize("dtype", cases.KERNEL_DTYPES["cuda"], ids=str)
listed = pytest.mark.parametrize("pairs", [False, True], ids=["all_pairs", "pair_list"])


def drawn(dtype, pairs, seed=0):
    """A problem on the GPU, lengths and pairs too, where their values are not checked; its features want gradients."""
    case = problem("pages", dtype, pairs=pairs, seed=seed)
    case = Problem(*(x if x is None else x.cuda() for x in vars(case).values()))
    return replace(case, regions=case.regions.requires_grad_(), words=case.words.requires_grad_())


def copy_into(case, other):
    """Give the tensors of a problem the numbers, lengths and pairs of another."""
    with torch.no_grad():
        for x, y in zip(vars(case).values(), vars(other).values(), strict=True):
            if x is not None:
                x.copy_(y)


def gradient(pairs, seed):
    """Of the scores; some pairs have none."""
    shape = (10,) if pairs else (3, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu().cuda()


def step(case, grad, **options):
    """Scores and gradients, of tensors that are on the GPU already."""
    scores = ck.max_similarity(*vars(case).values(), **options)
    gradients = torch.autograd.grad(scores, (case.regions, case.words), grad)
    return scores.detach(), dict(zip(("regions", "words"), gradients, strict=True))


@dtypes
@listed
def test_graph_of_training(gpu_backend, dtype, pairs):
    """The pairs that have a gradient may be others at each replay."""
    case, grad = drawn(dtype, pairs), gradient(pairs, 0)
    graph, found = captured(lambda: step(case, grad, backend=gpu_backend))
    for seed in (1, 2):
        other = drawn(dtype, pairs, seed)
        copy_into(case, other)
        grad.copy_(gradient(pairs, seed))
        graph.replay()
        cases.assert_same(step(other, grad, backend=gpu_backend), found)


@dtypes
@listed
def test_nothing_waits_for_the_device(gpu_backend, dtype, pairs):
    case, grad = drawn(dtype, pairs), gradient(pairs, 0)
    at_hand = replace(case, region_lengths=case.region_lengths.cpu(), word_lengths=case.word_lengths.cpu())
    masks = {f"{name}_mask": (x == x)[..., 0] for name, x in (("region", case.regions), ("word", case.words))}

    def everything():
        for options in OPTIONS.values():
            step(case, grad, **options, backend=gpu_backend)
            step(at_hand, grad, **options, backend=gpu_backend)
        ck.max_similarity(case.regions, case.words, pairs=case.pairs, **masks, backend=gpu_backend)

    everything()
    with no_waiting():
        everything()


@listed
def test_work_is_done_on_the_current_stream(gpu_backend, pairs):
    case, other, grad = (*(drawn(torch.float32, pairs, seed) for seed in (0, 1)), gradient(pairs, 0))
    expected = step(other, grad, backend=gpu_backend)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # What would run on another stream would find the old numbers.
        torch.cuda._sleep(50_000_000)
        copy_into(case, other)
        found = step(case, grad, backend=gpu_backend)
    torch.cuda.current_stream().wait_stream(stream)
    cases.assert_same(expected, found)
