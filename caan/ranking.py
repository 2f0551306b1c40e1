"""Scores of some queries against all of a split."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .data import Captions, Images, Split, make_loader
from .isolation import isolated
from .model import CAAN
from .progress import bar
from .vocabulary import Vocabulary

# Elsewhere than on the CPU, and of a dense model, the reference may have to score a tile; its intermediates are thousands of times
# as large.
_BATCH = {"cpu": 128}
_SMALL_BATCH = 32


@isolated()
def score_some(
    model: CAAN,
    vocabulary: Vocabulary,
    split: Split,
    images: np.ndarray,
    captions: np.ndarray,
    *,
    device: torch.device | str = "cpu",
    workers: int = 0,
    progress: bool = False,
) -> Tensor:
    """Score some images with some captions, tile by tile.

    The side with fewer items stays prepared in memory, the other one passes by.

    Args:
        model, vocabulary: the model is left on the device, in evaluation mode.
        split: what images and captions are of.
        images: (i,) int64, at least one.
        captions: (t,) int64, at least one.
        device: where.
        workers: processes that read; 0 reads in this one.
        progress: show a bar of pairs.

    Returns:
        (i, t) float32 on the CPU.

    Raises:
        DataError: the features cannot be used, or have another width than the model's.
    """
    split.regions.require_width(model.config.region_width)
    device = torch.device(device)
    model = model.to(device).eval()
    size = _SMALL_BATCH if model.dense else _BATCH.get(device.type, _SMALL_BATCH)
    scores = torch.empty(len(images), len(captions), dtype=torch.float32, device="cpu")

    def batches(items: Dataset, chosen: np.ndarray, prepare) -> Iterator[tuple[slice, object]]:
        places = [slice(start, min(start + size, len(chosen))) for start in range(0, len(chosen), size)]
        loader = make_loader(items, [chosen[place].tolist() for place in places], workers, device.type == "cuda")
        for place, batch in zip(places, loader, strict=True):
            yield place, prepare(batch.to(device))

    rows = batches(Images(split), images, model.prepare_images)
    columns = batches(Captions(split, vocabulary), captions, model.prepare_captions)
    few, many = (rows, columns) if len(images) <= len(captions) else (columns, rows)
    few = list(few)
    with bar(total=scores.numel(), unit=" pairs", unit_scale=True, shown=progress, leave=False) as watch:
        for other in many:
            for one in few:
                (row, regions), (column, words) = (one, other) if len(images) <= len(captions) else (other, one)
                tile = model.attention(regions, words).cpu()
                scores[row, column] = tile
                watch.update(tile.numel())
    return scores
