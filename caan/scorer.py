"""The work of an evaluation, cut into units, and the scores of each.

A unit is a block of images with a batch of captions. A score's bits depend on its unit alone, so units can be dealt to any number
of processes, and to the next try after a kill.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import caan_kernels as ck

from . import checkpoint
from .data import Captions, Images, LengthBatches, Split, make_loader
from .model import CAAN, Encoded
from .processes import Processes
from .vocabulary import Vocabulary

# Images and captions of a tile. Where no fused backend runs, or the model is a dense one, the reference has to score it, whose
# intermediates are thousands of times as large as its result.
_TILE = (128, 256)
_SMALL_TILE = (32, 64)
_FUSED = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}
# Prepared images of that many bytes stay in memory while the captions pass by; captions are encoded once for each
# such block of images.
_BLOCK_BYTES = 1 << 30
# Tiles of the reference that the first pass has scored are kept for the second, as many as have room in so many bytes.
_TILES_BYTES = 1 << 28


def by_reference(models: Sequence[CAAN], device: torch.device) -> bool:
    """Whether the reference may have to score: no fused backend runs on the device, or a model is a dense one."""
    backends = ck.available_backends()
    fused = any(backends[name][0] for name in _FUSED.get(device.type, ()))
    return not fused or any(model.dense for model in models)


def tile_of(models: Sequence[CAAN], device: torch.device) -> tuple[int, int]:
    """How many images and captions are scored at once."""
    return _SMALL_TILE if by_reference(models, device) else _TILE


class Unit(NamedTuple):
    """A block of images with a batch of captions.

    Attributes:
        number: its place among all units.
        images, captions: which, (i,) and (t,) int64.
        words: of the captions, their marks included.
    """

    number: int
    images: np.ndarray
    captions: np.ndarray
    words: int

    @property
    def pairs(self) -> int:
        return len(self.images) * len(self.captions)


class Loaded(NamedTuple):
    """A unit with its two sides prepared, by each model: the images in chunks, the captions in one."""

    unit: Unit
    images: list[tuple[slice, list[ck.ProjectedRegions | Encoded]]]
    captions: Tensor
    words: list[ck.ProjectedWords | Encoded]


class Scorer:
    """Scores of one or several models, averaged."""

    def __init__(self, models: Sequence[tuple[CAAN, Vocabulary]], split: Split, device: torch.device, workers: int):
        for model, _ in models:
            split.regions.require_width(model.config.region_width)
        self.models = [model.to(device).eval() for model, _ in models]
        self.split, self.device, self.workers = split, device, workers
        self.by_reference, self.tile = by_reference(self.models, device), tile_of(self.models, device)
        self._scored: dict[tuple[int, int], Tensor] = {}
        self._room = _TILES_BYTES
        self.images = Images(split)
        self.captions = [Captions(split, vocabulary) for _, vocabulary in models]

    def units(self, groups: Tensor) -> list[Unit]:
        """All work, in the order in which it is best done.

        What an encoder makes of an item depends, in its last bits, on the items beside it: chunks of images and batches of captions
        are the same in every pass, process and try.

        Args:
            groups: (I,) int64, each image's group; groups are consecutive. Images are scored with the captions of their group.
        """
        configs = [model.config for model in self.models]
        numbers = sum(config.width + 2 * (config.hidden_width or config.width) for config in configs)
        chunk_bytes = 4 * self.tile[0] * self.split.regions.max_regions * numbers
        size = self.tile[0] * max(1, _BLOCK_BYTES // chunk_bytes)
        groups = groups.numpy()
        result = []
        for group in np.unique(groups):
            images = np.flatnonzero(groups == group)
            captions = np.flatnonzero(groups[self.split.image_of_caption] == group)
            # How long a caption is does not depend on the vocabulary.
            lengths = self.captions[0].lengths[captions]
            batches = [(captions[batch], int(lengths[batch].sum())) for batch in LengthBatches(lengths, self.tile[1])]
            for first in range(0, len(images), size):
                block = images[first : first + size]
                result += [Unit(len(result) + number, block, *batch) for number, batch in enumerate(batches)]
        return result

    def loaded(self, units: Iterable[Unit]) -> Iterator[Loaded]:
        """Prepare both sides of units; those with the same images, one after the other, share them."""
        for _, of_block in itertools.groupby(units, key=lambda unit: unit.images[0]):
            yield from self._loaded_block(list(of_block))

    def _loaded_block(self, units: list[Unit]) -> Iterator[Loaded]:
        """As `loaded`, of units with the same images; these are gone when the next block begins."""
        block = list(self._prepared_images(units[0].images))
        for unit in units:
            loaded = [own.collate([own[caption] for caption in unit.captions]).to(self.device) for own in self.captions]
            words = [model.prepare_captions(batch) for model, batch in zip(self.models, loaded, strict=True)]
            yield Loaded(unit, block, torch.from_numpy(unit.captions), words)
        # Whoever took the last unit still has the list.
        block.clear()

    def _prepared_images(self, images: np.ndarray) -> Iterator[tuple[slice, list[ck.ProjectedRegions | Encoded]]]:
        """Consecutive images in chunks, prepared by each model."""
        count, _ = self.tile
        chunks = [images[start : start + count].tolist() for start in range(0, len(images), count)]
        for batch in make_loader(self.images, chunks, self.workers, pin_memory=self.device.type == "cuda"):
            chunk = slice(int(batch.images[0]), int(batch.images[-1]) + 1)
            batch = batch.to(self.device)
            yield chunk, [model.prepare_images(batch) for model in self.models]

    @torch.no_grad()
    def positives(self, loaded: Loaded) -> Iterator[tuple[Tensor, Tensor]]:
        """Of those captions of a unit whose image is in it: which they are, and their scores with their images.

        They are the same numbers as in the tiles.
        """
        rows = torch.from_numpy(self.split.image_of_caption)[loaded.captions]
        for images, regions in loaded.images:
            [own] = torch.where((rows >= images.start) & (rows < images.stop))
            if not len(own):
                continue
            pairs = torch.stack((rows[own] - images.start, own), dim=1)
            if self.by_reference:
                # It rounds a list of pairs otherwise than a tile, and a rounding can be a jump of the operator.
                scores = self._scores(regions, loaded.words, None)
                if self._room >= scores.nbytes:
                    self._room -= scores.nbytes
                    self._scored[loaded.unit.number, images.start] = scores
                image, caption = pairs.to(self.device).unbind(1)
                yield loaded.captions[own], scores[image, caption]
            else:
                yield loaded.captions[own], self._scores(regions, loaded.words, pairs)

    @torch.no_grad()
    def tiles(self, loaded: Loaded) -> Iterator[tuple[slice, Tensor]]:
        """Of each chunk of a unit's images: which they are, and their scores with the unit's captions, on the device."""
        for images, regions in loaded.images:
            scores = self._scored.pop((loaded.unit.number, images.start), None)
            yield images, self._scores(regions, loaded.words, None) if scores is None else scores

    def _scores(self, regions: list, words: list, pairs: Tensor | None) -> Tensor:
        scores = [model.attention(*sides, pairs) for model, *sides in zip(self.models, regions, words, strict=True)]
        return scores[0] if len(scores) == 1 else torch.stack(scores).mean(dim=0)


def share(units: list[Unit], processes: Processes) -> list[Unit]:
    """This process's stretch of the units, as much work as any other's; a stretch has few blocks of images."""
    if processes.count == 1 or not units:
        return units
    work = np.array([len(unit.images) * unit.words for unit in units], dtype=np.float64)
    owner = ((work.cumsum() - work / 2) / work.sum() * processes.count).astype(int)
    return [unit for unit, number in zip(units, owner, strict=True) if number == processes.number]


def _library_digest() -> str | None:
    """Of the compiled kernels, which no Python version need have been built with."""
    path = Path(ck.__file__).with_name("_ops.so")
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def identity(
    models: Sequence[tuple[CAAN, Vocabulary]], split: Split, device: torch.device, tile: tuple[int, int], settings: dict[str, Any]
) -> str:
    """A name for all that decides the scores, their last bits included, and the units that they are found in."""
    parts = {
        "models": [checkpoint.digest(model, vocabulary) for model, vocabulary in models],
        "split": split.digest(),
        "tile": [*tile, _BLOCK_BYTES],
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "torch": torch.__version__,
        "kernels": [_library_digest(), ck.available_backends()],
        **settings,
    }
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
