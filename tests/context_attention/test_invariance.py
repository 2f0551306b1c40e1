"""The same score and the same gradient, to the last bit, whatever the batch, the path and the number of threads."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cases
import pytest
import torch

import caan_kernels as ck
from caan_kernels.context_attention.call import CallGradient
from caan_kernels.core.ragged import score_dtype
from caan_kernels.core.records import flatten

pytestmark = [pytest.mark.parametrize("backend", cases.KERNELS), pytest.mark.usefixtures("sums_in_one_order")]

# Images, regions, captions, words, width, hidden width; where one thread does a GPU's work there is time for fewer.
SHAPE = (4, 36, 8, 33, 12, 16) if cases.INTERPRETED else (4, 36, 11, 33, 16, 24) if cases.EMULATED else (11, 36, 45, 23, 96, 130)
IMAGES, CAPTIONS = SHAPE[0], SHAPE[2]
dtypes = pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
similarities = pytest.mark.parametrize("similarity", ["dot", "cosine"])


def scores_of_pairs(case, pairs, **options):
    return replace(case, pairs=torch.tensor(pairs)).call(**options)


@dtypes
@similarities
def test_alone_or_in_a_batch(backend, dtype, similarity):
    options = {"backend": backend, "similarity": similarity}
    case = cases.problem(SHAPE, dtype, near_zero=True).on(backend)
    scores = case.call(**options)
    for i, t in ((0, 0), (3, 7), (IMAGES - 1, CAPTIONS - 1), (IMAGES // 2, CAPTIONS // 2), (1, 1)):
        m, n = case.region_lengths[i], case.word_lengths[t]
        alone = ck.context_attention(case.regions[i : i + 1, :m], case.words[t : t + 1, :n], case.weights, **options)
        assert alone.item() == scores[i, t].item(), "alone, without padding"
        assert scores_of_pairs(case, [(i, t)], **options).item() == scores[i, t].item(), "a list of one"


@dtypes
@similarities
def test_lists_and_shards(backend, dtype, similarity):
    options = {"backend": backend, "similarity": similarity}
    case = cases.problem(SHAPE, dtype, near_zero=True)
    scores = case.call(**options)
    chosen = cases.problem(SHAPE, dtype, near_zero=True, pairs=True).pairs
    for pairs in (chosen, chosen.flip(0), chosen[5:100:3]):
        assert torch.equal(replace(case, pairs=pairs).call(**options), scores[pairs[:, 0], pairs[:, 1]])
    for start, stop in ((0, 1), (1, 6), (6, CAPTIONS)):
        shard = replace(case, words=case.words[start:stop], word_lengths=case.word_lengths[start:stop])
        assert torch.equal(shard.call(**options), scores[:, start:stop])
    backwards = replace(case, regions=case.regions.flip(0), region_lengths=case.region_lengths.flip(0))
    assert torch.equal(backwards.call(**options).flip(0), scores)


# Of Triton's tiles: several captions of both sizes, with and without a tail of regions; one caption, with regions in blocks.
BATCHES = {"16": (2, 5, 6, 7), "32": (2, 36, 3, 20), "blocks": (1, 66, 3, 33)}
# Widths of the shared cases: a Triton kernel is compiled for each.
WIDTHS = cases.SHAPES["odd"][4:]


@dtypes
@pytest.mark.parametrize(("similarity", "bad"), [("dot", torch.inf), ("dot", torch.nan), ("cosine", torch.inf)])
@pytest.mark.parametrize("shape", BATCHES)
def test_a_word_that_is_not_finite_stays_with_its_caption(backend, dtype, similarity, bad, shape):
    """Captions beside it, in one tile, keep the bits of their scores."""
    options = {"backend": backend, "similarity": similarity}
    case = cases.problem((*BATCHES[shape], *WIDTHS), dtype, lengths=False, near_zero=True).on(backend)
    scores = case.call(**options)
    case.words[1, 3, 1] = bad
    found = case.call(**options)
    assert not found[:, 1].isfinite().any()
    others = [t for t in range(found.shape[1]) if t != 1]
    assert torch.equal(found[:, others], scores[:, others])


@dtypes
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_gradients_beside_a_word_that_is_not_finite(backend, dtype, bad):
    """The other captions' gradients keep their bits; so do all others where the caption's scores have no gradient."""
    call = cases.problem((1, 5, 2, 7, *WIDTHS), dtype, lengths=False, near_zero=True).packed(backend)

    def gradients(grad):
        return torch.ops.caan_kernels.pair_scores_backward(*flatten(CallGradient(grad, call)))

    like = {"dtype": score_dtype(dtype), "device": call.regions.features.device}
    grad, without = (torch.tensor([x], **like) for x in ([0.75, -2.0], [0.75, 0.0]))
    expected, expected_without = gradients(grad), gradients(without)
    call.words.features[1, 3, 1] = call.words.products[1, 3, :] = bad
    # Gradients of the words' features and products.
    for found, before in zip(gradients(grad)[2:4], expected[2:4], strict=True):
        assert torch.equal(found[0], before[0])
        assert not found[1].isfinite().all()
    for found, before in zip(gradients(without), expected_without, strict=True):
        assert torch.equal(found, before)


@dtypes
def test_projected_or_raw(backend, dtype):
    case = cases.problem(SHAPE, dtype, near_zero=True).on(backend)
    scores = case.call(backend=backend)
    V, U = case.project(backend)
    assert torch.equal(ck.context_attention(V, U, case.weights, backend=backend), scores)
    assert torch.equal(ck.context_attention(V, case.words, case.weights, word_lengths=case.word_lengths, backend=backend), scores)
    assert torch.equal(
        ck.context_attention(case.regions, U, case.weights, region_lengths=case.region_lengths, backend=backend), scores
    )
    case.weights.region_score.requires_grad_()
    assert torch.equal(case.call(backend=backend), scores), "with a gradient wanted"


@pytest.mark.cpu_only
@dtypes
def test_thread_counts(backend, dtype, threads):
    case = cases.problem(SHAPE, dtype, near_zero=True)
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        results.append((case.call(backend=backend), *cases.run(case, backend=backend)))
    for scores, *result in results:
        cases.assert_same(results[0][1:], result)
        assert torch.equal(scores, result[0])


@pytest.mark.cpu_only
def test_the_callers_floating_point_state(backend, threads):
    """It is the calling thread's alone: no number may depend on the thread that finds it, nor on that state."""
    case = cases.problem(SHAPE, torch.float32, near_zero=True, padding=0.0)
    case = replace(case, regions=1e-21 * case.regions, words=1e-20 * case.words)
    cases.assert_keeps_denormals(lambda: cases.run(case, torch.ones(SHAPE[0], SHAPE[2]), backend=backend), threads)


