"""A full disk is one line that names the file, and costs nothing that was finished."""

import subprocess
import sys

import pytest
from command_lines import SMALL

from caan import checkpoint
from caan.commands import main

# A limit on a file's size is met as a full disk is: the write fails half way.
LIMITED = """
import resource, sys
from caan import evaluation, kept
kept._SAVE_SECONDS = 0
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from caan.commands import main
sys.exit(main(sys.argv[2:]))
"""


def limited(size, *arguments):
    """The one line of a command that may write files of so many bytes."""
    run = subprocess.run([sys.executable, "-c", LIMITED, str(size), *map(str, arguments)], capture_output=True, text=True)
    lines = [line for line in run.stderr.replace("\r", "\n").splitlines() if line.startswith(("caan ", "Traceback"))]
    assert run.returncode == 1 and len(lines) == 1, run.stderr
    return lines[0]


@pytest.fixture
def run_folder(data, tmp_path, capsys):
    assert main(["train", "--data", str(data), "--out", str(tmp_path / "run"), *SMALL]) == 0
    return tmp_path / "run"


def test_train(data, run_folder):
    files = {path.name: path.read_bytes() for path in run_folder.glob("*.safetensors")}
    more = ["train", "--data", data, "--out", run_folder, *SMALL, "--epochs", 3]
    assert "last.safetensors: expected to be able to write it" in limited(10_000, *more)
    assert {path.name: path.read_bytes() for path in run_folder.glob("*.safetensors*")} == files
    assert main([*map(str, more)]) == 0
    assert checkpoint.read(run_folder / "last.safetensors").facts["place"]["step"] == 9


def test_evaluate(data, run_folder, tmp_path):
    evaluate = ["evaluate", run_folder, "--data", data]
    line = limited(500, *evaluate)
    assert line.startswith("caan evaluate: error: ") and ".safetensors" in line and "expected to be able to write it" in line
    line = limited(500, *evaluate, "--save-scores", tmp_path / "scores.npy")
    assert "File too large: expected room for 1,108 bytes" in line and not list(tmp_path.glob("scores*"))
    assert main([*map(str, evaluate)]) == 0 and not list(run_folder.glob("evaluation-*"))


def test_index(data, run_folder, tmp_path):
    index = ["index", run_folder, "--data", data, "--out", tmp_path / "index"]
    line = limited(500, *index)
    assert line.startswith("caan index: error: ") and ".npy: expected to be able to write it" in line
    assert main([*map(str, index)]) == 0 and main(["search", str(tmp_path / "index"), "image 3"]) == 0


def test_pages_and_results(data, run_folder, tmp_path):
    assert main(["index", str(run_folder), "--data", str(data), "--out", str(tmp_path / "index")]) == 0
    for option, name in (("--html", "page.html"), ("--json", "hits.json")):
        line = limited(100, "search", tmp_path / "index", "image 3", option, tmp_path / name)
        assert f"{name}: expected to be able to write it: File too large" in line
        assert not list(tmp_path.glob(f"{name}*"))
    line = limited(1000, "show", "training", run_folder, "--out", tmp_path / "training.png")
    assert "training.png: expected to be able to write it: File too large" in line


def test_extract(tmp_path):
    from caan.demo import scenes

    scenes.write_split(tmp_path / "photos", "test", 20)
    captions = tmp_path / "photos" / scenes.CAPTIONS_FILE
    extract = ["extract", "--photos", tmp_path / "photos", "--captions", captions, "--out", tmp_path / "out", "--split", "test"]
    line = limited(300_000, *extract)
    assert line.startswith("caan extract: error: ") and "expected to be able to write it: File too large" in line
    assert str(tmp_path / "out" / "test_") in line
    assert (tmp_path / "out" / "test_extract.journal").stat().st_size > 0
    assert main([*map(str, extract)]) == 0
