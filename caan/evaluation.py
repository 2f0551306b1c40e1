"""Evaluation by the field's protocol: every image against every caption, tile by tile, in bounded memory.

The work is cut into units, a block of images with a batch of captions each. A score's bits depend on its unit alone, and what a
unit adds to the ranks is a sum, so units can be dealt to any number of processes, and to the next try after a kill.
"""

import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import caan_kernels as ck

from . import checkpoint
from .data import Captions, Images, LengthBatches, Split, make_loader
from .files import allocate, hold, keep_mode
from .isolation import isolated
from .kept import KeptSums
from .model import CAAN, Encoded
from .processes import Processes
from .recall import Figures, RankCounter, folds
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
# In the folder of what is kept: which file holds the scores, all of them.
_WHOLE = "scores"


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        figures: every image competes with all captions; None where only folds were asked for.
        fold_figures: mean over the folds; None without folds.
        pairs: how many pairs the figures are of.
        scored: how many of them were scored in this try, by all processes.
        seconds: reading, encoding, scoring and counting together, of this try.
        kept: the folder that finished work was kept in, to be removed once the figures are safe.
    """

    figures: Figures | None
    fold_figures: Figures | None
    pairs: int
    scored: int
    seconds: float
    kept: Path | None = None


@isolated()
def evaluate(
    models: Sequence[tuple[CAAN, Vocabulary]],
    split: Split,
    *,
    fold_size: int | None = None,
    folds_only: bool = False,
    save_scores: str | Path | None = None,
    keep: str | Path | None = None,
    processes: Processes | None = None,
    device: torch.device | str = "cpu",
    workers: int = 0,
    progress: bool = False,
    say: Callable[[str], None] = tqdm.write,
) -> Evaluation:
    """Score a split and count ranks.

    Beside a block of prepared images, one batch of captions and one tile of scores, only ranks are kept.

    Args:
        models: with their vocabularies; left on the device, in evaluation mode. The scores of several are averaged, as the
            field's ensembles are.
        split: what is scored.
        fold_size: also give the mean over consecutive folds of so many images, as for COCO's 5 x 1,000.
        folds_only: score only the pairs within folds.
        save_scores: a .npy file for the whole (I, T) float32 matrix, written through a memory map; several processes must
            all see its folder.
        keep: a folder; finished work is kept in a folder inside, `Evaluation.kept`, and the next try after a kill goes on from
            there. Several processes may see the same one, or each its own. None: nothing is kept.
        processes: those that share the work; all must call this with the same models and split. Scores and ranks are, bit for
            bit, those of one process on such a machine, and every process gets the result. None: this one alone.
        device: where.
        workers: processes that read images; 0 reads in this one.
        progress: show a bar of pairs, in the first process.
        say: takes what is to be told beside the bar.

    Raises:
        ValueError: fold_size does not divide the images, or an argument contradicts another.
        DataError: the features cannot be used, or have another width than a model's.
        OSError: a file cannot be written, or another evaluation is writing the same one.
        LostProcessError: another process has ended before this was done.
        KeyboardInterrupt: asked to stop; the message says what is kept.
    """
    if not models:
        raise ValueError("models: expected at least one, got none")
    if folds_only and fold_size is None:
        raise ValueError("folds_only: expected a fold_size with it, got None")
    if folds_only and save_scores is not None:
        raise ValueError("save_scores: expected all pairs to be scored, got folds_only=True")
    processes, device = processes or Processes(), torch.device(device)
    fold_of_image = None if fold_size is None else folds(split.num_images, fold_size)
    image_of_caption = torch.from_numpy(split.image_of_caption)
    scorer = _Scorer(models, split, device, workers)
    units = scorer.units(fold_of_image if folds_only else torch.zeros(split.num_images, dtype=torch.int64, device="cpu"))
    for warning in dict.fromkeys(captions.warning() for captions in scorer.captions):
        if warning and processes.first:
            say(warning)
    total = sum(unit.pairs for unit in units)
    start = time.monotonic()
    folder = matrix = None
    scored = 0
    if keep is not None or save_scores is not None:
        settings = {
            "fold_size": fold_size,
            "folds_only": folds_only,
            "save_scores": save_scores and str(Path(save_scores).absolute()),
        }
        identity = _identity(models, split, device, scorer.tile, settings)
        folder = keep and Path(keep) / f"evaluation-{identity}"
    if save_scores is not None:
        matrix = _Matrix(Path(save_scores), identity, (split.num_images, len(split.captions)), folder, processes)

    def sums_of(name: str, sums: dict[str, Tensor], work: Callable[[_Loaded], None]) -> dict[str, Tensor]:
        """Have this process's share of the units add to the sums, and give those over all units."""
        nonlocal scored
        kept = KeptSums(folder, name, sums, processes, matrix.flush if matrix else None)
        before = sum(units[number].pairs for number in kept.done)
        scored = total - before
        if kept.done and processes.first:
            say(f"continuing ({name}): {before:,} of {total:,} pairs were done, and kept in {folder}")
        mine = _share([unit for unit in units if unit.number not in kept.done], processes)
        bar = tqdm(
            total=sum(unit.pairs for unit in mine),
            desc=name if processes.count == 1 else f"{name}, process 0 of {processes.count}",
            unit=" pairs",
            unit_scale=True,
            dynamic_ncols=True,
            disable=not (progress and processes.first),
            leave=False,
        )
        with bar:
            for loaded in scorer.loaded(mine):
                work(loaded)
                kept.finish(loaded.unit.number)
                bar.update(loaded.unit.pairs)
        return kept.total()

    positives = torch.zeros(len(split.captions), dtype=torch.float32, device="cpu")

    def find_positives(loaded: _Loaded) -> None:
        for captions, scores in scorer.positives(loaded):
            positives[captions] = scores.cpu()

    def new_counters() -> dict[str, RankCounter]:
        arguments = positives.to(device), image_of_caption, split.num_images
        full = {} if folds_only else {"full": RankCounter(*arguments)}
        return full if fold_size is None else full | {"folds": RankCounter(*arguments, fold_of_image)}

    def count(loaded: _Loaded) -> None:
        for images, scores in scorer.tiles(loaded):
            for counter in counters.values():
                counter.add(scores, images, loaded.captions)
            if matrix:
                matrix.write(images, loaded.captions, scores)

    try:
        # A sum of zeros and one score is that score.
        positives = sums_of("positives", {"positives": positives}, find_positives)["positives"]
        counters = new_counters()
        counts = {f"{name}.{part}": tensor for name, counter in counters.items() for part, tensor in enumerate(counter.counts)}
        counts = sums_of("ranks", counts, count)
    except KeyboardInterrupt:
        if folder and folder.is_dir():
            raise KeyboardInterrupt(f"stopped; what was done is kept in {folder}, and the same command continues") from None
        raise
    except BaseException:
        if matrix and not folder:
            matrix.remove()
        raise
    if matrix:
        matrix.finish()
    figures = dict.fromkeys(("full", "folds"))
    for name, counter in new_counters().items():
        counter.add_counts(*(counts[f"{name}.{part}"] for part in range(2)))
        figures[name] = counter.figures()
    return Evaluation(figures["full"], figures["folds"], total, scored, time.monotonic() - start, folder)


