"""How far each kernel is from float64, in scores, maps and every gradient."""

from dataclasses import replace

import cases
import hypothesis
import numpy as np
import pytest
import torch
from accuracy import assert_accurate
from hypothesis import strategies

import caan_kernels as ck
from caan_kernels.context_attention.call import CallGradient
from caan_kernels.core.records import flatten

pytestmark = pytest.mark.parametrize("backend", cases.KERNELS)

# The emulator takes its time, and which pairs a list has is nothing to the options.
OPTIONS_AND_LISTS = {
    f"{name}-{'pair_list' if pairs else 'all_pairs'}": (options, pairs)
    for name, options in cases.OPTIONS.items()
    for pairs in (False, True)
    if not (pairs and options and cases.EMULATED)
}

options_of_all = pytest.mark.parametrize("options", cases.OPTIONS.values(), ids=cases.OPTIONS)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("path", cases.GOLDEN, ids=lambda path: path.stem)
def test_golden(backend, path, dtype):
    case, options, scores, grad_scores, gradients = cases.golden(path)
    found, found_gradients = cases.run(case.to(dtype), grad_scores, **options, backend=backend)
    # The inputs are numbers that every dtype holds, so one answer serves them all.
    score_bound, gradient_bound = (1e-13, 1e-12) if dtype == torch.float64 else (2e-6, 1e-5)
    plain, plain_gradients = cases.run(case.to(dtype), grad_scores, **options, backend="reference")
    if dtype in cases.HALF_DTYPES:
        # The largest of a handful of errors: one in fifty such cases is more than twice another's.
        score_bound = 2**-9 if dtype == torch.float16 else 2**-6
    assert cases.score_error(found, scores) <= max(score_bound, 2 * cases.score_error(plain, scores))
    for name, gradient in gradients.items():
        of_plain = cases.gradient_error(plain_gradients[name], gradient)
        assert cases.gradient_error(found_gradients[name], gradient) <= max(gradient_bound, 3 * of_plain), name


@pytest.mark.parametrize(("options", "pairs"), OPTIONS_AND_LISTS.values(), ids=OPTIONS_AND_LISTS)
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_float32(backend, shape, options, pairs):
    assert_accurate(cases.problem(shape, torch.float32, pairs=pairs), backend, options)


def test_float32_of_one_word(backend):
    """Derivatives that all but cancel keep the error of tanh: it has to be float32's."""
    case = cases.problem((1, 36, 2, 1, 64, 64), torch.float32, lengths=False)
    # In gradients 4/3 makes it twice the reference's error.
    assert_accurate(case, backend, {"intra": None}, of_reference=4 / 3)


@pytest.mark.float64
@options_of_all
@pytest.mark.parametrize("shape", cases.SHAPES)
def test_float64(backend, shape, options):
    assert_accurate(cases.problem(shape, pairs=True), backend, options, score=1e-13, gradient=1e-12)


@options_of_all
@pytest.mark.parametrize("dtype", cases.HALF_DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [x for x in ("odd", "wide_hidden", "captions_longer", "paper_like", "tiles") if x in cases.SHAPES]
)
def test_half(backend, shape, dtype, options):
    assert_accurate(cases.problem(shape, dtype), backend, options, score=1e-6, gradient=1e-4, of_reference=2.0)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_saturated_alignment(backend, dtype):
    """Of one problem's 28 scores any implementation may err twice as much as another: several problems are taken together."""
    errors, gradient_errors = [], []
    for seed in range(2 if cases.INTERPRETED else 4):
        case = cases.problem("paper_like", dtype, scale=6.0, seed=seed)
        expected, expected_gradients = cases.oracle(case)
        runs = cases.run(case, backend=backend), cases.run(case, backend="reference")
        errors.append([cases.spread_errors(scores, expected)[0] for scores, _ in runs])
        gradient_errors += [
            [cases.gradient_error(gradients[name], expected) for _, gradients in runs]
            for name, expected in expected_gradients.items()
        ]
    # In float64 the reference is what is compared with.
    score, gradient = (1e-12, 1e-11) if dtype == torch.float64 else (0.0, 1e-5)
    found, of_reference = np.linalg.norm(errors, axis=0)
    assert found <= max(score, 2 * of_reference)
    found, of_reference = np.max(gradient_errors, axis=0)
    assert found <= max(gradient, 3 * of_reference)


