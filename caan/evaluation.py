"""Evaluation by the field's protocol: every image against every caption, tile by tile, in bounded memory."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import caan_kernels as ck

from .data import Captions, Images, LengthBatches, Split, make_loader
from .files import replacing
from .model import CAAN
from .recall import Figures, RankCounter, folds
from .vocabulary import Vocabulary

# Images and captions of a tile. Elsewhere than on the CPU the reference may have to score it, whose intermediates are
# thousands of times as large as its result.
_TILE = {"cpu": (128, 256)}
_SMALL_TILE = (32, 64)
# Projected regions of that many bytes stay in memory while the captions pass by; captions are encoded once for each
# such block of images.
_BLOCK_BYTES = 1 << 30


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        figures: every image competes with all captions; None where only folds were asked for.
        fold_figures: mean over the folds; None without folds.
        pairs: how many pairs were scored.
        seconds: reading, encoding, scoring and counting together.
    """

    figures: Figures | None
    fold_figures: Figures | None
    pairs: int
    seconds: float


def evaluate(
    models: Sequence[tuple[CAAN, Vocabulary]],
    split: Split,
    *,
    fold_size: int | None = None,
    folds_only: bool = False,
    save_scores: str | Path | None = None,
    device: torch.device | str = "cpu",
    workers: int = 0,
    progress: bool = False,
) -> Evaluation:
    """Score a split and count ranks.

    Beside a block of projected images, one batch of captions and one tile of scores, only ranks are kept.

    Args:
        models: with their vocabularies; left on the device, in evaluation mode. The scores of several are averaged, as the
            field's ensembles are.
        split: what is scored.
        fold_size: also give the mean over consecutive folds of so many images, as for COCO's 5 x 1,000.
        folds_only: score only the pairs within folds.
        save_scores: a .npy file for the whole (I, T) float32 matrix, written through a memory map.
        device: where.
        workers: processes that read images; 0 reads in this one.
        progress: show a bar of pairs.

    Raises:
        ValueError: fold_size does not divide the images, or an argument contradicts another.
        DataError: the features cannot be used, or have another width than a model's.
    """
    if not models:
        raise ValueError("models: expected at least one, got none")
    if folds_only and fold_size is None:
        raise ValueError("folds_only: expected a fold_size with it, got None")
    if folds_only and save_scores is not None:
        raise ValueError("save_scores: expected all pairs to be scored, got folds_only=True")
    fold_of_image = None if fold_size is None else folds(split.num_images, fold_size)
    scorer = _Scorer(models, split, torch.device(device), workers)
    image_of_caption = torch.from_numpy(split.image_of_caption)
    in_folds = fold_of_image if folds_only else torch.zeros(split.num_images, dtype=torch.int64)
    images_in_fold = torch.bincount(in_folds)
    captions_in_fold = torch.bincount(in_folds[image_of_caption], minlength=len(images_in_fold))
    total = int((images_in_fold * captions_in_fold).sum())

    start = time.monotonic()
    with ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=total, unit=" pairs", unit_scale=True, dynamic_ncols=True, disable=not progress, leave=False)
        )
        matrix = None
        if save_scores is not None:
            unfinished = stack.enter_context(replacing(save_scores))
            shape = (split.num_images, len(split.captions))
            matrix = np.lib.format.open_memmap(unfinished, "w+", np.float32, shape)
        positives = scorer.positives(in_folds)
        arguments = positives, image_of_caption, split.num_images
        full = None if folds_only else RankCounter(*arguments)
        by_fold = None if fold_size is None else RankCounter(*arguments, fold_of_image)
        counters = [counter for counter in (full, by_fold) if counter is not None]
        for images, captions, scores in scorer.tiles(in_folds):
            for counter in counters:
                counter.add(scores, images, captions)
            if matrix is not None:
                matrix[images, captions.numpy()] = scores.cpu().numpy()
            bar.update(scores.numel())
        if matrix is not None:
            matrix.flush()
    figures, fold_figures = (counter and counter.figures() for counter in (full, by_fold))
    return Evaluation(figures, fold_figures, total, time.monotonic() - start)


