"""What only a GPU can tell of the backends for it: graphs, streams, waiting, compilations, the paper's widths."""

from dataclasses import replace

import cases
import pytest
import torch
from gpu_streams import captured, no_waiting
from on_gpu import drawn, on_device

import caan_kernels as ck

BACKENDS = [name for name, device in cases.KERNELS.items() if device == "cuda"] or ["none"]
pytestmark = [
    pytest.mark.skipif(BACKENDS == ["none"], reason="there is no GPU"),
    pytest.mark.parametrize("backend", BACKENDS),
]

DTYPES = cases.KERNEL_DTYPES["cuda"]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def copy_into(case, other):
    """Give the tensors of a problem the numbers, lengths and pairs of another."""
    with torch.no_grad():
        for name, x in case.tensors().items():
            x.copy_(other.tensors()[name])
    for name in ("region_lengths", "word_lengths", "pairs"):
        if getattr(case, name) is not None:
            getattr(case, name).copy_(getattr(other, name))


@dtypes
@pytest.mark.parametrize("pairs", [False, True], ids=["all_pairs", "pair_list"])
def test_graph_of_scoring(backend, dtype, pairs):
    case = drawn(dtype, pairs=pairs)
    graph, scores = captured(lambda: case.call(backend=backend))
    for seed in (1, 2):
        other = drawn(dtype, pairs=pairs, seed=seed)
        copy_into(case, other)
        graph.replay()
        assert torch.equal(scores, other.call(backend=backend))


@dtypes
@pytest.mark.parametrize("pairs", [False, True], ids=["all_pairs", "pair_list"])
def test_graph_of_training(backend, dtype, pairs):
    """The pairs that have a gradient may be others at each replay."""
    case = drawn(dtype, pairs=pairs)
    grad = torch.zeros_like(case.call(backend=backend))
    for x in case.tensors().values():
        x.requires_grad_()

    def step():
        scores = case.call(backend=backend)
        return scores, torch.autograd.grad(scores, list(case.tensors().values()), grad)

    graph, (scores, gradients) = captured(step)
    for seed in (1, 2):
        other = drawn(dtype, pairs=pairs, seed=seed)
        copy_into(case, other)
        grad.copy_(torch.randn(grad.shape, generator=torch.Generator().manual_seed(seed)).relu())
        graph.replay()
        expected = cases.run(other, grad, backend=backend)
        cases.assert_same(expected, (scores.detach(), dict(zip(cases.TENSORS, gradients, strict=True))))


@dtypes
@pytest.mark.parametrize("pairs", [False, True], ids=["all_pairs", "pair_list"])
def test_nothing_waits_for_the_device(backend, dtype, pairs):
    case = drawn(dtype, pairs=pairs)
    at_hand = replace(case, region_lengths=case.region_lengths.cpu(), word_lengths=case.word_lengths.cpu())
    leaves = [x.requires_grad_() for x in case.tensors().values()]

    def everything():
        scores = case.call(backend=backend)
        torch.autograd.grad(scores, leaves, torch.ones_like(scores))
        with torch.no_grad():
            case.call(backend=backend)
            at_hand.call(backend=backend)
            if pairs:
                case.call(ck.attention_maps, backend=backend)

            masks = [(x == x)[..., 0] for x in (case.regions, case.words)]
            whole = replace(case, region_lengths=None, word_lengths=None)
            whole.call(backend=backend, region_mask=masks[0], word_mask=masks[1])

    everything()
    with no_waiting():
        everything()


def test_work_is_done_on_the_current_stream(backend):
    case, other = drawn(pairs=True), drawn(pairs=True, seed=1)
    expected = cases.run(other, backend=backend)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        # What would run on another stream would find the old numbers.
        torch.cuda._sleep(50_000_000)
        copy_into(case, other)
        found = cases.run(case, backend=backend)
    torch.cuda.current_stream().wait_stream(stream)
    cases.assert_same(expected, found)