@dtypes
@pytest.mark.skipif(cases.INTERPRETED, reason="the interpreter runs one program after the other, in one order")
def test_run_to_run(backend, dtype):
    case = cases.problem(SHAPE, dtype, near_zero=True, pairs=True)
    first = cases.run(case, backend=backend)
    for _ in range(3):
        cases.assert_same(first, cases.run(case, backend=backend))


@dtypes
def test_gradients_do_not_depend_on_the_order_of_pairs(backend, dtype):
    case = cases.problem(SHAPE, dtype, near_zero=True, pairs=True)
    case = replace(case, pairs=case.pairs.unique(dim=0))
    order = torch.randperm(len(case.pairs), generator=torch.Generator().manual_seed(0))
    grad = torch.randn(len(order), generator=torch.Generator().manual_seed(2))
    scores, gradients = cases.run(case, grad, backend=backend)
    shuffled = cases.run(replace(case, pairs=case.pairs[order]), grad[order], backend=backend)
    cases.assert_same((scores[order], gradients), shuffled)


@dtypes
def test_gradients_of_one_pair_in_a_batch(backend, dtype):
    """The features' gradients of a single pair are the same whether the others are listed with gradient 0 or absent."""
    case = cases.problem(SHAPE, dtype, near_zero=True)
    i, t = IMAGES - 2, CAPTIONS - 2
    grad = torch.zeros(SHAPE[0], SHAPE[2])
    grad[i, t] = 1.7
    _, batched = cases.run(case, grad, backend=backend)
    alone = replace(
        case,
        regions=case.regions[i : i + 1],
        words=case.words[t : t + 1],
        region_lengths=case.region_lengths[i : i + 1],
        word_lengths=case.word_lengths[t : t + 1],
    )
    _, gradients = cases.run(alone, grad[i : i + 1, t : t + 1], backend=backend)
    assert torch.equal(batched["regions"][i], gradients["regions"][0])
    assert torch.equal(batched["words"][t], gradients["words"][0])


@pytest.mark.skipif(cases.INTERPRETED, reason="Triton's interpreter is not made for threads")
def test_calls_at_once(backend):
    problems = [cases.problem(SHAPE, torch.float32, near_zero=True, seed=seed) for seed in range(4)]
    expected = [cases.run(case, backend=backend) for case in problems]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda k: cases.run(problems[k % 4], backend=backend), range(24)))
    for k, result in enumerate(results):
        cases.assert_same(expected[k % 4], result)
