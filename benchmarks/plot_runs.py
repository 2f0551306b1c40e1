"""Loss and validation rsum of training runs over their epochs, in one picture.

python benchmarks/plot_runs.py RUN [RUN ...] --out curves.png
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def column(rows: list[dict[str, str]], name: str) -> tuple[list[float], list[float]]:
    """Epochs, and what a column of metrics.csv had then."""
    there = [(float(row["epoch"]), float(row[name])) for row in rows if row[name]]
    return [epoch for epoch, _ in there], [value for _, value in there]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of runs")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="picture, .png or .svg")
    options = parser.parse_args(arguments)
    figure, (losses, recalls) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    for run in options.runs:
        with (run / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        losses.plot(*column(rows, "loss"), linewidth=0.7, label=run.name)
        recalls.plot(*column(rows, "rsum"), marker="o", markersize=3, label=run.name)
    losses.set(xlabel="epochs", ylabel="triplet loss of a batch")
    recalls.set(xlabel="epochs", ylabel="validation rsum")
    recalls.legend()
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main()
