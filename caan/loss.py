"""The triplet loss over a batch of pairs, and a watch on its collapse."""

import torch
from torch import Tensor

FORMS = ("hardest", "sum", "mean")


def triplet_loss(scores: Tensor, images: Tensor, margin: float = 0.2, form: str = "hardest") -> Tensor:
    """Every pair must score higher, by a margin, than its image with other captions and its caption with other images.

    With s the scores, the violations of the pair b are, over all c whose image is another,

        max(0, margin + s[b, c] - s[b, b])      its image with another image's caption
        max(0, margin + s[c, b] - s[b, b])      its caption with another image

    Each line has many violations, and the form makes one number of them. The loss is the sum of these numbers over all pairs:

    - "hardest": the largest violation. Beside a pair's own score, at most two scores get a gradient, which the operator's
      backward makes use of.
    - "sum": their sum.
    - "mean": their mean over all negatives, violated or not. Its scale is that of "hardest", so that a schedule can change from
      one to the other.

    A pair without negatives contributes 0.

    Args:
        scores: (B, B), image b of the batch in row b, its caption in column b.
        images: (B,) integers; captions whose images are equal are never negatives of each other, nor of that image.
        margin: in units of the score.
        form: "hardest", or for the warm-up "sum" or "mean".

    Returns:
        The loss, a scalar of the scores' dtype.

    Raises:
        ValueError: a shape or form that does not fit.
    """
    _check(images, form)
    if scores.shape != (len(images), len(images)):
        raise ValueError(
            f"scores: expected shape {(len(images), len(images))}, as images are {len(images)}, got {tuple(scores.shape)}"
        )
    positives = scores.diagonal()
    same_image = _same_image(images).to(scores.device)
    if form == "hardest":
        negatives = scores.masked_fill(same_image, float("-inf"))
        # max, not amax: of equal negatives one gets the gradient, not each a part.
        hardest = torch.stack((negatives.max(dim=1).values, negatives.max(dim=0).values))
        return (margin + hardest - positives).relu().sum()
    weights = (~same_image).to(scores.dtype)
    if form == "mean":
        weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1)
    # The mask is symmetric: row b of the weights serves image b's captions and, against sᵀ, caption b's images.
    by_image = (margin + scores - positives[:, None]).relu() * weights
    by_caption = (margin + scores.mT - positives[:, None]).relu() * weights
    return by_image.sum() + by_caption.sum()


def collapsed_loss(images: Tensor, margin: float = 0.2, form: str = "hardest") -> float:
    """What `triplet_loss` is when every score is the same: 2 · B · margin for "hardest" and "mean".

    Args:
        images: (B,) integers, the batch's images.
        margin, form: as for `triplet_loss`.
    """
    _check(images, form)
    negatives = (~_same_image(images)).sum(dim=1)
    return 2 * margin * float(negatives.sum() if form == "sum" else negatives.count_nonzero())


class CollapseWatch:
    """Notices a loss that is stuck where all scores are the same, the way in which hardest negatives fail.

    Args:
        patience: how many losses in a row must be there.
        tolerance: how near, relative to `collapsed_loss`.
    """

    def __init__(self, patience: int = 100, tolerance: float = 0.005):
        self.patience = patience
        self.tolerance = tolerance
        self._stuck = 0

    def update(self, loss: float, collapsed: float) -> bool:
        """Take the loss of one step.

        Args:
            loss: what `triplet_loss` gave.
            collapsed: what `collapsed_loss` gives for the same batch.

        Returns:
            True at the step at which the patience ends, and again only after the loss has left in between.
        """
        # A batch without negatives tells nothing.
        if collapsed > 0:
            self._stuck = self._stuck + 1 if abs(loss - collapsed) <= self.tolerance * collapsed else 0
            return self._stuck == self.patience
        return False


def _same_image(images: Tensor) -> Tensor:
    return images[:, None] == images[None, :]


def _check(images: Tensor, form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"form: expected one of {', '.join(FORMS)}, got {form!r}")
    if images.dim() != 1 or len(images) == 0:
        raise ValueError(f"images: expected shape (B,) with B at least 1, got {tuple(images.shape)}")