@pytest.mark.float64
@options_of_all
def test_gradcheck(backend, options):
    case = cases.problem((3, 3, 3, 4, 2, 5), padding=0.0)
    leaves = [x.requires_grad_() for x in case.tensors().values()]
    assert torch.autograd.gradcheck(lambda *tensors: case.with_tensors(tensors).call(**options, backend=backend), leaves)


@pytest.mark.float64
@options_of_all
def test_gradcheck_of_one_word_and_of_zero_rows(backend, options):
    """Rows of one entry, which normalise to 1, and rows without any, which stay 0."""
    case = cases.problem((2, 4, 3, 1, 3, 5), lengths=False)
    A = torch.einsum("imd,de,tne->itmn", case.regions, case.weights.affinity, case.words)
    assert (A < 0).all(3).any() and (A > 0).any()
    leaves = [x.requires_grad_() for x in case.tensors().values()]
    assert torch.autograd.gradcheck(lambda *tensors: case.with_tensors(tensors).call(**options, backend=backend), leaves)


# Widths for which kernels are compiled anyway, and few pairs, where that counts.
few = "triton" in cases.KERNELS
sizes = strategies.tuples(
    strategies.integers(0, 2 if few else 4),
    strategies.integers(0, 16 if few else 20),
    strategies.integers(0, 3 if few else 5),
    strategies.integers(0, 16 if few else 20),
    strategies.just(6) if few else strategies.integers(1, 40),
    strategies.just(9) if few else strategies.integers(1, 70),
)


@hypothesis.settings(max_examples=cases.EXAMPLES)
@hypothesis.given(
    shape=sizes,
    dtype=strategies.sampled_from(cases.DTYPES),
    options=strategies.sampled_from(list(cases.OPTIONS.values())),
    pairs=strategies.booleans(),
    lengths=strategies.booleans(),
    seed=strategies.integers(0, 99),
)
def test_any_shape(backend, shape, dtype, options, pairs, lengths, seed):
    hypothesis.assume(dtype in cases.KERNEL_DTYPES[backend])
    pairs = pairs and shape[0] * shape[2] > 0
    case = cases.problem(shape, dtype, pairs=pairs, lengths=lengths, seed=seed)
    score, gradient = {torch.float64: (1e-12, 1e-10), torch.float32: (2e-6, 1e-5)}.get(dtype, (5e-3, 2e-2))
    assert_accurate(case, backend, options, score=score, gradient=gradient, least=0.1, of_reference=2.0)


@options_of_all
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_maps(backend, dtype, options):
    shape = "paper_like"
    if backend == "triton":
        shape = (2, 36, 1, 21, 20, 24) if cases.INTERPRETED else "odd"
    case = cases.problem(shape, dtype, pairs=True)
    maps = case.call(ck.attention_maps, **options, backend=backend)
    expected = case.to(torch.float64).call(ck.attention_maps, **options, backend="reference")
    plain = case.call(ck.attention_maps, **options, backend="reference")
    m, n = case.region_lengths[case.pairs[:, 0], None], case.word_lengths[case.pairs[:, 1], None]
    v, u = torch.arange(case.regions.shape[1]) < m * (n > 0), torch.arange(case.words.shape[1]) < n * (m > 0)
    exists = ck.AttentionMaps(
        v[:, 0], v, u, *(x[:, :, None] & y[:, None, :] for x, y in ((v, u), (v, u), (u, v), (v, v), (u, u)))
    )._asdict()
    for name, x in maps._asdict().items():
        assert x.dtype == (dtype if dtype == torch.float64 else torch.float32)
        oracle = getattr(expected, name)
        assert x.shape == oracle.shape
        bound = max(3e-6 if dtype != torch.float64 else 1e-13, 2 * cases.score_error(getattr(plain, name), oracle))
        assert cases.score_error(x, oracle) <= bound, name
        assert not x.cpu()[~exists[name].expand_as(x)].any(), f"{name} is not 0 where nothing exists"
    assert torch.equal(maps.scores, case.call(**options, backend=backend))


