"""Train and evaluate on rendered scenes of coloured shapes: no data, no network, about two minutes on two cores.

Scenes are drawn and described, their features extracted, the preset "demo" trained, retrieval measured on scenes with pairs of
colour and shape that training never showed, and a page of it written. Stopped or killed, the same command continues.
"""

import argparse
from pathlib import Path

from ..presets import PRESETS
from . import evaluate, extract, options, show, train

_SCENES = {"train": 1500, "dev": 300, "test": 300}
_TITLES = {
    "dev": "pairs of colour and shape as in training",
    "test": "in every scene a pair of colour and shape that training never showed",
}
# Fewer scenes are shown more often.
_STEPS = 480


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--out", type=Path, default=Path("caan-demo"), metavar="DIR", help="folder for everything (caan-demo)")
    parser.add_argument(
        "--scenes", type=int, default=_SCENES["train"], metavar="N", help=f"scenes to train on ({_SCENES['train']})"
    )
    options.add_device_option(parser)


def run(arguments: argparse.Namespace) -> None:
    """Draw, extract, train, evaluate."""
    # What draws need not be waited for by --help.
    from ..demo import scenes
    from ..extraction import read_captions

    if arguments.scenes < 20:
        raise ValueError(f"--scenes: expected at least 20, got {arguments.scenes}")
    data, run_folder = arguments.out / "data", arguments.out / "run"
    for split, count in {**_SCENES, "train": arguments.scenes}.items():
        # Dev and test shrink with a small train split, so that a trial stays short.
        count = min(count, arguments.scenes)
        photos = arguments.out / "photos" / split
        captions = photos / scenes.CAPTIONS_FILE
        if not captions.exists():
            scenes.write_split(photos, split, count)
        drawn = len(read_captions(captions)[None])
        if drawn != count:
            raise ValueError(f"--scenes: expected {drawn}, as in {photos}, got {count}; another --out starts anew")
        _command(extract, "--photos", photos, "--captions", captions, "--out", data, "--split", split, "--device", arguments.device)
    common = ("--data", data, "--device", arguments.device)
    epochs = max(1, round(_STEPS * PRESETS["demo"].training.batch_size / (5 * arguments.scenes)))
    schedule = ("--epochs", epochs, "--decay-epochs", 0.75 * epochs, "--validation-images", 100)
    _command(train, *common, "--out", run_folder, "--preset", "demo", *schedule)
    for split, title in _TITLES.items():
        print(f"\n{split}: {title}")
        _command(evaluate, run_folder, *common, "--split", split)
    pictures = ("--split", "test", "--photos", arguments.out / "photos" / "test", "--out")
    print()
    _command(show, "training", run_folder, "--out", arguments.out / "training.png")
    _command(show, "pair", run_folder, *common, "--image", 0, *pictures, arguments.out / "pair.png")
    # Last, so that the last line names the page to open.
    _command(show, "retrieval", run_folder, *common, "--queries", 6, *pictures, arguments.out / "retrieval.html")


def _command(module, *arguments: object) -> None:
    """Run another command as its command line would."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_args([str(argument) for argument in arguments]))
