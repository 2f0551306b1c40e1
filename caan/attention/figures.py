"""Figures: what the operator attends to in a pair, and how a training went."""

import csv
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec, SubplotSpec
from PIL import Image

from ..errors import FormatError, MissingFileError
from ..files import read_text
from ..metrics import GRADIENTS, RECALLS, VALIDATED
from ..progress import warn
from ..text import shown
from .heat import COLOUR, GREY, LIMIT, even_part, even_share, evenness, painted, scale, strength
from .maps import PairAttention

_COLOURS = "inferno"
_BAR = "#{:02x}{:02x}{:02x}".format(*COLOUR)
_LOW_BAR = "#868e96"
_LINE = "#868e96"
# The page's own colours (base.html), where it is dark.
_DARK_PAGE, _DARK_TEXT, _DARK_LINE = "#1a2027", "#e6eaef", "#98a2ae"
_DARK = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor", "legend.facecolor"), _DARK_PAGE),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.labelcolor", "ytick.labelcolor"), _DARK_TEXT),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color", "legend.edgecolor"), _DARK_LINE),
}
# Columns of metrics.csv that the end of an epoch fills.
EPOCH = ("seconds", *RECALLS, *GRADIENTS)
# A photograph in a figure has no more pixels a side.
_PANEL = 400
_PANELS_IN_ROW = 7
# A figure of more would be metres high.
_MOST_PANELS = 70
_MOST_LABELS = 100


def pair_figure(pair: PairAttention, photograph: Image.Image | None = None) -> Figure:
    """Everything that a pair's score came from.

    - The photograph, the same under f, the attention that its regions are pooled with, and a bar for each region.
    - The words' bars, g.
    - For each word, 70 at most, the photograph under its column of C: where the word looks. The largest weight stands beside the
      word. Rᵀ, a region's weights over the words, is its counterpart, and would have to be read across panels.
    - The affinities by which context is gathered within a side: Hᵛ of the regions and Hᵘ of the words.

    Photographs are orange where attention is more than an even share, as they are where it is that, and darker where it is less.
    The weights of f sum to 1, and an even share is 1/R; a column of C has length 1, and an even share is 1/√R.

    Args:
        pair: from `caan.attention.explain`.
        photograph: in RGB; None paints an empty canvas.

    Returns:
        A figure, to be saved.
    """
    words = len(pair.words)
    shown = min(words, _MOST_PANELS)
    rows = math.ceil(shown / _PANELS_IN_ROW)
    heights = [3.6, 0.75, *[2.05] * rows, 4.4]
    figure = Figure(figsize=(15, sum(heights) + 1), layout="constrained")
    mark = {True: "   ✓ its own caption", False: "   not its caption", None: ""}[pair.right]
    rest = f"   the first {shown} of {words} words" if shown < words else ""
    title = f"{pair.image_id}:  “{_short(pair.caption, 110)}”\nscore {pair.score:.3f}{mark}{rest}"
    figure.suptitle(_plain(title), fontsize=13)
    grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
    canvas = Image.new("RGB", (320, 240), GREY)
    if photograph:
        canvas = photograph.convert("RGB")
        canvas.thumbnail((_PANEL, _PANEL))

    _add_attention(figure, grid[0], pair, canvas, plain=photograph is not None)
    _add_scale(figure, GridSpecFromSubplotSpec(1, 3, grid[1], width_ratios=(1, 1.6, 1))[1])
    for row in range(rows):
        line = GridSpecFromSubplotSpec(1, _PANELS_IN_ROW, grid[2 + row])
        for column in range(_PANELS_IN_ROW):
            word = row * _PANELS_IN_ROW + column
            if word < shown:
                ratios = pair.word_to_region[:, word] / even_part(len(pair.boxes))
                most = f"up to {ratios.max(initial=0):.1f}×" if ratios.any() else "nowhere"
                axes = figure.add_subplot(line[column])
                _photograph(axes, painted(canvas, pair.boxes, ratios), f"{_plain(_short(pair.words[word], 20))}  {most}", 11)
    _add_affinities(figure, grid[-1], pair)
    return figure


def _add_attention(figure: Figure, place: SubplotSpec, pair: PairAttention, canvas: Image.Image, plain: bool) -> None:
    """The photograph, the same under f, and the bars of f and g."""
    panels = iter(GridSpecFromSubplotSpec(1, 3 + plain, place, width_ratios=(*[1] * (1 + plain), 1.6, 1.6)))
    if plain:
        _photograph(figure.add_subplot(next(panels)), canvas, "photograph")
    ratios = pair.region_attention / even_share(len(pair.boxes))
    _photograph(figure.add_subplot(next(panels)), painted(canvas, pair.boxes, ratios), "under f")
    axes = figure.add_subplot(next(panels))
    _bars(axes, pair.region_attention)
    axes.set(title="region attention f", xlabel="region", ylabel="weight")
    axes = figure.add_subplot(next(panels))
    _bars(axes, pair.word_attention)
    axes.set_xticks(*_word_labels(pair), rotation=60, ha="right", rotation_mode="anchor")
    axes.set(title="word attention g", ylabel="weight")


