"""Scores before a kernel writes them."""

import torch
from torch import Tensor

from ..records import Items
from .plan import exist


def fill_unscored(scores: Tensor, regions: Items, words: Items, pairs: Tensor | None) -> None:
    """Fill scores with 0, which is that of a pair with an empty side, or NaN for what does not exist.

    Args:
        scores: (I, T), or (P,) with pairs.
        regions, words: both sides; a length may be out of range.
        pairs: (P, 2) int64 of (image, caption), or None; they may name items that do not exist.
    """
    scores.zero_()
    sides = regions, words
    inside = None if pairs is None else exist(pairs, *(len(x.features) for x in sides))
    if inside is not None:
        scores.masked_fill_(~inside, torch.nan)
    for column, (features, lengths) in enumerate(sides):
        if lengths is None or len(features) == 0:
            continue
        wrong = (lengths < 0) | (lengths > features.shape[1])
        if inside is None:
            scores.masked_fill_(wrong[:, None] if column == 0 else wrong, torch.nan)
        else:
            scores.masked_fill_(wrong[torch.where(inside, pairs[:, column], 0)], torch.nan)
