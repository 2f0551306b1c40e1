"""Every argument that does not fit: the error's type, and that it names the argument, the expectation and what came."""

from dataclasses import replace

import pytest
import torch

import caan_kernels as ck
from caan_kernels.core.records import flatten, layout, unflatten
from caan_kernels.max_similarity.call import CallGradient
from caan_kernels.max_similarity.gpu import launch

from .problems import problem

long = torch.tensor

WRONG_TENSORS = [
    ({"regions": lambda x: x.numpy()}, TypeError, "regions: expected a tensor, got ndarray"),
    ({"words": lambda x: None}, TypeError, "words: expected a tensor, got NoneType"),
    ({"regions": lambda x: x.long()}, TypeError, "regions: expected dtype float16, .* got torch.int64"),
    ({"regions": lambda x: x[0]}, ValueError, r"regions: expected 3 dimensions .* got shape \(4, 6\)"),
    ({"words": lambda x: x[None]}, ValueError, r"words: expected 3 dimensions .* got shape \(1, 2, 5, 6\)"),
    ({"regions": lambda x: x[..., :0]}, ValueError, r"regions: expected a width of at least 1, got shape \(3, 4, 0\)"),
    ({"words": lambda x: x[..., :5]}, ValueError, r"words: expected width 6, that of regions, got shape \(2, 5, 5\)"),
    ({"words": lambda x: x.double()}, TypeError, "words: expected dtype torch.float32, that of regions, got torch.float64"),
    ({"words": lambda x: x.to("meta")}, ValueError, "words: expected device cpu, that of regions, got meta"),
    ({"region_lengths": lambda x: [1, 2, 3]}, TypeError, "region_lengths: expected a tensor, got list"),
    ({"region_lengths": lambda x: x.float()}, TypeError, "region_lengths: expected an integer dtype, got torch.float32"),
    ({"word_lengths": lambda x: x.bool()}, TypeError, "word_lengths: expected an integer dtype, got torch.bool"),
    ({"region_lengths": lambda x: x[:2]}, ValueError, r"region_lengths: expected shape \(3,\), .* got \(2,\)"),
    ({"word_lengths": lambda x: x[None]}, ValueError, r"word_lengths: expected shape \(2,\), .* got \(1, 2\)"),
    ({"region_lengths": lambda x: long([1, 5, 0])}, ValueError, "region_lengths: expected values from 0 to 4, .* got 5"),
    ({"word_lengths": lambda x: long([1, -1])}, ValueError, "word_lengths: expected values from 0 to 5, .* got -1"),
    ({"regions": lambda x: x.to("meta")}, ValueError, "words: expected device meta, that of regions, got cpu"),
    ({"region_lengths": lambda x: x.to("meta")}, ValueError, "region_lengths: expected device cpu.*, got meta"),
    ({"word_lengths": lambda x: x.to("meta")}, ValueError, "word_lengths: expected device cpu.*, got meta"),
    ({"pairs": lambda x: [(0, 0)]}, TypeError, "pairs: expected a tensor, got list"),
    ({"pairs": lambda x: long([[0, 0]], dtype=torch.int32)}, TypeError, "pairs: expected dtype torch.int64, got torch.int32"),
    ({"pairs": lambda x: long([[0, 0]], device="meta")}, ValueError, "pairs: expected device cpu.*, got meta"),
    ({"pairs": lambda x: long([0, 0])}, ValueError, r"pairs: expected shape \(P, 2\), got \(2,\)"),
    ({"pairs": lambda x: long([[0, 0, 0]])}, ValueError, r"pairs: expected shape \(P, 2\), got \(1, 3\)"),
    ({"pairs": lambda x: long([[3, 1]])}, ValueError, r"pairs\[:, 0\]: expected values from 0 to 2, .* regions, got 3"),
    ({"pairs": lambda x: long([[0, -2]])}, ValueError, r"pairs\[:, 1\]: expected values from 0 to 1, .* words, got -2"),
]
WRONG_OPTIONS = [
    ({"over": "images"}, ValueError, "over: expected 'words' or 'regions', got 'images'"),
    ({"over": None}, TypeError, "over: expected 'words' or 'regions', got None"),
    ({"reduce": "max"}, ValueError, "reduce: expected 'sum' or 'mean', got 'max'"),
    ({"reduce": True}, TypeError, "reduce: expected 'sum' or 'mean', got True"),
    ({"backend": "gpu"}, ValueError, "backend: expected 'auto', 'reference', 'cpu', 'triton', 'cuda', got 'gpu'"),
]


@pytest.fixture
def case():
    return problem((3, 4, 2, 5, 6), torch.float32)


@pytest.mark.parametrize(("changes", "error", "message"), WRONG_TENSORS, ids=[message for *_, message in WRONG_TENSORS])
@pytest.mark.parametrize("over", ["words", "regions"])
def test_tensors(case, changes, error, message, over):
    case = replace(case, **{name: change(getattr(case, name)) for name, change in changes.items()})
    with pytest.raises(error, match=f"^{message}$"):
        case.call(over=over)


@pytest.mark.parametrize(("options", "error", "message"), WRONG_OPTIONS, ids=[message for *_, message in WRONG_OPTIONS])
def test_options(case, options, error, message):
    with pytest.raises(error, match=f"^{message}$"):
        case.call(**options)


def test_options_are_keywords(case):
    with pytest.raises(TypeError, match="positional arguments but 6 were given"):
        ck.max_similarity(case.regions, case.words, None, None, None, "regions")


# As they stand in a record of gradients.
TENSORS = ["grad", "regions", "region_lengths", "words", "word_lengths", "pairs"]


@pytest.mark.parametrize("place", range(len(TENSORS)), ids=TENSORS)
def test_kernels_of_a_gpu_refuse_tensors_of_another_device(case, place):
    """They would take their addresses for some of their own."""
    call = replace(case, pairs=long([[0, 0]])).packed("none")
    values = flatten(CallGradient(torch.ones(1), call, True, True))
    values[place] = values[place].to("meta")
    gradient = unflatten(layout(CallGradient), values)
    # The regions' device is what the others are held against: their lengths come first.
    name = "region_lengths" if TENSORS[place] == "regions" else TENSORS[place]
    with pytest.raises(RuntimeError, match=f"^{name}: expected device (cpu, got meta|meta, got cpu)$"):
        launch.max_similarity_backward(gradient)
    if name != "grad":
        with pytest.raises(RuntimeError, match=f"^{name}: expected device"):
            launch.max_similarity(gradient.call)
