"""The tables of docs/triton.md and docs/cuda.md that say what the kernels compile to, from the results of the two reports.

As a program it writes both tables again, and compiles nothing.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from documents import replace_between

RESULTS = Path(__file__).parent / "results"
DOCUMENTS = Path(__file__).parents[1] / "docs"
MARKS = "<!-- compiled: begin -->", "<!-- compiled: end -->"
COLUMNS = ["kernel", "dtype", "variants", "warps a block", "shared KiB", "spilled bytes", "tensor instructions"]
# Most kernels are the same in both types of half precision.
DTYPES = {"bfloat16": "bfloat16, float16", "float16": "bfloat16, float16", "float32": "float32", "any": "any"}
Row = dict[str, Any]


def write(report: dict[str, Any], results: Path) -> None:
    """Write a report with a line for each row."""
    facts = "".join(f" {json.dumps(name)}: {json.dumps(value)},\n" for name, value in report.items() if name != "kernels")
    rows = ",\n".join(f"  {json.dumps(row)}" for row in report["kernels"])
    results.write_text(f'{{\n{facts} "kernels": [\n{rows}\n ]\n}}\n', encoding="utf-8")


def render(results: Path, document: Path) -> None:
    """Write what a report has found between the document's markers."""
    text = document.read_text(encoding="utf-8")
    document.write_text(replace_between(text, rendered(results), *MARKS), encoding="utf-8")


def rendered(results: Path) -> str:
    """A report's table and, below it, what its numbers are."""
    report = json.loads(results.read_text(encoding="utf-8"))
    compiler = f"Triton {report['triton']}" if "triton" in report else f"nvcc {report['nvcc']}"
    below = f"Compiled with {compiler}, {report['date']}. A kernel has a variant for each dtype, size and option. "
    below += "The table has the most that a variant takes. Below an architecture are the registers of a thread and the occupancy: "
    below += "the fewest warps that a multiprocessor has at once. "
    if "nvcc" in report:
        below += "Shared memory is that of a launch with 36 or 64 regions and 32 words. "
    below += f"benchmarks/results/{results.name} has every variant."
    return "\n".join([*table(report["kernels"]), "", textwrap.fill(below, 100)])


def table(rows: Sequence[Row]) -> list[str]:
    """A line for each kernel, in half precision and in float32."""
    architectures = list(dict.fromkeys(row["architecture"] for row in rows))
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["kernel"], DTYPES[row["dtype"]]), []).append(row)
    columns = [*COLUMNS, *architectures]
    lines = [f"| {' | '.join(columns)} |", "| --- | --- |" + " ---: |" * (len(columns) - 2)]
    for key, found in sorted(groups.items()):
        on_each = [[row for row in found if row["architecture"] == x] for x in architectures]
        cells = [
            *key,
            span([len(x) for x in on_each]),
            span([row["warps"] for row in found]),
            f"{max(row['shared_bytes'] for row in found) / 1024:.0f}",
            str(max(row["spilled_bytes"] for row in found)),
            span([row["tensor_instructions"] for row in found]),
            *(f"{max(row['registers'] for row in x)}, {min(row['resident_warps'] for row in x)}" for x in on_each),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def span(numbers: Sequence[int]) -> str:
    """The least and the most, or the only one."""
    return str(min(numbers)) if min(numbers) == max(numbers) else f"{min(numbers)}-{max(numbers)}"


def main() -> int:
    render(RESULTS / "triton_compiled.json", DOCUMENTS / "triton.md")
    render(RESULTS / "nvcc_compiled.json", DOCUMENTS / "cuda.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
