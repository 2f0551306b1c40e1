"""`caan extract` as a function."""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def extract(
    photos: str | Path,
    out: str | Path,
    captions: str | Path | None = None,
    *,
    split: str | None = None,
    hold_out: int | None = None,
    images: str | Path | None = None,
    captions_per_image: int | None = None,
    backbone: str | None = None,
    size: int | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Turn a folder of photographs into a data folder: features in the SCAN layout, as `caan extract` makes them.

    After a kill at any moment, the same call continues. Lines and a progress bar show how far it is.

    Args:
        photos: folder of photographs.
        out: the data folder; it is made if it is missing.
        captions: Flickr's token file, Karpathy's or COCO's JSON, or CSV with the header image,caption; None for photographs
            without captions.
        split: name of the split, "test" by default; if the captions have splits, only this one is written.
        hold_out: for captions without splits: the number of images in dev, and also in test. All others are in train.
        images: a file with the names of the split's images, one a line; None takes all that have captions.
        captions_per_image: how many captions of each image are taken, the first ones; None: as many as most images have, at most
            5.
        backbone: "efficientnet-lite0", the default, or "timm:MODEL" or "torchvision:MODEL".
        size: photographs are scaled to a square of this side, in pixels; None: the backbone's own size.
        device: where the backbone runs; None: a GPU if there is one, else the CPU.
        batch_size: how many images the backbone reads at once.
        workers: threads that read images.
        overwrite: make the splits anew, even if they exist or are unfinished.

    Returns:
        The data folder.

    Raises:
        DataError, ValueError, OSError: what was given cannot be used.

    Examples:
        >>> import caan
        >>> data = caan.extract("photos", "data", "captions.csv", hold_out=1)
        train: 1 images in data...
        >>> sorted(file.name for file in data.glob("*_ims.npy"))
        ['dev_ims.npy', 'test_ims.npy', 'train_ims.npy']
        >>> model = caan.load("runs/pets", backbone=data)
    """
    from ..commands import extract as command

    given: dict[str, Any] = {
        "photos": photos,
        "out": out,
        "captions": captions,
        "split": split,
        "hold-out": hold_out,
        "images": images,
        "captions-per-image": captions_per_image,
        "backbone": backbone,
        "size": size,
        "device": device,
        "batch-size": batch_size,
        "workers": workers,
    }
    parser = _Parser(prog="caan extract", add_help=False)
    command.add_arguments(parser)
    line = [f"--{name}={value}" for name, value in given.items() if value is not None]
    try:
        command.run(parser.parse_args([*line, *(["--overwrite"] if overwrite else [])]))
    except ValueError as error:
        error.args = (_as_arguments(str(error), given),)
        raise
    return Path(out)


def _as_arguments(message: str, names: Iterable[str]) -> str:
    """An error of the command in the words of a call: arguments in place of its options."""
    message = message.replace("--overwrite", "overwrite=True").replace("--split NAME", "split=NAME")
    longest_first = "|".join(sorted(names, key=len, reverse=True))
    return re.sub(rf"--({longest_first})\b", lambda found: found[1].replace("-", "_"), message)
