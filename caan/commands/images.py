"""Images as a user names them, in every command alike, and their photographs."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..data import Split, load_scan_split
from ..data.record import with_named
from ..errors import DataError, FormatError
from ..photographs import PhotoFolder, is_photograph
from ..progress import warn
from ..text import shown

HELP = "an image: its id, with or without folders and ending, SPLIT:ID, its number, or a photograph's file"


def add_backbone_options(parser: argparse.ArgumentParser) -> None:
    """What makes the features of a photograph's file."""
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        help="backbone of the features, needed for a photograph's file; default: the one that caan extract has noted",
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help="photographs were scaled to a square of this side; default: as noted, or the backbone's own size",
    )


def named(arguments: argparse.Namespace) -> dict[str, Any]:
    """What --backbone, --size and --photos say of how a split was made."""
    photos = None if arguments.photos is None else str(PhotoFolder(arguments.photos).folder.resolve())
    values = {"backbone": arguments.backbone, "size": arguments.size, "photos": photos}
    return {name: value for name, value in values.items() if value is not None}


def made_by(arguments: argparse.Namespace, noted: dict[str, Any] | None) -> dict[str, Any]:
    """What `caan extract` has noted of a split, with what --backbone, --size and --photos say in its place."""
    return with_named(noted or {}, named(arguments))


def find_image(name: str, ids: Sequence[str], splits: Sequence[tuple[str, int]], place: str) -> int | None:
    """An image by what a user calls it.

    The first of these that fits counts: its id; its id without the ending; without folders, or both; its number; all of them once
    more in the one split that stands before a colon; a photograph's file.

    Args:
        name: as it was typed.
        ids: of all images.
        splits: the name of each split and how many of the images, in their order, are its.
        place: where they are, for messages.

    Returns:
        The image's number; None for a photograph's file.

    Raises:
        ValueError: nothing fits, or several images do.
    """
    # A file's name need not be text.
    wanted = shown(name)
    found = _named(wanted, ids, range(len(ids)))
    if not found and ":" in wanted:
        split, own = wanted.split(":", 1)
        found = _named(own, ids, _numbers(splits, split))
    if len(found) > 1:
        owners = [split for split, count in splits for _ in range(count)]
        some = ", ".join(f"{owners[number]}:{ids[number]}" for number in found[:5]) + (", ..." if len(found) > 5 else "")
        raise ValueError(f"--image: {wanted!r} names {len(found)} images: {some}; write one of them")
    if not found and not Path(name).is_file():
        counts = ", ".join(f"{count} in {split}" for split, count in splits)
        raise ValueError(
            f"--image: expected an id of {place}, such as {', '.join(ids[:3])}, a number below {len(ids)}, SPLIT:ID, SPLIT:NUMBER "
            f"(images are numbered from 0: {counts}), or a photograph's file, got {wanted!r}"
        )
    return found[0] if found else None


def _numbers(splits: Sequence[tuple[str, int]], wanted: str) -> list[int]:
    numbers, first = [], 0
    for split, count in splits:
        if split == wanted:
            numbers += range(first, first + count)
        first += count
    return numbers


def _named(wanted: str, ids: Sequence[str], numbers: Sequence[int]) -> list[int]:
    """Those of the numbers whose ids a name fits best: whole, without the ending, without folders; or that number."""
    wanted, bare = _lower_ending(wanted), _without_ending(wanted)
    for fits in (
        lambda own: own == wanted,
        lambda own: wanted == _without_ending(own) or own == bare,
        lambda own: wanted in (name := own.rsplit("/", 1)[-1], _without_ending(name)),
    ):
        found = [number for number in numbers if fits(_lower_ending(ids[number]))]
        if found:
            return found
    return [numbers[int(wanted)]] if wanted.isdecimal() and int(wanted) < len(numbers) else []


def _lower_ending(name: str) -> str:
    stem, ending = os.path.splitext(name)
    return stem + ending.lower() if is_photograph(name) else name


def _without_ending(name: str) -> str:
    return os.path.splitext(name)[0] if is_photograph(name) else name


def photo_folder(given: Path | None, noted: str | Path | None) -> PhotoFolder | None:
    """The folder that --photos names, or else the one that `caan extract` has noted, where that is still there.

    Raises:
        DataError: there is no folder as it was named, or no photograph in it.
    """
    if given is not None or noted is None:
        return given and PhotoFolder(given)
    try:
        return PhotoFolder(noted)
    except DataError:
        warn(f"{noted}: no photographs any more, where caan extract found them; --photos names the folder in which they are now")
        return None


def read_regions(file: str | Path, made_by: dict[str, Any] | None, place: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The regions of a photograph's file, from the backbone that made the features it is to be compared with.

    Args:
        file: the photograph.
        made_by: what `caan extract` has noted: "backbone" and "size".
        place: where that was looked for, for messages.

    Returns:
        (R, F) float16 features, and (R, 4) float32 boxes as fractions.

    Raises:
        FormatError: it is not known which backbone that was.
        DataError: the photograph cannot be read.
    """
    if not made_by or "backbone" not in made_by:
        raise FormatError(
            f"{place}: expected to know which backbone made its features, to make those of {shown(str(file))}; caan "
            "extract has noted none; --backbone names it"
        )
    from ..extraction import backbones, extract_images, grid_boxes

    backbone = backbones.load_backbone(made_by["backbone"], made_by["size"])
    [features] = extract_images([file], backbone)
    return features, grid_boxes(*backbone.grid)


@contextmanager
def photograph_split(file: str | Path, made_by: dict[str, Any] | None, place: str | Path) -> Iterator[Split]:
    """A split of one photograph, as `caan extract` would make it; arguments and errors as `read_regions`."""
    features, boxes = read_regions(file, made_by, place)
    with TemporaryDirectory() as folder:
        for name, array in (("ims", features), ("boxes", boxes)):
            np.save(Path(folder) / f"photograph_{name}.npy", array[None])
        name = " ".join(shown(Path(file).name).split())
        (Path(folder) / "photograph_ids.txt").write_text(f"{name}\n", encoding="utf-8")
        yield load_scan_split(folder, "photograph", need_captions=False)
