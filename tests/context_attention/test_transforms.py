"""PyTorch's transforms: the table of docs/operator.md, row by row."""

import cases
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import caan_kernels as ck

# The reference is the same in every process.
BACKENDS = [*cases.KERNELS] if cases.INTERPRETED or cases.EMULATED else ["reference", *cases.KERNELS]
pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning"),
]
# A pair takes the interpreter a tenth of a second.
SHAPE = (2, 3, 2, 4, 5, 3)


class Call:
    """The operator of one problem, as a function of some of its tensors."""

    def __init__(self, backend):
        self.backend = backend
        case = cases.problem(SHAPE, torch.float32, pairs=True, padding=0.0).on(backend)
        self.regions, self.words, self.weights = case.regions, case.words, case.weights
        device = case.regions.device
        self.lengths = torch.tensor([3, 2], device=device), torch.tensor([4, 1], device=device)
        self.pairs = case.pairs[:3].to(device)

    def __call__(self, regions=None, words=None, weights=None, word_lengths=None, pairs=None):
        tensors = self.regions if regions is None else regions, self.words if words is None else words
        weights = self.weights if weights is None else ck.ContextAttentionWeights(*weights)
        lengths = self.lengths[0], self.lengths[1] if word_lengths is None else word_lengths
        return ck.context_attention(*tensors, weights, *lengths, pairs, backend=self.backend)

    def gradient(self, regions=None, words=None, weights=None, upstream=None):
        """Of the summed scores, with respect to regions, words and weights: by torch.autograd alone."""
        given = self.regions if regions is None else regions, self.words if words is None else words
        leaves = [x.detach().clone().requires_grad_() for x in (*given, *(weights or self.weights[:7]))]
        scores = self(leaves[0], leaves[1], leaves[2:])
        return torch.autograd.grad(scores, leaves, torch.ones_like(scores) if upstream is None else upstream)

    def several(self):
        """(3, I, M, D): three batches of images."""
        return torch.stack([self.regions, self.regions.flip(0), -self.regions])


@pytest.fixture
def call(backend):
    return Call(backend)


def test_fake_tensors(call, backend):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        regions, lengths, pairs = map(mode.from_tensor, (call.regions, call.lengths[1], call.pairs))
        assert call(regions.requires_grad_(), word_lengths=lengths).shape == (2, 2)
        call(regions, word_lengths=lengths, pairs=pairs).sum().backward()
        assert regions.grad.shape == regions.shape
        projected = ck.project_words(mode.from_tensor(call.words), call.weights, lengths, backend=backend)
        assert call(regions, words=projected.features).shape == (2, 2) and projected.products.shape == (2, 4, 11)
        with torch.no_grad():
            maps = ck.attention_maps(regions, call.words, call.weights, pairs, *call.lengths, backend=backend)
        assert maps.alignment.shape == (3, 3, 4)


def test_meta_tensors_have_shapes(call):
    weights = ck.ContextAttentionWeights(*(x.to("meta") for x in call.weights[:7]))
    tensors = call.regions.to("meta"), call.words.to("meta"), weights, *(x.to("meta") for x in call.lengths)
    assert ck.context_attention(*tensors).shape == (2, 2)


@pytest.mark.parametrize("pairs", [False, True], ids=["all_pairs", "pair_list"])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(call, backend, mode, pairs):
    def function(regions, words, weights, word_lengths, pairs):
        return call(regions, words, weights, word_lengths, pairs if with_pairs else None)

    with_pairs = pairs
    given = call.regions, call.words, tuple(call.weights[:7]), call.lengths[1], call.pairs
    graph = make_fx(function, tracing_mode=mode, _allow_non_fake_inputs=True)(*given)
    # Not a graph of looks at the lengths and pairs of one call.
    assert not [x.target for x in graph.graph.nodes if "nonzero" in str(x.target) or "aminmax" in str(x.target)]
    others = call.regions.flip(0), call.words, given[2], call.lengths[1].flip(0), call.pairs.flip(0)
    cases.assert_equal(graph(*others), function(*others), backend)


@pytest.mark.parametrize("strict", [False, True])
def test_export(call, backend, strict):
    class Scores(torch.nn.Module):
        def forward(self, regions, word_lengths, pairs):
            return call(regions, word_lengths=word_lengths, pairs=pairs)

    given = call.regions, call.lengths[1], call.pairs
    cases.assert_equal(torch.export.export(Scores(), given, strict=strict).module()(*given), Scores()(*given), backend)


def test_masks(call, backend):
    def function(word_mask):
        region_lengths, _ = call.lengths
        tensors = call.regions, call.words, call.weights, region_lengths
        return ck.context_attention(*tensors, word_mask=word_mask, backend=backend)

    position = torch.arange(4, device=call.regions.device)
    several = torch.stack([position < torch.tensor([[4], [count]], device=position.device) for count in (1, 3)])
    expected = torch.stack([function(mask) for mask in several])
    cases.assert_equal(torch.vmap(function)(several), expected, backend)
    cases.assert_equal(torch.vmap(function, in_dims=2)(several.permute(1, 2, 0)), expected, backend)
    graph = make_fx(function, _allow_non_fake_inputs=True)(several[0])
    assert not [x.target for x in graph.graph.nodes if "nonzero" in str(x.target) or "assert" in str(x.target)]
    cases.assert_equal(graph(several[1]), expected[1], backend)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert function(mode.from_tensor(several[0])).shape == (2, 2)
    if several.device.type == "cpu":
        with pytest.raises(ValueError, match="^word_mask: expected True for the real words, which come first"):
            torch.vmap(function)(several.flip(2))


