"""Turn a folder of photographs and a captions file into the SCAN layout, which training and evaluation read.

Instead of photographs, features of bottom-up attention can be taken: TSV files, or a folder of .npz files. A run that
was stopped or killed continues when the same command is given again.
"""

import argparse
import os
from pathlib import Path

from ..errors import CaptionMismatchError, DataError
from ..files import make_folder


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
        required=True,
        help="Flickr's token file, Karpathy's or COCO's JSON, or CSV with image,caption",
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="folder for the results")
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="what the results are called (test), for captions without splits; of Karpathy's splits, write only this one",
    )
    parser.add_argument("--images", metavar="FILE", help="names of the split's images, one a line; default: all that have captions")
    parser.add_argument("--format", help="flickr, karpathy, coco, csv or bars; default: recognised by content")
    parser.add_argument("--captions-per-image", metavar="N", type=int, default=5, help="take the first N captions (5)")
    parser.add_argument("--backbone", metavar="NAME", help="efficientnet-lite0 (default), timm:MODEL or torchvision:MODEL")
    parser.add_argument("--size", metavar="PIXELS", type=int, help="side of the square that the backbone sees; default: its own")
    parser.add_argument("--device", help="where the backbone runs; default: cuda where there is one, else cpu")
    parser.add_argument("--batch-size", metavar="N", type=int, default=8, help="images at once (8; a GPU likes more)")
    parser.add_argument("--workers", metavar="N", type=int, default=min(8, os.cpu_count() or 1), help="threads that read images")
    parser.add_argument("--overwrite", action="store_true", help="begin anew instead of continuing or refusing")


def run(arguments: argparse.Namespace) -> None:
    """Run `caan extract`.

    Raises:
        DataError, ValueError, OSError: what was given cannot be used.
    """
    # torch takes seconds to import, which `caan --help` need not wait for.
    from ..extraction import extract_split, open_features

    splits = _splits(arguments)
    make_folder("--out", Path(arguments.out))
    if arguments.features:
        for name in ("backbone", "size", "device"):
            if getattr(arguments, name) is not None:
                raise ValueError(f"--{name}: expected with --photos only, got it with --features")
        source = open_features(arguments.features)
    else:
        source = _photographs(arguments)

    present = {split: any(_is_there(source, image) for image in images) for split, images in splits.items()}
    if not any(present.values()):
        names = [image.name for images in splits.values() for image in images]
        raise CaptionMismatchError(
            f"{source.place}: expected images that {arguments.captions} has captions for, such as {', '.join(names[:3])}; found "
            f"none of the {len(names):,}; there: {', '.join(source.examples()) or 'nothing'}"
        )
    for split, images in splits.items():
        if not present[split]:
            print(f"{split}: none of its {len(images):,} images is in {source.place}; not written")
            continue
        summary = extract_split(
            images,
            source,
            arguments.out,
            split,
            arguments.captions,
            captions_per_image=arguments.captions_per_image,
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            overwrite=arguments.overwrite,
        )
        if summary.ran:
            skipped = f"; {len(summary.skipped):,} skipped, listed in {split}_extract.json" if summary.skipped else ""
            print(f"{split}: {summary.images:,} images in {arguments.out}{skipped}")


def _is_there(source, image) -> bool:
    from ..photographs import Unreadable

    try:
        return source.find(image) is not None
    except Unreadable:
        # The run says why it is skipped.
        return True


def _photographs(arguments: argparse.Namespace):
    import torch

    from ..extraction import DEFAULT_BACKBONE, Photographs, backbones

    if not os.path.isdir(arguments.photos):
        raise DataError(f"--photos: expected a folder of photographs, found none at {arguments.photos}")
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Photographs(arguments.photos, backbones.load_backbone(arguments.backbone or DEFAULT_BACKBONE, arguments.size, device))


def _splits(arguments: argparse.Namespace) -> dict:
    """The images of each split to write."""
    from ..extraction import CaptionedImage, read_captions, read_names

    splits = read_captions(arguments.captions, arguments.format)
    if None in splits:
        splits = {arguments.split or "test": splits[None]}
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
        # Lists are found with and without the names' ending.
        by_name = {os.path.splitext(image.name)[0]: image for image in images} | {image.name: image for image in images}
        names = read_names(arguments.images)
        if not by_name.keys() & set(names):
            raise CaptionMismatchError(
                f"{arguments.images}: expected names of images that {arguments.captions} has captions for, such as "
                f"{images[0].name}; found {len(names):,} others, such as {names[0]}"
            )
        splits = {split: [by_name.get(name, CaptionedImage(name, [])) for name in names]}
    return splits
