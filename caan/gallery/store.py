"""A gallery on the disk: a folder of segments, each written whole, and a file that says which of them count.

    index.json            which model, which sources, how many of their images are in, and the segments with their files' sizes
    segment-00000-1f2e3d4c/   up to 1,024 images and their captions; the second part of the name is no other segment's
      regions.npy           (n, R, D) encoded regions, float32
      region_products.npy   (n, R, 2H), [V region_intra | V word_inter]
      region_lengths.npy    (n,) int64
      image_vectors.npy     (n, D), the mean of an image's regions; of unit length where the model scores by cosine
      words.npy             (W, D) encoded words of all captions, one caption after the other
      word_products.npy     (W, D + 2H), [U affinityᵀ | U region_inter | U word_intra]
      word_ends.npy         (t,) int64, where each caption ends in the two
      caption_vectors.npy   (t, D), the mean of a caption's words, likewise
      image_of_caption.npy  (t,) int64, from 0 to n - 1
      texts.json            the images' ids and the captions

A segment that index.json does not list does not count, so a kill at any moment loses the segment under way and no other.
"""

import json
import mmap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import caan_kernels as ck

from .. import checkpoint
from ..errors import FormatError, MissingFileError, StaleIndexError, TruncatedFileError
from ..files import parse_json, read_text, replacing
from ..progress import watched

FORMAT = "caan-index-2"
# The gallery of a model that cannot be read any more.
_OLD_OPERATOR = "caan-index-1"
ARRAYS = (
    *("regions", "region_products", "region_lengths", "image_vectors"),
    *("words", "word_products", "word_ends", "caption_vectors", "image_of_caption"),
)


@dataclass
class Source:
    """A split that is in a gallery, all of it or a part.

    Attributes:
        data: the folder that it is from.
        split: its name.
        digest: of its captions and features, `Split.digest`.
        images: how many it has.
        backbone: what made its features, in the words of `caan extract`, and "photos", the folder of its photographs; None if
            neither is known.
        segments: those that are written: their folder, numbers of images and captions, and the size of each file in bytes.
        recorded: what of `backbone` is from the record of `caan extract`, as that was then; None where there was none.
    """

    data: str
    split: str
    digest: str
    images: int
    backbone: dict[str, Any] | None
    segments: list[dict[str, Any]] = field(default_factory=list)
    recorded: dict[str, Any] | None = None

    @property
    def finished(self) -> int:
        """How many images are in."""
        return sum(segment["images"] for segment in self.segments)

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.split} in {self.data}"

    def is_split(self, data: str, split: str) -> bool:
        """Whether it is this split of this folder, changed since or not."""
        return (self.data, self.split) == (data, split)


@dataclass
class Contents:
    """What index.json says.

    Attributes:
        model: `caan.checkpoint.digest` of the model that projected everything.
        checkpoint: where that was.
        sources: in the order in which they were added.
    """

    model: str
    checkpoint: str
    sources: list[Source]

    @classmethod
    def read(cls, folder: Path) -> "Contents":
        """Read it.

        Raises:
            MissingFileError, FormatError: there is none, or it is none of ours.
        """
        path = folder / "index.json"
        if not path.is_file():
            raise MissingFileError(f"{folder}: expected a gallery, found {_no_gallery(folder)}")
        try:
            facts = parse_json(path, read_text(path), "what caan index writes")
            found = facts["format"]
            if found != FORMAT:
                why = f", {checkpoint.TRAIN_AGAIN}" if found == _OLD_OPERATOR else ""
                raise FormatError(
                    f"{path}: expected a gallery of format {FORMAT}, found {found}{why}; caan index makes it anew elsewhere"
                )
            sources = [Source(**source) for source in facts["sources"]]
            for segment in (segment for source in sources for segment in source.segments):
                kinds = {name: type(segment[name]) for name in ("folder", "images", "captions", "bytes")}
                if list(kinds.values()) != [str, int, int, dict]:
                    raise TypeError(f"a segment of {kinds}")
            return cls(facts["model"], facts["checkpoint"], sources)
        except (KeyError, TypeError, AttributeError) as error:
            raise FormatError(f"{path}: expected what caan index writes: {type(error).__name__}: {error}") from None

    def write(self, folder: Path) -> None:
        """Write it; a reader sees the old file or the new one."""
        with replacing(folder / "index.json") as unfinished:
            unfinished.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1))

    def check_model(self, digest: str, folder: Path, checkpoint: str | Path) -> None:
        """Compare with a model.

        Raises:
            StaleIndexError: it is another one.
        """
        if digest != self.model:
            raise StaleIndexError(
                f"{folder}: expected a gallery of the model in {checkpoint}, found one of another model (it was in "
                f"{self.checkpoint}), whose numbers mean nothing to this one; caan index with another --out makes a new gallery"
            )


