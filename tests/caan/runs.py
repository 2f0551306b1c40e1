"""Training runs on the world of conftest.py, and whether two ended alike."""

import csv

import torch

from caan import ModelConfig, Vocabulary, checkpoint
from caan.data import load_scan_split
from caan.presets import TrainingConfig
from caan.training import Trainer

CONFIG = TrainingConfig(
    epochs=2,
    batch_size=20,
    learning_rate=5e-3,
    ramp_steps=3,
    decay_epochs=(1.5,),
    warmup_epochs=0.5,
    warmup_form="mean",
    average=0.9,
)


def trainer(world, folder, config=CONFIG, model=None, **options):
    train, dev = (load_scan_split(world, split) for split in ("train", "dev"))
    vocabulary = Vocabulary.from_captions(train.captions)
    settings = {
        "width": 12,
        "word_width": 8,
        "dropout": 0.1,
        "region_drop": 0.3,
        "word_drop": 0.3,
        "standardize": True,
        **(model or {}),
    }
    model_config = ModelConfig(train.regions.width, len(vocabulary), **settings)
    said = []
    result = Trainer(folder, train, dev, vocabulary, model_config, config, say=said.append, **options)
    result.said = said
    return result


def weights(folder):
    return {name: checkpoint.read(folder / f"{name}.safetensors") for name in ("last", "best")}


def assert_same_weights(first, second):
    for name, (tensors, facts) in weights(first).items():
        other = weights(second)[name]
        assert set(tensors) == set(other.tensors)
        for key, tensor in tensors.items():
            assert torch.equal(tensor, other.tensors[key]), (name, key)
        assert facts["words"] == other.facts["words"] and facts.get("best_rsum") == other.facts.get("best_rsum")


def assert_same_metrics(first, second):
    """The rows of metrics.csv, without what the clock has to do with."""
    rows = []
    for folder in (first, second):
        with (folder / "metrics.csv").open(newline="") as file:
            rows.append([{**row, "seconds": None, "pairs_per_second": None} for row in csv.DictReader(file)])
    assert rows[0] == rows[1] and any(row["clipped_share"] for row in rows[0])
