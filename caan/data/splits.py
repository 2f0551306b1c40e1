"""One split of a data set: images, their captions, and which belongs to which."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import CaptionMismatchError, FormatError, MissingFileError
from ..files import parse_json, read_text
from ..progress import watched
from ..text import normalised
from .record import read_record
from .regions import RegionFile, read_region_counts

CAPTIONS_PER_IMAGE = 5


@dataclass(frozen=True)
class Split:
    """I images and T captions.

    Attributes:
        name: the split's name, such as "train".
        regions: the file with the images' features.
        rows: (I,) int64, the row of `regions` that holds each image.
        region_counts: (I,) int64, the real regions of each image.
        ids: what the data set calls each image, I of them.
        captions: T texts; none where the split has no captions file.
        image_of_caption: (T,) int64, the image that each caption describes, from 0 to I - 1.
    """

    name: str
    regions: RegionFile
    rows: np.ndarray
    region_counts: np.ndarray
    ids: list[str]
    captions: list[str]
    image_of_caption: np.ndarray

    @property
    def num_images(self) -> int:
        """I."""
        return len(self.rows)

    def first(self, limit: int | None) -> "Split":
        """The split with its first `limit` images and their captions; None means all.

        Raises:
            ValueError: there are not so many images.
        """
        if limit is None:
            return self
        if not 1 <= limit <= self.num_images:
            raise ValueError(f"limit: expected 1 to {self.num_images}, the images of {self.regions.path}, got {limit}")
        captions = int(np.searchsorted(self.image_of_caption, limit))
        return replace(
            self,
            rows=self.rows[:limit],
            region_counts=self.region_counts[:limit],
            ids=self.ids[:limit],
            captions=self.captions[:captions],
            image_of_caption=self.image_of_caption[:captions],
        )

    def digest(self, images: int | None = None) -> str:
        """A fingerprint of all that the split is: captions and whose they are, ids, region counts and features.

        Args:
            images: read the features of so many images only, evenly among all; None reads every one, as fast as the disk gives
                them (1.2 GB/s from memory).
        """
        result = hashlib.sha256(json.dumps([self.regions.width, str(self.regions.dtype), self.ids, self.captions]).encode())
        for numbers in (self.region_counts, self.image_of_caption):
            result.update(numbers.astype("<i8").tobytes())
        chosen = range(self.num_images)
        if images is not None and images < self.num_images:
            chosen = np.linspace(0, self.num_images - 1, images, dtype=int).tolist()
        for image in watched(chosen, f"{self.name}: reading all features" if images is None else f"{self.name}: reading", "images"):
            result.update(self.regions.raw(int(self.rows[image])))
        return result.hexdigest()

    def read_regions(self, image: int) -> np.ndarray:
        """The real regions of one image, (region_counts[image], F), as `RegionFile.read` gives them."""
        return self.regions.read(int(self.rows[image]), int(self.region_counts[image]), self.ids[image])


def load_scan_split(
    folder: str | Path,
    split: str,
    *,
    captions_per_image: int | None = None,
    need_captions: bool = True,
    limit: int | None = None,
    width: int | None = None,
) -> Split:
    """Open one split of the SCAN layout.

    `{split}_ims.npy` holds the features and `{split}_caps.txt` the captions, one a line, those of an image in a row.
    The features have one row an image, or, in older data, one row a caption, each image's repeated; either is
    recognised by the number of captions. `{split}_ids.txt` (one id an image, or a caption) and
    `{split}_num_boxes.npy` ((N,) integers, the real regions of each row) are read where they are.

    Args:
        folder: where the files are.
        split: the first part of their names: "train", "dev", "test", "testall".
        captions_per_image: how many lines of captions an image has; None takes what `caan extract` has noted, or else 5.
        need_captions: False opens features without `{split}_caps.txt`, too, as a split of no captions.
        limit: use only the first images; the field takes 1,000 of Flickr30K's 1,014 in dev.
        width: the width that the features must have; None takes any.

    Raises:
        MissingFileError, FormatError, TruncatedFileError, WidthError, CaptionMismatchError: a file cannot be used.
        ValueError: captions_per_image or limit does not fit.
    """
    folder = Path(folder)
    if captions_per_image is None:
        captions_per_image = recorded_captions_per_image(folder, split)
    if captions_per_image < 1:
        raise ValueError(f"captions_per_image: expected at least 1, got {captions_per_image}")
    features_path, captions_path = folder / f"{split}_ims.npy", folder / f"{split}_caps.txt"
    for path in (features_path, captions_path) if need_captions else (features_path,):
        if not path.is_file():
            raise MissingFileError(_missing(path, folder, split))
    regions = RegionFile(features_path, width)
    captions, stride = [], 1
    if captions_path.is_file():
        captions = _read_lines(captions_path)
        stride = _rows_per_image(regions, len(captions), captions_path, captions_per_image)
    rows = np.arange(0, len(regions), stride)
    region_counts = _region_counts(folder / f"{split}_num_boxes.npy", regions, rows)
    ids = _read_ids(folder / f"{split}_ids.txt", len(regions), len(captions), stride, captions_per_image)
    image_of_caption = np.arange(len(captions)) // captions_per_image
    return Split(split, regions, rows, region_counts, ids, captions, image_of_caption).first(limit)


def recorded_captions_per_image(folder: str | Path, split: str) -> int:
    """How many captions an image of a split has, by what `caan extract` has noted; 5 where it has noted none.

    Raises:
        FormatError: the note is none of `caan extract`.
    """
    record = read_record(folder, split)
    return (record and record.captions_per_image) or CAPTIONS_PER_IMAGE


def _missing(path: Path, folder: Path, split: str) -> str:
    """What to say of a file of the layout that is not there."""
    record = read_record(folder, split)
    if record and not record.captions_per_image and path.with_name(f"{split}_ims.npy").is_file():
        return f"{path}: expected captions, found none: caan extract made {split} without --captions"
    there = sorted(found.name.removesuffix("_ims.npy") for found in folder.glob("*_ims.npy"))
    if not there:
        return (
            f"{path}: expected a file of the SCAN layout, found none (there is no split at all); caan extract makes a data folder"
        )
    lacks = f"{path}: expected a file of the SCAN layout, found none (splits there: {', '.join(there)})"
    return lacks + ("; caan extract --hold-out N makes train, dev and test" if split in ("train", "dev") else "")


@dataclass(frozen=True)
class KarpathyImage:
    """One image of a Karpathy file.

    Attributes:
        id: `cocoid`, or else the file's name.
        path: where the photograph is, relative to the data set's folder.
        split: as in the file: "train", "restval", "val" or "test".
        captions: its raw sentences.
    """

    id: str
    path: str
    split: str
    captions: list[str]


def read_karpathy(path: str | Path) -> list[KarpathyImage]:
    """Read a `dataset_*.json` of Karpathy's splits (Flickr8k, Flickr30K, COCO).

    Returns:
        The images of all splits, in the file's order.

    Raises:
        MissingFileError, FormatError: the file cannot be used.
    """
    return parse_karpathy(Path(path), read_text(Path(path)))


class KarpathyFile(NamedTuple):
    """A Karpathy file that has been read: a pipe can be read once only."""

    path: Path
    images: list[KarpathyImage]

    @classmethod
    def read(cls, path: str | Path) -> "KarpathyFile":
        """As `read_karpathy`."""
        return cls(Path(path), read_karpathy(path))


def parse_karpathy(path: Path, text: str) -> list[KarpathyImage]:
    """`read_karpathy` of a text that has been read; the path is named in errors."""
    content = parse_json(path, text, 'JSON with a list "images"')
    images = content.get("images") if isinstance(content, dict) else content
    if not isinstance(content, dict) or not isinstance(images, list):
        raise FormatError(f'{path}: expected JSON with a list "images", found {type(images).__name__}')
    result = []
    for number, image in enumerate(images):
        try:
            place = Path(image.get("filepath", ""), image["filename"])
            captions = [normalised(" ".join(sentence["raw"].split())) for sentence in image["sentences"]]
            name, split = normalised(place.as_posix()), image["split"]
            if not isinstance(split, str):
                raise TypeError(f"a split {split!r}")
            split = normalised(split)
            result.append(KarpathyImage(normalised(str(image.get("cocoid", Path(name).name))), name, split, captions))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            expected = 'expected "filename", "split" and "sentences" with "raw"'
            raise FormatError(f"{path}: {expected} in image {number}: {type(error).__name__}: {error}") from None
    return result


def load_karpathy_split(
    path: str | Path | KarpathyFile,
    features: str | Path,
    split: str,
    *,
    captions_per_image: int | None = None,
    limit: int | None = None,
    width: int | None = None,
) -> Split:
    """Open one split whose captions are in a Karpathy file.

    Args:
        path: the `dataset_*.json`; or what `KarpathyFile` has read, where several splits are opened.
        features: a .npy file (N, R, F), one row for each image of the split in the order of the JSON; for "train" of
            COCO those of "restval" are among them, as everyone trains. `{features without _ims.npy}_num_boxes.npy` is
            read where it is.
        split: "train", "val" (or "dev") or "test".
        captions_per_image: use only the first captions of an image (SCAN's COCO has five); None uses all.
        limit, width: as for `load_scan_split`.

    Raises:
        MissingFileError, FormatError, TruncatedFileError, WidthError, CaptionMismatchError: a file cannot be used.
        ValueError: captions_per_image or limit does not fit.
    """
    if captions_per_image is not None and captions_per_image < 1:
        raise ValueError(f"captions_per_image: expected at least 1 or None, got {captions_per_image}")
    path, everything = path if isinstance(path, KarpathyFile) else KarpathyFile.read(path)
    wanted = {"train": ("train", "restval"), "dev": ("val",)}.get(split, (split,))
    images = [image for image in everything if image.split in wanted]
    if not images:
        there = ", ".join(sorted({image.split for image in everything})) or "none"
        raise FormatError(f"{path}: expected images of the split {split!r}, found only these splits: {there}")
    regions = RegionFile(features, width)
    if len(regions) != len(images):
        raise CaptionMismatchError(
            f"{regions.path}: expected {len(images)} rows, one for each image of {split!r} in {path}, found {len(regions)}"
        )
    _check_order(regions.path.with_name(f"{regions.path.stem.removesuffix('_ims')}_ids.txt"), images, path)
    rows = np.arange(len(regions))
    counts_path = regions.path.with_name(f"{regions.path.stem.removesuffix('_ims')}_num_boxes.npy")
    captions = [image.captions[:captions_per_image] for image in images]
    image_of_caption = np.repeat(rows, [len(own) for own in captions])
    ids = [image.id for image in images]
    texts = [caption for own in captions for caption in own]
    return Split(split, regions, rows, _region_counts(counts_path, regions, rows), ids, texts, image_of_caption).first(limit)


def _check_order(ids_path: Path, images: list[KarpathyImage], path: str | Path) -> None:
    """Where the features' ids are those of the JSON, both must have them in one order."""
    if not ids_path.is_file():
        return
    ids = _read_lines(ids_path)
    known = {name: number for number, image in enumerate(images) for name in (image.id, image.path, Path(image.path).name)}
    if len(ids) != len(images) or not all(name in known for name in ids):
        return
    for row, name in enumerate(ids):
        if known[name] != row:
            raise CaptionMismatchError(
                f"{ids_path}: expected the images in the order of {path}, which has {images[row].path} in place {row}, found {name}"
            )


def _rows_per_image(regions: RegionFile, captions: int, captions_path: Path, captions_per_image: int) -> int:
    """1, or captions_per_image where the features have one row a caption."""
    rows = len(regions)
    if captions == rows * captions_per_image:
        return 1
    if captions != rows or captions % captions_per_image:
        raise CaptionMismatchError(
            f"{captions_path}: expected {rows * captions_per_image} captions, {captions_per_image} for each of the {rows} rows of "
            f"{regions.path.name}, or {rows}, one a row, in whole images; found {captions}"
        )
    # Images that truly have one caption would otherwise lose all but every fifth in silence.
    first = b""
    for row in watched(range(rows), f"comparing rows of {regions.path.name}", "rows"):
        if row % captions_per_image == 0:
            first = regions.raw(row)
        elif regions.raw(row) != first:
            raise CaptionMismatchError(
                f"{regions.path}: as many rows as captions ({rows}): expected each image's row {captions_per_image} times, found "
                f"rows {row - row % captions_per_image} and {row} to differ; if every image has one caption, say "
                "captions_per_image=1"
            )
    return captions_per_image


def _read_ids(path: Path, rows: int, captions: int, stride: int, captions_per_image: int) -> list[str]:
    """One id an image; its row where there is no file."""
    if not path.is_file():
        return [str(row) for row in range(0, rows, stride)]
    ids = _read_lines(path)
    images = rows // stride
    if len(ids) not in (images, captions):
        raise CaptionMismatchError(f"{path}: expected {images} ids, one an image, or {captions}, one a caption, found {len(ids)}")
    if len(ids) == images:
        return ids
    for row, name in enumerate(ids):
        own = ids[row - row % captions_per_image]
        if name != own:
            raise CaptionMismatchError(
                f"{path}: as many ids as captions ({captions}): expected each image's id {captions_per_image} times, found {own!r} "
                f"and {name!r} for image {row // captions_per_image}; without this file, images are called by their rows"
            )
    return ids[::captions_per_image]


def _region_counts(path: Path, regions: RegionFile, rows: np.ndarray) -> np.ndarray:
    """The real regions of the given rows."""
    if not path.is_file():
        return np.full(len(rows), regions.max_regions, dtype=np.int64)
    return read_region_counts(path, len(regions), regions.max_regions)[rows]


def _read_lines(path: Path) -> list[str]:
    """The lines of a text file, without surrounding white space. An empty line is a line: dropping one would move every
    caption after it to another image."""
    lines = normalised(read_text(path)).split("\n")
    return [line.strip() for line in (lines if lines[-1] else lines[:-1])]
