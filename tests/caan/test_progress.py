"""Bars: on a terminal, and nowhere else."""

import os
import sys
from pathlib import Path

import pytest
from terminals import open_terminal

import caan
from caan.progress import bar, watched


def drawn(monkeypatch, stream, **options):
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(bar(range(3), desc="things", **options)) == [0, 1, 2]
    assert list(watched(range(3), "others", "things")) == [0, 1, 2]
    stream.flush()


@pytest.mark.parametrize("shown", [True, False])
def test_a_terminal_has_bars(monkeypatch, shown):
    ours, theirs = open_terminal()
    with os.fdopen(theirs, "w") as stream:
        drawn(monkeypatch, stream, shown=shown)
        # Something to read where nothing was drawn.
        stream.write("end")
        stream.flush()
        assert (b"things: 100%" in os.read(ours, 10000)) == shown
    os.close(ours)


def test_a_file_has_none(monkeypatch, tmp_path):
    with (tmp_path / "log").open("w") as stream:
        drawn(monkeypatch, stream)
    assert (tmp_path / "log").read_text() == ""


def test_all_bars_are_made_in_one_place():
    found = {path.name for path in Path(caan.__file__).parent.rglob("*.py") if "tqdm(" in path.read_text(encoding="utf-8")}
    assert found == {"progress.py"}
