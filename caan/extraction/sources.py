"""The captions files of data sets: the images, their splits and their captions."""

import csv
import io
import re
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..data.splits import CAPTIONS_PER_IMAGE, parse_karpathy
from ..errors import FormatError
from ..files import parse_json, read_text
from ..photographs import is_photograph
from ..text import normalised

_TOKEN = re.compile(r"([^\t]+)#\d+\t(.*)")
# The second bar is missing in one line of the file that everyone has; spaces stand there.
_BARS = re.compile(r"(.+?)\|\s*\d+(?:\s*\||\s{2})(.*)")
_BARS_HEADER = re.compile(r"\s*image(_name)?\s*\|\s*comment_number\s*\|.*", re.IGNORECASE)
_IMAGE_COLUMNS, _CAPTION_COLUMNS = ("image", "image_name"), ("caption", "comment")
_DELIMITERS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
_NO_TEXT = re.compile(r"[\0\n\r]")
_OTHER_NAMES = {"restval": "train", "val": "dev"}


@dataclass(frozen=True)
class CaptionedImage:
    """One image of a captions file.

    Attributes:
        name: the photograph's file, relative to the folder of photographs.
        captions: its captions, each on one line, in the form of `caan.text.normalised`.
        id: COCO's number, where there is one.
    """

    name: str
    captions: list[str]
    id: str | None = None


def read_captions(path: str | Path, format: str | None = None) -> dict[str | None, list[CaptionedImage]]:
    """Read a captions file.

    Args:
        path: the file.
        format: one of `FORMATS`: "flickr" (`name.jpg#0`, a tab, the caption), "karpathy" (`dataset_*.json`), "coco" (JSON
            with "images" and "annotations"), "csv" (a header with "image" or "image_name", and "caption" or "comment", and
            perhaps "split"; commas, semicolons, tabs or bars between them) or "bars" (Flickr30k's results.csv). None recognises
            it by its content.

    Returns:
        The images of each split, in the file's order. A file without splits has the one split None. As in Karpathy's files,
        "restval" is part of "train", and "val" is called "dev".

    Raises:
        MissingFileError, FormatError: the file cannot be used; the message names the line, or the number of the record from 0.
        ValueError: there is no such format.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    path = Path(path)
    # Once: it may be a pipe.
    text = _text(path)
    format = format or _recognise(path, text)
    splits = FORMATS[format](path, text)
    if not any(splits.values()):
        raise FormatError(f"{path}: expected captions in the format {format!r}, found none")
    return splits


def usual_captions(images: Iterable[CaptionedImage]) -> int:
    """As many captions as most of the images have that have any; `CAPTIONS_PER_IMAGE` at most, and where none has any."""
    counts = Counter(min(CAPTIONS_PER_IMAGE, len(image.captions)) for image in images if image.captions)
    return max(counts, key=lambda count: (counts[count], count), default=CAPTIONS_PER_IMAGE)


def read_names(path: str | Path) -> list[str]:
    """Read a list of images, one name a line, such as `Flickr_8k.trainImages.txt`; empty lines are left out.

    Raises:
        MissingFileError, FormatError: the file cannot be used, or names nothing.
    """
    path = Path(path)
    names = [_checked(path, f"line {number}", line, "a name") for number, line in _lines(_text(path)) if line.strip()]
    if not names:
        raise FormatError(f"{path}: expected names of images, one a line, found none")
    return list(dict.fromkeys(names))


def _text(path: Path) -> str:
    text = read_text(path)
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise FormatError(f"{path}: expected text in UTF-8, found a NUL character in line {line}")
    return text


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines and their numbers, whichever system's ends they have; characters that only str.splitlines takes for an end are text."""
    return enumerate(text.split("\n" if "\n" in text else "\r"), 1)


def _checked(path: Path, place: str, text: object, what: str) -> str:
    """A text of the file without white space around it, its accents composed.

    Raises:
        FormatError: it is no text, empty, or holds what no line of a text file can.
    """
    try:
        if not isinstance(text, str):
            raise ValueError(f"found {reprlib.repr(text)}")
        result = normalised(text).strip()
        if not result:
            raise ValueError("found none")
        if wrong := _NO_TEXT.search(result):
            raise ValueError(f"found U+{ord(wrong[0]):04X} in {reprlib.repr(result)}")
    except ValueError as error:
        raise FormatError(f"{path}: expected {what} in {place}: {error}") from None
    return result


def _caption(path: Path, place: str, text: object, image: str) -> str:
    """A caption on one line."""
    one_line = " ".join(text.split()) if isinstance(text, str) else text
    return _checked(path, place, one_line, f"a caption of {image}")


