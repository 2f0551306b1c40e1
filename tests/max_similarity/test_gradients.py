"""Gradients of the kernels: to the lowest of equals, of one side alone, of pairs with a gradient only."""

from dataclasses import replace

import cases
import pytest
import torch

from .problems import BACKENDS, KERNELS, OPTIONS, SHAPES, Problem, problem, run

backends = pytest.mark.parametrize("backend", BACKENDS)
kernels = pytest.mark.parametrize("backend", KERNELS)
all_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
dtypes = pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)


def whole_numbers(*shape, dtype=torch.float32, seed=0):
    """Few of them, so that many products are equal; sums of them are exact."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, shape, generator=generator).to(dtype)


@kernels
@dtypes
@pytest.mark.parametrize("options", [{}, {"over": "regions"}], ids=str)
@pytest.mark.parametrize("pairs", [None, torch.tensor([[0, 1], [3, 2], [0, 1], [2, 0]])], ids=["all_pairs", "pair_list"])
def test_equals(backend, dtype, options, pairs):
    """The gradient goes to the lowest row among equals, wherever it stands in a tile: bit for bit that of the reference."""
    captions = 5 if not cases.INTERPRETED else 3
    regions, words = whole_numbers(4, 45, 3, dtype=dtype), whole_numbers(captions, 60, 3, dtype=dtype, seed=1)
    # Rows of 8 numbers are for tensor cores.
    case = Problem(*(torch.nn.functional.pad(x, (0, 5)) for x in (regions, words)), pairs=pairs)
    grad = whole_numbers(4, captions, seed=2) if pairs is None else whole_numbers(4, seed=2)
    found, expected = (run(case, grad, **options, backend=x) for x in (backend, "reference"))
    cases.assert_same(expected, found)


@kernels
def test_equals_in_blocks_of_rows(backend):
    """A document of more rows than are searched at a time."""
    rows = 5000 if not cases.INTERPRETED else 200
    case = Problem(whole_numbers(2, rows, 64)[:, :, :2].repeat(1, 1, 32).contiguous(), whole_numbers(1, 7, 64, seed=1))
    found, expected = (run(case, torch.ones(2, 1), backend=x) for x in (backend, "reference"))
    cases.assert_same(expected, found)


@backends
def test_zeros_of_both_signs_are_equal(backend):
    regions = torch.tensor([[[-1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]])
    words = torch.tensor([[[0.0, 1.0]]])
    _, gradients = run(Problem(regions, words), torch.ones(1, 1), backend=backend)
    assert torch.equal(gradients["regions"][0], torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 0.0]]))


@backends
def test_the_first_nan_is_taken(backend):
    case = problem((1, 30, 1, 3, 4), torch.float32, lengths=False)
    case.regions[0, 11], case.regions[0, 20] = torch.nan, torch.nan
    _, gradients = run(case, torch.ones(1, 1), backend=backend)
    assert gradients["words"].isnan().all()
    assert torch.equal(gradients["regions"][0].any(-1).nonzero().flatten(), torch.tensor([11]))


@kernels
@pytest.mark.parametrize("dtype", [torch.float32, *cases.HALF_DTYPES], ids=str)
@pytest.mark.parametrize("options", [{}, {"over": "regions"}], ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", ["regions", "words"])
def test_what_is_not_finite_stays_with_its_item(backend, dtype, options, value, name):
    """The gradients of the other items of its side keep their bits."""
    case = problem((2, 20, 3, 9, 16), dtype, lengths=False)
    grad = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    expected = run(case, grad, **options, backend=backend)[1]
    getattr(case, name)[1, 7, 5] = value
    found = run(case, grad, **options, backend=backend)[1]
    others = [item for item in range(len(found[name])) if item != 1]
    assert torch.equal(found[name][others], expected[name][others])
    assert not all(torch.equal(found[x], expected[x]) for x in found)


@backends
def test_all_products_minus_infinity(backend):
    """The first row is as large as the others."""
    case = Problem(torch.full((1, 5, 1), -3e38), torch.full((1, 2, 1), 3e38))
    scores, gradients = run(case, torch.ones(1, 1), backend=backend)
    assert scores.item() == -torch.inf
    assert torch.equal(gradients["regions"].isinf().flatten(), torch.tensor([True, False, False, False, False]))


@kernels
def test_pairs_without_a_gradient_are_skipped(backend):
    """Nothing of their items is read: not even NaN reaches a gradient."""
    case = problem("odd", torch.float32)
    grad = torch.zeros(4, 5)
    grad[3, 1] = 2.0
    expected = run(case, grad, backend=backend)[1]
    case.regions[0], case.words[4] = torch.nan, torch.nan
    found = run(case, grad, backend=backend)[1]
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    assert found["regions"][3].any() and not found["regions"][:3].any()


@kernels
@all_options
@pytest.mark.parametrize("name", ["regions", "words"])
def test_one_gradient_alone(backend, options, name):
    """Wanting one gradient gives the same as wanting both."""
    case = problem("many", torch.float16)
    grad = torch.randn(len(case.regions), len(case.words), generator=torch.Generator().manual_seed(0))
    expected = run(case, grad, **options, backend=backend)[1]
    leaf = getattr(case, name).clone().requires_grad_()
    replace(case, **{name: leaf}).call(**options, backend=backend).backward(grad)
    assert torch.equal(leaf.grad, expected[name])


@kernels
@dtypes
def test_listed_or_all(backend, dtype):
    """All pairs as a list, in which queries share columns as they do without one, and a list of few of them."""
    case = problem("many", dtype)
    images, captions = SHAPES["many"][0], SHAPES["many"][2]
    every = torch.cartesian_prod(torch.arange(images), torch.arange(captions))
    grad = torch.randn(len(every), generator=torch.Generator().manual_seed(0))
    expected = run(case, grad.view(images, captions), backend=backend)
    found = run(replace(case, pairs=every), grad, backend=backend)
    cases.assert_same((expected[0].flatten(), expected[1]), found)
    few = torch.zeros(len(every), dtype=torch.bool)
    few[::17] = True
    expected = run(case, (grad * few).view(images, captions), backend=backend)
    found = run(replace(case, pairs=every[few]), grad[few], backend=backend)
    cases.assert_same((expected[0].flatten()[few], expected[1]), found)


@kernels
@pytest.mark.cpu_only
@pytest.mark.parametrize("over", ["words", "regions"])
def test_half_precision_sums_that_are_made_block_by_block(backend, over):
    """More float32 sums than backward may hold: the bits are those of the images taken by themselves."""
    generator = torch.Generator().manual_seed(0)
    regions = torch.randn(260, 130, 1024, generator=generator).bfloat16()
    words = torch.randn(2, 3, 1024, generator=generator).bfloat16()
    case = Problem(regions, words)
    grad = torch.randn(260, 2, generator=generator)
    gradients = run(case, grad, over=over, backend=backend)[1]
    for part in (slice(0, 9), slice(250, 260)):
        alone = run(replace(case, regions=regions[part]), grad[part], over=over, backend=backend)[1]
        assert torch.equal(gradients["regions"][part], alone["regions"])
    wide = run(case.to(torch.float32), grad, over=over, backend=backend)[1]
    assert torch.equal(gradients["words"], wide["words"].bfloat16())


@kernels
def test_no_gradient_is_lost(backend):
    case = problem("odd", torch.float32)
    assert not case.call(backend=backend).requires_grad
    for name in ("regions", "words"):
        wanting = replace(case, **{name: getattr(case, name).clone().requires_grad_()})
        assert wanting.call(backend=backend).requires_grad
        with torch.no_grad():
            assert not wanting.call(backend=backend).requires_grad


@kernels
def test_second_derivative(backend):
    case = problem("odd", torch.float32)
    case.regions.requires_grad_()
    (gradient,) = torch.autograd.grad(case.call(backend=backend).sum(), case.regions, create_graph=True)
    with pytest.raises(RuntimeError, match="caan_kernels.max_similarity has no second derivative; backend='reference' has"):
        gradient.sum().backward()


@kernels
@all_options
@pytest.mark.float64
def test_gradcheck(backend, options):
    case = problem("odd", padding=0.0)
    leaves = case.regions.requires_grad_(), case.words.requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: replace(case, regions=x[0], words=x[1]).call(**options, backend=backend), leaves)
