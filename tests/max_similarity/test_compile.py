"""torch.compile: one graph, shapes that vary, no new compilation for each batch."""

import cases
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

import caan_kernels as ck

from .problems import KERNELS, OPTIONS, problem, run

WIDTH = 96
# Sizes differ within a batch and from the width: torch.compile guards on sizes that happen to be equal.
BATCHES = [(3, 7, 5, 4), (8, 5, 6, 11), (5, 9, 3, 8), (4, 6, 9, 5), (11, 3, 7, 2), (6, 4, 10, 7)]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_training_does_not_compile_for_every_batch(backend, options):
    counter = CompileCounterWithBackend("aot_eager")

    def function(regions, words, region_lengths, word_lengths):
        return ck.max_similarity(regions, words, region_lengths, word_lengths, **options, backend=backend)

    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for seed, sizes in enumerate(BATCHES):
        case = problem((*sizes, WIDTH), torch.float32, seed=seed)
        expected = run(case, torch.ones(sizes[0], sizes[2]), **options, backend=backend)
        leaves = case.regions.requires_grad_(), case.words.requires_grad_()
        found = compiled(*leaves, case.region_lengths, case.word_lengths)
        found.backward(torch.ones_like(found))
        cases.assert_same(expected, (found.detach(), {"regions": leaves[0].grad, "words": leaves[1].grad}))
        if seed == 0:
            first = counter.frame_count
    assert counter.frame_count == first, f"{counter.frame_count - first} compilations after the first batch"


@pytest.mark.parametrize("backend", KERNELS)
def test_scoring_does_not_compile_for_every_batch(backend):
    counter = CompileCounterWithBackend("eager")

    def function(regions, words, pairs):
        with torch.no_grad():
            return ck.max_similarity(regions, words, backend=backend), ck.max_similarity(regions, words, pairs=pairs)

    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for seed, sizes in enumerate(BATCHES):
        case = problem((*sizes, WIDTH), torch.float32, seed=seed, lengths=False, pairs=True)
        tensors = case.regions, case.words, case.pairs
        for found, expected in zip(compiled(*tensors), function(*tensors), strict=True):
            assert torch.equal(found, expected)
        if seed == 0:
            first = counter.frame_count
    assert counter.frame_count == first, f"{counter.frame_count - first} compilations after the first batch"


@pytest.mark.parametrize("backend", KERNELS)
def test_inductor(backend):
    """The default compiler, with operations of a model around the operator and autocast."""

    def function(regions, words, lengths):
        regions = torch.nn.functional.normalize(regions, dim=-1)
        scores = ck.max_similarity(regions, words, word_lengths=lengths, backend=backend)
        return (scores.relu() - scores.diagonal()[:, None]).sum()

    case = problem((6, 9, 6, 5, WIDTH), torch.float32, padding=0.0)
    results = []
    for call in (function, torch.compile(function, fullgraph=True)):
        leaves = [x.clone().requires_grad_() for x in (case.regions, case.words)]
        with torch.autocast("cpu", torch.bfloat16):
            loss = call(*leaves, case.word_lengths)
        loss.backward()
        results.append((loss.detach(), *(x.grad for x in leaves)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


@pytest.mark.parametrize("backend", KERNELS)
def test_wrong_lengths_are_found_by_the_kernels(backend):
    function = torch.compile(ck.max_similarity, backend="eager", fullgraph=True)
    case = problem((3, 7, 5, 4, WIDTH), torch.float32)
    with pytest.raises(RuntimeError, match="word_lengths"):
        function(case.regions, case.words, None, case.word_lengths + 5, backend=backend)