class _Captions:
    """Gathers captions, in the order in which their images come."""

    def __init__(self, path: Path):
        self._path = path
        self._of: dict[str, tuple[str | None, list[str]]] = {}

    def add(self, place: str, name: str, caption: str, split: str | None = None) -> None:
        name = _checked(self._path, place, name, "an image's name")
        if split is not None:
            split = _checked(self._path, place, split, "a split")
            split = _OTHER_NAMES.get(split, split)
        known, captions = self._of.setdefault(name, (split, []))
        if split != known:
            raise FormatError(f"{self._path}: expected {name} in one split, found {split} in {place} and {known} before")
        captions.append(_caption(self._path, place, caption, name))

    def splits(self) -> dict[str | None, list[CaptionedImage]]:
        splits: dict[str | None, list[CaptionedImage]] = {}
        for name, (split, captions) in self._of.items():
            splits.setdefault(split, []).append(CaptionedImage(name, captions))
        # Each would be a split of its own, and their images missing in the other.
        names: dict[str, str | None] = {}
        for split in splits:
            if (other := names.setdefault(str(split).casefold(), split)) != split:
                raise FormatError(f"{self._path}: expected each split by one name, found {other!r} and {split!r}")
        return splits


def _recognise(path: Path, text: str) -> str:
    if text.lstrip().startswith(("{", "[")):
        # Inside a string of JSON the second quotation mark would have a backslash before it.
        return "coco" if re.search(r'"annotations"\s*:', text) else "karpathy"
    first = next((line.strip() for _, line in _lines(text) if line.strip()), "")
    if _TOKEN.fullmatch(first):
        return "flickr"
    if _BARS_HEADER.fullmatch(first) or _BARS.fullmatch(first):
        return "bars"
    if _header(first) is not None:
        return "csv"
    expected = "expected `name.jpg#0` and a tab, a header with `image,caption`, `name.jpg| 0| ...`, or JSON"
    raise FormatError(f"{path}: {expected}, found {first[:60]!r}; if its format is known, say --format")


def _read_flickr(path: Path, text: str) -> dict[str | None, list[CaptionedImage]]:
    return _read_pairs(path, text, _TOKEN, "`name.jpg#0`, a tab and a caption", header=None)


def _read_bars(path: Path, text: str) -> dict[str | None, list[CaptionedImage]]:
    return _read_pairs(path, text, _BARS, "`name.jpg| 0| caption`", header=_BARS_HEADER)


def _read_pairs(
    path: Path, text: str, pattern: re.Pattern, expected: str, header: re.Pattern | None
) -> dict[str | None, list[CaptionedImage]]:
    captions = _Captions(path)
    begun = False
    for number, line in _lines(text):
        line = line.strip()
        if not line:
            continue
        if begun or header is None or not header.fullmatch(line):
            # A caption that ends with the tab before it was stripped of it.
            found = pattern.fullmatch(line) or pattern.fullmatch(f"{line}\t")
            if found is None:
                raise FormatError(f"{path}: expected {expected} in line {number}, found {line[:60]!r}")
            captions.add(f"line {number}", found[1], found[2])
        begun = True
    return captions.splits()


class _Header(NamedTuple):
    """The first line of a CSV file: how many columns there are, which of them are read, and what is between them; split is None
    where there is no such column."""

    columns: int
    image: int
    caption: int
    split: int | None
    delimiter: str
    spaced: bool


def _header(line: str) -> _Header | None:
    """What the header tells; None where it does not name one column of images, one of captions and at most one of splits."""
    for delimiter in _DELIMITERS:
        columns = next(csv.reader([line], delimiter=delimiter, skipinitialspace=True), [])
        names = [column.strip().lower() for column in columns]
        image, caption = (next((name for name in known if name in names), None) for known in (_IMAGE_COLUMNS, _CAPTION_COLUMNS))
        if names.count(image) == names.count(caption) == 1 and names.count("split") <= 1:
            split = names.index("split") if "split" in names else None
            return _Header(len(names), names.index(image), names.index(caption), split, delimiter, f"{delimiter} " in line)
    return None


