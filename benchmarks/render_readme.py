"""Put the table of a benchmark run into README.md, between its two markers.

python benchmarks/bench_attention.py --json results.json
python benchmarks/render_readme.py results.json [README.md]
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from report import LEGEND, Report, floor_text, markdown_table

BEGIN = "<!-- benchmark: begin -->"
END = "<!-- benchmark: end -->"


def render(report: Report) -> str:
    """Table and, below it, what it was measured on."""
    h = report.header
    measured = (
        f"{h['device']}, {h['threads']}, {h['instruction_set']}, {h['dtype']}, torch {h['torch']}, {h['features']}; "
        f"commit {h['commit']}, {h['date']}."
    )
    notes = "\n".join(f"- {note}" for note in report.notes)
    below = f"{LEGEND}\n\n{measured} {floor_text(report.floor)}."
    return "\n\n".join(part for part in (markdown_table(report.rows), below, notes) if part)


def replace_between(text: str, content: str) -> str:
    """`text` with what stands between the markers replaced.

    Raises:
        ValueError: the markers do not stand there exactly once, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"expected {BEGIN} and {END}, once each and in this order")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{content}\n{END}{rest.split(END)[1]}"


def main(arguments: Sequence[str]) -> int:
    if len(arguments) not in (1, 2):
        print(__doc__, file=sys.stderr)
        return 2
    readme = Path(arguments[1] if len(arguments) == 2 else "README.md")
    content = render(Report.load(Path(arguments[0])))
    readme.write_text(replace_between(readme.read_text(encoding="utf-8"), content), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
