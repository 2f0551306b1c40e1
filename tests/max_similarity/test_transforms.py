"""PyTorch's transforms: the table of docs/operator.md, as far as it speaks of this operator."""

import cases
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import caan_kernels as ck

from .problems import BACKENDS, problem

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


class Call:
    """The operator of one problem, as a function of some of its tensors."""

    def __init__(self, backend):
        self.backend = backend
        case = problem((2, 3, 2, 4, 5), torch.float32, pairs=True, padding=0.0)
        self.regions, self.words, self.pairs = case.regions, case.words, case.pairs[:3]
        self.lengths = torch.tensor([3, 2]), torch.tensor([4, 1])

    def __call__(self, regions=None, words=None, word_lengths=None, pairs=None):
        tensors = self.regions if regions is None else regions, self.words if words is None else words
        lengths = self.lengths[0], self.lengths[1] if word_lengths is None else word_lengths
        return ck.max_similarity(*tensors, *lengths, pairs, backend=self.backend)

    def gradient(self, regions=None, upstream=None):
        """Of the summed scores, with respect to regions and words: by torch.autograd alone."""
        leaves = [x.detach().clone().requires_grad_() for x in (self.regions if regions is None else regions, self.words)]
        scores = self(*leaves)
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


@pytest.mark.parametrize("pairs", [False, True], ids=["all_pairs", "pair_list"])
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx(call, backend, mode, pairs):
    def function(regions, words, word_lengths, pairs):
        return call(regions, words, word_lengths, pairs if with_pairs else None)

    with_pairs = pairs
    given = call.regions, call.words, call.lengths[1], call.pairs
    graph = make_fx(function, tracing_mode=mode, _allow_non_fake_inputs=True)(*given)
    others = call.regions.flip(0), call.words, call.lengths[1].flip(0), call.pairs.flip(0)
    cases.assert_equal(graph(*others), function(*others), backend)


def test_export(call, backend):
    class Scores(torch.nn.Module):
        def forward(self, regions, word_lengths, pairs):
            return call(regions, word_lengths=word_lengths, pairs=pairs)

    given = call.regions, call.lengths[1], call.pairs
    cases.assert_equal(torch.export.export(Scores(), given).module()(*given), Scores()(*given), backend)


def test_vmap(call, backend):
    several = call.several()
    expected = torch.stack([call(x) for x in several])
    cases.assert_equal(torch.vmap(call)(several), expected, backend)
    cases.assert_equal(torch.vmap(call, in_dims=1)(several.movedim(0, 1)), expected, backend)
    assert torch.vmap(call)(several[:0]).shape == (0, 2, 2)


def test_vmap_over_lengths_and_pairs(call, backend):
    def function(word_lengths, pairs):
        return call(word_lengths=word_lengths, pairs=pairs)

    given = [torch.stack([x, x.flip(0)]) for x in (call.lengths[1], call.pairs)]
    cases.assert_equal(torch.vmap(function)(*given), torch.stack([function(*x) for x in zip(*given, strict=True)]), backend)


def test_torch_func(call, backend):
    given = call.regions, call.words
    cases.assert_equal(torch.func.grad(lambda *x: call(*x).sum(), argnums=(0, 1))(*given), call.gradient(), backend)
    upstream = torch.randn(2, 2)
    cases.assert_equal(torch.func.vjp(call, *given)[1](upstream), call.gradient(upstream=upstream), backend)
    jacobian = torch.func.jacrev(call)(call.regions)
    one = torch.zeros(2, 2)
    one[1, 0] = 1
    cases.assert_equal(jacobian[1, 0], call.gradient(upstream=one)[0], backend)


def test_torch_func_with_vmap(call, backend):
    several = call.several()
    each = torch.vmap(torch.func.grad(lambda x: call(x).sum()))(several)
    cases.assert_equal(each, torch.stack([call.gradient(x)[0] for x in several]), backend)
    leaf = several.clone().requires_grad_()
    torch.vmap(call)(leaf).sum().backward()
    cases.assert_equal(leaf.grad, each, backend)


@pytest.mark.parametrize("transform", ["jvp", "jacfwd", "hessian"])
def test_forward_mode(call, backend, transform):
    if transform == "jvp":
        function = lambda: torch.func.jvp(call, (call.regions,), (torch.ones_like(call.regions),))[1]  # noqa: E731
    else:
        function = lambda: getattr(torch.func, transform)(lambda x: call(x).sum())(call.regions)  # noqa: E731
    if backend == "reference":
        assert function().isfinite().all()
    else:
        with pytest.raises(RuntimeError, match="caan_kernels.max_similarity has no forward-mode derivative"):
            function()


def test_second_derivatives_of_torch_func(call, backend):
    def twice():
        return torch.func.grad(lambda x: torch.func.grad(lambda x: call(x).sum())(x).sum())(call.regions)

    if backend == "reference":
        assert twice().isfinite().all()
    else:
        with pytest.raises(RuntimeError, match="no second derivative; backend='reference' has"):
            twice()


def test_checkpoints_and_views(call, backend):
    leaf = call.regions.clone().requires_grad_()
    checkpoint(call, leaf, use_reentrant=False).sum().backward()
    cases.assert_equal(leaf.grad, call.gradient()[0], backend)
    negative = torch.complex(torch.zeros_like(call.regions), -call.regions).conj().imag
    assert negative.is_neg()
    cases.assert_equal(call(negative), call(), backend)
    one = call.regions[:1]
    cases.assert_equal(call(one.expand(2, -1, -1)), call(one.repeat(2, 1, 1)), backend)


def test_lengths_are_looked_at_under_torch_func(call, backend):
    with pytest.raises(ValueError, match="word_lengths: expected values from 0 to 4"):
        torch.func.grad(lambda x: call(x, word_lengths=call.lengths[1] + 5).sum())(call.regions)
    with pytest.raises(ValueError, match="pairs"):
        torch.vmap(lambda x: call(pairs=x))(torch.stack([call.pairs, call.pairs + 2]))
