"""What a caller may rely on beside the numbers: layouts, empty calls, gradients wanted or not, autocast."""

from dataclasses import replace
from types import SimpleNamespace

import cases
import pytest
import torch
from masks import masks_of
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import caan_kernels as ck
from caan_kernels.context_attention import interface
from caan_kernels.core import checks
from caan_kernels.core.gpu import checks as gpu_checks
from caan_kernels.core.indices import indices_for

BACKENDS = [*cases.KERNELS] if cases.INTERPRETED else ["reference", *cases.KERNELS]
backends = pytest.mark.parametrize("backend", BACKENDS)


@backends
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_shapes_and_dtypes(backend, dtype):
    case = cases.problem("odd", dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for pairs, shape in ((None, (len(case.regions), len(case.words))), (torch.tensor([[2, 1], [0, 0]]), (2,))):
        scores = replace(case, pairs=pairs).call(backend=backend)
        assert (scores.shape, scores.dtype) == (shape, expected)


@backends
@pytest.mark.parametrize("shape", [(0, 3, 2, 3, 4, 5), (2, 3, 0, 3, 4, 5), (2, 0, 3, 4, 4, 5), (2, 3, 3, 0, 4, 5)], ids=str)
def test_nothing_to_score(backend, shape):
    """No images, no captions, no regions or no words: zeros, and gradients of zero."""
    for lengths in (False, True):
        case = cases.problem(shape, torch.float32, lengths=lengths)
        scores, gradients = cases.run(case, backend=backend)
        assert scores.shape == (shape[0], shape[2])
        assert not scores.any()
        assert not any(x.any() for x in gradients.values())
        assert torch.equal(case.call(backend=backend), scores)
        pairs = torch.zeros(2 if scores.numel() else 0, 2, dtype=torch.int64)
        maps = replace(case, pairs=pairs).call(ck.attention_maps, backend=backend)
        assert not maps.scores.any()
        assert maps.word_to_region.shape == maps.alignment.shape == (len(pairs), shape[1], shape[3])
        assert maps.region_to_word.shape == (len(pairs), shape[3], shape[1])


@backends
def test_no_pairs(backend):
    case = replace(cases.problem("odd", torch.float32), pairs=torch.empty(0, 2, dtype=torch.int64))
    scores, gradients = cases.run(case, backend=backend)
    assert scores.shape == (0,)
    assert not any(x.any() for x in gradients.values())


@backends
def test_empty_side(backend):
    case = cases.problem("odd", torch.float32)
    scores, gradients = cases.run(case, backend=backend)
    assert case.region_lengths[2] == case.word_lengths[2] == 0
    assert (scores[2] == 0).all() and (scores[:, 2] == 0).all()
    assert scores[1, 1] != 0
    assert not gradients["regions"][2].any() and not gradients["words"][2].any()


@backends
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_empty_side_beside_what_is_not_finite(backend, value, similarity):
    """0, and so are the gradients of both items' features, in all pairs and in lists."""
    options = {"similarity": similarity, "backend": backend}
    case = cases.problem("odd", torch.float32)
    case.regions[1, 0, 0] = case.words[1, 0, 0] = value
    scores, gradients = cases.run(case, **options)
    assert not scores[2].any() and not scores[:, 2].any()
    assert not gradients["regions"][2].any() and not gradients["words"][2].any()
    assert scores[0, 0].isfinite() and not scores[0, 1].isfinite()
    scores, gradients = cases.run(replace(case, pairs=torch.tensor([[2, 1], [1, 2], [0, 0]])), **options)
    assert scores[:2].tolist() == [0, 0] and scores[2].isfinite()
    assert not any(gradients[name][1:].any() for name in ("regions", "words"))
    assert all(gradients[name][0].isfinite().all() for name in ("regions", "words"))
    for empty in (
        replace(case, regions=case.regions[2:3], region_lengths=case.region_lengths[2:3]),
        replace(case, words=case.words[2:3], word_lengths=case.word_lengths[2:3]),
    ):
        scores, gradients = cases.run(empty, **options)
        assert not scores.any() and not any(gradients[name].any() for name in ("regions", "words"))


@backends
def test_layouts_and_index_dtypes(backend):
    """Strided features and weights, expanded gradients, and lengths of any integer dtype give what contiguous int64 gives."""
    case = cases.problem("odd", torch.float32)
    expected = cases.run(case, torch.ones(len(case.regions), len(case.words)), backend=backend)
    strided = case.with_tensors(
        x.mT.contiguous().mT if x.dim() > 1 else x.repeat(2, 1).T.contiguous()[:, 0] for x in case.tensors().values()
    )
    assert not strided.regions.is_contiguous() and not strided.weights.word_score.is_contiguous()
    for dtype in (torch.int32, torch.uint8):
        lengths = {"region_lengths": case.region_lengths.to(dtype), "word_lengths": case.word_lengths.to(dtype)}
        cases.assert_same(
            expected,
            cases.run(replace(strided, **lengths), torch.ones(1).expand(len(case.regions), len(case.words)), backend=backend),
        )


@pytest.mark.parametrize("name", cases.TENSORS)
@pytest.mark.parametrize("backend", cases.KERNELS)
def test_one_gradient_alone(backend, name):
    """Wanting one gradient gives the same as wanting all."""
    case = cases.problem("odd", torch.float32)
    grad = torch.randn(len(case.regions), len(case.words), generator=torch.Generator().manual_seed(0))
    _, gradients = cases.run(case, grad, backend=backend)
    leaves = {key: x.clone().requires_grad_(key == name) for key, x in case.tensors().items()}
    scores = case.with_tensors(leaves.values()).call(backend=backend)
    scores.backward(grad.to(scores))
    assert torch.equal(leaves[name].grad, gradients[name])
    assert all(x.grad is None for key, x in leaves.items() if key != name)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@backends
def test_projections(backend, dtype):
    """Products in the order of their documentation, and zeros for padding."""
    case = cases.problem("odd", dtype).on(backend)
    exact = case.to("cpu", torch.float64)
    for project, items, lengths, matrices in (
        (ck.project_regions, "regions", case.region_lengths, ("region_intra", "word_inter")),
        (ck.project_words, "words", case.word_lengths, ("affinity", "region_inter", "word_intra")),
    ):
        features, products, kept = project(getattr(case, items), case.weights, lengths)
        assert torch.equal(kept, lengths)
        assert features.data_ptr() == getattr(case, items).data_ptr()
        columns = [getattr(exact.weights, name).T if name == "affinity" else getattr(exact.weights, name) for name in matrices]
        expected = getattr(exact, items) @ torch.cat(columns, dim=1)
        padding = torch.arange(features.shape[1]) >= lengths[:, None]
        assert products.dtype == dtype
        products = products.cpu()
        assert not products[padding].any()
        torch.testing.assert_close(products[~padding], expected[~padding].to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@backends
@pytest.mark.parametrize("pairs", [False] if cases.INTERPRETED else [False, True])
def test_masks_are_lengths(backend, pairs):
    """The same bits, whichever function takes them."""
    case = cases.problem((3, 3, 2, 4, 6, 5), torch.float32, pairs=pairs)
    masks, bare = masks_of(case), replace(case, region_lengths=None, word_lengths=None)
    if pairs:
        wanted = case.call(ck.attention_maps, backend=backend)
        cases.assert_equal(tuple(bare.call(ck.attention_maps, backend=backend, **masks)), tuple(wanted), backend)
        return
    expected = cases.run(case, backend=backend)
    cases.assert_same(expected, cases.run(bare, backend=backend, **masks))
    V = ck.project_regions(case.on(backend).regions, case.weights, region_mask=masks["region_mask"], backend=backend)
    U = ck.project_words(case.on(backend).words, case.weights, word_mask=masks["word_mask"], backend=backend)
    assert torch.equal(V.lengths, case.region_lengths) and torch.equal(U.lengths, case.word_lengths)
    projected = ck.context_attention(V, U, case.on(backend).weights, backend=backend)
    cases.assert_equal(projected, expected[0], backend)


@backends
def test_a_mask_that_nobody_looks_at(backend, monkeypatch):
    """As on a GPU: an image or caption whose mask has a False before a True scores NaN, no other does, and it has no gradient."""
    case = cases.problem((3, 3, 3, 4, 6, 5), torch.float32)
    monkeypatch.setattr(checks, "_at_hand", lambda values: None)
    monkeypatch.setattr(gpu_checks, "check_values", lambda *arguments: None)
    masks, bare = masks_of(case), replace(case, region_lengths=None, word_lengths=None)
    expected, _ = cases.run(case, backend=backend)
    masks["word_mask"][1] = torch.arange(case.words.shape[1]) != 2
    if backend == "cpu":
        with pytest.raises(RuntimeError, match="word_lengths: expected lengths from 0 to"):
            bare.call(backend=backend, **masks)
        return
    scores, gradients = cases.run(bare, torch.ones_like(expected), backend=backend, **masks)
    others = torch.arange(len(case.words)) != 1
    assert scores[:, 1].isnan().all() and torch.equal(scores[:, others], expected[:, others])
    assert not gradients["words"][1].any() and all(x.isfinite().all() for x in gradients.values())
    pairs = replace(bare, pairs=torch.tensor([[0, 1], [1, 0]]))
    assert pairs.call(backend=backend, **masks).isnan().tolist() == [True, False]
    assert pairs.call(ck.attention_maps, backend=backend, **masks).scores.isnan().tolist() == [True, False]


@pytest.mark.parametrize("backend", cases.KERNELS)
def test_gradients_through_projections(backend):
    case = cases.problem("odd", torch.float32)
    expected = cases.run(case, torch.ones(len(case.regions), len(case.words)), backend=backend)
    leaves = case.on(backend).with_tensors(x.clone().requires_grad_() for x in case.on(backend).tensors().values())
    V, U = leaves.project()
    scores = ck.context_attention(V, U, leaves.weights, backend=backend)
    scores.backward(torch.ones_like(scores))
    cases.assert_same(
        expected, (scores.detach(), {name: x.grad.to(expected[1][name].device) for name, x in leaves.tensors().items()})
    )


@pytest.mark.parametrize("backend", cases.KERNELS)
def test_no_gradient_is_lost(backend):
    """Scores of anything that requires a gradient have one; maps of the kernels refuse, and "auto" takes the reference."""
    case = cases.problem("odd", torch.float32, pairs=True)
    assert not case.call(backend=backend).requires_grad
    for name in cases.TENSORS:
        wanting = case.with_tensors(x.clone().requires_grad_(key == name) for key, x in case.tensors().items())
        assert wanting.call(backend=backend).requires_grad
        assert wanting.call(ck.attention_maps).scores.requires_grad
        with pytest.raises(RuntimeError, match="maps have no derivative"):
            wanting.call(ck.attention_maps, backend=backend)
    wanting = case.with_tensors(x.clone().requires_grad_() for x in case.tensors().values())
    for quiet in (torch.no_grad(), torch.inference_mode()):
        with quiet:
            assert not wanting.call(backend=backend).requires_grad
            assert not wanting.call(ck.attention_maps, backend=backend).scores.requires_grad


@pytest.mark.parametrize("backend", cases.KERNELS)
def test_second_derivative(backend):
    case = cases.problem("odd", torch.float32)
    case.regions.requires_grad_()
    (gradient,) = torch.autograd.grad(case.call(backend=backend).sum(), case.regions, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; backend='reference'"):
        gradient.sum().backward()


@backends
@pytest.mark.parametrize("autocast_dtype", cases.HALF_DTYPES, ids=str)
def test_autocast(backend, autocast_dtype):
    """16 and 32 bit features and weights are cast to autocast's dtype, or to that of a side which was projected before."""
    case = cases.problem("odd", torch.float32).on(backend)
    device = case.regions.device.type
    wide_backend = backend if torch.float64 in cases.KERNEL_DTYPES[backend] else "reference"
    if autocast_dtype not in cases.KERNEL_DTYPES[backend]:
        pytest.skip("not a dtype of this backend")
    plain = cases.run(case.to(autocast_dtype), backend=backend)
    with torch.autocast(device, autocast_dtype):
        scores, gradients = cases.run(case, backend=backend)
        mixed = replace(case, words=case.words.bfloat16().float().half()).call(backend=backend)
        wide = case.to(torch.float64).call(backend=wide_backend)
        V = ck.project_regions(case.regions, case.weights, case.region_lengths)
        maps = replace(case, pairs=torch.tensor([[0, 0]])).call(ck.attention_maps, backend=backend)
    assert torch.equal(scores, plain[0])
    assert scores.dtype == mixed.dtype == maps.scores.dtype == maps.region_affinity.dtype == torch.float32
    for name, x in gradients.items():
        assert x.dtype == torch.float32
        assert torch.equal(x, plain[1][name].float()), name
    assert torch.equal(wide, case.to(torch.float64).call(backend=wide_backend))
    assert V.features.dtype == V.products.dtype == autocast_dtype
    earlier = ck.project_regions(case.regions, case.weights, case.region_lengths)
    with torch.autocast(device, autocast_dtype):
        kept = ck.context_attention(earlier, case.words, case.weights, word_lengths=case.word_lengths, backend=backend)
    assert torch.equal(kept, case.call(backend=backend))


@pytest.mark.parametrize("backend", cases.KERNELS)
def test_forward_mode_is_refused(backend):
    case = cases.problem("odd", torch.float32).on(backend)
    with forward_ad.dual_level():
        dual = replace(case, regions=forward_ad.make_dual(case.regions, torch.ones_like(case.regions)))
        with pytest.raises(RuntimeError, match="caan_kernels.context_attention has no forward-mode derivative"):
            dual.call(backend=backend)
        assert forward_ad.unpack_dual(dual.call(backend="reference")).tangent is not None


@pytest.mark.parametrize("backend", cases.KERNELS)
def test_maps_project_only_what_the_pairs_name(monkeypatch, backend):
    case = replace(cases.problem("odd", torch.float32), pairs=torch.tensor([[2, 1]]))
    rows = []
    whole = case.call(ck.attention_maps, backend="reference")
    monkeypatch.setattr(
        interface, "_project", lambda side, *rest, real=interface._project: rows.append(len(side.features)) or real(side, *rest)
    )
    few = case.call(ck.attention_maps, backend=backend)
    assert rows == [1, 1]
    for name, x in few._asdict().items():
        torch.testing.assert_close(x.cpu(), getattr(whole, name), rtol=0, atol=2e-6)


# What scores do not depend on.
UNREAD = {
    "inter_only": {"region_intra", "word_intra"},
    "intra_only": {"region_inter", "word_inter"},
    "neither": {"affinity", "region_intra", "region_inter", "word_intra", "word_inter", "region_score", "word_score"},
    "features_only": {"affinity", "region_inter", "word_inter"},
}


@backends
@pytest.mark.parametrize("projected", [False, True], ids=["features", "projected"])
@pytest.mark.parametrize("options", ["default", *UNREAD])
def test_what_the_options_do_not_read_has_no_gradient(backend, options, projected):
    given = {**cases.OPTIONS, **cases.FEATURE_OPTIONS}[options]
    if given.get("intra") == "features" and (projected or backend != "reference"):
        pytest.skip("the reference alone computes it, on features")
    case = cases.problem("odd", torch.float32, bilinear=True).on(backend)
    leaves = case.with_tensors(x.requires_grad_() for x in case.tensors().values())
    if projected:
        V, U = leaves.project(backend)
        scores = ck.context_attention(V, U, leaves.weights, backend=backend, **given)
    else:
        scores = leaves.call(backend=backend, **given)
    scores.sum().backward()
    unread = UNREAD.get(options, set()) | (set() if given.get("intra") == "features" else set(cases.BILINEAR))
    gradients = {name: x.grad for name, x in leaves.tensors().items()}
    if not projected:
        assert {name for name, x in gradients.items() if x is None} == unread
    for name in unread:
        assert gradients[name] is None or not gradients[name].any(), name
    assert all(gradients[name].any() for name in set(gradients) - unread)


@backends
def test_one_word_gives_the_affinity_no_gradient(backend):
    """A row with one positive entry normalises to 1, whatever the alignment: what passes through is exactly 0."""
    for seed in range(3):
        case = cases.problem((2, 1, 3, 1, 7, 5), torch.float32, seed=seed, lengths=False)
        scores, gradients = cases.run(case, backend=backend)
        assert scores.any()
        assert not gradients["affinity"].any()
    case = cases.problem((2, 4, 3, 1, 7, 5), torch.float32, lengths=False)
    # Regions compete for the one word, but Ĉ and Rᵀ know only whether they are aligned with it.
    _, gradients = cases.run(case, **cases.OPTIONS["intra_only"], backend="reference")
    _, found = cases.run(case, **cases.OPTIONS["intra_only"], backend=backend)
    assert cases.gradient_error(found["affinity"], gradients["affinity"].double()) <= 1e-5


@pytest.mark.parametrize("backend", cases.KERNELS)
def test_features_are_for_the_reference(backend):
    case = cases.problem("odd", torch.float32, bilinear=True).on(backend)
    with pytest.raises(RuntimeError, match="only the reference computes intra='features', which exists to reproduce"):
        case.call(intra="features", backend=backend)
    assert torch.equal(case.call(intra="features"), case.call(intra="features", backend="reference"))
    V, U = case.project(backend)
    for sides, name in (((V, case.words), "regions"), ((case.regions, U), "words")):
        with pytest.raises(ValueError, match=f"^{name}: expected a tensor for intra='features', no projected side, got Projected"):
            ck.context_attention(*sides, case.weights, intra="features")


def test_indices_of_the_caller_are_copied_before_the_call_returns():
    """The copy to a device may be under way when the call returns: it reads memory that no caller can overwrite."""
    lengths = torch.tensor([1, 2])
    read = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), given=None):
            if function is torch.ops.aten._to_copy.default:
                read.append(arguments[0].data_ptr())
            return function(*arguments, **(given or {}))

    with Watch():
        indices_for(lengths, torch.empty(2, 1, 1, device="meta"), "triton")
    assert len(read) == 1
    assert read[0] != lengths.data_ptr()


def test_public_names():
    assert set(ck.__all__) >= {
        "AttentionMaps",
        "ContextAttentionWeights",
        "ProjectedRegions",
        "ProjectedWords",
        "attention_maps",
        "available_backends",
        "build_info",
        "context_attention",
        "project_regions",
        "project_words",
    }
    assert all(getattr(ck, name).__doc__ for name in ck.__all__)


def test_lengths_on_the_cpu_are_no_part_of_a_graph(monkeypatch):
    on_gpu, lengths = SimpleNamespace(device=torch.device("cuda", 0)), torch.tensor([1, 2])
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="expected CUDA tensors while a CUDA graph is captured, got one on the CPU"):
        indices_for(lengths, on_gpu, "cuda")
    assert torch.equal(indices_for(lengths, torch.empty(0), "cpu"), lengths)
