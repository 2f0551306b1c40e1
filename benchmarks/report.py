"""The table, its machine-readable form, and the plot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from baselines import COMPILED, LOOP, REFERENCE
from floor import Probe, Work
from measure import MIB

BASELINES = (REFERENCE, LOOP, COMPILED)
SCHEMA = 2


@dataclass
class Row:
    """One implementation on one workload.

    Attributes:
        workload, implementation: names.
        ours: whether it is one of this package's compiled backends.
        shape: what was scored, "images x captions" or "count pairs"; slow baselines score a part of the workload.
        words: rows that each caption is padded to; the reference computes on all of them.
        pairs: number of scores in `shape`.
        runs: number of timed runs.
        seconds: median of them.
        spread: (slowest - fastest) / median, None for a single run.
        extra_bytes: peak memory beyond the inputs, results included; None where it cannot be measured.
        errors: {"scores": largest absolute, "gradients": largest relative L2 of a tensor} against float64; of half precisions
            "rms" and "p99" in place of "scores", root mean square and 99th percentile.
        tolerances: the same keys; what the errors may be.
        left_out: the same keys; pairs that are not compared (comparison.py).
        work: the fields of `floor.Work`.
        shadow: a backend of ours timed again on the part that a slow baseline scored; not in the table.
        ratios: {baseline: this rate / baseline's rate}, None while either disagrees with float64.
        same_shape_ratios: the same, both on what the baseline scored.
        floor_percent: least time for the work, at the run's fastest rates, over measured time.
    """

    workload: str
    implementation: str
    ours: bool
    shape: str
    words: int
    pairs: int
    runs: int
    seconds: float
    spread: float | None
    extra_bytes: int | None
    errors: dict[str, float]
    tolerances: dict[str, float]
    left_out: dict[str, int]
    work: dict[str, float]
    shadow: bool = False
    ratios: dict[str, float | None] = field(default_factory=dict)
    same_shape_ratios: dict[str, float | None] = field(default_factory=dict)
    floor_percent: float = 0.0

    @property
    def rate(self) -> float:
        """Pairs a second."""
        return self.pairs / self.seconds

    @property
    def nanoseconds(self) -> float:
        """Of a pair."""
        return 1e9 * self.seconds / self.pairs

    @property
    def agrees(self) -> bool:
        return all(error <= self.tolerances[name] for name, error in self.errors.items())


def fill_ratios(rows: Sequence[Row]) -> None:
    """Set the ratios of every row to the baselines of its workload; a ratio is None while either side disagrees."""
    by_shape = {(row.workload, row.implementation, row.shape): row for row in rows}
    for row in rows:
        baselines = [baseline for baseline in rows if baseline.workload == row.workload and baseline.implementation in BASELINES]
        row.ratios = {baseline.implementation: ratio(row, baseline) for baseline in baselines}
        twins = [(by_shape.get((row.workload, row.implementation, baseline.shape)), baseline) for baseline in baselines]
        row.same_shape_ratios = {baseline.implementation: ratio(twin, baseline) for twin, baseline in twins if twin is not None}


def ratio(row: Row, baseline: Row) -> float | None:
    return row.rate / baseline.rate if row.agrees and baseline.agrees else None


HEADINGS = (
    "workload",
    "by",
    "scored (padded to)",
    "pairs/s",
    "vs reference",
    "vs loop",
    "vs compiled",
    "extra MiB",
    "max error (left out)",
    "of floor",
    "spread",
    "runs",
)
# Where there are more pairs a second than a reader can compare at a glance.
GPU_HEADINGS = (*HEADINGS[:4], "ns/pair", *HEADINGS[4:])

LEGEND = """\
- by: cpu, triton and cuda are backends of this package. The baselines are reference (plain PyTorch), caption loop (a loop
  over captions) and compiled (the reference with torch.compile).
- scored: images x captions, or pairs of a list. Slow baselines score a part of the workload. Runs of a list begin with empty
  caches.
- padded to: words of a caption in the tensor, real or not.
- vs reference, loop, compiled: rate over that baseline's rate. Rates are per pair.
- extra MiB: peak memory beyond the inputs.
- max error: against float64. Of scores it is absolute, and in half precision the 99th percentile (99%). Of gradients (grad) it is
  the relative L2 error of the worst tensor.
- left out: pairs that are not compared, because they lie where the operator jumps.
- of floor: the least time for the unavoidable work at the fastest rates seen in this run, over the measured time.
- spread: between the slowest and the fastest of the timed runs, over their median."""
# How the errors that are not of scores are marked in the table.
ERROR_MARKS = {"gradients": " grad", "p99": " 99%", "rms": " rms"}


def cells(row: Row, gpu: bool = False) -> list[str]:
    """One table row, in the order of `HEADINGS` or `GPU_HEADINGS`."""
    ratios = []
    for baseline in BASELINES:
        if baseline not in row.ratios:
            ratios.append("-")
        else:
            value = row.ratios[baseline]
            ratios.append("disagrees" if value is None else f"{value:.1f}x")
    name = max(row.errors, key=row.errors.__getitem__)
    return [
        row.workload,
        row.implementation,
        f"{row.shape} ({row.words})",
        f"{row.rate:,.0f}" if row.rate >= 100 else f"{row.rate:.1f}",
        *([f"{row.nanoseconds:,.1f}"] if gpu else []),
        *ratios,
        "-" if row.extra_bytes is None else f"{row.extra_bytes / MIB:,.0f}",
        f"{row.errors[name]:.1e}{ERROR_MARKS.get(name, '')} ({row.left_out[name]})",
        f"{row.floor_percent:.0f}%",
        "-" if row.spread is None else f"{100 * row.spread:.0f}%",
        str(row.runs),
    ]


def table_cells(rows: Sequence[Row], gpu: bool = False) -> list[list[str]]:
    """Cells of the rows that belong in the table; a workload's name stands once."""
    result: list[list[str]] = []
    last = ""
    for row in rows:
        if row.shadow:
            continue
        line = cells(row, gpu)
        line[0], last = ("" if line[0] == last else line[0]), line[0]
        result.append(line)
    return result


def text_table(rows: Sequence[Row], gpu: bool = False) -> str:
    """Columns padded with spaces; the first three to the left, figures to the right."""
    lines = [list(GPU_HEADINGS if gpu else HEADINGS), *table_cells(rows, gpu)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def join(line: list[str]) -> str:
        padded = (cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([join(lines[0]), rule, *(join(line) for line in lines[1:])])


def markdown_table(rows: Sequence[Row], gpu: bool = False) -> str:
    """The same table for a document; rows of our own backends in bold."""
    headings = GPU_HEADINGS if gpu else HEADINGS
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * 3 + " ---: |" * (len(headings) - 3)]
    shown = [row for row in rows if not row.shadow]
    for row, line in zip(shown, table_cells(rows, gpu), strict=True):
        if row.ours:
            line[1:] = [f"**{cell}**" for cell in line[1:]]
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def header_text(header: dict[str, Any]) -> str:
    return "\n".join(f"{name.replace('_', ' ')}: {value}" for name, value in header.items())


def floor_text(floor: dict[str, Any]) -> str:
    return (
        f"Floor, the fastest of this run: {floor['flops_per_second'] / 1e9:,.0f} GFLOP/s ({floor['matrix_product']}), "
        f"{floor['tanh_per_second'] / 1e9:.2f} G tanh/s ({floor['tanh']}), "
        f"{floor['bytes_per_second'] / 1e9:,.0f} GB/s read ({floor['reading']})"
    )


@dataclass
class Report:
    """Everything a run found out.

    Attributes:
        header: device, threads and instruction set or what `machine.gpu_facts` tells, versions, commit, dtype, features,
            date.
        floor: the fastest rates seen, and by what.
        rows: measurements, also those that only serve a same-shape ratio.
        notes: what did not run and why, what was cut and why.
        scaling: points of the plot, {"implementation", "kind", "pairs", "seconds", "bytes"}.
        eager_limit: where the reference's training step stops for lack of memory; empty if it was not looked for.
    """

    header: dict[str, Any]
    floor: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    scaling: list[dict[str, Any]] = field(default_factory=list)
    eager_limit: dict[str, Any] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return "multiprocessors" in self.header

    def see_rates(self, probe: Probe) -> None:
        """Take over the fastest rates so far, and judge every row by them."""
        self.floor = {
            "flops_per_second": probe.best.flops,
            "matrix_product": probe.matrix_name,
            "tanh_per_second": probe.best.tanh,
            "tanh": probe.tanh_name,
            "bytes_per_second": probe.best.bytes,
            "reading": probe.read_name,
        }
        for row in self.rows:
            row.floor_percent = 100 * probe.best.seconds(Work(**row.work)) / row.seconds

    def text(self) -> str:
        parts = [header_text(self.header), floor_text(self.floor) if self.floor else "", text_table(self.rows, self.on_gpu), LEGEND]
        parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(part for part in parts if part)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"schema": SCHEMA, **asdict(self)}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `save` wrote.

        Raises:
            ValueError: another schema.
        """
        return cls.parsed(json.loads(path.read_text(encoding="utf-8")), str(path))

    @classmethod
    def parsed(cls, content: dict[str, Any], origin: str) -> Report:
        """The report in JSON that `save` wrote.

        Raises:
            ValueError: another schema.
        """
        if content.get("schema") != SCHEMA:
            raise ValueError(f"{origin}: expected a result of bench_attention.py with schema {SCHEMA}")
        fields = {name: value for name, value in content.items() if name != "schema"}
        return cls(**fields | {"rows": [Row(**row) for row in content["rows"]]})


def plot(report: Report, path: Path) -> None:
    """Write a PNG: seconds and extra memory of a training step and of forward against the number of pairs, log-log."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    implementations = list(dict.fromkeys(point["implementation"] for point in report.scaling))
    panels = (("seconds", "seconds", 1.0), ("bytes", "peak extra memory, MiB", float(MIB)))
    for column, kind in enumerate(("training step", "forward")):
        for line, (key, label, unit) in enumerate(panels):
            axis = axes[line][column]
            for number, name in enumerate(implementations):
                points = [p for p in report.scaling if p["implementation"] == name and p["kind"] == kind and p[key]]
                if points:
                    pairs = [p["pairs"] for p in points]
                    axis.loglog(pairs, [p[key] / unit for p in points], "o-", label=name, color=f"C{number}")
            axis.set(title=kind, xlabel="pairs", ylabel=label)
            axis.grid(True, which="major", alpha=0.3)
    limit = report.eager_limit
    last = [p for p in report.scaling if p["implementation"] == REFERENCE and p["kind"] == "training step"][-1:]
    if limit and last:
        color = f"C{implementations.index(REFERENCE)}"
        for axis in axes[:, 0]:
            axis.axvline(limit["pairs"], color=color, linestyle=":")
        label = f"reference out of memory, estimated: {limit['bytes'] / 2**30:.0f} GiB at B={limit['batch']}"
        reach = [last[0]["pairs"], limit["pairs"]], [last[0]["bytes"] / MIB, limit["bytes"] / MIB]
        axes[1][0].plot(*reach, "--x", color=color, label=label)
    for axis in axes.flat:
        if axis.get_legend_handles_labels()[1]:
            axis.legend(fontsize="small", loc="upper left")
        # Room for the legend above the curves.
        axis.set_ylim(top=axis.get_ylim()[1] * 20)
    header = report.header
    machine = [header["device"], *([] if report.on_gpu else [header["threads"]]), header["dtype"], header["date"]]
    figure.suptitle(", ".join(machine), fontsize="medium")
    figure.savefig(path, dpi=120)
    plt.close(figure)
