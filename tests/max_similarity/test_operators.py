"""The operators as PyTorch's dispatcher sees them."""

from dataclasses import replace

import cases
import pytest
import torch
from torch.library import opcheck

from caan_kernels.core.records import flatten
from caan_kernels.max_similarity.call import CallGradient

from .problems import KERNELS, OPTIONS, problem, run

ops = torch.ops.caan_kernels
pytestmark = pytest.mark.parametrize("backend", KERNELS)
SHAPE = (3, 4, 2, 5, 6)


def packed(backend, dtype=torch.float32, lengths=True, pairs=False, **given):
    return problem(SHAPE, dtype, lengths=lengths, pairs=pairs, padding=0.0).packed(backend, **given)


@pytest.mark.parametrize("given", [{"lengths": False}, {"pairs": True}, *OPTIONS.values()], ids=str)
def test_max_similarity(backend, given):
    opcheck(ops.max_similarity.default, tuple(flatten(packed(backend, gradient=True, **given))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_other_dtypes(backend, dtype):
    opcheck(ops.max_similarity.default, tuple(flatten(packed(backend, dtype, gradient=True))))


@pytest.mark.parametrize("needed", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("pairs", [False, True], ids=["all_pairs", "pair_list"])
def test_max_similarity_backward(backend, pairs, needed):
    call = packed(backend, pairs=pairs)
    grad = torch.randn_like(ops.max_similarity(*flatten(call)))
    arguments = tuple(flatten(CallGradient(grad, call, *needed)))
    opcheck(ops.max_similarity_backward.default, arguments)
    assert [x.numel() > 0 for x in ops.max_similarity_backward(*arguments)] == list(needed)


def test_gradients_that_nobody_needs_are_not_made(backend):
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), given=None):
            if function is ops.max_similarity_backward.default:
                seen.append(arguments[-2:])
            return function(*arguments, **(given or {}))

    case = problem(SHAPE, torch.float32)
    with Watch():
        replace(case, words=case.words.requires_grad_()).call(backend=backend).sum().backward()
    assert seen == [(False, True)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda call: call._replace(regions=call.regions._replace(lengths=torch.tensor([1, 5, 0]))), "region_lengths"),
        (lambda call: call._replace(regions=call.regions._replace(lengths=torch.tensor([1, -1, 0]))), "region_lengths"),
        (lambda call: call._replace(words=call.words._replace(lengths=torch.tensor([6, 0]))), "word_lengths"),
        (lambda call: call._replace(words=call.words._replace(lengths=torch.tensor([1]))), "word_lengths"),
        (lambda call: call._replace(pairs=torch.tensor([[0, 2]])), "pairs"),
        (lambda call: call._replace(pairs=torch.tensor([[-1, 0]])), "pairs"),
        (lambda call: call._replace(pairs=torch.tensor([[0, 1]], dtype=torch.int32)), "pairs"),
        (lambda call: call._replace(words=call.words._replace(features=torch.zeros(2, 5, 7))), "words"),
        (lambda call: call._replace(words=call.words._replace(features=torch.zeros(2, 5, 6).double())), "words"),
        (lambda call: call._replace(words=call.words._replace(features=torch.zeros(2, 6, 5).mT)), "words.*contiguous"),
        (lambda call: call._replace(regions=call.regions._replace(features=torch.zeros(3, 4, 0))), "regions.*width"),
        (lambda call: call._replace(regions=call.regions._replace(features=torch.zeros(3, 4))), "regions"),
    ],
)
def test_kernels_check_what_torch_compile_leaves_unchecked(backend, change, message):
    call = change(packed(backend, pairs=True))
    with pytest.raises(RuntimeError, match=message):
        ops.max_similarity(*flatten(call))
    with pytest.raises(RuntimeError, match=message):
        ops.max_similarity_backward(*flatten(CallGradient(torch.ones(len(call.pairs)), call, True, True)))


@pytest.mark.parametrize("grad", [torch.ones(2, 3), torch.ones(3, 2, dtype=torch.float64)], ids=["shape", "dtype"])
def test_kernels_check_the_gradient(backend, grad):
    with pytest.raises(RuntimeError, match="grad"):
        ops.max_similarity_backward(*flatten(CallGradient(grad, packed(backend), True, True)))


def test_tensors_share_a_device(backend):
    call = packed(backend, pairs=True)
    cases.assert_one_device(ops.max_similarity, tuple(flatten(call)))
    gradient = CallGradient(torch.ones(len(call.pairs), device=cases.KERNELS[backend]), call, True, True)
    cases.assert_one_device(ops.max_similarity_backward, tuple(flatten(gradient)))


def test_the_reference_and_the_operator_agree_on_shapes(backend):
    for pairs in (False, True):
        case = problem(SHAPE, torch.bfloat16, pairs=pairs)
        results = [run(case, backend=x) for x in (backend, "reference")]
        found, expected = ([(x.shape, x.dtype) for x in (scores, *gradients.values())] for scores, gradients in results)
        assert found == expected
