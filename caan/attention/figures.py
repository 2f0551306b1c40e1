"""Figures: what the operator attends to in a pair, and how a training went."""

import csv
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec
from PIL import Image

from ..errors import FormatError, MissingFileError
from ..files import read_text
from ..metrics import GRADIENTS, RECALLS
from ..progress import warn
from ..text import shown
from .heat import heat_image
from .maps import PairAttention

_COLOURS = "inferno"
_BAR = "#d9480f"
# Columns of metrics.csv that the end of an epoch fills.
EPOCH = ("seconds", *RECALLS, *GRADIENTS)
_PANELS_IN_ROW = 7
# A figure of more would be metres high.
_MOST_PANELS = 70
_MOST_LABELS = 100


def pair_figure(pair: PairAttention, photograph: Image.Image | None = None) -> Figure:
    """Everything that a pair's score came from.

    - The photograph under f, the attention that its regions are pooled with, and a bar for each region.
    - The words' bars, g.
    - For each word, 70 at most, the photograph under its column of C: where the word looks. Each has colours of its own, up to the
      largest weight, which stands beside the word. Rᵀ, a region's weights over the words, is its counterpart, and would have to be
      read across panels.
    - The affinities by which context is gathered within a side: Hᵛ of the regions and Hᵘ of the words.

    Args:
        pair: from `caan.attention.explain`.
        photograph: in RGB; None paints the heat on an empty canvas.

    Returns:
        A figure, to be saved.
    """
    words = len(pair.words)
    shown = min(words, _MOST_PANELS)
    rows = math.ceil(shown / _PANELS_IN_ROW)
    heights = [3.6, *[2.05] * rows, 4.4]
    figure = Figure(figsize=(15, sum(heights) + 1), layout="constrained")
    mark = {True: "   ✓ its own caption", False: "   not its caption", None: ""}[pair.right]
    rest = f"   the first {shown} of {words} words" if shown < words else ""
    title = f"{pair.image_id}:  “{_short(pair.caption, 110)}”\nscore {pair.score:.3f}{mark}{rest}"
    figure.suptitle(_plain(title), fontsize=13)
    # Some of many words, so that they can be read.
    labelled = np.arange(0, words, math.ceil(words / _MOST_LABELS))
    labels = [_plain(_short(pair.words[word], 20)) for word in labelled]
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)

    top = GridSpecFromSubplotSpec(1, 3, grid[0], width_ratios=(1, 1.7, 1.7))
    axes = figure.add_subplot(top[0])
    _heat(axes, pair.boxes, pair.region_attention, photograph)
    axes.set_title("regions, f")
    axes = figure.add_subplot(top[1])
    axes.bar(np.arange(len(pair.region_attention)), pair.region_attention, color=_BAR)
    axes.set(title="region attention f", xlabel="region", ylabel="weight")
    axes = figure.add_subplot(top[2])
    axes.bar(np.arange(words), pair.word_attention, color=_BAR)
    axes.set_xticks(labelled, labels, rotation=60, ha="right", rotation_mode="anchor")
    axes.set(title="word attention g", ylabel="weight")

    for row in range(rows):
        line = GridSpecFromSubplotSpec(1, _PANELS_IN_ROW, grid[1 + row])
        for column in range(_PANELS_IN_ROW):
            word = row * _PANELS_IN_ROW + column
            if word < shown:
                axes = figure.add_subplot(line[column])
                weights = pair.word_to_region[:, word]
                _heat(axes, pair.boxes, weights, photograph)
                axes.set_title(f"{_plain(_short(pair.words[word], 20))}  ≤ {weights.max(initial=0):.2f}", fontsize=11)

    bottom = GridSpecFromSubplotSpec(1, 2, grid[-1])
    for place, matrix, title, of_words in (
        (bottom[0], pair.region_affinity, "regions with regions, Hᵛ", False),
        (bottom[1], pair.word_affinity, "words with words, Hᵘ", True),
    ):
        axes = figure.add_subplot(place)
        # That of intra="features" can be negative.
        image = axes.imshow(matrix, cmap=_COLOURS, vmin=min(0, matrix.min(initial=0)))
        axes.set_title(title)
        if of_words:
            axes.set_xticks(labelled, labels, rotation=60, ha="right", rotation_mode="anchor")
            axes.set_yticks(labelled, labels)
        figure.colorbar(image, ax=axes, shrink=0.85)
    return figure


def _heat(axes: Axes, boxes: np.ndarray, values: np.ndarray, photograph: Image.Image | None) -> None:
    """Heat over a photograph, the largest value in the strongest colour."""
    width, height = photograph.size if photograph else (4, 3)
    extent = (0, width, height, 0)
    if photograph:
        axes.imshow(np.asarray(photograph.convert("L")), cmap="gray", extent=extent)
    heat = heat_image(boxes, values)
    top = float(values.max(initial=0)) or 1.0
    # Where nothing is attended to, the photograph stays as it is.
    alpha = 0.75 * np.nan_to_num(heat / top).clip(0, 1) if photograph else 1.0
    axes.imshow(heat, cmap=_COLOURS, alpha=alpha, vmin=0, vmax=top, extent=extent, aspect="auto")
    axes.set_aspect("equal" if photograph else "auto")
    axes.set(xticks=[], yticks=[])


