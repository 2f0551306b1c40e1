"""Ranks of a whole score matrix, and the pairs that belong together."""

import torch

from caan.recall import RankCounter


def positive_pairs(image_of_caption):
    """(T, 2) int64, each caption with its image, as `context_attention` takes pairs."""
    return torch.stack((image_of_caption, torch.arange(len(image_of_caption))), dim=1)


def count_ranks(scores, image_of_caption, fold_of_image=None, rows=1000):
    """The counter of a whole (I, T) score matrix, given `rows` images at a time."""
    positives = scores[image_of_caption, torch.arange(len(image_of_caption))]
    counter = RankCounter(positives, image_of_caption, len(scores), fold_of_image)
    for start in range(0, len(scores), rows):
        tile = slice(start, min(start + rows, len(scores)))
        counter.add(scores[tile], tile, slice(None))
    return counter
