"""Region features that others have computed: the TSV and .npz files of bottom-up attention."""

import base64
import binascii
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import FormatError, MissingFileError
from ..photographs import Unreadable, is_photograph
from ..progress import bar
from ..text import normalised
from .regions import Regions
from .sources import CaptionedImage

_COLUMNS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
# In a line of a TSV file the id stands first; what has no tab so early is no record.
_LONGEST_ID = 1000
_BOX = 4
_FEW = 10
# Boxes may stick out of their photograph by a rounding.
_SLACK = 0.01
_MARK = b"\xef\xbb\xbf"


class _Record(NamedTuple):
    """Where a record lies; one of a .npz file is the file."""

    path: Path
    offset: int = 0
    length: int = 0
    line: int = 0

    def __str__(self) -> str:
        return f"{self.path.name}, line {self.line}" if self.line else self.path.name


_Records = dict[str, list[_Record]]
"""By an image's key, its records; the last that can be read counts."""


class BottomUpFeatures:
    """Bottom-up-attention features as a source of regions, float32; see `RegionSource`.

    Args:
        paths: the files or the folder as they were given, for messages and for the record.
        records: by the image's key (`_key_of` of its COCO id, or of its name without the ending), where its records lie.
        read: gives a record's features (R, F) and its boxes (R, 4) in pixels, and the photograph's width and height.

    Raises:
        FormatError: no record can be read.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, paths: Sequence[str | Path], records: _Records, read: Callable[[_Record], tuple]):
        self.place = Path(paths[0])
        self._records, self._read = records, read
        self._width = _first_width(self.place, records, read)
        self.settings = {"features": [str(path) for path in paths], "width": self._width}

    def find(self, image: CaptionedImage) -> tuple[str, list[_Record]] | None:
        """The image's name and its records, found by its COCO id or by its name without the ending."""
        path = Path(image.name)
        for name in (image.id, path.stem, path.name):
            records = self._records.get(_key_of(name)) if name else None
            if records is not None:
                return image.name, records
        return None

    def load(self, key: Sequence[_Record]) -> Regions:
        """The regions of one image, boxes as fractions: of its last record that can be read."""
        problem = None
        for record in reversed(key):
            try:
                return self._regions(record)
            except Unreadable as error:
                problem = problem or Unreadable(f"{record}: {error}")
        raise problem

    def _regions(self, record: _Record) -> Regions:
        features, boxes, width, height = self._read(record)
        if features.shape[1] != self._width:
            raise Unreadable(f"expected features of width {self._width}, as in the first record, found {features.shape[1]}")
        if not (0 < width < np.inf and 0 < height < np.inf and np.isfinite(boxes).all()):
            raise Unreadable(f"expected finite boxes in a photograph, found a size of {width} x {height}")
        _check_boxes(boxes, width, height)
        with np.errstate(over="ignore"):
            features = features.astype(self.dtype, copy=False)
        if not np.isfinite(features).all():
            raise Unreadable(f"its features are not finite numbers in {self.dtype}")
        return Regions(features, (boxes / np.array([width, height, width, height])).astype(np.float32))

    def encode(self, loaded: Sequence[Regions]) -> list[Regions]:
        """The regions as they are."""
        return list(loaded)

    def images(self) -> list[CaptionedImage]:
        """All images that have records, called by their keys."""
        return [CaptionedImage(key, [], key) for key in sorted(self._records)]

    def examples(self) -> list[str]:
        """The keys of some images that are there."""
        return [key for key, _ in zip(self._records, range(3), strict=False)]


def _check_boxes(boxes: np.ndarray, width: float, height: float) -> None:
    """x1 y1 x2 y2 in pixels of the photograph, but for a rounding."""
    size = np.array([width, height, width, height])
    slack = np.maximum(2, _SLACK * size)
    if len(boxes) and boxes.max() <= 1 and min(width, height) > _FEW:
        raise Unreadable(f"expected boxes in pixels of {width:g} x {height:g}, found fractions: none is above {boxes.max():g}")
    wrong = ((boxes < -slack) | (boxes > size + slack)).any(axis=1) | (boxes[:, :2] > boxes[:, 2:]).any(axis=1)
    if wrong.any():
        box = ", ".join(f"{number:g}" for number in boxes[wrong.argmax()])
        raise Unreadable(f"expected boxes x1 y1 x2 y2 in pixels of {width:g} x {height:g}, found {box}")


def _first_width(place: Path, records: _Records, read: Callable[[_Record], tuple]) -> int:
    """F of the first record that can be read."""
    reason = "there is none"
    for record in chain.from_iterable(records.values()):
        try:
            return read(record)[0].shape[1]
        except Unreadable as error:
            reason = f"{record}: {error}"
    raise FormatError(f"{place}: expected region features, found no record that can be read: {reason}")