class _Unit(NamedTuple):
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


class _Loaded(NamedTuple):
    """A unit with its two sides prepared, by each model: the images in chunks, the captions in one."""

    unit: _Unit
    images: list[tuple[slice, list[ck.ProjectedRegions | Encoded]]]
    captions: Tensor
    words: list[ck.ProjectedWords | Encoded]


class _Scorer:
    """Scores of one or several models, averaged."""

    def __init__(self, models: Sequence[tuple[CAAN, Vocabulary]], split: Split, device: torch.device, workers: int):
        for model, _ in models:
            split.regions.require_width(model.config.region_width)
        self.models = [model.to(device).eval() for model, _ in models]
        self.split, self.device, self.workers = split, device, workers
        backends = ck.available_backends()
        fused = any(backends[name][0] for name in _FUSED.get(device.type, ()))
        self.by_reference = not fused or any(model.dense for model in self.models)
        self.tile = _SMALL_TILE if self.by_reference else _TILE
        self._scored: dict[tuple[int, int], Tensor] = {}
        self._room = _TILES_BYTES
        self.images = Images(split)
        self.captions = [Captions(split, vocabulary) for _, vocabulary in models]

    def units(self, groups: Tensor) -> list[_Unit]:
        """All work, in the order in which it is best done.

        What an encoder makes of an item depends, in its last bits, on the company: chunks of images and batches of captions are
        the same in every pass, process and try.

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
                result += [_Unit(len(result) + number, block, *batch) for number, batch in enumerate(batches)]
        return result

    def loaded(self, units: Iterable[_Unit]) -> Iterator[_Loaded]:
        """Prepare both sides of units; those with the same images, one after the other, share them."""
        for _, of_block in itertools.groupby(units, key=lambda unit: unit.images[0]):
            yield from self._loaded_block(list(of_block))

    def _loaded_block(self, units: list[_Unit]) -> Iterator[_Loaded]:
        """As `loaded`, of units with the same images; these are gone when the next block begins."""
        block = list(self._prepared_images(units[0].images))
        for unit in units:
            loaded = [own.collate([own[caption] for caption in unit.captions]).to(self.device) for own in self.captions]
            words = [model.prepare_captions(batch) for model, batch in zip(self.models, loaded, strict=True)]
            yield _Loaded(unit, block, torch.from_numpy(unit.captions), words)
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
    def positives(self, loaded: _Loaded) -> Iterator[tuple[Tensor, Tensor]]:
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
    def tiles(self, loaded: _Loaded) -> Iterator[tuple[slice, Tensor]]:
        """Of each chunk of a unit's images: which they are, and their scores with the unit's captions, on the device."""
        for images, regions in loaded.images:
            scores = self._scored.pop((loaded.unit.number, images.start), None)
            yield images, self._scores(regions, loaded.words, None) if scores is None else scores

    def _scores(self, regions: list, words: list, pairs: Tensor | None) -> Tensor:
        scores = [model.attention(*sides, pairs) for model, *sides in zip(self.models, regions, words, strict=True)]
        return scores[0] if len(scores) == 1 else torch.stack(scores).mean(dim=0)


class _Matrix:
    """The file of all scores, while it is being filled.

    Args:
        path: where it is to be when it is whole.
        identity: of the evaluation.
        shape: (I, T).
        kept: the folder with the evaluation's finished work. That continues with the unfinished file, or, where the last try was
            stopped after its scores were whole, with the finished one; anything else is begun anew.
        processes: those that fill it.

    Raises:
        OSError: there is no room for it, or another evaluation is at it.
        ValueError: the path is no file's, or this process does not see the file that the first one made.
    """

    def __init__(self, path: Path, identity: str, shape: tuple[int, int], kept: Path | None, processes: Processes):
        if path.exists() and not path.is_file():
            raise ValueError(f"save_scores: expected a file, which can be written to at any place, got {path}")
        path = path.resolve()
        self.path, self.unfinished, self.processes = path, path.with_name(f"{path.name}.{identity}.unfinished"), processes
        self._kept, self._lock = kept, None
        continued = kept is not None and kept.is_dir() and self.unfinished.is_file()
        record = kept and kept / _WHOLE
        whole = not continued and bool(record and record.is_file()) and record.read_text() == self._stamp(path)
        if processes.first and not whole:
            # Held as long as this is: two evaluations would write over each other's scores.
            self._lock = self.unfinished.open("ab")
            try:
                mine = hold(self._lock) and os.fstat(self._lock.fileno()).st_ino == self.unfinished.stat().st_ino
            except FileNotFoundError:
                mine = False
            if not mine:
                raise BlockingIOError(f"save_scores: expected a file that no other evaluation is writing, found {path} in use")
        anew, whole = processes.gather_values([not continued and not whole, whole])[0]
        if anew:
            forget(kept)
        if processes.first and anew:
            with self.unfinished.open("wb") as file:
                np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
                header = file.tell()
            allocate(self.unfinished, header + 4 * shape[0] * shape[1])
        processes.wait()
        current = path if whole else self.unfinished
        if not current.is_file():
            raise ValueError(
                f"save_scores: expected a folder that all processes see, found no {current} in process {processes.number}"
            )
        self._rows = np.lib.format.open_memmap(current, "r+")

    def write(self, images: slice, captions: Tensor, scores: Tensor) -> None:
        """Write a tile."""
        self._rows[images, captions.numpy()] = scores.cpu().numpy()

    def flush(self) -> None:
        """Have everything on the disk."""
        self._rows.flush()

    def finish(self) -> None:
        """Give the file its name; all processes call this when they have written their tiles."""
        self.flush()
        self.processes.wait()
        if self.processes.first and self._lock:
            if self._kept:
                self._kept.mkdir(parents=True, exist_ok=True)
                (self._kept / _WHOLE).write_text(self._stamp(self.unfinished))
            if self.path.exists():
                keep_mode(self.unfinished, self.path.stat().st_mode)
            self.unfinished.replace(self.path)
            self._lock.close()

    def remove(self) -> None:
        """Remove what is unfinished."""
        self.unfinished.unlink(missing_ok=True)

    @staticmethod
    def _stamp(path: Path) -> str | None:
        """What tells a file from another, whatever its name."""
        if not path.is_file():
            return None
        status = path.stat()
        return f"{status.st_ino} {status.st_size} {status.st_mtime_ns}"


def forget(kept: Path | None) -> None:
    """Remove what an evaluation has kept; its figures are safe, or it is to begin anew."""
    if kept:
        shutil.rmtree(kept, ignore_errors=True)


def _share(units: list[_Unit], processes: Processes) -> list[_Unit]:
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


def _identity(
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