def test_vmap(call, backend):
    several = call.several()
    expected = torch.stack([call(x) for x in several])
    cases.assert_equal(torch.vmap(call)(several), expected, backend)
    cases.assert_equal(torch.vmap(call, in_dims=1)(several.movedim(0, 1)), expected, backend)
    cases.assert_equal(torch.vmap(torch.vmap(call))(several[None]), expected[None], backend)
    assert torch.vmap(call)(several[:0]).shape == (0, 2, 2)


def test_vmap_over_lengths_pairs_and_weights(call, backend):
    def function(word_lengths, pairs, affinity):
        return call(weights=call.weights._replace(affinity=affinity), word_lengths=word_lengths, pairs=pairs)

    given = [torch.stack([x, x.flip(0)]) for x in (call.lengths[1], call.pairs, call.weights.affinity)]
    cases.assert_equal(torch.vmap(function)(*given), torch.stack([function(*x) for x in zip(*given, strict=True)]), backend)


def test_vmap_of_projections_and_maps(call, backend):
    def projected(regions):
        return ck.project_regions(regions, call.weights, call.lengths[0], backend=backend).products

    def maps(regions):
        return tuple(ck.attention_maps(regions, call.words, call.weights, call.pairs, *call.lengths, backend=backend))

    several = call.several()[:2]
    for function in (projected, maps):
        expected = [torch.stack(x) for x in zip(*(torch.utils._pytree.tree_leaves(function(x)) for x in several), strict=True)]
        cases.assert_equal(torch.vmap(function)(several), expected, backend)


def test_torch_func(call, backend):
    expected = call.gradient()
    given = call.regions, call.words, tuple(call.weights[:7])

    def loss(*given):
        return call(*given).sum()

    cases.assert_equal(torch.func.grad(loss, argnums=(0, 1, 2))(*given), expected, backend)
    upstream = torch.randn(2, 2, device=call.regions.device)
    cases.assert_equal(torch.func.vjp(call, *given)[1](upstream), call.gradient(upstream=upstream), backend)
    jacobian = torch.func.jacrev(call)(call.regions)
    for row in range(2):
        for column in range(2):
            one = torch.zeros_like(upstream)
            one[row, column] = 1
            cases.assert_equal(jacobian[row, column], call.gradient(upstream=one)[0], backend)


def test_torch_func_with_vmap(call, backend):
    several = call.several()
    expected = [call.gradient(x) for x in several]

    def loss(weights, regions):
        return call(regions, weights=weights).sum()

    weights = tuple(call.weights[:7])
    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, several)
    cases.assert_equal(each, [torch.stack(x) for x in zip(*(x[2:] for x in expected), strict=True)], backend)
    together = torch.func.grad(lambda regions: torch.vmap(call)(regions).sum())(several)
    cases.assert_equal(together, torch.stack([x[0] for x in expected]), backend)
    leaf = several.clone().requires_grad_()
    torch.vmap(call)(leaf).sum().backward()
    cases.assert_equal(leaf.grad, together, backend)


def test_torch_func_of_projected_sides_and_maps(call, backend):
    def score(regions):
        projected = ck.project_regions(regions, call.weights, call.lengths[0], backend=backend)
        return ck.context_attention(projected, call.words, call.weights, word_lengths=call.lengths[1], backend=backend).sum()

    def map_score(regions, backend="auto"):
        return ck.attention_maps(regions, call.words, call.weights, call.pairs, *call.lengths, backend=backend).scores.sum()

    cases.assert_equal(torch.func.grad(score)(call.regions), call.gradient()[0], backend)
    assert torch.func.grad(map_score)(call.regions).isfinite().all()
    if backend != "reference":
        with pytest.raises(RuntimeError, match="its maps have no derivative"):
            torch.func.grad(map_score)(call.regions, backend)


def test_batches_of_gradients(call, backend):
    expected = torch.func.jacrev(call)(call.regions)
    leaf = call.regions.clone().requires_grad_()
    ones = torch.eye(4, device=leaf.device).view(4, 2, 2)
    (found,) = torch.autograd.grad(call(leaf), leaf, ones, is_grads_batched=True)
    cases.assert_equal(found.view_as(expected), expected, backend)
    cases.assert_equal(torch.autograd.functional.jacobian(call, call.regions, vectorize=True), expected, backend)