def open_features(paths: Sequence[str | Path]) -> BottomUpFeatures:
    """Open the features of bottom-up attention.

    Args:
        paths: TSV files (columns image_id, image_w, image_h, num_boxes, and base64 of boxes and features, both float32 or both
            float64), or one folder: of TSV files, or of .npz files, one an image (`x` or `features` (R, F), `bbox` or `boxes`
            (R, 4) in pixels, `num_bbox` or `num_boxes` where it is there, `image_w`, `image_h`).

    Raises:
        MissingFileError, FormatError: nothing there can be used.
    """
    files = [Path(path) for path in paths]
    if len(files) == 1 and files[0].is_dir():
        singles = sorted(files[0].glob("*.npz"))
        if singles:
            records: _Records = {}
            for path in singles:
                records.setdefault(_key_of(path.stem), []).append(_Record(path))
            return BottomUpFeatures(paths, records, _read_npz)
        files = sorted(files[0].glob("*.tsv*"))
        if not files:
            raise MissingFileError(f"features: expected .npz or .tsv files in {paths[0]}, found none")
    for path in files:
        if path.exists() and not path.is_file():
            raise FormatError(f"features: expected files, which are read at any place, got {path}")
        if not path.is_file():
            raise MissingFileError(f"features: expected TSV files, or a folder of .npz or .tsv files, found none at {path}")
    return BottomUpFeatures(paths, _index(files), _read_tsv)


def _key_of(name: str) -> str:
    """What two spellings of an image have in common: COCO's numbers come with and without zeros before them, accents composed
    and not."""
    name = normalised(name)
    name = os.path.splitext(name)[0] if is_photograph(name) else name
    return name.lstrip("0") or "0" if name.isdecimal() else name


def _key(name: bytes) -> str:
    return _key_of(name.strip().decode("utf-8", "replace"))


def _index(files: Sequence[Path]) -> _Records:
    """Where each image's records lie. Shards that overlap, or a file that was continued, repeat them."""
    records: _Records = {}
    joined = []
    longest = b""
    total = sum(path.stat().st_size for path in files)
    with bar(total=total, desc="looking for records", unit="B", unit_scale=True) as watch:
        for path in files:
            offset = 0
            with path.open("rb", buffering=1 << 20) as file:
                for number, line in enumerate(file, 1):
                    name, tab, _ = line[:_LONGEST_ID].partition(b"\t")
                    name = (name if offset else name.removeprefix(_MARK)).strip()
                    if tab and name.lower() != _COLUMNS[0].encode():
                        record = _Record(path, offset, len(line), number)
                        columns = line.count(b"\t") + 1
                        if columns > len(_COLUMNS):
                            joined.append(record)
                        else:
                            records.setdefault(_key(name), []).append(record)
                        if columns >= len(_COLUMNS) and len(name) > len(longest):
                            longest = name
                    offset += len(line)
                    watch.update(len(line))
    if joined:
        order = {path: number for number, path in enumerate(files)}
        _add_joined(records, joined, longest, order)
    return records


def _add_joined(records: _Records, joined: Sequence[_Record], longest: bytes, order: dict[Path, int]) -> None:
    """Add the records of lines that hold several, because a line end is missing.

    Args:
        records: those that have a line.
        joined: the lines.
        longest: the longest id of a record.
        order: of the files; the last record of an image comes last.
    """
    # Where most lines are so, the file has other columns.
    tell_apart = len(joined) <= len(records) + _FEW
    # Ids of one file are alike: as many digits at most, and whatever is no digit in the same places.
    alike = re.compile(re.sub(rb"\d+", lambda digits: rb"\d{1,%d}" % len(digits[0]), re.escape(longest)) + rb"\Z")
    width, guessed = _any_width(records), []
    for record in joined:
        line = _bytes_of(record).rstrip(b"\r\n") if tell_apart else b""
        parts = list(_parts(line, width, alike)) if tell_apart else []
        if not parts or parts[0][1]:
            # It is there to be named, with the reason why it cannot be read.
            parts.insert(0, (_bytes_of(record._replace(length=_LONGEST_ID)).partition(b"\t")[0], 0, record.length, True))
        for name, begin, end, sure in parts:
            own = record._replace(offset=record.offset + begin, length=end - begin)
            if sure:
                found = records.setdefault(_key(name), [])
                found.append(own)
                found.sort(key=lambda record: (order[record.path], record.offset))
            else:
                guessed.append((_key(name), own))
    for key, own in guessed:
        # Any other record of this image is more certain.
        records.setdefault(key, []).insert(0, own)


