"""Captions as data sets bring them: which images there are, in which split, and what is said of them."""

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..data.splits import parse_karpathy
from ..errors import FormatError
from ..files import read_text

_TOKEN = re.compile(r"(.+)#\d+\t(.*)")
# The second bar is missing in one line of the file that everyone has.
_BARS = re.compile(r"(.+?)\|\s*\d+\s*\|?(.*)")
_SPLITS_OF_KARPATHY = {"restval": "train", "val": "dev"}


@dataclass(frozen=True)
class CaptionedImage:
    """One image of a captions file.

    Attributes:
        name: the photograph's file, relative to the folder of photographs.
        captions: what is said of it, each on one line.
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
            with "images" and "annotations"), "csv" (a header with "image" and "caption") or "bars" (Flickr30k's
            results.csv). None recognises it by its content.

    Returns:
        The images of each split, in the file's order. A format without splits has the one split None. Karpathy's
        "restval" is part of "train", and "val" is called "dev".

    Raises:
        MissingFileError, FormatError: the file cannot be used.
        ValueError: there is no such format.
    """
    if format is not None and format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    path = Path(path)
    # Once: it may be a pipe.
    text = read_text(path)
    format = format or _recognise(path, text)
    splits = FORMATS[format](path, text)
    if not any(splits.values()):
        raise FormatError(f"{path}: expected captions in the format {format!r}, found none")
    return splits


def read_names(path: str | Path) -> list[str]:
    """Read a list of images, one name a line, such as `Flickr_8k.trainImages.txt`; empty lines are left out.

    Raises:
        MissingFileError, FormatError: the file cannot be used, or names nothing.
    """
    names = [line.strip() for line in read_text(Path(path)).split("\n") if line.strip()]
    if not names:
        raise FormatError(f"{path}: expected names of images, one a line, found none")
    return list(dict.fromkeys(names))


def _recognise(path: Path, text: str) -> str:
    text = text.lstrip()
    if text.startswith(("{", "[")):
        content = _parse(path, text)
        if isinstance(content, dict) and "annotations" in content:
            return "coco"
        return "karpathy"
    first = text.split("\n", 1)[0].strip()
    if _TOKEN.fullmatch(first):
        return "flickr"
    if {"image", "caption"} <= set(next(csv.reader([first]), [])):
        return "csv"
    if first.replace(" ", "").startswith("image_name|") or _BARS.fullmatch(first):
        return "bars"
    expected = "expected `name.jpg#0` and a tab, a header with `image,caption`, `name.jpg| 0| ...`, or JSON"
    raise FormatError(f"{path}: {expected}, found {first[:60]!r}; if its format is known, say --format")


def _read_flickr(path: Path, text: str) -> dict[None, list[CaptionedImage]]:
    return _read_pairs(path, text, _TOKEN, "`name.jpg#0`, a tab and a caption", header=None)


def _read_bars(path: Path, text: str) -> dict[None, list[CaptionedImage]]:
    return _read_pairs(path, text, _BARS, "`name.jpg| 0| caption`", header="image_name|")


def _read_pairs(path: Path, text: str, pattern: re.Pattern, expected: str, header: str | None) -> dict[None, list[CaptionedImage]]:
    captions: dict[str, list[str]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip() or (number == 1 and header and line.startswith(header)):
            continue
        found = pattern.fullmatch(line.strip())
        if found is None:
            raise FormatError(f"{path}: expected {expected} in line {number}, found {line.strip()[:60]!r}")
        captions.setdefault(found[1].strip(), []).append(_one_line(found[2]))
    return {None: [CaptionedImage(name, own) for name, own in captions.items()]}


def _read_csv(path: Path, text: str) -> dict[None, list[CaptionedImage]]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    if not {"image", "caption"} <= set(rows.fieldnames or ()):
        raise FormatError(f"{path}: expected a header with `image` and `caption`, found {rows.fieldnames}")
    captions: dict[str, list[str]] = {}
    try:
        for row in rows:
            if not row["image"] or row["caption"] is None:
                raise FormatError(f"{path}: expected an image and a caption in line {rows.line_num}, found {row}")
            if None in row:
                expected = f"{len(rows.fieldnames)} fields in line {rows.line_num}"
                raise FormatError(f"{path}: expected {expected}, found {row[None]} beyond them: quote a caption that has a comma")
            captions.setdefault(row["image"].strip(), []).append(_one_line(row["caption"]))
    except csv.Error as error:
        raise FormatError(f"{path}: expected quotes in pairs after line {rows.line_num}, found: {error}") from None
    return {None: [CaptionedImage(name, own) for name, own in captions.items()]}


def _read_coco(path: Path, text: str) -> dict[None, list[CaptionedImage]]:
    content = _parse(path, text)
    try:
        images = {image["id"]: CaptionedImage(str(image["file_name"]), [], str(image["id"])) for image in content["images"]}
        for annotation in content["annotations"]:
            images[annotation["image_id"]].captions.append(_one_line(annotation["caption"]))
    except (AttributeError, KeyError, TypeError) as error:
        expected = 'expected "images" with "id" and "file_name", and "annotations" with an "image_id" of these and a "caption"'
        raise FormatError(f"{path}: {expected}: {type(error).__name__}: {error}") from None
    return {None: list(images.values())}


def _read_karpathy(path: Path, text: str) -> dict[str, list[CaptionedImage]]:
    splits: dict[str, list[CaptionedImage]] = {}
    for image in parse_karpathy(path, text):
        split = _SPLITS_OF_KARPATHY.get(image.split, image.split)
        splits.setdefault(split, []).append(CaptionedImage(image.path, image.captions, image.id))
    return splits


def _parse(path: Path, text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise FormatError(f"{path}: expected JSON: {error}") from None


def _one_line(caption: str) -> str:
    return " ".join(caption.split())


FORMATS: dict[str, Callable[[Path, str], dict[str | None, list[CaptionedImage]]]] = {
    "flickr": _read_flickr,
    "karpathy": _read_karpathy,
    "coco": _read_coco,
    "csv": _read_csv,
    "bars": _read_bars,
}
"""The formats of captions files, each with what reads it."""
