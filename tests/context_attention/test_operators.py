"""The operators as PyTorch's dispatcher sees them."""

import cases
import pytest
import torch
from torch.library import opcheck

ops = torch.ops.caan_kernels
OPTIONS = (False, True, True)
COSINE_INTER = (True, True, False)

pytestmark = pytest.mark.parametrize("backend", cases.KERNELS)


def raw_operands(backend, projected=(), **given):
    """Arguments of raw_scores, but for the backend; products of the sides in `projected`, matrices for the others."""
    V, region_products, U, word_products, *rest = operands(backend, **given)
    matrices = {"affinity": "words", "Q1": "regions", "Q2": "words", "Q3": "words", "Q4": "regions"}
    width, hidden, device = V.shape[2], len(rest[0]), V.device
    return (
        V,
        region_products if "regions" in projected else None,
        U,
        word_products if "words" in projected else None,
        *(
            None if side in projected else torch.randn(width, width if x == "affinity" else hidden, device=device)
            for x, side in matrices.items()
        ),
        *rest,
    )


def operands(backend, lengths=True, pairs=False, options=OPTIONS, gradient=False, dtype=torch.float32):
    """Arguments of pair_scores, but for the backend."""
    case = cases.problem((3, 4, 2, 5, 6, 9), dtype, lengths=lengths, pairs=pairs, padding=0.0).on(backend)
    V, U = case.project()
    tensors = (*V[:2], *U[:2], case.weights.region_score, case.weights.word_score)
    tensors = tuple(x.detach().clone().requires_grad_(gradient) for x in tensors)
    pairs = None if case.pairs is None else case.pairs.to(V.features.device)
    return *tensors, V.lengths, U.lengths, pairs, *options


@pytest.mark.parametrize("lengths", [None, torch.tensor([2, 0, 4])], ids=["full", "ragged"])
def test_project(backend, lengths):
    device = cases.KERNELS[backend]
    lengths = None if lengths is None else lengths.to(device)
    items, weight = (torch.randn(*size, device=device, requires_grad=True) for size in ((3, 4, 6), (6, 5)))
    opcheck(ops.project.default, (items, weight, lengths, backend))
    for needed in [(True, True), (True, False), (False, True)]:
        grad = torch.randn(3, 4, 5, device=device)
        opcheck(ops.project_backward.default, (grad, items.detach(), weight.detach(), lengths, *needed, backend))


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
    opcheck(ops.pair_scores.default, (*operands(backend, **given, gradient=True), backend))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_pair_scores_of_other_dtypes(backend, dtype):
    opcheck(ops.pair_scores.default, (*operands(backend, dtype=dtype, gradient=True), backend))


@pytest.mark.parametrize("pairs", [False, True], ids=["all_pairs", "pair_list"])
def test_pair_scores_backward(backend, pairs):
    arguments = (*operands(backend, pairs=pairs), backend)
    opcheck(ops.pair_scores_backward.default, (torch.randn_like(ops.pair_scores(*arguments)), *arguments))


@pytest.mark.parametrize("projected", [(), ("regions",), ("words",), ("regions", "words")], ids=str)
@pytest.mark.parametrize("pairs", [False, True], ids=["all_pairs", "pair_list"])
def test_raw_scores(backend, pairs, projected):
    opcheck(ops.raw_scores.default, (*raw_operands(backend, projected, pairs=pairs), backend))


def test_raw_scores_need_the_matrices_of_a_side_that_is_not_projected(backend):
    arguments = raw_operands(backend, ("regions",))
    assert arguments[4] is not None
    with pytest.raises(RuntimeError, match="affinity: expected a tensor, since its side is not projected"):
        ops.raw_scores(*replaced(arguments, 4, None), backend)