def _no_gallery(folder: Path) -> str:
    """What is found in place of a gallery, and which command makes one."""
    if any((folder / name).is_file() for name in (checkpoint.BEST, checkpoint.LAST, checkpoint.CONFIG)) or folder.is_file():
        return f"a model; caan index {folder} --data DATA --out GALLERY makes a gallery with it"
    return f"{'no index.json in it' if folder.is_dir() else 'none'}; caan index RUN --data DATA --out {folder} makes it"


class _Segment:
    """One segment, its files memory-mapped."""

    def __init__(self, folder: Path, sizes: dict[str, int]):
        for name, size in sizes.items():
            path = folder / name
            found = path.stat().st_size if path.is_file() else 0
            if found != size:
                raise TruncatedFileError(
                    f"{path}: expected {size:,} bytes, found {found:,}; caan index with another --out makes it anew"
                )
        self.folder = folder
        for name in ARRAYS:
            try:
                setattr(self, name, np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
            except (ValueError, EOFError, OSError) as error:
                raise FormatError(f"{folder / name}.npy: expected an array of a gallery: {error}") from None

    @cached_property
    def texts(self) -> dict[str, list[str]]:
        path = self.folder / "texts.json"
        try:
            found = parse_json(path, read_text(path), "the texts of a gallery")
            counts = len(found["ids"]), len(found["captions"])
        except (KeyError, TypeError) as error:
            raise FormatError(f"{path}: expected the texts of a gallery: {type(error).__name__}: {error}") from None
        if counts != (len(self.regions), len(self.word_ends)):
            raise FormatError(f"{path}: expected {len(self.regions)} ids and {len(self.word_ends)} captions, found {counts}")
        return found


class Gallery:
    """A gallery, open for reading. Images and captions are numbered in the order in which they were added.

    Args:
        folder: of the gallery.
        digest: of the model that is to score, `caan.checkpoint.digest`.
        checkpoint: where that model is, for messages.

    Attributes:
        sources: the splits that are all in, and searched.
        unfinished: those that are only partly in, and left out.
        image_vectors: (I, D) float32, in memory.
        caption_vectors: (T, D) float32, in memory.
        image_of_caption: (T,) int64.
        ids: I names.
        captions: T texts.

    Raises:
        MissingFileError, FormatError, TruncatedFileError: there is no index, or it is damaged or half written.
        StaleIndexError: another model has made it.
    """

    def __init__(self, folder: str | Path, digest: str, checkpoint: str | Path):
        self.folder = Path(folder)
        self.contents = Contents.read(self.folder)
        self.contents.check_model(digest, self.folder, checkpoint)
        self.sources = [source for source in self.contents.sources if source.finished == source.images]
        self.unfinished = [source for source in self.contents.sources if source.finished != source.images]
        if not self.sources:
            found = [f"{x.finished:,} of the {x.images:,} images of {x.name}" for x in self.unfinished] or ["no split at all"]
            raise TruncatedFileError(
                f"{self.folder}: expected a finished gallery, found {', '.join(found)}; the same caan index command continues"
            )
        listed = [segment for source in self.sources for segment in source.segments]
        watch = watched(listed, f"reading {self.folder}", "segments")
        self._segments = [_Segment(self.folder / segment["folder"], segment["bytes"]) for segment in watch]
        self._first_image = np.cumsum([0, *(len(segment.regions) for segment in self._segments)])
        self._first_caption = np.cumsum([0, *(len(segment.word_ends) for segment in self._segments)])
        self.image_vectors = self._read("image_vectors", "images")
        self.caption_vectors = self._read("caption_vectors", "captions")
        numbered = zip(self._segments, self._first_image, strict=False)
        self.image_of_caption = np.concatenate([segment.image_of_caption + first for segment, first in numbered])

    def _read(self, name: str, unit: str) -> np.ndarray:
        """One array of all segments, in memory."""
        return np.concatenate([getattr(segment, name) for segment in watched(self._segments, f"reading {unit}", "segments")])

    @cached_property
    def ids(self) -> list[str]:
        return [text for segment in self._segments for text in segment.texts["ids"]]

    @cached_property
    def captions(self) -> list[str]:
        return [text for segment in self._segments for text in segment.texts["captions"]]

    @property
    def made_by(self) -> dict[str, Any] | None:
        """The `backbone` of the first source that knows what made its features."""
        return next((source.backbone for source in self.sources if source.backbone and "backbone" in source.backbone), None)

    def source_of(self, image: int) -> Source:
        """The split that an image is of."""
        ends = np.cumsum([source.images for source in self.sources])
        return self.sources[int(np.searchsorted(ends, image, side="right"))]

    def images(self, numbers: np.ndarray) -> ck.ProjectedRegions:
        """Images by their numbers, (P,) int64: regions of P images, in that order."""
        located = list(self._located(numbers, self._first_image))
        for _, segment, rows in located:
            for array in (segment.regions, segment.region_products):
                _announce(array, rows, rows + 1)
        found = [
            (places, segment.regions[rows], segment.region_products[rows], segment.region_lengths[rows])
            for places, segment, rows in located
        ]
        most = max(int(lengths.max()) for *_, lengths in found) or 1
        features, products, lengths = _empty(len(numbers), most, found[0][1].shape[2], found[0][2].shape[2])
        for places, regions, region_products, own in found:
            width = min(most, regions.shape[1])
            features[places, :width] = torch.from_numpy(regions[:, :width])
            products[places, :width] = torch.from_numpy(region_products[:, :width])
            lengths[places] = torch.from_numpy(own)
        return ck.ProjectedRegions(features, products, lengths)

    def words(self, numbers: np.ndarray) -> ck.ProjectedWords:
        """Captions by their numbers, (P,) int64: words of P captions, in that order."""
        found = []
        for places, segment, rows in self._located(numbers, self._first_caption):
            ends = segment.word_ends[rows]
            begins = np.where(rows > 0, segment.word_ends[rows - 1], 0)
            for array in (segment.words, segment.word_products):
                _announce(array, begins, ends)
            found += zip(places, [segment] * len(rows), begins, ends, strict=True)
        most = max(int(end - begin) for *_, begin, end in found)
        first = found[0][1]
        features, products, lengths = _empty(len(numbers), most, first.words.shape[1], first.word_products.shape[1])
        for place, segment, begin, end in found:
            features[place, : end - begin] = torch.from_numpy(np.array(segment.words[begin:end]))
            products[place, : end - begin] = torch.from_numpy(np.array(segment.word_products[begin:end]))
            lengths[place] = int(end - begin)
        return ck.ProjectedWords(features, products, lengths)

    def _located(self, numbers: np.ndarray, firsts: np.ndarray) -> Iterator[tuple[np.ndarray, _Segment, np.ndarray]]:
        """Of each segment that has some of the numbers: their places among the numbers, the segment, and their rows there."""
        owner = np.searchsorted(firsts, numbers, side="right") - 1
        for index in np.unique(owner):
            places = np.flatnonzero(owner == index)
            # Rows that lie together are read together.
            places = places[np.argsort(numbers[places], kind="stable")]
            yield places, self._segments[index], numbers[places] - firsts[index]


def _announce(array: np.memmap, begins: np.ndarray, ends: np.ndarray) -> None:
    """Have the kernel fetch rows, all at once: read one after the other, a cold disk is waited for at every one of them."""
    mapped, stride = array._mmap, array.strides[0]
    # The map begins on a page before the values, where the header is.
    values = array.offset % mmap.ALLOCATIONGRANULARITY
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        first = (values + begin * stride) // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_WILLNEED, first, values + end * stride - first)


def _empty(count: int, length: int, width: int, products: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.zeros(count, length, width, dtype=torch.float32, device="cpu"),
        torch.zeros(count, length, products, dtype=torch.float32, device="cpu"),
        torch.zeros(count, dtype=torch.int64, device="cpu"),
    )
