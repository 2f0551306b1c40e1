"""Scores before a kernel writes them."""

import torch
from torch import Tensor

from .plan import exist


def fill_unscored(
    scores: Tensor, counts: tuple[int, int], wrong: tuple[Tensor | None, Tensor | None], pairs: Tensor | None
) -> None:
    """Fill scores with 0, which is that of a pair with an empty side, or NaN for what does not exist.

    Args:
        scores: (I, T), or (P,) with pairs.
        counts: images and captions.
        wrong: (I,) and (T,) bool, items whose length is out of range; None where none is.
        pairs: (P, 2) int64 of (image, caption), or None; they may name items that do not exist.
    """
    scores.zero_()
    inside = None if pairs is None else exist(pairs, *counts)
    if inside is not None:
        scores.masked_fill_(~inside, torch.nan)
    for column, (count, items) in enumerate(zip(counts, wrong, strict=True)):
        if items is None or count == 0 or scores.numel() == 0:
            continue
        if inside is None:
            scores.masked_fill_(items[:, None] if column == 0 else items, torch.nan)
        else:
            scores.masked_fill_(items[torch.where(inside, pairs[:, column], 0)], torch.nan)
