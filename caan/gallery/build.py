"""Making a gallery, and adding to one: segment by segment, so that a kill loses one segment at most."""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from .. import checkpoint
from ..data import Captions, Images, LengthBatches, Split
from ..data.record import with_named
from ..errors import StaleSplitError
from ..files import locked, make_folder, naming
from ..isolation import isolated
from ..model import CAAN
from ..progress import bar
from ..vocabulary import Vocabulary
from .store import Contents, Source

_SEGMENT = 1024
_BATCH = 128


@isolated()
def build_index(
    folder: str | Path,
    model: CAAN,
    vocabulary: Vocabulary,
    checkpoint_path: str | Path,
    split: Split,
    *,
    data: str | Path = "",
    backbone: dict[str, Any] | None = None,
    named: dict[str, Any] | None = None,
    replace: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = tqdm.write,
) -> None:
    """Project a split's images and captions, and put them into a gallery; what is there already stays as it is.

    Killed at any moment, the same call continues with the segment that was under way.

    Args:
        folder: of the gallery, made where it is missing.
        model: projects; on any device, left in evaluation mode.
        vocabulary: its words.
        checkpoint_path: where the model is from, which a search will look at.
        split: what is added; an image's captions follow each other.
        data: the folder that the split is from; with its name, what the split is known by.
        replace: take out what the gallery has of the split if that has changed since.
        backbone: what made its features, for photographs that are searched with, and where its own are, by its record.
        named: the same by the user's word, which counts more, and which the gallery keeps until that or the record changes.
        progress: show a bar of images.
        say: takes what is to be told beside it.

    Raises:
        StaleIndexError: another model has made what is there.
        MissingFileError, FormatError, NonFiniteError, WidthError: the gallery or the features cannot be used.
        ValueError: the model is a dense one, of intra="features".
        StaleSplitError: the split has changed since the gallery took it in, or another one is partly in.
        OSError: a file cannot be written, or another process is at this gallery.
    """
    folder = Path(folder)
    split.regions.require_width(model.config.region_width)
    _refuse_dense(model)
    digest = checkpoint.digest(model, vocabulary)
    make_folder("folder", folder)
    with locked(folder, "a gallery"):
        if (folder / "index.json").exists():
            contents = Contents.read(folder)
            contents.check_model(digest, folder, checkpoint_path)
        else:
            contents = Contents(digest, str(Path(checkpoint_path).absolute()), [])
        place = str(Path(data).absolute())
        digest = split.digest()
        if replace and any(x.is_split(place, split.name) and x.digest != digest for x in contents.sources):
            _take_out(contents, folder, place, split.name)
        made_by = with_named(backbone or {}, named or {}) or None
        wanted = Source(place, split.name, digest, split.num_images, made_by, recorded=backbone)
        source = _source_of(contents, folder, wanted, named or {})
        if source.finished == split.num_images:
            contents.write(folder)
            say(f"{split.name}: all of its {split.num_images:,} images are in {folder} already; nothing to do")
            return
        if source.finished:
            say(f"{split.name}: continues after {source.finished:,} of {split.num_images:,} images, which are in {folder}")
        images, captions = Images(split), Captions(split, vocabulary)
        if warning := captions.warning():
            say(warning)
        model.eval()
        used = _first_unused(contents)
        bar_of = {"total": split.num_images, "initial": source.finished, "unit": " images", "desc": split.name}
        with bar(**bar_of, shown=progress) as watch:
            for first in range(source.finished, split.num_images, _SEGMENT):
                chosen = np.arange(first, min(first + _SEGMENT, split.num_images))
                own = np.flatnonzero((split.image_of_caption >= chosen[0]) & (split.image_of_caption <= chosen[-1]))
                arrays = _image_arrays(model, images, chosen, watch) | _caption_arrays(model, captions, own)
                arrays["image_of_caption"] = split.image_of_caption[own].astype(np.int64) - first
                texts = {"ids": [split.ids[i] for i in chosen], "captions": [split.captions[t] for t in own]}
                name = f"segment-{used:05d}-{secrets.token_hex(4)}"
                sizes = _write_segment(folder / name, arrays, texts)
                source.segments.append({"folder": name, "images": len(chosen), "captions": len(own), "bytes": sizes})
                contents.write(folder)
                used += 1


def _refuse_dense(model: CAAN) -> None:
    if model.dense:
        raise ValueError(
            "intra: expected semantics or none for a gallery, got features: the operator scores that from regions and words "
            "themselves, never from the projections that a gallery keeps"
        )


def _first_unused(contents: Contents) -> int:
    """The number of a new segment's folder."""
    # A folder's second part is its own alone: one from another index is none of this one's.
    numbers = [int(segment["folder"].split("-")[1]) for other in contents.sources for segment in other.segments]
    return max(numbers, default=-1) + 1


def drop_split(folder: str | Path, data: str | Path, name: str) -> None:
    """Take a split out of a gallery, finished or not.

    Args:
        folder: of the gallery.
        data: the folder that the split was from.
        name: the split's.

    Raises:
        MissingFileError, FormatError: there is no index, or it is damaged.
        ValueError: it has no such split.
        OSError: a file cannot be written, or another process is at this gallery.
    """
    folder, place = Path(folder), str(Path(data).absolute())
    # Before a lock is put where there is no index.
    Contents.read(folder)
    with locked(folder, "a gallery"):
        contents = Contents.read(folder)
        if not any(source.is_split(place, name) for source in contents.sources):
            there = ", ".join(source.name for source in contents.sources) or "none"
            raise ValueError(f"split: expected one that is in {folder} ({there}), got {name} in {place}")
        _take_out(contents, folder, place, name)


