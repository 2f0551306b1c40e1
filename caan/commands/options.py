"""Options that several commands share."""

import argparse
import os
from collections.abc import Callable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import torch

from ..data import KarpathyFile, Split, load_karpathy_split, load_scan_split, recorded_captions_per_image
from ..settings import helps, option


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Where the data are, and how they are read."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder in the SCAN layout: {split}_ims.npy, ...")
    parser.add_argument(
        "--karpathy", type=Path, metavar="FILE", help="dataset_*.json with the captions, in place of {split}_caps.txt"
    )
    parser.add_argument(
        "--captions-per-image",
        type=int,
        metavar="N",
        help="how many captions each image has (default: as caan extract has noted, or else 5); with --karpathy: take the first N",
    )
    parser.add_argument("--workers", type=count, default=0, metavar="N", help="processes that read the data; 0: this one")
    add_device_option(parser)


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """What computes."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=default, help=f"where the model runs: cpu, cuda, cuda:1, ... ({default})")


def load_splits(arguments: argparse.Namespace, *names: str, limit: int | None = None, need_captions: bool = True) -> list[Split]:
    """Open splits as the options say; without `need_captions`, those that have no captions, too."""
    given = arguments.captions_per_image
    if not arguments.karpathy:
        common = {"captions_per_image": given, "need_captions": need_captions, "limit": limit}
        return [load_scan_split(arguments.data, name, **common) for name in names]
    # Once for all: it may be a pipe.
    file = KarpathyFile.read(arguments.karpathy)
    splits = []
    for name in names:
        count = recorded_captions_per_image(arguments.data, name) if given is None else given
        features = arguments.data / f"{name}_ims.npy"
        splits.append(load_karpathy_split(file, features, name, captions_per_image=count, limit=limit))
    return splits


def device(arguments: argparse.Namespace) -> torch.device:
    """The device asked for.

    Raises:
        ValueError: there is no such device.
    """
    try:
        found = torch.device(arguments.device)
        if found == torch.device("cuda"):
            # Of torchrun's processes on a machine, each has a GPU of its own.
            rank = os.environ.get("LOCAL_RANK", "0")
            if not rank.isdecimal():
                raise ValueError(f"LOCAL_RANK: expected a whole number, as torchrun sets it, got {rank!r}")
            found = torch.device("cuda", int(rank))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device: expected a device that is there, got {arguments.device!r}: {error}") from None
    return found


def intermixed(parser: argparse.ArgumentParser) -> None:
    """Have a command take options between its positional arguments, which argparse otherwise takes all at once."""
    plain = parser.parse_known_args
    inside = False

    def parse(arguments: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        nonlocal inside
        if inside:
            # What follows asks for it twice, for options and then for the rest.
            return plain(arguments, namespace)
        inside = True
        try:
            return parser.parse_known_intermixed_args(arguments, namespace)
        finally:
            inside = False

    parser.parse_known_args = parse


def count(text: str) -> int:
    """A number of things, for `add_argument`."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"expected at least 0, got {number}")
    return number


def add_fields(parser: argparse.ArgumentParser, config: type, title: str) -> None:
    """Give a group of options for the settings of a dataclass; unset ones stay out of the result."""
    group = parser.add_argument_group(title)
    texts = helps(config)
    for setting in fields(config):
        if setting.name not in texts:
            continue
        names = [name for name in (option(setting.name), setting.metadata["short"]) if name]
        common = {"default": argparse.SUPPRESS, "help": texts[setting.name]}
        if setting.type is bool:
            group.add_argument(*names, action=argparse.BooleanOptionalAction, **common)
        else:
            group.add_argument(*names, type=_parse(setting), metavar=_metavar(setting), **common)


def given_fields(arguments: argparse.Namespace, config: type) -> dict[str, Any]:
    """Those fields of a dataclass that the command line sets."""
    return {name: getattr(arguments, name) for name in helps(config) if hasattr(arguments, name)}


def _parse(setting: Field) -> Callable[[str], Any]:
    if setting.type == str | None:
        return lambda text: None if text.lower() == "none" else text
    if setting.type == tuple[float, ...]:

        def numbers(text: str) -> tuple[float, ...]:
            return tuple(float(part) for part in text.split(",") if part)

        return numbers
    return setting.type


def _metavar(setting: Field) -> str:
    return {int: "N", float: "X", str: "NAME", str | None: "NAME"}.get(setting.type, "X,X,...")
