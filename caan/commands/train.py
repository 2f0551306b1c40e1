"""Train CAAN on features and captions in the SCAN layout.

A run lives in a folder. Stopped or killed, the same command continues it; under torchrun, its processes share each batch.
"""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..checkpoint import BEST
from ..data import read_record
from ..model import ModelConfig
from ..presets import PRESETS, TrainingConfig
from ..processes import joined
from ..recall import chance, chance_limit
from ..same_run import OtherRunError
from ..settings import as_typed, helps, option, value_as_typed
from ..vocabulary import Vocabulary
from . import options

if TYPE_CHECKING:
    from ..training import Trainer

_DEFAULT = "f30k"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    options.add_data_options(parser)
    # Errors begin with what they are about, and this is the trainer's word.
    parser.add_argument("--out", dest="folder", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        default=_DEFAULT,
        help=f"settings to start from, listed at the end ({_DEFAULT}); the options below override them",
    )
    parser.add_argument("--train-split", default="train", metavar="NAME", help="default: train")
    parser.add_argument("--validation-split", default="dev", metavar="NAME", help="default: dev")
    parser.add_argument(
        "--vocabulary",
        type=Path,
        metavar="FILE",
        help="SCAN's *_vocab.json; default: words that occur at least 4 times in the captions of both splits",
    )
    parser.add_argument(
        "--save-minutes", type=float, default=5.0, metavar="X", help="save the run every X minutes, and after each epoch (5)"
    )
    options.add_fields(parser, ModelConfig, "model")
    options.add_fields(parser, TrainingConfig, "training")
    parser.epilog = _preset_table()


def _preset_table() -> str:
    """Every setting's value in every preset, indented, as a table."""
    rows = [("--preset", *(f"{name} (default)" if name == _DEFAULT else name for name in PRESETS))]
    for config in (ModelConfig, TrainingConfig):
        defaults = {setting.name: setting.default for setting in fields(config)}
        for name in helps(config):
            of_preset = (vars(p.training) if config is TrainingConfig else {**defaults, **p.model} for p in PRESETS.values())
            rows.append((option(name), *(_in_table(config, name, settings[name]) for settings in of_preset)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "presets:\n" + "\n".join(f"  {line}" for line in lines)


def _in_table(config: type, name: str, value: object) -> str:
    return ("no", "yes")[value] if isinstance(value, bool) else value_as_typed(config, name, value)


def run(arguments: argparse.Namespace) -> None:
    """Train to the end, or until stopped."""
    # TensorBoard takes seconds to import, which --help and a wrong option need not wait for.
    from ..training import Trainer

    device = options.device(arguments)
    if not arguments.save_minutes > 0:
        raise ValueError(f"--save-minutes: expected more than 0, got {arguments.save_minutes}")
    preset = PRESETS[arguments.preset]
    config = replace(preset.training, preset=arguments.preset, **options.given_fields(arguments, TrainingConfig))
    train, validation = options.load_splits(arguments, arguments.train_split, arguments.validation_split)
    if arguments.vocabulary:
        vocabulary = Vocabulary.load(arguments.vocabulary)
    else:
        vocabulary = Vocabulary.from_captions([*train.captions, *validation.captions])
    settings = {**preset.model, **options.given_fields(arguments, ModelConfig)}
    model_config = ModelConfig(train.regions.width, len(vocabulary), **settings)
    record = read_record(arguments.data, arguments.train_split)
    with joined(device) as processes:
        try:
            trainer = Trainer(
                arguments.folder,
                train,
                validation,
                vocabulary,
                model_config,
                config,
                device=device,
                workers=arguments.workers,
                save_seconds=60 * arguments.save_minutes,
                processes=processes,
                backbone=record and record.settings,
            )
        except OtherRunError as error:
            raise ValueError(_started_otherwise(error, arguments)) from None
        if processes.first:
            shared = f", {processes.count} processes" if processes.count > 1 else ""
            threads = torch.get_num_threads()
            print(
                f"{train.num_images:,} images, {len(train.captions):,} captions, {vocabulary.num_words:,} words; "
                f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters; {trainer.total_steps:,} steps on {device}, "
                f"{threads} thread{'' if threads == 1 else 's'}{shared}; validation on {trainer.validated_on}"
            )
        trainer.run()
        if processes.first:
            print(_result(trainer, train.num_images))


def _result(trainer: "Trainer", images: int) -> str:
    """What a run has reached, beside what random scores reach."""
    place = torch.from_numpy(trainer.validation.image_of_caption), trainer.validation.num_images
    by_chance = sum(map(sum, chance(*place)))
    best = f"best validation rsum {trainer.best_rsum:.1f} (by chance {by_chance:.1f}), on {trainer.validated_on}"
    result = f"{best}: {trainer.folder / BEST}"
    if trainer.best_rsum > chance_limit(*place, trainer.validation.num_images):
        return result
    return (
        f"{result}\nWarning: random scores can have this rsum, so the model has learned little. It may need more images with "
        f"captions (there are {images:,}; Flickr8k has 6,000 to train on), or more epochs"
    )


def _started_otherwise(error: OtherRunError, arguments: argparse.Namespace) -> str:
    """What to say of a run with other settings: the options that it was started with."""
    configs = {name: config for config in (ModelConfig, TrainingConfig) for name in helps(config)}
    before = " ".join(as_typed(configs[name], name, value) for name, (value, _) in error.differences.items())
    now = " ".join(as_typed(configs[name], name, value) for name, (_, value) in error.differences.items())
    if error.preset not in ("", arguments.preset):
        before, now = f"--preset {error.preset}", f"--preset {arguments.preset}"
    return f"the run in {error.folder} was started with {before}: expected the same, got {now}; another --out starts anew"
