"""Make features of a folder of photographs, with captions or without: a data folder, which the other commands read.

Without captions a split can be indexed and searched by text; training and evaluation need them. Instead of photographs,
features of bottom-up attention can be taken: TSV files, or a folder of .npz files. A run that was stopped or killed
continues when the same command is given again.
"""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CaptionMismatchError, DataError
from ..files import made_folder
from ..settings import option

if TYPE_CHECKING:
    from ..data import ExtractRecord
    from ..extraction import Backbone, CaptionedImage, FoundPhotographs, RegionSource


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `caan extract`."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--photos", metavar="DIR", help="folder of photographs")
    source.add_argument(
        "--features", metavar="PATH", nargs="+", help="instead of photographs: TSV files, or a folder of .tsv or .npz files"
    )
    parser.add_argument(
        "--captions",
        metavar="FILE",
        help="Flickr's token file, Karpathy's or COCO's JSON, or CSV with the header image,caption and optionally split; without "
        "it: all photographs",
    )
    # Errors begin with what they are about, and this is the word of what writes there.
    parser.add_argument(
        "--out", dest="folder", metavar="DIR", required=True, help="the data folder; all its splits must have the same backbone"
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="name of the split (test); if the captions file has splits, write only this one",
    )
    parser.add_argument(
        "--hold-out",
        metavar="N",
        type=int,
        help="make three splits: N images, evenly spread over the captions, are dev, N are test, and the rest is train",
    )
    parser.add_argument(
        "--images", metavar="FILE", help="file with the names of the split's images, one a line; default: all images with captions"
    )
    parser.add_argument(
        "--format", help="format of the captions: flickr, karpathy, coco, csv or bars; default: recognised by content"
    )
    parser.add_argument(
        "--captions-per-image",
        metavar="N",
        type=int,
        help="take the first N captions of an image (default: as many as most images have, at most 5)",
    )
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        help="efficientnet-lite0, timm:MODEL or torchvision:MODEL; default: as the folder's other splits, or efficientnet-lite0",
    )
    parser.add_argument(
        "--size",
        metavar="PIXELS",
        type=int,
        help="photographs are scaled to a square of this side; default: the backbone's own size",
    )
    parser.add_argument("--device", help="where the backbone runs; default: cuda where there is one, else cpu")
    parser.add_argument(
        "--batch-size", metavar="N", type=int, default=8, help="images that the backbone reads at once (8); more is faster on a GPU"
    )
    parser.add_argument("--workers", metavar="N", type=int, default=min(8, os.cpu_count() or 1), help="threads that read images")
    parser.add_argument("--overwrite", action="store_true", help="make the split anew, even if it exists or is unfinished")


def run(arguments: argparse.Namespace) -> None:
    """Run `caan extract`.

    Raises:
        DataError, ValueError, OSError: what was given cannot be used.
    """
    splits = _captioned(arguments)
    with made_folder("--out", Path(arguments.folder)):
        _extract(arguments, splits)


def _extract(arguments: argparse.Namespace, splits: "dict[str, list[CaptionedImage]] | None") -> None:
    # torch takes seconds to import, which `caan --help` need not wait for.
    from ..data import records
    from ..extraction import FoundPhotographs, Photographs, extract_split, usual_captions

    place = _features(arguments) if arguments.features else _photographs(arguments)
    splits = splits or _without_captions(arguments, place)
    present = {split: any(_is_there(place, image) for image in images) for split, images in splits.items()}
    if not any(present.values()):
        names = [image.name for images in splits.values() for image in images]
        wanted = f"images that {arguments.captions} has captions for" if arguments.captions else f"the images of {arguments.images}"
        raise CaptionMismatchError(
            f"{place.place}: expected {wanted}, such as {', '.join(names[:3])}; found "
            f"none of the {len(names):,}; there: {', '.join(place.examples()) or 'nothing'}"
        )
    # A split that is not written now may be there, from other photographs.
    others = {name: record for name, record in records(arguments.folder).items() if not present.get(name)}
    source = Photographs(place.photographs, _backbone(arguments, others)) if isinstance(place, FoundPhotographs) else place
    if not arguments.overwrite:
        _check_hold_out(arguments)
        _check_likeness(arguments.folder, source, others)
    for split, images in splits.items():
        if not present[split]:
            print(f"{split}: none of its {len(images):,} images is in {source.place}; not written")
            continue
        given = arguments.captions_per_image
        captions_per_image = usual_captions(images) if given is None else given
        summary = extract_split(
            images,
            source,
            arguments.folder,
            split,
            arguments.captions,
            captions_per_image=captions_per_image,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            overwrite=arguments.overwrite,
        )
        if summary.ran:
            plural = "" if captions_per_image == 1 else "s"
            captions = f"{captions_per_image} caption{plural} each" if arguments.captions else "without captions"
            print(
                f"{split}: {summary.images:,} images in {arguments.folder}, {captions}; "
                f"{source.settings['width']:,} numbers a region"
                + (f"; {len(summary.skipped):,} skipped, listed in {split}_extract.json" if summary.skipped else "")
            )


def _is_there(place: "FoundPhotographs | RegionSource", image: "CaptionedImage") -> bool:
    from ..photographs import Unreadable

    try:
        return place.find(image) is not None
    except Unreadable:
        # The run says why it is skipped.
        return True


