"""The operators as PyTorch's dispatcher sees them."""

import cases
import pytest
import torch
from torch.library import opcheck

from caan_kernels.context_attention.call import CallGradient, Matrices, Options
from caan_kernels.core.records import flatten

ops = torch.ops.caan_kernels
COSINE_INTER = Options(cosine=True, inter=True, intra=False)

pytestmark = pytest.mark.parametrize("backend", cases.KERNELS)


def packed(backend, lengths=True, pairs=False, options=cases.PAPER, gradient=False, dtype=torch.float32):
    """A call of the operators that score, of projected sides."""
    case = cases.problem((3, 4, 2, 5, 6, 9), dtype, lengths=lengths, pairs=pairs, padding=0.0)
    return case.packed(backend, options, gradient)


def unprojected(backend, projected=(), **given):
    """The same with matrices for the sides that are not in `projected`."""
    call = packed(backend, **given)
    width, hidden, device = call.regions.features.shape[2], len(call.vectors.region_score), call.regions.features.device
    matrices = {}
    for name in ("regions", "words"):
        if name not in projected:
            call = call._replace(**{name: getattr(call, name)._replace(products=None)})
            for matrix in getattr(Matrices(), f"of_{name}")():
                matrices[matrix] = torch.randn(width, width if matrix == "affinity" else hidden, device=device)
    return call._replace(matrices=Matrices(**matrices))


def arguments_of(call):
    return tuple(flatten(call))


@pytest.mark.parametrize("lengths", [None, torch.tensor([2, 0, 4])], ids=["full", "ragged"])
def test_project(backend, lengths):
    device = cases.KERNELS[backend]
    lengths = None if lengths is None else lengths.to(device)
    items, weight = (torch.randn(*size, device=device, requires_grad=True) for size in ((3, 4, 6), (6, 5)))
    projection = items, weight, lengths, backend
    opcheck(ops.project.default, projection)
    for needed in [(True, True), (True, False), (False, True)]:
        grad = torch.randn(3, 4, 5, device=device)
        opcheck(ops.project_backward.default, (grad, items.detach(), weight.detach(), *projection[2:], *needed))


@pytest.mark.parametrize(
    "given",
    [
        {"lengths": False},
        {"pairs": True},
        {"options": COSINE_INTER},
    ],
    ids=str,
)
def test_pair_scores(backend, given):
    opcheck(ops.pair_scores.default, arguments_of(packed(backend, **given, gradient=True)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_pair_scores_of_other_dtypes(backend, dtype):
    opcheck(ops.pair_scores.default, arguments_of(packed(backend, dtype=dtype, gradient=True)))


@pytest.mark.parametrize("pairs", [False, True], ids=["all_pairs", "pair_list"])
def test_pair_scores_backward(backend, pairs):
    arguments = arguments_of(packed(backend, pairs=pairs))
    opcheck(ops.pair_scores_backward.default, (torch.randn_like(ops.pair_scores(*arguments)), *arguments))


@pytest.mark.parametrize("projected", [(), ("regions",), ("words",)], ids=str)
@pytest.mark.parametrize("pairs", [False, True], ids=["all_pairs", "pair_list"])
def test_pair_scores_of_sides_without_products(backend, pairs, projected):
    opcheck(ops.pair_scores.default, arguments_of(unprojected(backend, projected, pairs=pairs)))


def test_a_side_without_products_needs_its_matrices(backend):
    call = unprojected(backend, ("regions",))
    assert call.matrices.affinity is not None
    call = call._replace(matrices=call.matrices._replace(affinity=None))
    with pytest.raises(RuntimeError, match="affinity: expected a tensor, since its side is not projected"):
        ops.pair_scores(*arguments_of(call))


def test_derivatives_need_products(backend):
    call = packed(backend)
    call = call._replace(words=call.words._replace(products=None))
    with pytest.raises(RuntimeError, match="word_products: expected a tensor, got None"):
        ops.pair_scores_backward(*arguments_of(CallGradient(torch.ones(3, 2, device=call.regions.features.device), call)))


def test_gradients_that_nobody_needs_are_not_made(backend):
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), given=None):
            if function is ops.project_backward.default:
                seen.append(arguments[-2:])
            return function(*arguments, **(given or {}))

    case = cases.problem("odd", torch.float32).on(backend)
    weights = [x.requires_grad_() for x in case.weights[: -len(cases.BILINEAR)]]
    with Watch():
        case.with_tensors([case.regions, case.words, *weights]).call(backend=backend).sum().backward()
    assert seen == [(False, True)] * 2
    assert all(x.grad is not None and x.grad.isfinite().all() for x in weights)


def test_pair_maps(backend):
    opcheck(ops.pair_maps.default, arguments_of(packed(backend, pairs=True)))