def _parts(line: bytes, width: int | None, alike: re.Pattern[bytes]) -> Iterator[tuple[bytes, int, int, bool]]:
    """The id, the begin and the end of each record in a line of several, and whether the id is sure.

    Where a record is whole, the next begins behind the features that its number of boxes promises. Where it was cut, anywhere,
    only the line's last record can be found: its id is the longest text of the ids' form before the last five columns.
    """
    tabs = [found.start() for found in re.finditer(rb"\t", line)]
    begin, width = 0, width or _width_of(line.split(b"\t"))
    while len(tabs) > 5:
        boxes, features = _lengths(line[tabs[2] + 1 : tabs[3]], width)
        end = tabs[4] + 1 + features
        if not features or tabs[4] - tabs[3] - 1 != boxes or end >= tabs[5]:
            break
        # Where no padding ends the features, a few letters of the next id can stand in for the last ones.
        if line[end - 1 : end] != b"=" and len(_id_before(tabs[5], line, tabs[4] + 1, alike)) > tabs[5] - end:
            break
        yield line[begin : tabs[0]], begin, end, True
        begin, tabs = end, tabs[5:]
    if len(tabs) == 5:
        yield line[begin : tabs[0]], begin, len(line), True
        return
    name = _id_before(tabs[-5], line, tabs[-6] + 1, alike)
    if name and all(re.fullmatch(rb"[\d.]+", field) for field in line[tabs[-5] + 1 : tabs[-2]].split(b"\t")):
        yield name, tabs[-5] - len(name), len(line), False


def _id_before(end: int, line: bytes, begin: int, alike: re.Pattern[bytes]) -> bytes:
    """The longest text of the ids' form up to a place of the line; empty where there is none."""
    found = alike.search(line, max(begin, end - _LONGEST_ID), end)
    return found[0] if found else b""


def _any_width(records: _Records) -> int | None:
    """F of the first record that can be read."""
    widths = (_width_of(_bytes_of(record).rstrip(b"\r\n").split(b"\t")) for record in chain.from_iterable(records.values()))
    return next(filter(None, widths), None)


def _width_of(fields: Sequence[bytes]) -> int | None:
    """F of a line's last record; None where it cannot be read."""
    try:
        return _decode(fields[-len(_COLUMNS) :])[0].shape[1]
    except Unreadable:
        return None


def _lengths(count: bytes, width: int | None) -> tuple[int, int]:
    """How many letters of base64 the boxes and features of so many regions are; 0 where that is not known."""
    if width is None or not count.isdigit() or len(count) > 6:
        return 0, 0
    return tuple(4 * -(-4 * int(count) * numbers // 3) for numbers in (_BOX, width))


def _bytes_of(record: _Record) -> bytes:
    with record.path.open("rb") as file:
        file.seek(record.offset)
        return file.read(record.length)


def _read_tsv(record: _Record) -> tuple[np.ndarray, np.ndarray, float, float]:
    return _decode(_bytes_of(record).rstrip(b"\r\n").split(b"\t"))


def _decode(fields: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray, float, float]:
    if len(fields) != len(_COLUMNS):
        raise Unreadable(f"expected the columns {', '.join(_COLUMNS)}, found {len(fields)} columns")
    try:
        width, height, count = float(fields[1]), float(fields[2]), int(fields[3])
        contents = [base64.b64decode(field, validate=True) for field in fields[4:]]
        # Some programs write float64, which four numbers a box tell.
        dtype = "<f8" if len(contents[0]) == 4 * 8 * count else "<f4"
        boxes, features = (np.frombuffer(content, dtype) for content in contents)
    except (ValueError, binascii.Error) as error:
        raise Unreadable(f"expected numbers and base64 of float32: {error}") from None
    if count < 1 or len(boxes) != 4 * count or len(features) == 0 or len(features) % count:
        found = f"{len(boxes)} numbers of boxes and {len(features)} of features"
        raise Unreadable(
            f"num_boxes is {count}: expected {4 * count} numbers of boxes and a multiple of {count} of features, found {found}"
        )
    looks = np.dtype("f8" if _is_float64(np.frombuffer(contents[1], "<f4")) else "f4")
    if features.any() and features.dtype != looks:
        raise Unreadable(f"expected features of {features.dtype}, as the boxes are, found what looks like {looks}")
    return features.reshape(count, -1), boxes.reshape(count, 4), width, height


def _is_float64(features: np.ndarray) -> bool:
    """Whether these float32 numbers are halves of float64 numbers.

    Then every other one has bits of a fraction for its exponent, or is 0 where the fractions are short.
    """

    def usual(numbers: np.ndarray) -> float:
        sizes = np.abs(numbers[numbers != 0])
        return np.mean((sizes > 1e-12) & (sizes < 1e12)) if len(sizes) else 0.0

    lower, upper = features[::2], features[1::2]
    return usual(lower) < 0.8 and usual(upper) > 0.95


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