def test_indices_may_lie_on_either_device(backend):
    case = cases.problem("odd", torch.float32, pairs=True, device="cuda")
    cases.assert_same(cases.run(case, backend=backend), cases.run(on_device(case), backend=backend))


@dtypes
def test_lengths_out_of_range(backend, dtype):
    """Scores of an item whose length is wrong are NaN; nothing else is touched, and it has no gradient."""
    case = drawn(dtype)
    wrong = replace(case, region_lengths=case.region_lengths.clone(), word_lengths=case.word_lengths.clone())
    wrong.region_lengths[0], wrong.word_lengths[1], wrong.word_lengths[3] = case.regions.shape[1] + 1, -1, 2**40
    expected = case.call(backend=backend)
    expected[0], expected[:, 1], expected[:, 3] = torch.nan, torch.nan, torch.nan
    grad = torch.ones_like(expected)
    scores, gradients = cases.run(wrong, grad, backend=backend)
    torch.testing.assert_close(scores, expected, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(wrong.call(backend=backend), expected, rtol=0, atol=0, equal_nan=True)
    grad[0], grad[:, 1], grad[:, 3] = 0, 0, 0
    cases.assert_same((scores.nan_to_num(), gradients), (scores.nan_to_num(), cases.run(case, grad, backend=backend)[1]))


@dtypes
def test_pairs_out_of_range(backend, dtype):
    case = drawn(dtype, pairs=True)
    images, captions = len(case.regions), len(case.words)
    far = [[images, 0], [-1, 0], [0, captions], [0, -1], [2**40, 0], [0, 2**40]]
    wrong = replace(case, pairs=torch.cat([torch.tensor(far, device="cuda"), case.pairs]))
    grad = torch.randn(len(wrong.pairs), generator=torch.Generator().manual_seed(0))
    scores, gradients = cases.run(wrong, grad, backend=backend)
    assert scores[: len(far)].isnan().all()
    cases.assert_same((scores[len(far) :], gradients), cases.run(case, grad[len(far) :], backend=backend))
    # Of features that come unprojected, maps gather the pairs' items by PyTorch, which stops the device at a wrong index.
    V, U = case.project(backend)
    maps = ck.attention_maps(V, U, case.weights, pairs=wrong.pairs, backend=backend)
    assert maps.scores[: len(far)].isnan().all()
    assert not any(x[: len(far)].any() for x in maps[1:])


# Images, regions, captions, words, width, hidden width.
PAPER = (5, 36, 24, 23, 1024, 1024)


@dtypes
def test_invariance_at_the_widths_of_the_paper(backend, dtype):
    case = replace(cases.problem(PAPER, dtype, padding=0.0, near_zero=True), region_lengths=None)
    case = on_device(case)
    scores = case.call(backend=backend)
    assert scores.isfinite().all()
    order = torch.randperm(scores.numel(), generator=torch.Generator().manual_seed(0)).cuda()
    pairs = torch.stack([order // PAPER[2], order % PAPER[2]], dim=1)
    assert torch.equal(replace(case, pairs=pairs).call(backend=backend), scores[pairs[:, 0], pairs[:, 1]])
    for i, t in ((0, 0), (4, 1), (2, 23), (3, 11)):
        n = int(case.word_lengths[t])
        alone = ck.context_attention(case.regions[i : i + 1], case.words[t : t + 1, :n], case.weights, backend=backend)
        assert alone.item() == scores[i, t].item()
    backwards = replace(case, regions=case.regions.flip(0), words=case.words.flip(0), word_lengths=case.word_lengths.flip(0))
    assert torch.equal(backwards.call(backend=backend).flip(0, 1), scores)


@dtypes
def test_run_to_run_at_the_widths_of_the_paper(backend, dtype):
    """As often as a copy that is read too early would need to show."""
    case = on_device(replace(cases.problem(PAPER, dtype, near_zero=True), region_lengths=None))
    first = cases.run(case, backend=backend)
    for _ in range(500):
        cases.assert_same(first, cases.run(case, backend=backend))
