"""The same score and the same gradient, to the last bit, whatever the batch, the list and the number of threads."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cases
import pytest
import torch

from .problems import KERNELS, OPTIONS, SLOW, problem, run, score

pytestmark = [pytest.mark.parametrize("backend", KERNELS), pytest.mark.usefixtures("sums_in_one_order")]
dtypes = pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
all_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
# Images, regions, captions, words, width: captions share strips of columns, and products have two chains.
SHAPE = (11, 36, 95, 23, 150) if not SLOW else (3, 36, 5, 9, 24) if cases.INTERPRETED else (4, 36, 9, 23, 72)


@dtypes
@all_options
def test_alone_or_in_a_batch(backend, dtype, options):
    case = problem(SHAPE, dtype)
    scores = case.call(**options, backend=backend)
    for i, t in ((0, 0), (SHAPE[0] // 2, 4), (SHAPE[0] - 1, SHAPE[2] - 1), (1, 1)):
        m, n = case.region_lengths[i], case.word_lengths[t]
        alone = score(case.regions[i : i + 1, :m], case.words[t : t + 1, :n], **options, backend=backend)
        assert alone.item() == scores[i, t].item(), "alone, without padding"
        listed = replace(case, pairs=torch.tensor([[i, t]])).call(**options, backend=backend)
        assert listed.item() == scores[i, t].item(), "a list of one"


@dtypes
@all_options
def test_lists_and_shards(backend, dtype, options):
    case = problem(SHAPE, dtype)
    scores = case.call(**options, backend=backend)
    every = torch.cartesian_prod(torch.arange(SHAPE[0]), torch.arange(SHAPE[2]))
    shuffled = every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))]
    for pairs in (every, shuffled, shuffled[:500], shuffled[:30], shuffled[:3].repeat(3, 1)):
        found = replace(case, pairs=pairs).call(**options, backend=backend)
        assert torch.equal(found, scores[pairs[:, 0], pairs[:, 1]])
    for start, stop in ((0, 1), (1, 6), (6, SHAPE[2])):
        shard = replace(case, words=case.words[start:stop], word_lengths=case.word_lengths[start:stop])
        assert torch.equal(shard.call(**options, backend=backend), scores[:, start:stop])
    backwards = replace(case, regions=case.regions.flip(0), region_lengths=case.region_lengths.flip(0))
    assert torch.equal(backwards.call(**options, backend=backend).flip(0), scores)


@dtypes
@all_options
def test_the_order_of_rows_of_a_document(backend, dtype, options):
    """A largest product is the same wherever it is found."""
    case = problem(SHAPE, dtype, lengths=False)
    side = "words" if options.get("over") == "regions" else "regions"
    flipped = replace(case, **{side: getattr(case, side).flip(1)})
    assert torch.equal(flipped.call(**options, backend=backend), case.call(**options, backend=backend))


@dtypes
@all_options
@pytest.mark.cpu_only
def test_thread_counts(backend, dtype, options, threads):
    case = problem(SHAPE, dtype, pairs=True)
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        for one in (case, replace(case, pairs=None)):
            results.append(run(one, **options, backend=backend))
    for place, result in enumerate(results):
        cases.assert_same(results[place % 2], result)


@pytest.mark.cpu_only
def test_few_documents_are_shared_by_threads(backend, threads):
    case = problem((1, 200, 300, 16, 64), torch.float32)
    expected = case.call(backend=backend)
    threads(5)
    assert torch.equal(case.call(backend=backend), expected)


@pytest.mark.cpu_only
def test_the_callers_floating_point_state(backend, threads):
    """It is the calling thread's alone: no number may depend on the thread that finds it, nor on that state."""
    case = problem(SHAPE, torch.float32, padding=0.0)
    case = replace(case, regions=1e-21 * case.regions, words=1e-20 * case.words)
    ones = torch.ones(SHAPE[0], SHAPE[2])
    cases.assert_keeps_denormals(lambda: run(case, ones, backend=backend), threads)


@dtypes
def test_gradients_do_not_depend_on_the_order_of_pairs(backend, dtype):
    case = problem(SHAPE, dtype, pairs=True)
    order = torch.randperm(len(case.pairs), generator=torch.Generator().manual_seed(0))
    grad = torch.randn(len(order), generator=torch.Generator().manual_seed(2))
    scores, gradients = run(case, grad, backend=backend)
    shuffled = run(replace(case, pairs=case.pairs[order]), grad[order], backend=backend)
    cases.assert_same((scores[order], gradients), shuffled)


@dtypes
def test_gradients_of_one_pair_in_a_batch(backend, dtype):
    """Those of a single pair are the same whether the others are there with gradient 0 or absent."""
    case = problem(SHAPE, dtype)
    i, t = SHAPE[0] - 2, SHAPE[2] - 2
    grad = torch.zeros(SHAPE[0], SHAPE[2])
    grad[i, t] = 1.7
    batched = run(case, grad, backend=backend)[1]
    m, n = case.region_lengths[i], case.word_lengths[t]
    alone = replace(case, regions=case.regions[[i], :m], words=case.words[[t], :n], region_lengths=None, word_lengths=None)
    gradients = run(alone, torch.full((1, 1), 1.7), backend=backend)[1]
    assert torch.equal(batched["regions"][i, :m], gradients["regions"][0])
    assert torch.equal(batched["words"][t, :n], gradients["words"][0])


def test_results_are_written(backend, poisoned_memory):
    case = problem(SHAPE, torch.float32)
    scores, gradients = run(case, torch.zeros(SHAPE[0], SHAPE[2]), backend=backend)
    assert scores.isfinite().all()
    assert not any(x.any() for x in gradients.values())
    cases.assert_inert(case, run(case, backend=backend)[1])


@pytest.mark.skipif(cases.INTERPRETED, reason="Triton's interpreter runs one kernel at a time")
def test_calls_at_once(backend):
    problems = [problem(SHAPE, torch.float32, seed=seed) for seed in range(4)]
    expected = [run(case, backend=backend) for case in problems]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda k: run(problems[k % 4], backend=backend), range(24)))
    for k, result in enumerate(results):
        cases.assert_same(expected[k % 4], result)