class _Scorer:
    """Scores of one or several models, averaged."""

    def __init__(self, models: Sequence[tuple[CAAN, Vocabulary]], split: Split, device: torch.device, workers: int):
        for model, _ in models:
            split.regions.require_width(model.config.region_width)
        self.models = [model.to(device).eval() for model, _ in models]
        self.split, self.device, self.workers = split, device, workers
        self.tile = _TILE.get(device.type, _SMALL_TILE)
        self.images = Images(split)
        self.captions = [Captions(split, vocabulary) for _, vocabulary in models]

    @torch.no_grad()
    def positives(self, groups: Tensor) -> Tensor:
        """(T,) score of each caption with its image on the device, the same numbers as in the tiles of these groups."""
        result = torch.empty(len(self.split.captions), device=self.device)
        image_of_caption = torch.from_numpy(self.split.image_of_caption)
        for images, regions, captions, words in self._sides(groups):
            rows = image_of_caption[captions]
            [own] = torch.where((rows >= images.start) & (rows < images.stop))
            if len(own):
                pairs = torch.stack((rows[own] - images.start, own), dim=1)
                result[captions[own].to(self.device)] = self._scores(regions, words, pairs)
        return result

    @torch.no_grad()
    def tiles(self, groups: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Score images with the captions of their group.

        Args:
            groups: (I,) int64, each image's group; groups are consecutive.

        Yields:
            Which images, which captions, their (i, t) scores on the device.
        """
        for images, regions, captions, words in self._sides(groups):
            yield images, captions, self._scores(regions, words, None)

    def _sides(self, groups: Tensor) -> Iterator[tuple[slice, list[ck.ProjectedRegions], Tensor, list[ck.ProjectedWords]]]:
        """The two sides of every tile.

        What an encoder makes of an item depends, in its last bits, on the company: both passes encode the same batches.
        """
        configs = [model.config for model in self.models]
        numbers = sum(config.width + 2 * (config.hidden_width or config.width) for config in configs)
        chunk_bytes = 4 * self.tile[0] * self.split.regions.max_regions * numbers
        size = self.tile[0] * max(1, _BLOCK_BYTES // chunk_bytes)
        groups = groups.numpy()
        for group in np.unique(groups):
            members = np.flatnonzero(groups == group)
            captions_of_group = np.flatnonzero(groups[self.split.image_of_caption] == group)
            for first in range(0, len(members), size):
                yield from self._sides_of_block(members[first : first + size], captions_of_group)

    def _sides_of_block(self, members: np.ndarray, captions_of_group: np.ndarray) -> Iterator[tuple]:
        """As `_sides`, of a block of images; it is gone when the next one begins."""
        block = list(self._projected_images(members))
        for captions, words in self._projected_captions(captions_of_group):
            for images, regions in block:
                yield images, regions, captions, words

    def _projected_images(self, images: np.ndarray) -> Iterator[tuple[slice, list[ck.ProjectedRegions]]]:
        """Consecutive images in chunks, projected by each model."""
        count, _ = self.tile
        chunks = [images[start : start + count].tolist() for start in range(0, len(images), count)]
        for batch in make_loader(self.images, chunks, self.workers, pin_memory=self.device.type == "cuda"):
            chunk = slice(int(batch.images[0]), int(batch.images[-1]) + 1)
            batch = batch.to(self.device)
            yield chunk, [model.project_images(batch) for model in self.models]

    def _projected_captions(self, captions: np.ndarray) -> Iterator[tuple[Tensor, list[ck.ProjectedWords]]]:
        """Captions of like length together, projected by each model."""
        # How long a caption is does not depend on the vocabulary.
        for batch in LengthBatches(self.captions[0].lengths[captions], self.tile[1]):
            chosen = captions[batch]
            loaded = [own.collate([own[caption] for caption in chosen]).to(self.device) for own in self.captions]
            words = [model.project_captions(batch) for model, batch in zip(self.models, loaded, strict=True)]
            yield loaded[0].captions, words

    def _scores(self, regions: list[ck.ProjectedRegions], words: list[ck.ProjectedWords], pairs: Tensor | None) -> Tensor:
        scores = [model.attention(*sides, pairs) for model, *sides in zip(self.models, regions, words, strict=True)]
        return scores[0] if len(scores) == 1 else torch.stack(scores).mean(dim=0)
