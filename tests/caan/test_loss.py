"""The loss against a plain loop, and the watch on its collapse."""

import pytest
import torch

from caan.loss import CollapseWatch, collapsed_loss, triplet_loss


def plain_loss(scores, images, margin, form):
    total = 0.0
    for b, own in enumerate(images):
        negatives = [c for c, image in enumerate(images) if image != own]
        for anchor in ([scores[b][c] for c in negatives], [scores[c][b] for c in negatives]):
            violations = [max(0.0, margin + score - scores[b][b]) for score in anchor]
            if violations:
                total += {"hardest": max(violations), "sum": sum(violations), "mean": sum(violations) / len(violations)}[form]
    return total


IMAGES = {"distinct": [3, 1, 4, 0, 5, 9], "twins": [3, 1, 3, 0, 1, 3], "all one": [2] * 6, "two": [0, 0, 0, 1, 1, 1]}


@pytest.mark.parametrize("form", ["hardest", "sum", "mean"])
@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
@pytest.mark.parametrize("margin", [0.0, 0.2, 3.0])
def test_against_a_plain_loop(form, images, margin):
    scores = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    loss = triplet_loss(scores, torch.tensor(images), margin, form)
    assert loss.item() == pytest.approx(plain_loss(scores.tolist(), images, margin, form))
    loss.backward()
    same = torch.tensor(images)[:, None] == torch.tensor(images)
    same.fill_diagonal_(False)
    assert scores.grad.isfinite().all() and not scores.grad[same].any()


@pytest.mark.parametrize("form", ["hardest", "sum", "mean"])
def test_gradients(form):
    scores = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    images = torch.tensor(IMAGES["twins"])
    assert torch.autograd.gradcheck(lambda s: triplet_loss(s, images, form=form), scores)


def test_hardest_negatives_have_a_sparse_gradient():
    """Even where all scores tie, at most two negatives a pair take part."""
    scores = torch.zeros(16, 16, requires_grad=True)
    triplet_loss(scores, torch.arange(16)).backward()
    assert 16 < scores.grad.count_nonzero() <= 3 * 16
    scores = torch.eye(16).requires_grad_()
    loss = triplet_loss(scores, torch.arange(16))
    loss.backward()
    assert loss == 0 and not scores.grad.any()


def test_a_pair_alone():
    scores = torch.ones(1, 1, requires_grad=True)
    for form in ("hardest", "sum", "mean"):
        loss = triplet_loss(scores, torch.tensor([7]), form=form)
        loss.backward()
        assert loss == 0 and scores.grad == 0


def test_wrong_arguments():
    with pytest.raises(ValueError, match="form: expected one of hardest, sum, mean, got 'max'"):
        triplet_loss(torch.zeros(2, 2), torch.arange(2), form="max")
    with pytest.raises(ValueError, match=r"scores: expected shape \(3, 3\).*got \(3, 4\)"):
        triplet_loss(torch.zeros(3, 4), torch.arange(3))
    with pytest.raises(ValueError, match=r"images: expected shape \(B,\)"):
        triplet_loss(torch.zeros(0, 0), torch.arange(0))


@pytest.mark.parametrize("form", ["hardest", "sum", "mean"])
@pytest.mark.parametrize("images", IMAGES.values(), ids=IMAGES)
def test_collapsed_loss(form, images):
    loss = triplet_loss(torch.full((6, 6), 0.7), torch.tensor(images), 0.3, form)
    assert collapsed_loss(torch.tensor(images), 0.3, form) == pytest.approx(loss.item())
    if form != "sum" and len(set(images)) > 1:
        assert loss.item() == pytest.approx(2 * 6 * 0.3)


def test_watch_says_it_once():
    watch = CollapseWatch(patience=3, tolerance=0.01)
    said = [watch.update(loss, 40.0) for loss in (40.0, 40.1, 30.0, 40.3, 39.7, 40.0, 40.0, 41.0, 40.0, 40.0, 40.0)]
    assert said == [False] * 5 + [True] + [False] * 4 + [True]
    assert not any(CollapseWatch(patience=1).update(loss, 0.0) for loss in (0.0, 0.0))
