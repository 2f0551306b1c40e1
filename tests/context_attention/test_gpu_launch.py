"""What the operators of the GPU backends do before any kernel is launched: plain PyTorch, tested wherever that runs."""

import pytest
import torch

from caan_kernels.context_attention.gpu import launch

NO_ITEMS = {"images": (0, 2), "captions": (2, 0)}


@pytest.mark.parametrize("missing", NO_ITEMS)
def test_pairs_of_nothing_score_nan(monkeypatch, missing):
    """On a GPU nothing looks at the pairs before the plan does. No kernel is started for items that do not exist."""
    monkeypatch.setattr(launch, "check_call", lambda *arguments: None)
    monkeypatch.setitem(launch.KERNELS, "none", None)
    images, captions = NO_ITEMS[missing]
    M, N, D, H = 3, 4, 5, 2
    V, VQ, U, UQ = (torch.ones(*size) for size in ((images, M, D), (images, M, 2 * H), (captions, N, D), (captions, N, D + 2 * H)))
    w, pairs = torch.ones(H), torch.tensor([[0, 0], [1, 1], [5, 0]])
    rest = w, w, None, None, pairs, False, True, True, "none"
    assert launch.pair_scores(V, VQ, U, UQ, *rest).isnan().all()
    assert launch.raw_scores(V, VQ, U, UQ, *[None] * 5, *rest).isnan().all()
    assert not any(x.any() for x in launch.pair_scores_backward(torch.ones(3), V, VQ, U, UQ, *rest))
    scores, *maps = launch.pair_maps(V, VQ, U, UQ, *rest)
    assert scores.isnan().all()
    assert [tuple(x.shape) for x in maps] == [(3, M), (3, N), (3, M, N), (3, M, N), (3, N, M)]
    assert not any(x.any() for x in maps)


@pytest.mark.parametrize("position", range(9))
def test_tensors_of_another_device_are_refused(position):
    """A kernel would take their addresses for some of its own."""
    names = "regions", "region_products", "words", "word_products", "region_score", "word_score"
    names += "region_lengths", "word_lengths", "pairs"
    sizes = (2, 3, 5), (2, 3, 4), (2, 4, 5), (2, 4, 9), (2,), (2,)
    tensors = [*(torch.ones(*size) for size in sizes), *torch.ones(2, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.int64)]
    tensors[position] = tensors[position].to("meta")
    # The regions' device is what the others are held against.
    name = names[position] if position else "words"
    with pytest.raises(RuntimeError, match=f"^{name}: expected device (cpu, got meta|meta, got cpu)$"):
        launch.pair_scores(*tensors, False, True, True, "none")
    if names[position] in ("regions", "region_lengths"):
        with pytest.raises(RuntimeError, match="expected device"):
            launch.project(tensors[0], torch.ones(5, 2), tensors[6], "none")