def _features(arguments: argparse.Namespace) -> "RegionSource":
    from ..extraction import open_features

    for name in ("backbone", "size", "device"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name}: expected with --photos only, got it with --features")
    return open_features(arguments.features)


def _photographs(arguments: argparse.Namespace) -> "FoundPhotographs":
    from ..extraction import FoundPhotographs

    if not os.path.isdir(arguments.photos):
        raise DataError(f"--photos: expected a folder of photographs, found none at {arguments.photos}")
    return FoundPhotographs(arguments.photos)


def _backbone(arguments: argparse.Namespace, others: dict[str, "ExtractRecord"]) -> "Backbone":
    """The one that is named, or else that of the folder's other splits."""
    import torch

    from ..extraction import DEFAULT_BACKBONE, backbones

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    name, size = arguments.backbone, arguments.size
    other = next((record for record in others.values() if record.backbone), None)
    if other and name in (None, other.backbone):
        name, size = other.backbone, size or other.size
    return backbones.load_backbone(name or DEFAULT_BACKBONE, size, device)


def _check_hold_out(arguments: argparse.Namespace) -> None:
    """A folder that was divided is divided in the same way again."""
    from ..data import read_record

    record = read_record(arguments.folder, "dev") if arguments.hold_out is not None else None
    if record and record.images not in (None, arguments.hold_out):
        raise ValueError(
            f"--hold-out: expected {record.images}, the images of dev in {arguments.folder}, got {arguments.hold_out}; another "
            "--out makes another folder, --overwrite divides this one anew"
        )


def _check_likeness(folder: str, source: "RegionSource", others: dict[str, "ExtractRecord"]) -> None:
    """A model reads features of one kind: those of a folder are alike."""
    own = [source.settings.get(name) for name in ("backbone", "size", "width")]
    for split, record in others.items():
        there = [record.backbone, record.size, record.width]
        if there != own:
            raise ValueError(
                f"--out: expected features as those of {split} in {folder}, {_likeness(*there)}, got {_likeness(*own)}: a model "
                "reads features of one kind only; give another --out, or say --overwrite, and make the others anew, too"
            )


def _likeness(backbone: str | None, size: int | None, width: int) -> str:
    return f"{width:,} numbers a region" + (f" from {backbone} at {size} pixels" if backbone else "")


def _captioned(arguments: argparse.Namespace) -> "dict[str, list[CaptionedImage]] | None":
    """The images of each split to write, with their captions; None where there are no captions."""
    from ..extraction import read_captions

    if not arguments.captions:
        for name in ("format", "captions_per_image", "hold_out"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"{option(name)}: expected with --captions only, got it without")
        return None
    if arguments.hold_out is not None and arguments.split:
        raise ValueError("--hold-out: expected without --split, since it makes train, dev and test, got both")
    splits = read_captions(arguments.captions, arguments.format)
    if None in splits:
        splits = {arguments.split or "test": splits[None]}
    elif arguments.hold_out is not None:
        raise ValueError(f"--hold-out: expected captions without splits, found {', '.join(splits)} in {arguments.captions}")
    elif arguments.split:
        if arguments.split not in splits:
            raise ValueError(
                f"--split: expected one of {', '.join(splits)}, the splits of {arguments.captions}, got {arguments.split!r}"
            )
        splits = {arguments.split: splits[arguments.split]}
    if arguments.images:
        if len(splits) > 1:
            raise ValueError(f"--images: expected captions of one split, found {', '.join(splits)}; say --split as well")
        ((split, images),) = splits.items()
        splits = {split: _named(arguments, images)}
    if arguments.hold_out is not None:
        ((_, images),) = splits.items()
        splits = _divided(images, arguments.hold_out)
    return splits


def _named(arguments: argparse.Namespace, images: "list[CaptionedImage]") -> "list[CaptionedImage]":
    """Those images that --images names, in its order."""
    from ..extraction import CaptionedImage, read_names

    # Lists are found with and without the names' ending.
    by_name = {os.path.splitext(image.name)[0]: image for image in images} | {image.name: image for image in images}
    names = read_names(arguments.images)
    if not by_name.keys() & set(names):
        raise CaptionMismatchError(
            f"{arguments.images}: expected names of images that {arguments.captions} has captions for, such as "
            f"{images[0].name}; found {len(names):,} others, such as {names[0]}"
        )
    return [by_name.get(name, CaptionedImage(name, [])) for name in names]


def _divided(images: "list[CaptionedImage]", held_out: int) -> "dict[str, list[CaptionedImage]]":
    """Train, dev and test; those held out are evenly spread, so that all three have something of every part of a file."""
    if not 0 < held_out <= len(images) // 3:
        raise ValueError(f"--hold-out: expected 1 to {len(images) // 3}, a third of the {len(images):,} images, got {held_out}")
    places = [number * len(images) // (2 * held_out) for number in range(2 * held_out)]
    dev, test = set(places[::2]), set(places[1::2])
    return {
        "train": [image for place, image in enumerate(images) if place not in dev | test],
        "dev": [images[place] for place in sorted(dev)],
        "test": [images[place] for place in sorted(test)],
    }


def _without_captions(arguments: argparse.Namespace, place: "FoundPhotographs | RegionSource") -> "dict[str, list[CaptionedImage]]":
    """The one split of images without captions: those that --images names, or all."""
    from ..extraction import CaptionedImage, read_names

    named = arguments.images and [CaptionedImage(name, []) for name in read_names(arguments.images)]
    return {arguments.split or "test": named or place.images()}
