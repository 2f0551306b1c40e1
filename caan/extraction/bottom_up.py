"""Region features that others have computed: the TSV and .npz files of bottom-up attention."""

import base64
import binascii
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..errors import FormatError, MissingFileError
from .run import Regions, Unreadable
from .sources import CaptionedImage

_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
# In a line of a TSV file the id stands first; what has no tab so early is no record.
_LONGEST_ID = 1000


class _Record(NamedTuple):
    """Where a record lies; one of a .npz file is the file."""

    path: Path
    offset: int = 0
    length: int = 0


class BottomUpFeatures:
    """Bottom-up-attention features as a source of regions, float32; see `RegionSource`.

    Args:
        paths: the files or the folder as they were given, for messages and for the record.
        records: by the image's key (`_key_of` of its COCO id, or of its name without the ending), where it lies.
        read: gives a record's features (R, F) and its boxes (R, 4) in pixels, and the photograph's width and height.

    Raises:
        FormatError: no record can be read.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, paths: Sequence[str | Path], records: dict[str, _Record], read: Callable[[_Record], tuple]):
        self.place = Path(paths[0])
        self._records, self._read = records, read
        reason = "there is none"
        for record in records.values():
            try:
                features, *_ = read(record)
                break
            except Unreadable as error:
                reason = f"in {record.path.name}, {error}"
        else:
            raise FormatError(f"{self.place}: expected region features, found no record that can be read: {reason}")
        self._width = features.shape[1]
        self.settings = {"features": [str(path) for path in paths], "width": self._width}

    def find(self, image: CaptionedImage) -> tuple[str, _Record] | None:
        """The image's name and its record, found by its COCO id or by its name without the ending."""
        path = Path(image.name)
        for name in (image.id, path.stem, path.name):
            record = self._records.get(_key_of(name)) if name else None
            if record is not None:
                return image.name, record
        return None

    def load(self, key: _Record) -> Regions:
        """The regions of one image, boxes as fractions."""
        features, boxes, width, height = self._read(key)
        if features.shape[1] != self._width:
            raise Unreadable(f"expected features of width {self._width}, as in the first record, found {features.shape[1]}")
        if not (width > 0 and height > 0 and np.isfinite(boxes).all()):
            raise Unreadable(f"expected finite boxes in a photograph, found a size of {width} x {height}")
        return Regions(features, (boxes / np.array([width, height, width, height])).astype(np.float32))

    def encode(self, loaded: Sequence[Regions]) -> list[Regions]:
        """The regions as they are."""
        return list(loaded)

    def examples(self) -> list[str]:
        """The keys of some images that are there."""
        return [key for key, _ in zip(self._records, range(3), strict=False)]


def open_features(paths: Sequence[str | Path]) -> BottomUpFeatures:
    """Open the features of bottom-up attention.

    Args:
        paths: TSV files (columns image_id, image_w, image_h, num_boxes, and base64 of float32 boxes and features), or one
            folder: of TSV files, or of .npz files, one an image (`x` or `features` (R, F), `bbox` or `boxes` (R, 4) in
            pixels, `num_bbox` or `num_boxes` where it is there, `image_w`, `image_h`).

    Raises:
        MissingFileError, FormatError: nothing there can be used.
    """
    files = [Path(path) for path in paths]
    if len(files) == 1 and files[0].is_dir():
        singles = sorted(files[0].glob("*.npz"))
        if singles:
            return BottomUpFeatures(paths, {_key_of(path.stem): _Record(path) for path in singles}, _read_npz)
        files = sorted(files[0].glob("*.tsv*"))
        if not files:
            raise MissingFileError(f"features: expected .npz or .tsv files in {paths[0]}, found none")
    for path in files:
        if not path.is_file():
            raise MissingFileError(f"features: expected TSV files, or a folder of .npz or .tsv files, found none at {path}")
    return BottomUpFeatures(paths, _index(files), _read_tsv)