def _bars(axes: Axes, weights: np.ndarray) -> None:
    """A bar a weight, those of more than an even share in the colour of photographs, however little more it is."""
    share = even_share(len(weights))
    even = evenness(weights / share)
    near = f"; all within {even}" if even else ""
    axes.bar(np.arange(len(weights)), weights, color=[_BAR if weight > share else _LOW_BAR for weight in weights])
    axes.axhline(share, linestyle="--", linewidth=1, color=_LINE, label=f"an even share, 1/{len(weights)}" + near)
    # Over the highest bar.
    axes.set_ylim(0, 1.25 * max(share, weights.max(initial=0)))
    axes.legend(fontsize=8, loc="upper right")


def _add_scale(figure: Figure, place: SubplotSpec) -> None:
    """What the colours over photographs say."""
    axes = figure.add_subplot(place)
    ratios = np.geomspace(1 / LIMIT, LIMIT, 255)
    axes.imshow(scale(ratios), aspect="auto", extent=(-1, 1, 0, 1))
    labels = {1 / LIMIT: f"1/{LIMIT:g} or less", 0.5: "1/2", 1: "as it is: an even share", 2: "2×", LIMIT: f"{LIMIT:g}× or more"}
    axes.set_xticks(strength(np.array(list(labels))), labels.values())
    axes.set(yticks=[])
    axes.set_title("over photographs: attention as a multiple of an even share", fontsize=10)


def _add_affinities(figure: Figure, place: SubplotSpec, pair: PairAttention) -> None:
    left, right = GridSpecFromSubplotSpec(1, 2, place)
    labels = _word_labels(pair)
    for panel, matrix, title in (
        (left, pair.region_affinity, "regions with regions, Hᵛ"),
        (right, pair.word_affinity, "words with words, Hᵘ"),
    ):
        axes = figure.add_subplot(panel)
        # That of intra="features" can be negative.
        image = axes.imshow(matrix, cmap=_COLOURS, vmin=min(0, matrix.min(initial=0)))
        axes.set_title(title)
        if panel is right:
            axes.set_xticks(*labels, rotation=60, ha="right", rotation_mode="anchor")
            axes.set_yticks(*labels)
        figure.colorbar(image, ax=axes, shrink=0.85, label="affinity")


def _word_labels(pair: PairAttention) -> tuple[np.ndarray, list[str]]:
    """Places and texts of the words; of many words some, so that they can be read."""
    labelled = np.arange(0, len(pair.words), math.ceil(len(pair.words) / _MOST_LABELS))
    return labelled, [_plain(_short(pair.words[word], 20)) for word in labelled]


def _photograph(axes: Axes, picture: Image.Image, title: str, size: float = 12) -> None:
    axes.imshow(np.asarray(picture))
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=size)


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
        title = f"validation{validated_on(best)}\nbest rsum {best['rsum']:.1f} after epoch {best['epoch']:g}"
        recall.set_title(title, fontsize=11)
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
            label = _plain(name) + next((validated_on(row) for row in rows if "rsum" in row), "")
            axes.plot([epoch for epoch, _ in points], [value for _, value in points], label=label, **style)
    loss.set(title="loss of a batch", xlabel="epoch", ylim=(0, None))
    recall.set(title="validation", xlabel="epoch", ylabel="rsum")
    recall.legend(fontsize=8)
    return figure


def validated_on(row: dict[str, float]) -> str:
    """What an epoch's figures are of, where its run has noted that and it is not the whole split."""
    images, of = (int(row.get(name, 0)) for name in VALIDATED)
    return f" on the first {images:,} of {of:,} images" if images < of else ""


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


def to_png(draw: Callable[[], Figure], dark: bool = False) -> bytes:
    """A figure as a PNG file in RGB, 110 dots an inch; a warning on stderr tells of texts that no font here can draw.

    Args:
        draw: makes the figure.
        dark: in the colours of a dark page.
    """
    drawn, data = io.BytesIO(), io.BytesIO()
    # Some colours are decided when a figure is made, others when it is saved.
    with matplotlib.rc_context(_DARK if dark else {}), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw().savefig(drawn, format="png", dpi=110, pil_kwargs={"compress_level": 1})
    Image.open(drawn).convert("RGB").save(data, "png")
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