@options_of_all
def test_padding_is_inert(backend, options):
    """Scores and gradients do not depend on what lies beyond the lengths, to the last bit."""
    fillings = (float("nan"), 0.0) if cases.INTERPRETED else (float("nan"), float("inf"), -1e30, 0.0)
    results = [cases.run(cases.problem("odd", torch.float32, padding=x), **options, backend=backend) for x in fillings]
    for result in results[1:]:
        cases.assert_same(results[0], result)


def test_unwritten_memory(backend, poisoned_memory):
    for dtype in cases.KERNEL_DTYPES[backend]:
        case = cases.problem("captions_longer", dtype, pairs=True)
        scores, gradients = cases.run(case, backend=backend)
        assert scores.isfinite().all()
        assert all(x.isfinite().all() for x in gradients.values())
        assert case.call(backend=backend).isfinite().all()
        assert all(x.isfinite().all() for x in case.call(ck.attention_maps, backend=backend))
        assert all(x.products.isfinite().all() for x in case.project())


def test_pairs_without_gradient_are_skipped(backend):
    """An image whose scores get no gradient gives none, even where its own numbers are NaN."""
    case = cases.problem("odd", torch.float32, lengths=False).on(backend)
    call = case.packed(backend)
    call.regions.features[1] = call.regions.products[1] = float("nan")
    grad = torch.ones(len(case.regions), len(case.words), device=case.regions.device)
    grad[1] = 0
    gradients = torch.ops.caan_kernels.pair_scores_backward(*flatten(CallGradient(grad, call)))
    assert not gradients[0][1].any()
    assert not gradients[1][1].any()
    assert all(x.isfinite().all() for x in gradients)


# Images, regions, captions, words: of a tile, of tensor cores with a block for each pair, and of float32 arithmetic.
NAN_SIZES = (
    {"tile": (1, 5, 2, 7)} if cases.INTERPRETED else {"tile": (2, 5, 3, 7), "large": (1, 66, 2, 33), "pair": (1, 66, 2, 130)}
)


@pytest.mark.parametrize(("of", "dtype"), [*(("affinity", dtype) for dtype in cases.DTYPES), ("overflow", torch.float16)], ids=str)
@pytest.mark.parametrize("sizes", NAN_SIZES.values(), ids=NAN_SIZES)
def test_alignments_that_are_nan(backend, of, dtype, sizes):
    """They are no alignment of 0: scores and gradients are NaN where the reference's are, and nowhere else."""
    widths = (8, 16) if backend == "cuda" else cases.SHAPES["odd"][4:]
    case = cases.problem((*sizes, *widths), dtype, lengths=False, near_zero=True)
    affinity, words = case.weights.affinity, case.words
    affinity, words = (affinity * 1e4, words * 50) if of == "overflow" else (torch.full_like(affinity, torch.nan), words)
    assert affinity.isfinite().all() == (of == "overflow") and words.isfinite().all()
    case = replace(case, words=words, weights=case.weights._replace(affinity=affinity))
    grad = torch.ones(len(case.regions), len(words))
    (scores, gradients), (expected, expected_gradients) = (cases.run(case, grad, backend=x) for x in (backend, "reference"))
    assert expected.isnan().all() and scores.isnan().all()
    for name, gradient in expected_gradients.items():
        assert torch.equal(gradients[name].isnan(), gradient.isnan()), name
