"""Scores of every backend: errors, what is not finite, layouts, empty calls, autocast, backends by name."""

from dataclasses import replace

import cases
import pytest
import torch
from masks import masks_of
from torch.autograd import forward_ad

import caan_kernels as ck
from caan_kernels.core import backends as core_backends
from caan_kernels.core import checks
from caan_kernels.core.gpu import checks as gpu_checks

from .problems import BACKENDS, KERNELS, OPTIONS, SHAPES, assert_accurate, problem, run, score

backends = pytest.mark.parametrize("backend", BACKENDS)
kernels = pytest.mark.parametrize("backend", KERNELS)
all_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
dtypes = pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)


@kernels
@dtypes
@all_options
@pytest.mark.parametrize("shape", SHAPES)
def test_errors(backend, dtype, options, shape):
    for pairs in (False, True):
        assert_accurate(problem(shape, dtype, pairs=pairs), backend, **options)


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(2, 36, 3, 13, 1024), (1, 70, 2, 50, 4100), (1, 900, 1, 3, 1000)], ids=str)
def test_errors_of_long_rows(backend, dtype, shape):
    """More than one chain of products, and documents of several blocks of rows."""
    assert_accurate(problem(shape, dtype), backend)


@backends
@dtypes
def test_whole_numbers_are_exact(backend, dtype):
    generator = torch.Generator().manual_seed(0)
    regions, words = (torch.randint(-3, 4, (3, 9, 20), generator=generator).to(dtype) for _ in range(2))
    expected = torch.einsum("imd,tnd->itmn", regions.double(), words.double()).amax(2).sum(-1)
    assert torch.equal(score(regions, words, backend=backend).double(), expected)


@backends
@all_options
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_with_its_item(backend, options, value):
    case = problem("pages", torch.float32)
    expected = case.call(**options, backend=backend)
    case.regions[1, 50, 7] = value
    case.words[3, case.word_lengths[3] - 1, 5] = value
    found = case.call(**options, backend=backend)
    if value != value:
        assert found[1, case.word_lengths > 0].isnan().all()
        assert found[case.region_lengths > 0, 3].isnan().all()
    kept = torch.ones_like(found, dtype=torch.bool)
    kept[1], kept[:, 3] = False, False
    if backend == "reference":
        torch.testing.assert_close(found[kept], expected[kept])
    else:
        assert torch.equal(found[kept], expected[kept])
    assert not found[2].any() and not found[:, 2].any()


@backends
def test_nan_wherever_it_stands_in_a_tile(backend):
    for row in range(20):
        regions, words = torch.randn(1, 20, 16), torch.randn(1, 50, 16)
        regions[0, row, 3] = torch.nan
        assert score(regions, words, backend=backend).isnan().all()
        assert score(words, regions, over="regions", backend=backend).isnan().all()


@backends
@pytest.mark.parametrize("shape", [(0, 3, 2, 3, 4), (2, 3, 0, 3, 4), (2, 0, 3, 4, 4), (2, 3, 3, 0, 4)], ids=str)
def test_nothing_to_score(backend, shape):
    """No images, no captions, no regions or no words: zeros, and gradients of zero."""
    for options in OPTIONS.values():
        for lengths in (False, True):
            case = problem(shape, torch.float32, lengths=lengths)
            scores, gradients = run(case, **options, backend=backend)
            assert scores.shape == (shape[0], shape[2]) and not scores.any()
            assert not any(x.any() for x in gradients.values())


@backends
def test_no_pairs(backend):
    case = replace(problem("odd", torch.float32), pairs=torch.empty(0, 2, dtype=torch.int64))
    scores, gradients = run(case, backend=backend)
    assert scores.shape == (0,)
    assert not any(x.any() for x in gradients.values())


@backends
@all_options
def test_empty_side(backend, options):
    case = problem("odd", torch.float32)
    scores, gradients = run(case, **options, backend=backend)
    assert case.region_lengths[2] == case.word_lengths[2] == 0
    assert (scores[2] == 0).all() and (scores[:, 2] == 0).all()
    assert scores[1, 1] != 0
    assert not gradients["regions"][2].any() and not gradients["words"][2].any()


@backends
@pytest.mark.parametrize("options", [{}, {"over": "regions"}], ids=str)
def test_empty_side_beside_what_is_not_finite(backend, options):
    case = problem((4, 5, 3, 4, 8), torch.float32)
    case.regions[1, 0, 0] = case.words[1, 0, 0] = torch.nan
    scores, gradients = run(case, **options, backend=backend)
    assert not scores[2].any() and not scores[:, 2].any() and scores[0, 0].isfinite()
    assert not gradients["regions"][2].any() and not gradients["words"][2].any()
    scores, gradients = run(replace(case, pairs=torch.tensor([[2, 1], [1, 2], [0, 0]])), **options, backend=backend)
    assert scores[:2].tolist() == [0, 0] and scores[2].isfinite()
    assert not any(x[1:].any() or not x[0].isfinite().all() for x in gradients.values())


