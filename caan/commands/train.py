"""Train CAAN on features and captions in the SCAN layout.

A run lives in a folder. Stopped or killed, the same command continues it; under torchrun, its processes share each batch.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from ..model import ModelConfig
from ..presets import PRESETS, TrainingConfig
from ..processes import joined
from ..vocabulary import Vocabulary
from . import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    options.add_data_options(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    parser.add_argument("--preset", choices=PRESETS, default="f30k", help="settings to start from; the options below override")
    parser.add_argument("--train-split", default="train", metavar="NAME", help="default: train")
    parser.add_argument("--validation-split", default="dev", metavar="NAME", help="default: dev")
    parser.add_argument(
        "--vocabulary",
        type=Path,
        metavar="FILE",
        help="SCAN's *_vocab.json; default: words that both splits' captions have at least 4 times",
    )
    parser.add_argument(
        "--save-minutes", type=float, default=5.0, metavar="X", help="how often the run is saved, beside each epoch's end"
    )
    options.add_fields(parser, ModelConfig, "model")
    options.add_fields(parser, TrainingConfig, "training")


def run(arguments: argparse.Namespace) -> None:
    """Train to the end, or until stopped."""
    # TensorBoard takes seconds to import, which --help and a wrong option need not wait for.
    from ..training import Trainer

    device = options.device(arguments)
    if not arguments.save_minutes > 0:
        raise ValueError(f"--save-minutes: expected more than 0, got {arguments.save_minutes}")
    preset = PRESETS[arguments.preset]
    config = replace(preset.training, **options.given_fields(arguments, TrainingConfig))
    train, validation = options.load_splits(arguments, arguments.train_split, arguments.validation_split)
    if arguments.vocabulary:
        vocabulary = Vocabulary.load(arguments.vocabulary)
    else:
        vocabulary = Vocabulary.from_captions([*train.captions, *validation.captions])
    if config.validation_images:
        validation = validation.first(min(config.validation_images, validation.num_images))
    settings = {**preset.model, **options.given_fields(arguments, ModelConfig)}
    model_config = ModelConfig(train.regions.width, len(vocabulary), **settings)
    with joined(device) as processes:
        trainer = Trainer(
            arguments.out,
            train,
            validation,
            vocabulary,
            model_config,
            config,
            device=device,
            workers=arguments.workers,
            save_seconds=60 * arguments.save_minutes,
            processes=processes,
        )
        if processes.first:
            shared = f", {processes.count} processes" if processes.count > 1 else ""
            print(
                f"{train.num_images:,} images, {len(train.captions):,} captions, {len(vocabulary):,} words; "
                f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters; {trainer.total_steps:,} steps on {device}, "
                f"{torch.get_num_threads()} threads{shared}"
            )
        trainer.run()
        if processes.first:
            print(f"best validation rsum {trainer.best_rsum:.1f}: {arguments.out / 'best.safetensors'}")
