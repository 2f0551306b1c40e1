"""The reference against a literal form of one pair, against finite differences, and in what it does with equals and NaN."""

import pytest
import torch

import caan_kernels as ck

from .problems import OPTIONS, SHAPES, problem, run

all_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def one_pair(V, U, over="words", reduce="sum"):
    """The definition word for word: one image, one caption, no padding, no batch."""
    queries, documents = (U, V) if over == "words" else (V, U)
    largest = [max(float(query @ document) for document in documents) for query in queries]
    return sum(largest) / (len(largest) if reduce == "mean" else 1)


@all_options
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pairs", [False, True], ids=["all_pairs", "pair_list"])
def test_agrees_with_one_pair_at_a_time(shape, options, pairs):
    case = problem(shape, pairs=pairs)
    scores = case.call(**options, backend="reference")
    listed = torch.cartesian_prod(*(torch.arange(len(x)) for x in (case.regions, case.words))) if not pairs else case.pairs
    for (i, t), score in zip(listed.tolist(), scores.flatten(), strict=True):
        m, n = case.region_lengths[i], case.word_lengths[t]
        expected = 0.0 if m == 0 or n == 0 else one_pair(case.regions[i, :m], case.words[t, :n], **options)
        torch.testing.assert_close(float(score), expected, rtol=1e-13, atol=1e-13)


@all_options
def test_derivatives_of_first_and_second_order(options):
    case = problem((3, 3, 2, 4, 3), padding=0.0)
    leaves = case.regions.requires_grad_(), case.words.requires_grad_()

    def scores(regions, words):
        return ck.max_similarity(regions, words, case.region_lengths, case.word_lengths, **options, backend="reference")

    assert torch.autograd.gradcheck(scores, leaves)
    assert torch.autograd.gradgradcheck(scores, leaves)


def test_equals_give_the_gradient_to_the_lowest_row():
    case = problem((2, 4, 1, 2, 3), lengths=False)
    case.regions[:, 2:] = case.regions[:, :2]
    _, gradients = run(case, backend="reference")
    assert not gradients["regions"][:, 2:].any()
    assert gradients["regions"][:, :2].any()


def test_a_nan_is_the_largest_and_the_first_of_them_is_taken():
    case = problem((1, 5, 1, 1, 3), lengths=False)
    case.regions[0, 1:4:2] = torch.nan
    scores, gradients = run(case, torch.ones(1, 1), backend="reference")
    assert scores.isnan().all()
    assert torch.equal(gradients["regions"].any(-1), torch.tensor([[False, True, False, False, False]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision(dtype):
    scores, gradients = run(problem("odd", dtype), backend="reference")
    assert scores.dtype == torch.float32 and scores.isfinite().all()
    assert all(x.dtype == dtype and x.isfinite().all() for x in gradients.values())