@backends
def test_layouts_and_index_dtypes(backend):
    """Strided features and lengths of any integer dtype give what contiguous int64 gives."""
    case = problem("odd", torch.float32)
    expected = run(case, torch.ones(4, 5), backend=backend)
    strided = replace(case, regions=case.regions.mT.contiguous().mT, words=case.words.mT.contiguous().mT)
    assert not strided.regions.is_contiguous()
    for dtype in (torch.int32, torch.uint8):
        lengths = {"region_lengths": case.region_lengths.to(dtype), "word_lengths": case.word_lengths.to(dtype)}
        cases.assert_same(expected, run(replace(strided, **lengths), torch.ones(1).expand(4, 5), backend=backend))


@backends
@pytest.mark.parametrize("autocast_dtype", cases.HALF_DTYPES, ids=str)
def test_autocast(backend, autocast_dtype):
    """16 and 32 bit features are cast to autocast's dtype, float64 is left alone."""
    if autocast_dtype not in cases.KERNEL_DTYPES[backend]:
        pytest.skip("the backend has no kernels for this dtype")
    case = problem("odd", torch.float32)
    grad = torch.randn(4, 5)
    plain = run(case.to(autocast_dtype), grad, backend=backend)
    wide = case.to(torch.float64) if torch.float64 in cases.KERNEL_DTYPES[backend] else None
    expected = None if wide is None else wide.call(backend=backend)
    leaves = {"regions": case.regions.clone().requires_grad_(), "words": case.words.clone().requires_grad_()}
    with torch.autocast(cases.KERNELS.get(backend, "cpu"), autocast_dtype):
        scores = replace(case, **leaves).call(backend=backend)
        mixed = replace(case, words=case.words.half()).call(backend=backend)
        assert wide is None or torch.equal(wide.call(backend=backend), expected)
    assert torch.equal(scores, plain[0])
    assert scores.dtype == mixed.dtype == torch.float32
    # Outside of autocast, as PyTorch asks for: it would round the reference's products within the derivative.
    for name, x in zip(leaves, torch.autograd.grad(scores, list(leaves.values()), grad), strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, plain[1][name].float()), name


@dtypes
@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_auto_takes_the_last_backend_that_has_the_device_and_the_dtype(device, dtype):
    able = [name for name, where in cases.KERNELS.items() if where == device and dtype in cases.KERNEL_DTYPES[name]]
    assert core_backends.select("max_similarity", "auto", torch.device(device), dtype) == ["reference", *able][-1]


def test_shapes_alone():
    assert ck.max_similarity(torch.empty(2, 3, 4, device="meta"), torch.empty(5, 3, 4, device="meta")).shape == (2, 5)


@pytest.mark.parametrize(("name", "error"), [("fpga", ValueError), (None, TypeError)])
def test_backends_that_are_none(name, error):
    with pytest.raises(error, match=rf"^backend: expected 'auto', 'reference', 'cpu', 'triton', 'cuda', got {name!r}$"):
        problem("odd").call(backend=name)


@kernels
def test_forward_mode_is_refused(backend):
    case = problem("odd", torch.float32)
    with forward_ad.dual_level():
        dual = replace(case, words=forward_ad.make_dual(case.words, torch.ones_like(case.words)))
        with pytest.raises(RuntimeError, match="caan_kernels.max_similarity has no forward-mode derivative"):
            dual.call(backend=backend)
        assert forward_ad.unpack_dual(dual.call(backend="reference")).tangent is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@backends
def test_no_product_of_halves_is_rounded(backend, dtype):
    """Scores are those of the widened features: a product that is rounded could lose its place as the largest."""
    case = problem((5, 90, 7, 21, 300), dtype)
    found, wide = case.call(backend=backend), case.to(torch.float32).call(backend=backend)
    if backend in ("reference", "cpu"):
        assert torch.equal(found, wide)
    else:
        # Tensor cores add up in another order.
        torch.testing.assert_close(found, wide, rtol=2e-6, atol=2e-6)
    one = torch.full((1, 1, 1), 300.0, dtype=torch.float16)
    assert score(one, one, backend=backend).item() == 90000
    last = torch.finfo(dtype).eps
    regions, words = (torch.tensor(x, dtype=dtype) for x in ([[[1, 0], [1, last]]], [[[2 - last, last]]]))
    regions.requires_grad_()
    score(regions, words, backend=backend).sum().backward()
    assert not regions.grad[0, 0].any() and torch.equal(regions.grad[0, 1], words[0, 0])


@backends
def test_masks_are_lengths(backend, monkeypatch):
    """A mask gives the bits that lengths give. Where values are not checked, one that is no prefix makes its item's scores NaN."""
    case = problem("odd", torch.float32)
    masks = masks_of(case)
    bare, expected = replace(case, region_lengths=None, word_lengths=None), case.call(backend=backend)
    assert torch.equal(bare.call(backend=backend, **masks), expected)
    monkeypatch.setattr(checks, "_at_hand", lambda values: None)
    monkeypatch.setattr(gpu_checks, "check_values", lambda *arguments: None)
    masks["region_mask"][0] = torch.arange(case.regions.shape[1]) != 1
    if backend == "cpu":
        with pytest.raises(RuntimeError, match="region_lengths: expected lengths from 0 to"):
            bare.call(backend=backend, **masks)
        return
    scores = bare.call(backend=backend, **masks)
    assert scores[0].isnan().all() and torch.equal(scores[1:], expected[1:])