def _take_out(contents: Contents, folder: Path, data: str, name: str) -> None:
    out = [source for source in contents.sources if source.is_split(data, name)]
    contents.sources = [source for source in contents.sources if source not in out]
    # Once nothing names them any more.
    contents.write(folder)
    for source in out:
        for segment in source.segments:
            shutil.rmtree(folder / segment["folder"], ignore_errors=True)


def _source_of(contents: Contents, folder: Path, wanted: Source, named: dict[str, Any]) -> Source:
    """The split's entry, a new one where it has none."""
    for source in contents.sources:
        if source.digest == wanted.digest:
            # Photographs may have moved.
            source.backbone = with_named(_noted(source, wanted.recorded), named) or None
            source.recorded = wanted.recorded or source.recorded
            return source
    for source in contents.sources:
        if source.is_split(wanted.data, wanted.split):
            raise StaleSplitError(
                f"{folder}: expected {wanted.split} of {wanted.data} as it was when it went in, found other features, captions or "
                "ids, or another number of images; --replace takes the old ones out"
            )
        if source.finished != source.images:
            raise StaleSplitError(
                f"{folder}: expected all of {source.name}, found {source.finished:,} of its {source.images:,} images; the same "
                "caan index command brings the rest, or takes them out with --drop"
            )
    contents.sources.append(wanted)
    return wanted


def _noted(source: Source, recorded: dict[str, Any] | None) -> dict[str, Any]:
    """What a gallery has noted of a split, with what is new in the record."""
    noted, before = source.backbone or {}, source.recorded or {}
    return noted | {
        name: value for name, value in (recorded or {}).items() if name not in noted or value != before.get(name, value)
    }


def _image_arrays(model: CAAN, images: Images, chosen: np.ndarray, watch: tqdm) -> dict[str, np.ndarray]:
    device = model.attention.affinity.device
    parts = []
    for first in range(0, len(chosen), _BATCH):
        batch = images.collate([images[int(image)] for image in chosen[first : first + _BATCH]])
        projected = model.prepare_images(batch.to(device))
        parts.append((projected.features.cpu(), projected.products.cpu(), batch.region_lengths))
        watch.update(len(batch.images))
    most = max(features.shape[1] for features, *_ in parts)
    features, products = (torch.cat([_padded(part[side], most) for part in parts]) for side in (0, 1))
    lengths = torch.cat([part[2] for part in parts])
    return {
        "regions": features.numpy(),
        "region_products": products.numpy(),
        "region_lengths": lengths.numpy(),
        "image_vectors": mean_vectors(features, lengths, model.config.similarity).numpy(),
    }


def _caption_arrays(model: CAAN, captions: Captions, chosen: np.ndarray) -> dict[str, np.ndarray]:
    device = model.attention.affinity.device
    lengths = captions.lengths[chosen]
    ends = np.cumsum(lengths)
    config = model.config
    hidden = config.hidden_width or config.width
    total = int(ends[-1]) if len(ends) else 0
    words = np.empty((total, config.width), np.float32)
    products = np.empty((total, config.width + 2 * hidden), np.float32)
    vectors = np.empty((len(chosen), config.width), np.float32)
    for rows in LengthBatches(lengths, 2 * _BATCH):
        batch = captions.collate([captions[int(caption)] for caption in chosen[rows]])
        projected = model.prepare_captions(batch.to(device))
        features = projected.features.cpu()
        vectors[rows] = mean_vectors(features, batch.word_lengths, config.similarity).numpy()
        for row, own, own_products in zip(rows, features.numpy(), projected.products.cpu().numpy(), strict=True):
            place = slice(ends[row] - lengths[row], ends[row])
            words[place], products[place] = own[: lengths[row]], own_products[: lengths[row]]
    return {"words": words, "word_products": products, "word_ends": ends, "caption_vectors": vectors}


def mean_vectors(features: Tensor, lengths: Tensor, similarity: str) -> Tensor:
    """The mean of each item's vectors, (B, L, D) and (B,) to (B, D); for "cosine" scaled to unit length.

    Its inner product with that of the other side is the score under uniform attention, and stands for the score in a shortlist.
    How much of the exact ranking's best that keeps, and what other poolings gain: docs/search.md.
    """
    real = torch.arange(features.shape[1], device="cpu") < lengths[:, None]
    mean = (features * real[..., None]).sum(dim=1) / lengths.clamp(min=1)[:, None]
    return normalize(mean, dim=-1) if similarity == "cosine" else mean


def _padded(items: Tensor, length: int) -> Tensor:
    return torch.nn.functional.pad(items, (0, 0, 0, length - items.shape[1]))


def _write_segment(folder: Path, arrays: dict[str, np.ndarray], texts: dict[str, list[str]]) -> dict[str, int]:
    """The sizes of its files, which are on the disk."""
    for left in folder.parent.glob(f"{folder.name.rpartition('-')[0]}-*"):
        # By a kill.
        shutil.rmtree(left)
    folder.mkdir()
    try:
        for name, array in arrays.items():
            with _written(folder / f"{name}.npy") as file:
                np.save(file, array, allow_pickle=False)
        with _written(folder / "texts.json") as file:
            file.write(json.dumps(texts, ensure_ascii=False).encode())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir())}


@contextmanager
def _written(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which is on the disk when the block ends."""
    with naming(path), path.open("wb") as file:
        yield file
        _to_disk(file)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
