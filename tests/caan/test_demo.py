"""The demo, from drawing to the table: it learns what its scenes show, and continues where it was stopped."""

import re

import pytest

from caan.commands import demo, main
from caan.data import load_scan_split


def rows(printed):
    """Numbers of the table's rows, by split and name."""
    found = {}
    for split, table in re.findall(r"^(dev|test): (.*?pairs/s)$", printed, re.MULTILINE | re.DOTALL):
        for name, numbers in re.findall(r"^(\d+ images, [\d,]+ captions|by chance)\s+([\d. ]+)$", table, re.MULTILINE):
            found[split, name.split()[-1]] = [float(number) for number in numbers.split()]
    return found


def test_demo_learns(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "_STEPS", 70)
    assert main(["demo", "--out", str(tmp_path), "--scenes", "150"]) == 0
    found = rows(capsys.readouterr().out)
    for split in ("dev", "test"):
        # 150 scenes teach five times chance in 70 steps.
        assert found[split, "captions"][-1] > 3 * found[split, "chance"][-1] > 0
    split = load_scan_split(tmp_path / "data", "train")
    assert split.num_images == 150 and split.regions.shape == (150, 36, 320)

    assert main(["demo", "--out", str(tmp_path), "--scenes", "150"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("everything is there already") == 3 and "continuing" in printed
    assert rows(printed) == found


def test_a_demo_that_was_stopped_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "_STEPS", 4)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    for name in ("extract", "train"):
        module = getattr(demo, name)

        def stop(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(module, "run", stop)
            assert main(["demo", "--out", str(stopped), "--scenes", "20"]) == 130
    assert main(["demo", "--out", str(stopped), "--scenes", "20"]) == 0
    capsys.readouterr()
    assert main(["demo", "--out", str(stopped), "--scenes", "20"]) == 0
    again = rows(capsys.readouterr().out)
    assert main(["demo", "--out", str(whole), "--scenes", "20"]) == 0
    assert rows(capsys.readouterr().out) == again


@pytest.mark.parametrize("scenes", ["0", "-5", "19"])
def test_too_few_scenes(tmp_path, capsys, scenes):
    assert main(["demo", "--out", str(tmp_path), "--scenes", scenes]) == 1
    assert f"--scenes: expected at least 20, got {scenes}" in capsys.readouterr().err
