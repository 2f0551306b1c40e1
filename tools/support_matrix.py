"""What each backend can run: docs/support.md, from the rules by which the package itself decides (`can_run`).

python tools/support_matrix.py           write the page
python tools/support_matrix.py --check   exit with 1 where the page is not of today's rules
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch

# As a script it finds this checkout, whatever is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import caan_kernels  # noqa: F401
from caan_kernels.core import backends, modes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "support.md"
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Regions an image and words a caption, padding included.
SHAPES = ((36, 13), (64, 32), (196, 32), (196, 150), (256, 84), (300, 41), (576, 64), (1030, 32))
CALLS = {
    "scores": {},
    "derivatives": {"gradient": True},
    "maps": {"maps": True},
    "maps with derivatives": {"maps": True, "gradient": True},
}
OPTIONS = {
    'similarity="dot"': {},
    'similarity="cosine"': {},
    "inter=False": {},
    'intra="semantics"': {},
    'intra="features"': {"bilinear": True},
    "intra=None": {},
}
DEVICES = {"reference": "cpu", "cpu": "cpu", "triton": "cuda", "cuda": "cuda"}

HEAD = """# What runs where

After reading this page you know which backend can run a call, and why another cannot.
`tools/support_matrix.py` makes the page from the rules that the package itself uses to choose a
backend. Nothing on it was measured. `caan_kernels.available_backends()` says which backends your
machine has.

A cell names the dtypes that a backend takes. The reference takes what PyTorch takes, on every
device. `cpu` takes CPU tensors. `triton` and `cuda` take tensors on an NVIDIA GPU of compute
capability 8.0 or later.

`backend="auto"` chooses among the backends of the tensors' device that can run the call: the
rightmost one in the table. If a backend is named and cannot run the call, there is no fallback: the
call raises `RuntimeError` with the reason.

Sizes are regions of an image x words of a caption, padding included. Widths are multiples of 8.
After `torch.set_float32_matmul_precision("highest")`, products of float32 are IEEE's. `cuda` then
takes float32 only up to 340 regions and words together.
"""


@contextmanager
def everything_there() -> Iterator[None]:
    """Backends judge calls as on a machine that has a GPU and was built for it."""
    if modes.INTERPRETED or modes.EMULATED:
        raise SystemExit("error: TRITON_INTERPRET and CAAN_CUDA_EMULATED change what backends take: unset them")
    there = {
        name: SimpleNamespace(
            NAME=name, ORDER=backend.ORDER, DTYPES=backend.DTYPES, missing=lambda: "", cannot_run=lambda device: ""
        )
        for name, backend in backends._backends.items()
    }
    with mock.patch.object(backends, "_backends", there):
        yield


class Notes:
    """Reasons, each numbered where it is first given."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def number(self, reason: str) -> int:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return self.reasons.index(reason) + 1


def cell(operator: str, backend: str, notes: Notes, **wanted: int) -> str:
    """The dtypes with which a backend runs a call, and notes on those with which it does not."""
    taken, refused = [], {}
    for name, dtype in DTYPES.items():
        usable, reason = backends.can_run(
            operator, backend, torch.device(DEVICES[backend]), dtype, width=1024, hidden=1024, **wanted
        )
        if usable:
            taken.append(name)
        else:
            # Which pair was too large stands in the row.
            refused[reason.partition("; these have")[0]] = name
    if not refused:
        return "all"
    # Brackets beside each other would be a link.
    numbers = ", ".join(str(notes.number(reason)) for reason in refused)
    return f"{', '.join(taken) or 'none'} [{numbers}]"


def table(operator: str, rows: dict[str, dict[str, int]], first: str, notes: Notes) -> list[str]:
    """Rows with the same cells are one row with their titles."""
    names = list(backends._operators[operator])
    titles: dict[str, list[str]] = {}
    for title, wanted in rows.items():
        cells = " | ".join(cell(operator, name, notes, **wanted) for name in names)
        titles.setdefault(cells, []).append(title)
    lines = [f"| {first} | {' | '.join(f'`{name}`' for name in names)} |", f"| --- |{' --- |' * len(names)}"]
    return lines + [f"| {', '.join(same)} | {cells} |" for cells, same in titles.items()]


def tables(operator: str, calls: tuple[str, ...], notes: Notes) -> list[str]:
    lines = []
    for call in calls:
        rows = {f"{m} x {n}": {"regions": m, "words": n, **CALLS[call]} for m, n in SHAPES}
        lines += [f"### {call.capitalize()}", "", *table(operator, rows, "sizes", notes), ""]
    return lines


def page() -> str:
    """The page's text."""
    notes = Notes()
    with everything_there():
        lines = [HEAD, "## context_attention and attention_maps", "", *tables("context_attention", tuple(CALLS), notes)]
        options = {f"`{title}`": {"regions": 36, "words": 13, **wanted} for title, wanted in OPTIONS.items()}
        lines += ["### Options, for scores of 36 x 13", "", *table("context_attention", options, "option", notes), ""]
        lines += ["## max_similarity", "", *tables("max_similarity", ("scores", "derivatives"), notes), "## Why not", ""]
        lines += [f"{number}. {reason}" for number, reason in enumerate(notes.reasons, 1)]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    text = page()
    if not arguments:
        PAGE.write_text(text)
    elif not PAGE.exists() or PAGE.read_text() != text:
        print("docs/support.md is not of today's rules: python tools/support_matrix.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
