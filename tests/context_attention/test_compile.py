"""torch.compile: one graph, shapes that vary, no new compilation for each batch."""

import cases
import pytest
import torch
from masks import mask_of
from torch._dynamo.testing import CompileCounterWithBackend

import caan_kernels as ck

pytestmark = pytest.mark.parametrize("backend", cases.KERNELS)

# Those of other tests: on a GPU kernels are compiled for each.
WIDTH, HIDDEN = cases.SHAPES["paper_like"][4:]
# Sizes differ within a batch and from the widths: torch.compile guards on sizes that happen to be equal.
BATCHES = [
    (3, 7, 5, 4),
    (8, 5, 6, 11),
    (5, 9, 3, 8),
    (4, 6, 9, 5),
    (11, 3, 7, 2),
    (2, 8, 12, 9),
    (6, 4, 10, 7),
    (9, 12, 4, 3),
]
if cases.INTERPRETED:
    # A pair takes a tenth of a second.
    BATCHES = [(3, 7, 5, 4), (4, 8, 3, 5)]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def batch(sizes, backend, seed=0, **given):
    return cases.problem((*sizes, WIDTH, HIDDEN), torch.float32, seed=seed, **given).on(backend)


def test_training_does_not_compile_for_every_batch(backend):
    counter = CompileCounterWithBackend("aot_eager")

    def function(regions, words, weights, region_lengths, word_lengths):
        return ck.context_attention(regions, words, weights, region_lengths, word_lengths, backend=backend)

    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for seed, sizes in enumerate(BATCHES):
        case = batch(sizes, backend, seed)
        expected = cases.run(case, torch.ones(sizes[0], sizes[2]), backend=backend)
        leaves = case.with_tensors(x.requires_grad_() for x in case.tensors().values())
        found = compiled(leaves.regions, leaves.words, leaves.weights, leaves.region_lengths, leaves.word_lengths)
        found.backward(torch.ones_like(found))
        cases.assert_same(expected, (found.detach(), {name: x.grad for name, x in leaves.tensors().items()}))
        if seed == 0:
            first = counter.frame_count
    assert counter.frame_count == first, f"{counter.frame_count - first} compilations after the first batch"


def test_scoring_does_not_compile_for_every_batch(backend):
    counter = CompileCounterWithBackend("eager")

    def function(regions, words, weights, pairs):
        with torch.no_grad():
            every = ck.context_attention(regions, words, weights, pairs=None, backend=backend)
            some = ck.context_attention(regions, ck.project_words(words, weights), weights, pairs=pairs, backend=backend)
            maps = ck.attention_maps(regions, words, weights, pairs=pairs, backend=backend)
        return every, some, *maps

    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=True)
    for seed, sizes in enumerate(BATCHES):
        case = batch(sizes, backend, seed, lengths=False, pairs=True)
        tensors = case.regions, case.words, case.weights, case.pairs
        for found, expected in zip(compiled(*tensors), function(*tensors), strict=True):
            assert torch.equal(found, expected)
        if seed == 0:
            first = counter.frame_count
    assert counter.frame_count == first, f"{counter.frame_count - first} compilations after the first batch"


def test_inductor(backend):
    """The default compiler, with operations of a model around the operator and autocast."""

    def function(regions, words, weights, lengths):
        regions = torch.nn.functional.normalize(regions, dim=-1)
        scores = ck.context_attention(regions, words, weights, word_lengths=lengths, backend=backend)
        return (scores.relu() - scores.diagonal()[:, None]).sum()

    case = batch((3, 9, 3, 5) if cases.INTERPRETED else (6, 9, 6, 5), backend, padding=0.0)
    # The interpreter has no bfloat16.
    dtype = torch.float16 if cases.INTERPRETED else torch.bfloat16
    results = []
    for call in (function, torch.compile(function, fullgraph=True)):
        leaves = case.with_tensors(x.clone().requires_grad_() for x in case.tensors().values())
        with torch.autocast(case.regions.device.type, dtype):
            loss = call(leaves.regions, leaves.words, leaves.weights, leaves.word_lengths)
        loss.backward()
        results.append((loss.detach(), *(x.grad for x in leaves.tensors().values())))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))


def test_wrong_lengths_are_found_by_the_kernels(backend):
    """On a GPU, where a look at them would wait, the scores are NaN."""
    function = torch.compile(ck.context_attention, backend="eager", fullgraph=True)
    case = batch((3, 7, 5, 4), backend)
    arguments = case.regions, case.words, case.weights, None, case.word_lengths + 5
    if cases.KERNELS[backend] == "cpu":
        with pytest.raises(RuntimeError, match="word_lengths"):
            function(*arguments, backend=backend)
    else:
        assert function(*arguments, backend=backend).isnan().all()


@pytest.mark.skipif(cases.INTERPRETED, reason="masks are lengths before any kernel sees them, and the interpreter is slow")
def test_masks(backend):
    """They vary from call to call in one graph; one that is no prefix is found in it, on a GPU by scores of NaN."""
    counter = CompileCounterWithBackend("aot_eager")

    def function(regions, words, weights, region_mask, word_mask):
        masks = {"region_mask": region_mask, "word_mask": word_mask}
        return ck.context_attention(regions, words, weights, **masks, backend=backend)

    compiled = torch.compile(function, backend=counter, fullgraph=True)
    case = batch((3, 3, 2, 4), backend, padding=0.0)
    tensors = case.regions, case.words, case.weights

    word_mask = mask_of(case.words, case.word_lengths)
    for lengths in (case.region_lengths, case.region_lengths.flip(0)):
        expected = ck.context_attention(*tensors, lengths, case.word_lengths, backend=backend)
        assert torch.equal(compiled(*tensors, mask_of(case.regions, lengths), word_mask), expected)
    assert counter.frame_count == 1
    masks = mask_of(case.regions, lengths), word_mask
    word_mask[0] = torch.arange(4, device=word_mask.device) != 1
    if cases.KERNELS[backend] == "cpu":
        with pytest.raises(RuntimeError, match="word_mask: expected True for the real words, which come first"):
            compiled(*tensors, *masks)
    else:
        scores = compiled(*tensors, *masks)
        assert scores[:, 0].isnan().all() and torch.equal(scores[:, 1:], expected[:, 1:])