def training_figure(rows: Sequence[dict[str, float]]) -> Figure:
    """Loss, learning rate, gradients and validation over the epochs of a run.

    Args:
        rows: from `read_metrics`.
    """
    figure = Figure(figsize=(17, 4.2), layout="constrained")
    loss, rate, gradient, recall = figure.subplots(1, 4)
    steps = [row for row in rows if "loss" in row]
    validated = [row for row in rows if "rsum" in row]
    loss.plot([row["epoch"] for row in steps], [row["loss"] for row in steps], color=_BAR, linewidth=1)
    loss.set(title="loss of a batch", xlabel="epoch", ylim=(0, None))
    rate.plot([row["epoch"] for row in steps], [row["learning_rate"] for row in steps], color=_BAR)
    rate.set(title="learning rate", xlabel="epoch", ylim=(0, None))
    epochs = [row["epoch"] for row in validated]
    for name in ("median", "mean", "max"):
        gradient.plot(epochs, [row[f"gradient_norm_{name}"] for row in validated], marker="o", label=name)
    gradient.set(title="gradient norm before clipping", xlabel="epoch", yscale="log")
    clipped = gradient.twinx()
    clipped.plot(epochs, [100 * row["clipped_share"] for row in validated], "--", color="grey", label="steps clipped")
    # Both ends of the range are common, and a line on the frame is not seen.
    clipped.set(ylabel="% of steps clipped", ylim=(-3, 103))
    gradient.legend(handles=[*gradient.lines, *clipped.lines], fontsize=8)
    for side, name, style in (("i2t", "image → text", "-"), ("t2i", "text → image", "--")):
        for k in (1, 5, 10):
            values = [row[f"{side}_r{k}"] for row in validated]
            recall.plot(epochs, values, style, marker="o", label=f"{name} R@{k}")
    recall.set(title="validation", xlabel="epoch", ylabel="%", ylim=(0, 100))
    if validated:
        best = max(validated, key=lambda row: row["rsum"])
        recall.set_title(f"validation; best rsum {best['rsum']:.1f} after epoch {best['epoch']:g}")
        recall.legend(fontsize=8, ncols=2)
    return figure


def comparison_figure(runs: Mapping[str, Sequence[dict[str, float]]]) -> Figure:
    """Loss and validation rsum of several runs over their epochs.

    Args:
        runs: by name, from `read_metrics`.
    """
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    loss, recall = figure.subplots(1, 2)
    for name, rows in runs.items():
        for axes, column, style in ((loss, "loss", {"linewidth": 0.7}), (recall, "rsum", {"marker": "o", "markersize": 3})):
            points = [(row["epoch"], row[column]) for row in rows if column in row]
            axes.plot([epoch for epoch, _ in points], [value for _, value in points], label=_plain(name), **style)
    loss.set(title="loss of a batch", xlabel="epoch", ylim=(0, None))
    recall.set(title="validation", xlabel="epoch", ylabel="rsum")
    recall.legend(fontsize=8)
    return figure


def read_metrics(run: str | Path) -> list[dict[str, float]]:
    """The rows of a run's metrics.csv, each with the numbers that it has.

    Raises:
        MissingFileError, FormatError: there is none, or it is none of ours.
    """
    path = Path(run) / "metrics.csv"
    if not path.is_file():
        raise MissingFileError(f"{path}: expected the metrics of a run, found no such file")
    try:
        rows = [
            {name: float(value) for name, value in row.items() if value} for row in csv.DictReader(io.StringIO(read_text(path)))
        ]
    except (TypeError, ValueError, csv.Error) as error:
        raise FormatError(f"{path}: expected numbers in every row: {error}") from None
    for number, row in enumerate(rows, 2):
        needed = ("epoch", "learning_rate") if "loss" in row else ("epoch",)
        missing = [name for name in (*needed, *(EPOCH if "rsum" in row else ())) if name not in row]
        if missing:
            raise FormatError(f"{path}: expected {', '.join(missing)} in line {number}, found a row without")
    if not any("loss" in row and "epoch" in row for row in rows):
        raise FormatError(f"{path}: expected the losses of a training, found none")
    return rows


def to_png(figure: Figure) -> bytes:
    """A figure as a PNG file, 110 dots an inch; a warning on stderr tells of texts that no font here can draw."""
    data = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(data, format="png", dpi=110)
    absent = {str(warning.message) for warning in caught if "missing from font" in str(warning.message)}
    for warning in caught:
        if str(warning.message) not in absent:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if absent:
        warn(f"warning: no font of matplotlib's has {len(absent)} of the characters, which are drawn as boxes")
    return data.getvalue()


def _plain(text: str) -> str:
    """Text that matplotlib takes as it is: between two dollars it would look for mathematics. Names of folders need not be text."""
    return shown(text).replace("$", r"\$")


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
