"""What a run writes about itself: metrics.csv, and the same for TensorBoard."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .files import replacing
from .recall import Figures

if TYPE_CHECKING:
    # It takes seconds to import.
    from torch.utils.tensorboard import SummaryWriter

RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")
# On how many images the recalls are, and of how many the split has.
VALIDATED = ("validation_images", "split_images")
GRADIENTS = ("gradient_norm_median", "gradient_norm_mean", "gradient_norm_max", "clipped_share")
COLUMNS = (
    "step",
    "epoch",
    "seconds",
    "loss",
    "learning_rate",
    "gradient_norm",
    "pairs_per_second",
    *RECALLS,
    *VALIDATED,
    *GRADIENTS,
)


class Metrics:
    """metrics.csv and TensorBoard, both without what a killed run wrote after its last checkpoint.

    Args:
        path: the file.
        step: rows of later steps are dropped.
        validated: whether the epoch that this step ends has its validation; otherwise a row of it is dropped.
        writer: TensorBoard's.
    """

    def __init__(self, path: Path, step: int, validated: bool, writer: "SummaryWriter"):
        rows = []
        if path.exists():
            with path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if _step_of(row) <= step]
            if not validated:
                rows = [row for row in rows if _step_of(row) < step or not row["rsum"]]
        with replacing(path) as unfinished, unfinished.open("w", newline="") as file:
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            table.writeheader()
            table.writerows(rows)
        self._file = path.open("a", newline="")
        self._table = csv.DictWriter(self._file, COLUMNS)
        self._writer = writer

    def add(self, place: dict[str, Any], values: dict[str, float]) -> None:
        """Write a row."""
        self._table.writerow({**place, **values})
        self._file.flush()
        for name, value in values.items():
            self._writer.add_scalar(name, value, place["step"])

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()


def validation_row(figures: Figures, images: int, split_images: int) -> dict[str, float]:
    """The columns of recall, and of what it was measured on."""
    values = [getattr(side, r) for side in figures.sides for r in ("r1", "r5", "r10")]
    return dict(zip((*RECALLS, *VALIDATED), (*values, figures.rsum, images, split_images), strict=True))


def gradient_row(norms: Sequence[float], clip_norm: float) -> dict[str, float]:
    """The columns of an epoch's gradients: their norms before clipping, and the part of the steps that were clipped.

    Args:
        norms: of each step. Steps without a finite one do not count: float16's scaler leaves them out.
        clip_norm: larger ones were scaled down to it.
    """
    taken = np.array([norm for norm in norms if math.isfinite(norm)] or [math.nan])
    return dict(zip(GRADIENTS, map(float, (np.median(taken), taken.mean(), taken.max(), (taken > clip_norm).mean())), strict=True))


def place_of_validation(name: str, images: int, split_images: int) -> str:
    """Which images of a split figures are of, in words."""
    return (
        f"all {images:,} images of {name}"
        if images == split_images
        else f"the first {images:,} of {split_images:,} images of {name}"
    )


def summary(figures: Figures) -> str:
    """The six recalls and their sum, in a line."""
    sides = zip(("image → text", "text → image"), figures.sides, strict=True)
    recalls = ", ".join(f"{name} {side.r1:.1f} {side.r5:.1f} {side.r10:.1f}" for name, side in sides)
    return f"R@1/5/10 {recalls}, rsum {figures.rsum:.1f}"


def _step_of(row: dict[str, str | None]) -> float:
    try:
        return int(row["step"])
    except (KeyError, TypeError, ValueError):
        # The kill came in the middle of this row.
        return math.inf
