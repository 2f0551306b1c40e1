"""What the operators of the GPU backends do before any kernel is launched: plain PyTorch, tested wherever that runs."""

import cases
import pytest
import torch

from caan_kernels.context_attention.call import Call, CallGradient, Matrices, Projection, Side, Vectors
from caan_kernels.context_attention.gpu import launch
from caan_kernels.core.records import flatten, layout, unflatten

NO_ITEMS = {"images": (0, 2), "captions": (2, 0)}


@pytest.mark.parametrize("missing", NO_ITEMS)
def test_pairs_of_nothing_score_nan(monkeypatch, missing):
    """On a GPU nothing looks at the pairs before the plan does. No kernel is started for items that do not exist."""
    monkeypatch.setattr(launch, "check_call", lambda *arguments: None)
    monkeypatch.setitem(launch.KERNELS, "none", None)
    images, captions = NO_ITEMS[missing]
    M, N, D, H = 3, 4, 5, 2
    regions = Side(torch.ones(images, M, D), torch.ones(images, M, 2 * H), None)
    words = Side(torch.ones(captions, N, D), torch.ones(captions, N, D + 2 * H), None)
    w, pairs = torch.ones(H), torch.tensor([[0, 0], [1, 1], [5, 0]])
    call = Call(regions, words, Vectors(w, w), Matrices(), pairs, cases.PAPER, "none")
    assert launch.pair_scores(call).isnan().all()
    assert not any(x.any() for x in launch.pair_scores_backward(CallGradient(torch.ones(3), call)))
    scores, *maps = launch.pair_maps(call)
    assert scores.isnan().all()
    assert [tuple(x.shape) for x in maps] == [(3, M), (3, N), (3, M, N), (3, M, N), (3, N, M)]
    assert not any(x.any() for x in maps)


# What errors call an argument, and where it stands among the operator's.
PLACES = {"regions": 0, "region_products": 1, "region_lengths": 2, "words": 3, "word_products": 4, "word_lengths": 5}
PLACES |= {"region_score": 6, "word_score": 7, "pairs": 13}


@pytest.mark.parametrize("name", PLACES)
def test_tensors_of_another_device_are_refused(monkeypatch, name):
    """A kernel would take their addresses for some of its own."""
    monkeypatch.setitem(launch.KERNELS, "none", None)
    lengths = torch.ones(2, dtype=torch.int64)
    regions = Side(torch.ones(2, 3, 5), torch.ones(2, 3, 4), lengths)
    words = Side(torch.ones(2, 4, 5), torch.ones(2, 4, 9), lengths)
    vectors, pairs = Vectors(torch.ones(2), torch.ones(2)), torch.zeros(1, 2, dtype=torch.int64)
    values = flatten(Call(regions, words, vectors, Matrices(), pairs, cases.PAPER, "none"))
    values[PLACES[name]] = values[PLACES[name]].to("meta")
    call = unflatten(layout(Call), values)
    # The regions' device is what the others are held against.
    expected = "words" if name == "regions" else name
    with pytest.raises(RuntimeError, match=f"^{expected}: expected device (cpu, got meta|meta, got cpu)$"):
        launch.pair_scores(call)
    if name in ("regions", "region_lengths"):
        with pytest.raises(RuntimeError, match="expected device"):
            launch.project(Projection(call.regions.features, torch.ones(5, 2), call.regions.lengths, "none"))