def _key_of(name: str) -> str:
    """What two spellings of an image have in common: COCO's numbers come with and without zeros before them."""
    name = name.removesuffix(".jpg")
    return name.lstrip("0") or "0" if name.isdecimal() else name


def _index(files: Sequence[Path]) -> dict[str, _Record]:
    """Where each image's record lies. Shards that overlap, or a file that was continued, repeat records: the last counts."""
    records = {}
    total = sum(path.stat().st_size for path in files)
    with tqdm(total=total, desc="looking for records", unit="B", unit_scale=True) as bar:
        for path in files:
            offset = 0
            with path.open("rb", buffering=1 << 20) as file:
                for line in file:
                    name, tab, _ = line[:_LONGEST_ID].partition(b"\t")
                    if tab:
                        records[_key_of(name.decode("utf-8", "replace").strip())] = _Record(path, offset, len(line))
                    offset += len(line)
                    bar.update(len(line))
    return records


def _read_tsv(record: _Record) -> tuple[np.ndarray, np.ndarray, float, float]:
    with record.path.open("rb") as file:
        file.seek(record.offset)
        fields = file.read(record.length).rstrip(b"\r\n").split(b"\t")
    if len(fields) != len(_COLUMNS):
        raise Unreadable(f"expected the columns {', '.join(_COLUMNS)}, found {len(fields)} columns")
    try:
        width, height, count = float(fields[1]), float(fields[2]), int(fields[3])
        boxes, features = (np.frombuffer(base64.b64decode(field, validate=True), dtype="<f4") for field in fields[4:])
    except (ValueError, binascii.Error) as error:
        raise Unreadable(f"expected numbers and base64 of float32: {error}") from None
    if count < 1 or len(boxes) != 4 * count or len(features) == 0 or len(features) % count:
        found = f"{len(boxes)} numbers of boxes and {len(features)} of features"
        raise Unreadable(
            f"num_boxes is {count}: expected {4 * count} numbers of boxes and a multiple of {count} of features, found {found}"
        )
    return features.reshape(count, -1), boxes.reshape(count, 4), width, height


def _read_npz(record: _Record) -> tuple[np.ndarray, np.ndarray, float, float]:
    try:
        # A pickle could run any code that its author wished.
        with np.load(record.path, allow_pickle=False) as content:
            features, boxes = _entry(content, "x", "features"), _entry(content, "bbox", "boxes")
            if not {"image_w", "image_h"} <= set(content.files) and "info" in content.files:
                pickled = "`info` would have to be unpickled, which can run code, and is not read"
                raise Unreadable(f"expected `image_w` and `image_h`, found neither; {pickled}: save the two as numbers")
            width, height = (float(_entry(content, name).item()) for name in ("image_w", "image_h"))
            counted = {"num_bbox", "num_boxes"} & set(content.files)
            count = int(_entry(content, "num_bbox", "num_boxes").item()) if counted else len(boxes)
    except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise Unreadable(f"expected a .npz file of numbers: {error}") from None
    # Some programs save (F, R).
    if features.ndim == 2 and features.shape[0] != count == features.shape[1]:
        features = features.T
    numbers = features.dtype.kind == "f" and boxes.dtype.kind in "fiu"
    if not numbers or features.ndim != 2 or 0 in features.shape or len(features) != count or boxes.shape != (count, 4):
        found = f"features {features.shape} {features.dtype} and boxes {boxes.shape} {boxes.dtype}"
        raise Unreadable(f"expected features ({count}, F) of floating point and boxes ({count}, 4), found {found}")
    return features, boxes, width, height


def _entry(content: np.lib.npyio.NpzFile, *names: str) -> np.ndarray:
    for name in names:
        if name in content.files:
            return content[name]
    raise Unreadable(f"expected `{'` or `'.join(names)}`, found only {', '.join(content.files) or 'nothing'}")