def test_gradients_that_nobody_needs_are_not_made(backend):
    seen = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), given=None):
            if function is ops.project_backward.default:
                seen.append(arguments[4:6])
            return function(*arguments, **(given or {}))

    case = cases.problem("odd", torch.float32).on(backend)
    weights = [x.requires_grad_() for x in case.weights[: -len(cases.BILINEAR)]]
    with Watch():
        case.with_tensors([case.regions, case.words, *weights]).call(backend=backend).sum().backward()
    assert seen == [(False, True)] * 2
    assert all(x.grad is not None and x.grad.isfinite().all() for x in weights)


def test_pair_maps(backend):
    opcheck(ops.pair_maps.default, (*operands(backend, pairs=True), backend))


def test_operators_without_derivative_say_so(backend):
    arguments = operands(backend, pairs=True, gradient=True)
    with pytest.raises(RuntimeError, match="caan_kernels::pair_maps has no derivative"):
        ops.pair_maps(*arguments, backend)[1].sum().backward()
    with pytest.raises(RuntimeError, match="caan_kernels::raw_scores has no derivative"):
        ops.raw_scores(*raw_operands(backend, gradient=True), backend).sum().backward()
    scores = ops.pair_scores(*arguments, backend)
    (gradient,) = torch.autograd.grad(scores.sum(), arguments[1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()
    weight = torch.randn(6, 5, device=arguments[0].device, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.project(arguments[0], weight, None, backend).sum(), arguments[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


def replaced(arguments, position, value):
    return (*arguments[:position], value, *arguments[position + 1 :])


def values_are_seen(backend):
    """Whether lengths and pairs are where looking at their values makes nobody wait."""
    return cases.KERNELS[backend] == "cpu"


@pytest.mark.parametrize(
    ("position", "value", "name"),
    [
        (6, torch.tensor([1, 5, 0]), "region_lengths"),
        (6, torch.tensor([1, -1, 0]), "region_lengths"),
        (7, torch.tensor([6, 0]), "word_lengths"),
        (8, torch.tensor([[0, 2]]), "pairs"),
        (8, torch.tensor([[-1, 0]]), "pairs"),
    ],
)
def test_kernels_look_at_values_that_torch_compile_leaves_unchecked(backend, position, value, name):
    if not values_are_seen(backend):
        pytest.skip("on a GPU such scores are NaN: test_triton_gpu.py")
    refuse(backend, position, value, name)


@pytest.mark.parametrize(
    ("position", "value", "name"),
    [
        (7, torch.tensor([1]), "word_lengths"),
        (8, torch.tensor([[0, 1]], dtype=torch.int32), "pairs"),
        (1, torch.zeros(3, 4, 17), "region_products"),
        (3, torch.zeros(2, 5, 23), "word_products"),
        (5, torch.zeros(8), "word_score"),
        (2, torch.zeros(2, 5, 6, dtype=torch.float64), "words"),
    ],
)
def test_kernels_check_what_torch_compile_leaves_unchecked(backend, position, value, name):
    refuse(backend, position, value, name)


def refuse(backend, position, value, name):
    arguments = replaced((*operands(backend, pairs=True), backend), position, value.to(cases.KERNELS[backend]))
    with pytest.raises(RuntimeError, match=name):
        ops.pair_scores(*arguments)
    with pytest.raises(RuntimeError, match=name):
        ops.pair_maps(*arguments)
    grad = torch.ones(len(arguments[8]), device=cases.KERNELS[backend])
    with pytest.raises(RuntimeError, match=name):
        ops.pair_scores_backward(grad, *arguments)


def test_projection_checks_lengths(backend):
    device = cases.KERNELS[backend]
    items, weight = torch.randn(2, 3, 4, device=device), torch.randn(4, 5, device=device)
    with pytest.raises(RuntimeError, match="lengths"):
        ops.project(items, weight, torch.tensor([3], device=device), backend)
    if values_are_seen(backend):
        with pytest.raises(RuntimeError, match="lengths"):
            ops.project(items, weight, torch.tensor([4, 0], device=device), backend)
    else:
        assert not ops.project(items, weight, torch.tensor([4, 0], device=device), backend).any()
