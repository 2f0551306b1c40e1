"""The reference against the stored cases, against a literal form of one pair, and against finite differences."""

import math
from dataclasses import replace

import cases
import pytest
import torch

import caan_kernels as ck

ALL_OPTIONS = cases.OPTIONS | cases.FEATURE_OPTIONS
options_of_all = pytest.mark.parametrize("options", ALL_OPTIONS.values(), ids=ALL_OPTIONS)


def one_pair(V, U, weights, similarity="dot", inter=True, intra="semantics"):
    """docs/operator.md word for word: one image, one caption, no padding, no batch."""
    K, Q1, Q2, Q3, Q4, w_v, w_u, M1, M2 = weights

    def unit(row):
        return row / max(row.norm(), 1e-8)

    A = torch.tanh(V @ K @ U.T)  # (7)
    positive = A.clamp_min(0)
    C = torch.stack([unit(column) for column in positive.T]).T  # (12)
    Rt = torch.stack([unit(row) for row in positive]).T  # (13)
    if intra == "features":
        Hv, Hu = V @ M1 @ V.T, U @ M2 @ U.T  # (14, 15)
    else:
        Hv, Hu = (torch.stack([unit(row) for row in x]) for x in (C, Rt))
        Hv, Hu = Hv @ Hv.T, Hu @ Hu.T  # (16, 17)
    own, other = intra is not None, float(inter)
    f = (torch.tanh(own * Hv @ V @ Q1 + other * C @ U @ Q2) @ w_v).softmax(0)  # (8, 9)
    g = (torch.tanh(own * Hu @ U @ Q3 + other * Rt @ V @ Q4) @ w_u).softmax(0)  # (10, 11)
    v, u = f @ V, g @ U  # (5, 6)
    score = v @ u if similarity == "dot" else unit(v) @ unit(u)  # (18)
    return ck.AttentionMaps(score, f, g, A, C, Rt, Hv, Hu)


@pytest.mark.parametrize("path", cases.ALL_GOLDEN, ids=lambda path: path.stem)
def test_golden(path):
    case, options, scores, grad_scores, gradients = cases.golden(path)
    found, found_gradients = cases.run(case, grad_scores, **options, backend="reference")
    assert cases.score_error(found, scores) <= 1e-14
    for name, gradient in gradients.items():
        assert cases.gradient_error(found_gradients[name], gradient) <= 1e-12, name
    cases.assert_inert(case, found_gradients)


@pytest.mark.parametrize("path", cases.ALL_GOLDEN, ids=lambda path: path.stem)
def test_golden_maps(path):
    case, options, *_ = cases.golden(path)
    maps = replace(case, pairs=torch.tensor([[0, 0]])).call(ck.attention_maps, **options, backend="reference")._asdict()
    expected = cases.golden_maps(path)
    expected["scores"] = expected.pop("score")
    for name, x in expected.items():
        found = maps.pop(name)[0]
        torch.testing.assert_close(found[tuple(slice(size) for size in x.shape)], x, rtol=0, atol=1e-13, msg=name)
        assert math.isclose(found.abs().sum(), x.abs().sum(), abs_tol=1e-10), f"{name} is not 0 beyond the lengths"
    # With no intra term the affinities were not stored; test_agrees_with_one_pair_at_a_time has them.
    assert not set(maps) - {"region_affinity", "word_affinity"}


@options_of_all
@pytest.mark.parametrize("shape", ["odd", "wide_hidden"])
def test_agrees_with_one_pair_at_a_time(shape, options):
    case = cases.problem(shape, bilinear=True)
    pairs = torch.cartesian_prod(torch.arange(len(case.regions)), torch.arange(len(case.words)))
    scores = case.call(**options, backend="reference")
    maps = replace(case, pairs=pairs).call(ck.attention_maps, **options, backend="reference")
    assert torch.equal(maps.scores.isnan(), torch.zeros(len(pairs), dtype=torch.bool))
    for (i, t), *found in zip(pairs.tolist(), *maps, strict=True):
        m, n = case.region_lengths[i], case.word_lengths[t]
        found = ck.AttentionMaps(*found)
        if m == 0 or n == 0:
            assert scores[i, t] == 0
            assert not any(x.any() for x in found)
            continue
        expected = one_pair(case.regions[i, :m], case.words[t, :n], case.weights, **options)
        torch.testing.assert_close(scores[i, t], expected.scores, rtol=0, atol=1e-14)
        for name, x in found._asdict().items():
            y = getattr(expected, name)
            torch.testing.assert_close(x[tuple(slice(size) for size in y.shape)], y, rtol=0, atol=1e-14, msg=name)
            assert math.isclose(x.abs().sum(), y.abs().sum(), abs_tol=1e-12), f"{name} is not 0 beyond the lengths"


@options_of_all
def test_derivatives_of_first_and_second_order(options):
    case = cases.problem((3, 2, 2, 3, 2, 3), padding=0.0, bilinear=True)
    leaves = [x.requires_grad_() for x in case.tensors().values()]

    def scores(*tensors):
        return case.with_tensors(tensors).call(**options, backend="reference")

    assert torch.autograd.gradcheck(scores, leaves)
    assert torch.autograd.gradgradcheck(scores, leaves, fast_mode=True)


def test_maps_have_a_gradient():
    case = cases.problem("odd", pairs=True)
    case.regions.requires_grad_()
    maps = case.call(ck.attention_maps)
    sum(x.sum() for x in maps).backward()
    assert case.regions.grad.isfinite().all()
    assert case.regions.grad.any()


@pytest.mark.parametrize("dtype", cases.HALF_DTYPES, ids=str)
@options_of_all
def test_half_precision_is_finite(dtype, options):
    case = cases.problem("odd", dtype, bilinear=True)
    scores, gradients = cases.run(case, **options, backend="reference")
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    cases.assert_inert(case, gradients)


def test_alignment_without_a_positive_value():
    """P is 0 in a whole row and column: the clamp decides, and no gradient leaves it."""
    case = cases.problem((1, 2, 1, 1, 4, 3), lengths=False)
    case.regions[0, 0] = -case.regions[0, 1]
    scores, gradients = cases.run(case, backend="reference")
    alignment = case.regions[0] @ case.weights.affinity @ case.words[0].T
    assert (alignment < 0).any()
    assert scores.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
