"""Put the newest results into docs/benchmarks.md, and a summary of them into README.md, each between its two markers.

python benchmarks/render_readme.py                       of benchmarks/results
python benchmarks/render_readme.py CPU_RESULTS.json      another table for the CPU
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from baselines import COMPILED, LOOP, REFERENCE
from documents import replace_between
from gpu_check import INSTALL
from gpu_record import PASSED
from machine import source_hash
from report import LEGEND, MIB, Report, Row, floor_text, markdown_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN = "<!-- benchmark: begin -->"
END = "<!-- benchmark: end -->"
ESTIMATE = RESULTS / "gpu_estimate.json"
# Which data set's or shape's estimate a workload is held against.
ESTIMATED = {
    "f30k-1k": ("sets", "f30k, H = 1024"),
    "coco-5k": ("sets", "coco, H = 1024"),
    "coco-5k-h64": ("sets", "coco, H = 64"),
    "patches-196x32": ("shapes", "196 x 32, H = 1024"),
    "patches-576x64": ("shapes", "576 x 64, H = 1024"),
}
REBUILT = "Today's GPU kernels are not measured. [cuda.md](cuda.md#estimated) has an estimate of them."
GPU_BEGIN = "<!-- gpu: begin -->"
GPU_END = "<!-- gpu: end -->"
SUMMARY_BEGIN = "<!-- summary: begin -->"
SUMMARY_END = "<!-- summary: end -->"
# What the README's table has: who, and the workloads.
NAMES = {REFERENCE: "plain PyTorch", COMPILED: "torch.compile", LOOP: "loop over captions"}
WORKLOADS = {"coco-5k": "COCO, H = 1024", "coco-5k-h64": "COCO, H = 64", "train-64": "training step, B = 64"}
UNMEASURED = f"""Not yet measured on a GPU. Where there is one, this tests, checks and measures the package in under ten minutes,
and writes the file in `benchmarks/results/` that this section is rendered from:

    {INSTALL}"""


def render(report: Report) -> str:
    """Table and, below it, what it was measured on."""
    h = report.header
    measured = (
        f"{h['device']}, {h['threads']}, {h['instruction_set']}, {h['dtype']}, torch {h['torch']}, {h['features']}; "
        f"commit {h['commit']}, {h['date']}."
    )
    below = f"{LEGEND}\n\n{measured} {floor_text(report.floor)}."
    return "\n\n".join(part for part in (markdown_table(report.rows), below, notes(report)) if part)


def render_gpu(found: dict[str, Any] | None) -> str:
    """What `gpu_check.py` wrote: the table of its first dtype, a line for each other one, and how its checks ended."""
    if found is None:
        return UNMEASURED
    reports = [Report.parsed(content, dtype) for dtype, content in found["bench"].items()]
    parts = [f"On a GPU, by this line:\n\n    {INSTALL}"]
    if reports and reports[0].rows:
        main = reports[0]
        parts.append(markdown_table(main.rows, gpu=True))
        parts.append(f"{main.header['dtype']}, {main.header['features']}. {floor_text(main.floor)}.")
    else:
        parts.append("No benchmark came to its end.")
    parts.append(
        f"{found['device']} (compute capability {found['compute_capability']}, {found['multiprocessors']} multiprocessors), driver "
        f"{found['driver']}, CUDA {found['cuda']}, torch {found['torch']}, Triton {found['triton']}; commit {found['commit']}, "
        f"kernels' sources {found['source_sha256'][:12]}, {found['date'][:10]}."
    )
    checks = [f"- {name}: {ending(stage)}" for name, stage in found["stages"].items()]
    others = [f"- {line}" for report in reports[1:] if (line := own_rates(report))]
    parts += ["\n".join(checks + others), *map(notes, reports[:1])]
    parts.append(beside_estimate(reports) if found["source_sha256"] == source_hash() else REBUILT)
    return "\n\n".join(part for part in parts if part)


def ending(stage: dict[str, Any]) -> str:
    """How a stage of `gpu_check.py` ended; in bold unless it passed."""
    counted = ", ".join(f"{count} {word}" for word, count in stage["counts"].items())
    status = stage["status"] if stage["status"] == PASSED else f"**{stage['status']}**"
    return status + (f" ({counted})" if counted else "") + (f": {stage['reason']}" if stage["reason"] else "")


def own_rates(report: Report) -> str:
    """A dtype in one line: our backends' time of a pair, where they agree with float64."""
    rows = [row for row in report.rows if row.ours and not row.shadow and row.agrees]
    rates = ", ".join(f"{row.workload} {row.nanoseconds:,.1f} ns/pair ({row.implementation})" for row in rows)
    return f"{report.header['dtype']}: {rates}" if rates else ""