def _read_csv(path: Path, text: str) -> dict[str | None, list[CaptionedImage]]:
    lines = io.StringIO(text.lstrip(), newline="")
    first = lines.readline()
    header = _header(first.strip())
    if header is None:
        expected = "expected a header with one column `image`, one `caption` and at most one `split`"
        raise FormatError(f"{path}: {expected}, found {first.strip()[:60]!r}")
    skipped = text[: len(text) - len(text.lstrip())].count("\n") + 1
    rows = csv.reader(lines, delimiter=header.delimiter, skipinitialspace=header.spaced, strict=True)
    captions = _Captions(path)
    number = skipped
    try:
        for row in rows:
            # Quoted captions can be of several lines.
            begin, number = number + 1, skipped + rows.line_num
            if not row:
                continue
            if len(row) > header.columns:
                expected = f"expected {header.columns} fields in line {begin}"
                found = f"{row[header.columns :]} beyond them: quote a caption that has {_DELIMITERS[header.delimiter]}"
                raise FormatError(f"{path}: {expected}, found {found}")
            if len(row) <= max(header.image, header.caption, header.split or 0):
                what = "an image and a caption" if header.split is None else "an image, a caption and a split"
                raise FormatError(f"{path}: expected {what} in line {begin}, found {row}")
            swallowing = next((field for field in row if _swallows(field, header)), None)
            if swallowing is not None:
                found = f"a row inside a field: {reprlib.repr(swallowing)}"
                raise FormatError(f"{path}: expected quotes in pairs after line {begin - 1}, found {found}")
            split = None if header.split is None else row[header.split]
            captions.add(f"line {begin}", row[header.image], row[header.caption], split)
    except csv.Error as error:
        expected = "fields of a usual length" if "limit" in str(error) else "quotes in pairs"
        raise FormatError(f"{path}: expected {expected} after line {number}, found: {error}") from None
    return captions.splits()


def _swallows(field: str, header: _Header) -> bool:
    """Whether a quote that nobody closed has made a row of the file part of a field of several lines."""
    lines = field.split("\n" if "\n" in field else "\r")
    if len(lines) == 1:
        return False
    # The first and the last line are parts of rows. A line between that has a row's fields is one.
    parts = [line.split(header.delimiter) for line in lines]
    whole = any(len(part) == header.columns for part in parts[1:])
    return whole or any(is_photograph(text.strip()) for part in parts if len(part) > 1 for text in part)


def _read_coco(path: Path, text: str) -> dict[str | None, list[CaptionedImage]]:
    content = parse_json(path, text)
    entries = [content.get(name) if isinstance(content, dict) else None for name in ("images", "annotations")]
    if not all(isinstance(entry, list) for entry in entries):
        found = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise FormatError(f'{path}: expected JSON with lists "images" and "annotations", found {reprlib.repr(found)}')
    images: dict[str, CaptionedImage] = {}
    for number, entry in enumerate(entries[0]):
        place = f"image {number}"
        id, name = (_entry(path, place, entry, key) for key in ("id", "file_name"))
        name = _checked(path, place, str(name) if isinstance(name, int) else name, "a file's name")
        image = CaptionedImage(name, [], _id(path, place, id))
        if images.setdefault(image.id, image) != image:
            raise FormatError(f"{path}: expected each image's id once, found {image.id} again in {place}, {image.name}")
    for number, entry in enumerate(entries[1]):
        place = f"annotation {number}"
        id, caption = (_entry(path, place, entry, key) for key in ("image_id", "caption"))
        image = images.get(_id(path, place, id))
        if image is None:
            raise FormatError(f'{path}: expected an "image_id" of "images" in {place}, found {reprlib.repr(id)}')
        image.captions.append(_caption(path, place, caption, image.name))
    return {None: list(images.values())}


def _entry(path: Path, place: str, entry: object, key: str) -> object:
    if not isinstance(entry, dict) or key not in entry:
        raise FormatError(f"{path}: expected {key!r} in {place}, found {reprlib.repr(entry)}")
    return entry[key]


def _id(path: Path, place: str, id: object) -> str:
    """Numbers are written as numbers, as floats and as text, in the same file as well."""
    if isinstance(id, float) and id.is_integer():
        id = int(id)
    if not isinstance(id, (int, str)) or isinstance(id, bool):
        raise FormatError(f"{path}: expected a number or a name as the image's id in {place}, found {reprlib.repr(id)}")
    return _checked(path, place, str(id), "an image's id")


def _read_karpathy(path: Path, text: str) -> dict[str, list[CaptionedImage]]:
    splits: dict[str, list[CaptionedImage]] = {}
    for number, image in enumerate(parse_karpathy(path, text)):
        place = f"image {number}"
        name = _checked(path, place, image.path, "a file's name")
        captions = [_caption(path, place, caption, name) for caption in image.captions]
        splits.setdefault(_OTHER_NAMES.get(image.split, image.split), []).append(CaptionedImage(name, captions, image.id))
    return splits


FORMATS: dict[str, Callable[[Path, str], dict[str | None, list[CaptionedImage]]]] = {
    "flickr": _read_flickr,
    "karpathy": _read_karpathy,
    "coco": _read_coco,
    "csv": _read_csv,
    "bars": _read_bars,
}
"""The formats of captions files, each with what reads it."""
