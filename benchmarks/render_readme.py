"""Put the newest results into README.md, each table between its two markers.

python benchmarks/render_readme.py                                       of benchmarks/results
python benchmarks/render_readme.py CPU_RESULTS.json [README.md]          another table for the CPU
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_check import INSTALL
from gpu_record import PASSED
from machine import source_hash
from report import LEGEND, Report, floor_text, markdown_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN = "<!-- benchmark: begin -->"
END = "<!-- benchmark: end -->"
ESTIMATE = RESULTS / "gpu_estimate.json"
# Which data set's estimate a workload is held against.
ESTIMATED = {"f30k-1k": "f30k, H = 1024", "coco-5k": "coco, H = 1024", "coco-5k-h64": "coco, H = 64"}
REBUILT = """The GPU kernels have been rebuilt since that run. [docs/cuda.md](docs/cuda.md#estimated) has an estimate of today's;
nothing of them is measured."""
GPU_BEGIN = "<!-- gpu: begin -->"
GPU_END = "<!-- gpu: end -->"
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
    sets = json.loads(ESTIMATE.read_text(encoding="utf-8"))["sets"]
    rows = [row for report in reports if report.header["dtype"] == "bfloat16" for row in report.rows]
    told = [
        f"{row.workload} {row.nanoseconds:,.1f}, estimated {sets[name]['overlapped']:,.1f} to {sets[name]['apart']:,.1f}"
        for row in rows
        if row.implementation == "cuda" and not row.shadow and row.agrees and (name := ESTIMATED.get(row.workload))
    ]
    return f"Nanoseconds a pair, measured and [estimated](docs/cuda.md#estimated) for an H100: {'; '.join(told)}." if told else ""


def notes(report: Report) -> str:
    return "\n".join(f"- {note}" for note in report.notes)


def newest(folder: Path, pattern: str) -> dict[str, Any] | None:
    """The result with the latest date among the JSON files of a folder, None if there is none."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob(pattern))]
    return max(found, key=lambda content: content.get("date") or content["header"]["date"], default=None)


def replace_between(text: str, content: str, begin: str = BEGIN, end: str = END) -> str:
    """`text` with what stands between the markers replaced.

    Raises:
        ValueError: the markers do not stand there exactly once, in order.
    """
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise ValueError(f"expected {begin} and {end}, once each and in this order")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def rendered(text: str, cpu: Report, gpu: dict[str, Any] | None) -> str:
    """A README with both tables."""
    return replace_between(replace_between(text, render(cpu)), render_gpu(gpu), GPU_BEGIN, GPU_END)


def main(arguments: Sequence[str]) -> int:
    if len(arguments) > 2 or any(argument.startswith("-") for argument in arguments):
        print(__doc__, file=sys.stderr)
        return 2
    readme = Path(arguments[1]) if len(arguments) == 2 else ROOT / "README.md"
    cpu = Report.load(Path(arguments[0])) if arguments else Report.parsed(newest(RESULTS, "cpu_*.json") or {}, "cpu_*.json")
    readme.write_text(rendered(readme.read_text(encoding="utf-8"), cpu, newest(RESULTS, "cuda_*.json")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