def beside_estimate(reports: Sequence[Report]) -> str:
    """What `gpu_estimate.py` expects of the CUDA kernels in bfloat16, and what was measured; empty if nothing was."""
    estimate = json.loads(ESTIMATE.read_text(encoding="utf-8"))
    estimated = {workload: estimate[part][name] for workload, (part, name) in ESTIMATED.items()}
    rows = [row for report in reports if report.header["dtype"] == "bfloat16" for row in report.rows]
    told = [
        f"{row.workload} {row.nanoseconds:,.1f}, estimated {of['overlapped']:,.1f} to {of['apart']:,.1f}"
        for row in rows
        if row.implementation == "cuda" and not row.shadow and row.agrees and (of := estimated.get(row.workload))
    ]
    return f"Nanoseconds a pair, measured and [estimated](cuda.md#estimated) for an H100: {'; '.join(told)}." if told else ""


def notes(report: Report) -> str:
    return "\n".join(f"- {note}" for note in report.notes)


def newest(folder: Path, pattern: str) -> dict[str, Any] | None:
    """The result with the latest date among the JSON files of a folder, None if there is none."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))]
    return max(found, key=lambda content: content.get("date") or content["header"]["date"], default=None)


def summary(cpu: Report, gpu: dict[str, Any] | None) -> str:
    """The README's table: pairs a second of ours and of the usual ways, on a CPU and, if one was measured, on a GPU."""
    of_gpu = Report.parsed(gpu["bench"]["bfloat16"], "bfloat16") if gpu and "bfloat16" in gpu["bench"] else None
    heading = ["", *WORKLOADS.values(), "memory of that step"]
    heading += [f"{gpu['device']}: {WORKLOADS['coco-5k']}"] if gpu and of_gpu else []
    lines = [f"| {' | '.join(heading)} |", f"| --- {'| ---: ' * (len(heading) - 1)}|"]
    for name in (None, *NAMES):
        found = [row_of(cpu, workload, name) for workload in WORKLOADS]
        memory = found[-1].extra_bytes if found[-1] else None
        cells = [told(row) for row in found] + [f"{memory / MIB:,.0f} MiB" if memory is not None else "-"]
        cells += [told(row_of(of_gpu, "coco-5k", name))] if of_gpu else []
        bold = "**" if name is None else ""
        lines.append(f"| {' | '.join(f'{bold}{cell}{bold}' for cell in (NAMES.get(name, 'caan_kernels'), *cells))} |")
    h = cpu.header
    below = "Pairs a second, and memory. H is the hidden width, B the batch.\n\n"
    below += f"{h['device']}, {h['threads']}, {h['dtype']}, {h['features']}; commit {h['commit']}, {h['date']}."
    if gpu and of_gpu:
        below += f" {gpu['device']}: bfloat16, commit {gpu['commit']}, {gpu['date'][:10]}"
        below += "." if gpu["source_sha256"] == source_hash() else ". Today's GPU kernels are not measured."
    return "\n".join([*lines, "", f"{below} [docs/benchmarks.md](docs/benchmarks.md) has the whole table."])


def row_of(report: Report, workload: str, name: str | None) -> Row | None:
    """What an implementation was measured at, or with None the fastest of ours; None if it disagrees with float64."""
    rows = [row for row in report.rows if row.workload == workload and row.agrees and not row.shadow]
    chosen = [row for row in rows if (row.ours if name is None else row.implementation == name)]
    return max(chosen, key=lambda row: row.rate, default=None)


def told(row: Row | None) -> str:
    return "-" if row is None else f"{row.rate:,.0f}"


def write(cpu: Report, gpu: dict[str, Any] | None, root: Path = ROOT) -> None:
    """Both documents of a checkout."""
    for path, tables in (
        (root / "README.md", [(summary(cpu, gpu), SUMMARY_BEGIN, SUMMARY_END)]),
        (root / "docs" / "benchmarks.md", [(render(cpu), BEGIN, END), (render_gpu(gpu), GPU_BEGIN, GPU_END)]),
    ):
        text = path.read_text(encoding="utf-8")
        for table in tables:
            text = replace_between(text, *table)
        path.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print(__doc__, file=sys.stderr)
        return 2
    cpu = Report.load(Path(arguments[0])) if arguments else Report.parsed(newest(RESULTS, "cpu_*.json") or {}, "cpu_*.json")
    write(cpu, newest(RESULTS, "cuda_*.json"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