def test_operators_without_derivative_say_so(backend):
    call = packed(backend, pairs=True, gradient=True)
    arguments = arguments_of(call)
    with pytest.raises(RuntimeError, match="caan_kernels::pair_maps has no derivative"):
        ops.pair_maps(*arguments)[1].sum().backward()
    with pytest.raises(RuntimeError, match="caan_kernels::pair_scores of a side without products has no derivative"):
        ops.pair_scores(*arguments_of(unprojected(backend, gradient=True))).sum().backward()
    scores = ops.pair_scores(*arguments)
    (gradient,) = torch.autograd.grad(scores.sum(), call.regions.products, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
    weight = torch.randn(6, 5, device=arguments[0].device, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.project(arguments[0], weight, None, backend).sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def values_are_seen(backend):
    """Whether lengths and pairs are where looking at their values makes nobody wait."""
    return cases.KERNELS[backend] == "cpu"


WRONG_VALUES = [
    (lambda call: with_side(call, "regions", lengths=torch.tensor([1, 5, 0])), "region_lengths"),
    (lambda call: with_side(call, "regions", lengths=torch.tensor([1, -1, 0])), "region_lengths"),
    (lambda call: with_side(call, "words", lengths=torch.tensor([6, 0])), "word_lengths"),
    (lambda call: call._replace(pairs=torch.tensor([[0, 2]])), "pairs"),
    (lambda call: call._replace(pairs=torch.tensor([[-1, 0]])), "pairs"),
]
WRONG_TENSORS = [
    (lambda call: with_side(call, "words", lengths=torch.tensor([1])), "word_lengths"),
    (lambda call: call._replace(pairs=torch.tensor([[0, 1]], dtype=torch.int32)), "pairs: .* torch.int64, got torch.int32"),
    (lambda call: with_side(call, "regions", products=torch.zeros(3, 4, 17)), "region_products"),
    (lambda call: with_side(call, "words", products=torch.zeros(2, 5, 23)), "word_products"),
    (lambda call: call._replace(vectors=call.vectors._replace(word_score=torch.zeros(8))), "word_score"),
    (
        lambda call: with_side(call, "words", features=torch.zeros(2, 5, 6, dtype=torch.float64)),
        "words: .* torch.float32, got torch.float64",
    ),
    (
        lambda call: with_side(call, "words", features=torch.zeros(2, 6, 5).mT),
        r"words: .* contiguous tensor, got strides \(30, 1, 5\)",
    ),
    (
        lambda call: with_side(call, "regions", features=torch.zeros(3, 6, 4).mT),
        r"regions: .* contiguous tensor, got strides \(24, 1, 4\)",
    ),
]


def with_side(call, side, **changed):
    return call._replace(**{side: getattr(call, side)._replace(**changed)})


@pytest.mark.parametrize(("change", "name"), WRONG_VALUES)
def test_kernels_look_at_values_that_torch_compile_leaves_unchecked(backend, change, name):
    if not values_are_seen(backend):
        pytest.skip("on a GPU such scores are NaN: test_triton_gpu.py")
    refuse(backend, change, name)


@pytest.mark.parametrize(("change", "name"), WRONG_TENSORS)
def test_kernels_check_what_torch_compile_leaves_unchecked(backend, change, name):
    refuse(backend, change, name)


def refuse(backend, change, name):
    call = change(packed(backend, pairs=True))
    arguments = [x.to(cases.KERNELS[backend]) if isinstance(x, torch.Tensor) else x for x in flatten(call)]
    with pytest.raises(RuntimeError, match=name):
        ops.pair_scores(*arguments)
    with pytest.raises(RuntimeError, match=name):
        ops.pair_maps(*arguments)
    grad = torch.ones(len(call.pairs), device=cases.KERNELS[backend])
    with pytest.raises(RuntimeError, match=name):
        ops.pair_scores_backward(grad, *arguments)


def test_kernels_check_the_gradient(backend):
    device, call = cases.KERNELS[backend], packed(backend)
    for grad in (torch.ones(2, 3), torch.ones(3, 2, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="grad"):
            ops.pair_scores_backward(grad.to(device), *flatten(call))
    items, weight = torch.randn(3, 4, 6, device=device), torch.randn(6, 5, device=device)
    for grad in (torch.ones(3, 4, 6), torch.ones(3, 4, 5, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="grad"):
            ops.project_backward(grad.to(device), items, weight, None, backend, True, True)


def test_tensors_share_a_device(backend):
    device, call = cases.KERNELS[backend], packed(backend, pairs=True)
    projection = call.regions.features, torch.randn(6, 5, device=device), call.regions.lengths, backend
    cases.assert_one_device(ops.project, projection)
    cases.assert_one_device(ops.project_backward, (torch.ones(3, 4, 5, device=device), *projection, True, True))
    for of in (call, unprojected(backend, pairs=True)):
        cases.assert_one_device(ops.pair_scores, arguments_of(of))
    cases.assert_one_device(ops.pair_maps, arguments_of(call))
    cases.assert_one_device(ops.pair_scores_backward, (torch.ones(len(call.pairs), device=device), *arguments_of(call)))


def test_projection_checks_its_arguments(backend):
    device = cases.KERNELS[backend]
    items, weight = torch.randn(2, 3, 4, device=device), torch.randn(4, 5, device=device)
    with pytest.raises(RuntimeError, match="lengths"):
        ops.project(items, weight, torch.tensor([3], device=device), backend)
    with pytest.raises(RuntimeError, match="items.*contiguous"):
        ops.project(torch.randn(2, 4, 3, device=device).mT, weight, None, backend)
    if backend == "cpu":
        with pytest.raises(RuntimeError, match="items: expected dtype float32, .*, got torch.int32"):
            ops.project(items.int(), weight.int(), None, backend)
    if values_are_seen(backend):
        with pytest.raises(RuntimeError, match="lengths"):
            ops.project(items, weight, torch.tensor([4, 0], device=device), backend)
    else:
        assert not ops.project(items, weight, torch.tensor([4, 0], device=device), backend).any()
