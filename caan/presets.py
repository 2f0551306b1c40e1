"""How a model is trained: the settings, and named sets of them."""

import math
from dataclasses import dataclass
from typing import Any

from .loss import FORMS
from .settings import setting, value_as_typed

# torch's dtypes, by the names that users see.
_PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True)
class TrainingConfig:
    """Everything about a run that is not the model's; each field's help says what it is.

    Raises:
        ValueError: a value is out of range.
    """

    epochs: int = setting(30, "how many times training goes through all captions")
    batch_size: int = setting(128, "pairs of an image and a caption in a step; every image is scored with every caption")
    learning_rate: float = setting(2e-4, "learning rate of Adam", short="--lr")
    ramp_steps: int = setting(0, "steps over which the learning rate rises from 0")
    decay_epochs: tuple[float, ...] = setting((15.0,), "epochs after which the learning rate is multiplied by --decay-factor")
    decay_factor: float = setting(0.1, "the learning rate is multiplied by this at each of --decay-epochs")
    margin: float = setting(0.2, "margin of the triplet loss")
    warmup_epochs: float = setting(1.0, "epochs in which all violations of the margin count; then only the hardest negatives count")
    warmup_form: str = setting("sum", "the loss of the warm-up is the sum or the mean of all violations")
    clip_norm: float = setting(2.0, "largest L2 norm of the gradient; a larger gradient is scaled down to it")
    average: float = setting(0.0, "decay of a moving average of the weights; the average is validated and saved; 0: no average")
    precision: str = setting(
        "float32",
        "precision of the matrix products: fp32; bf16 or fp16 for mixed precision",
        typed={long: short for short, long in _PRECISIONS.items()},
    )
    validation_images: int = setting(0, "validate on at most the first N images; 0: all")
    seed: int = setting(0, "seed of the initial weights, the order of the data and dropout")
    # No setting of its own: the name of those that it began from.
    preset: str = ""

    def __post_init__(self):
        # Kept under torch's name, as runs always have been.
        object.__setattr__(self, "precision", _PRECISIONS.get(self.precision.lower(), self.precision))
        at_least = {"epochs": 1, "batch_size": 2, "ramp_steps": 0, "validation_images": 0, "seed": 0}
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        for name in ("learning_rate", "decay_factor", "margin", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a number more than 0, got {getattr(self, name)}")
        for name, values in (("warmup_epochs", (self.warmup_epochs,)), ("decay_epochs", self.decay_epochs)):
            for value in values:
                if not 0 <= value < math.inf:
                    raise ValueError(f"{name}: expected at least 0, got {value}")
        if not 0 <= self.average < 1:
            raise ValueError(f"average: expected at least 0 and less than 1, got {self.average}")
        for name, known in (("warmup_form", FORMS), ("precision", _PRECISIONS.values())):
            if getattr(self, name) not in known:
                typed = ", ".join(value_as_typed(type(self), name, x) for x in known)
                raise ValueError(f"{name}: expected one of {typed}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class Preset:
    """A named set of settings.

    Attributes:
        model: fields of `ModelConfig` that differ from their defaults.
        training: how it is trained.
    """

    model: dict[str, Any]
    training: TrainingConfig


# The paper states, beside its equations: Adam; learning rate, decay and epochs of either data set; hardest negatives with a margin;
# the best model by the sum of recalls on validation; embeddings of 300 numbers; similarity "dot". `f30k` and `coco` have all of it.
# What it does not state is a choice: these, and how the weights start (`caan.model`).
_CHOSEN_MODEL = {
    # The field's D; with it the region map, the GRU and the affinity have 11.3 M parameters.
    "width": 1024,
    # The paper counts "only 11 M". H = 64 makes 11.6 M, embeddings aside; H = D would make 15.5 M.
    "hidden_width": 64,
    # Ours: alignments are then tanh of cosines, whatever the scale of the features.
    "unit_length": True,
}
_CHOSEN_TRAINING = {
    # SCAN's and its heirs'.
    "batch_size": 128,
    "margin": 0.2,
    "clip_norm": 2.0,
    # Hardest negatives alone may collapse at the start. vse_infty, CHAN and LAPS begin with all violations as well.
    "warmup_epochs": 1.0,
    "warmup_form": "sum",
    # The field takes 1,000 of Flickr30K's 1,014 images of dev.
    "validation_images": 1000,
}

PRESETS = {
    "f30k": Preset(
        _CHOSEN_MODEL, TrainingConfig(epochs=30, learning_rate=2e-4, decay_epochs=(15.0,), decay_factor=0.1, **_CHOSEN_TRAINING)
    ),
    "coco": Preset(
        _CHOSEN_MODEL, TrainingConfig(epochs=20, learning_rate=5e-4, decay_epochs=(10.0,), decay_factor=0.1, **_CHOSEN_TRAINING)
    ),
    # docs/flickr8k.md has what it reaches.
    "cpu": Preset(
        {
            "width": 448,
            "hidden_width": 64,
            "word_width": 200,
            # Not the paper's: on Flickr8k, with width 256, batches of 32, two epochs and 300 images of dev, rsum is 321.3 and 319.9
            # with it (seeds 0 and 1), 309.4 and 301.3 with the paper's inner product.
            "similarity": "cosine",
            "standardize": True,
            "dropout": 0.2,
            "region_drop": 0.3,
            "word_drop": 0.2,
        },
        TrainingConfig(
            epochs=8,
            batch_size=32,
            learning_rate=8e-4,
            ramp_steps=100,
            decay_epochs=(4.0, 6.0, 7.333),
            decay_factor=0.3,
            warmup_epochs=0.0,
            average=0.9985,
            validation_images=200,
        ),
    ),
    "demo": Preset(
        {
            "width": 128,
            "word_width": 64,
            # Not the paper's: rsum on the demo's dev and test is 532.7 and 526.8 with it, 501.7 and 486.2 with the inner product
            # (one seed).
            "similarity": "cosine",
            "standardize": True,
            "dropout": 0.1,
        },
        TrainingConfig(
            epochs=4,
            batch_size=64,
            learning_rate=1e-3,
            decay_epochs=(3.0,),
            warmup_epochs=0.5,
            warmup_form="mean",
            validation_images=100,
        ),
    ),
}