@pytest.mark.parametrize("name", ["grad", "vmap"] if cases.INTERPRETED else ["grad", "vmap", "jacrev"])
def test_torch_compile_of_a_transform(call, backend, name):
    def function(x):
        if name == "grad":
            return torch.func.grad(lambda regions: call(regions).sum())(x)
        return getattr(torch, name)(call)(x) if name == "vmap" else torch.func.jacrev(call)(x)

    given = call.several() if name == "vmap" else call.regions
    torch._dynamo.reset()
    found = torch.compile(function, backend="aot_eager", fullgraph=True)(given)
    cases.assert_equal(found, function(given), backend)


def forward_mode(function, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


@pytest.mark.parametrize(
    "transform",
    [
        lambda function, x: torch.func.jvp(function, (x,), (torch.ones_like(x),))[1],
        lambda function, x: torch.func.jacfwd(function)(x),
        lambda function, x: torch.func.hessian(lambda x: function(x).sum())(x),
        forward_mode,
    ],
    ids=["jvp", "jacfwd", "hessian", "dual"],
)
@pytest.mark.parametrize("of", ["scores", "projection", "maps"])
def test_forward_mode(call, backend, transform, of):
    def function(x):
        if of == "projection":
            return ck.project_words(call.words, call.weights._replace(affinity=x), backend=backend).products
        weights = call.weights._replace(affinity=x)
        if of == "maps":
            return ck.attention_maps(call.regions, call.words, weights, call.pairs, *call.lengths, backend=backend).scores
        return call(weights=weights)

    if backend == "reference":
        assert transform(function, call.weights.affinity).isfinite().all()
    else:
        # Of the maps, hessian asks for the first derivative.
        with pytest.raises(RuntimeError, match="(forward-mode|its maps have no) derivative.*use backend='reference'"):
            transform(function, call.weights.affinity)


@pytest.mark.parametrize("way", ["autograd", "grad", "jacrev"])
def test_second_derivatives(call, backend, way):
    def twice():
        if way == "autograd":
            leaf = call.regions.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(call(leaf).sum(), leaf, create_graph=True)
            return torch.autograd.grad(gradient.sum(), leaf)[0]
        if way == "jacrev":
            return torch.func.jacrev(torch.func.jacrev(call))(call.regions)
        return torch.func.grad(lambda x: torch.func.grad(lambda x: call(x).sum())(x).sum())(call.regions)

    if backend == "reference":
        assert twice().isfinite().all()
    else:
        with pytest.raises(RuntimeError, match="no second derivative; backend='reference' has"):
            twice()


def test_what_autograd_keeps_may_be_kept_otherwise(call, backend):
    expected = call.gradient()[0]
    leaf = call.regions.clone().requires_grad_()
    checkpoint(call, leaf, use_reentrant=False).sum().backward()
    cases.assert_equal(leaf.grad, expected, backend)
    leaf.grad = None
    with torch.autograd.graph.save_on_cpu():
        scores = call(leaf)
    scores.sum().backward()
    cases.assert_equal(leaf.grad, expected, backend)


def test_views(call, backend):
    zeros = torch.zeros_like(call.regions)
    negative = torch.complex(zeros, -call.regions).conj().imag
    assert negative.is_neg()
    cases.assert_equal(call(negative), call(), backend)
    upstream = torch.complex(torch.zeros(2, 2), torch.randn(2, 2)).to(zeros.device).conj().imag
    cases.assert_equal(call.gradient(upstream=upstream), call.gradient(upstream=upstream.resolve_neg()), backend)
    one, score = call.regions[:1], call.weights.region_score[:1]
    weights = call.weights._replace(region_intra=call.weights.region_intra.mT.contiguous().mT, region_score=score.expand(3))
    plain = weights._replace(region_intra=call.weights.region_intra, region_score=score.repeat(3))
    cases.assert_equal(call(one.expand(2, -1, -1), weights=weights), call(one.repeat(2, 1, 1), weights=plain), backend)


def test_lengths_and_pairs_are_looked_at_under_torch_func(call, backend):
    if call.regions.device.type != "cpu":
        pytest.skip("on a GPU their values are not checked")
    for wrong in (
        lambda: torch.func.grad(lambda x: call(x, word_lengths=call.lengths[1] + 5).sum())(call.regions),
        lambda: torch.vmap(lambda x: call(word_lengths=x))(torch.stack([call.lengths[1], call.lengths[1] + 5])),
    ):
        with pytest.raises(ValueError, match="word_lengths: expected values from 0 to 4"):
            wrong()
    with pytest.raises(ValueError, match="pairs"):
        torch.vmap(lambda x: call(pairs=x))(torch.stack([call.pairs, call.pairs + 2]))


def test_inference_tensors_are_cloned_for_training(call, backend):
    with torch.inference_mode():
        regions = call.regions.clone()
    weights = [x.clone().requires_grad_() for x in call.weights[:7]]
    cases.assert_equal(call(regions), call(), backend)
    if backend != "reference":
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward.*clone"):
            call(regions, weights=weights)
    call(regions.clone(), weights=weights).sum().backward()
    cases.assert_equal([x.grad for x in weights], call.gradient()[2:], backend)


def test_flop_counter_sees_the_reference_alone(call, backend):
    with FlopCounterMode(display=False) as counter:
        call()
    assert (counter.get_total_flops() > 0) == (backend == "reference")
