"""What the references share: items of different lengths in one tensor, and the dtype of scores."""

import torch
from torch import Tensor


def real_rows(items: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, L) bool: which rows of (B, L, D) items are real."""
    position = torch.arange(items.shape[1], device=items.device)
    if lengths is None:
        return torch.ones_like(position, dtype=torch.bool).expand(items.shape[:2])
    return position < lengths[:, None]


def without_padding(items: Tensor, real: Tensor) -> Tensor:
    """Items with 0 in the rows that are not real."""
    # A product with the mask would keep NaN and Inf, forward and backward.
    return torch.where(real[..., None], items, 0)


def score_dtype(dtype: torch.dtype) -> torch.dtype:
    """dtype of the scores of features of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def widened(x: Tensor) -> Tensor:
    """In the dtype of scores."""
    return x.to(score_dtype(x.dtype))


def new_scores(regions: Tensor, words: Tensor, pairs: Tensor | None) -> Tensor:
    """Scores that are not written yet: (I, T), or (P,) with pairs."""
    shape = (regions.shape[0], words.shape[0]) if pairs is None else (pairs.shape[0],)
    return regions.new_empty(shape, dtype=score_dtype(regions.dtype))


def nan_where_wrong(scores: Tensor, regions: tuple, words: tuple, pairs: Tensor | None) -> Tensor:
    """Scores with NaN for items whose length is out of range: on a GPU and in a compiled graph nobody has looked at lengths.

    Args:
        scores: (I, T), or (P,) with pairs.
        regions: their features, (I, M, D), and lengths, (I,) or None.
        words: likewise.
        pairs: (P, 2) of (image, caption), or None.
    """
    for column, (features, lengths) in enumerate((regions, words)):
        if lengths is None:
            continue
        wrong = (lengths < 0) | (lengths > features.shape[1])
        if pairs is not None:
            wrong = wrong.index_select(0, pairs[:, column])
        elif column == 0:
            wrong = wrong[:, None]
        scores = torch.where(wrong, torch.nan, scores)
    return scores
