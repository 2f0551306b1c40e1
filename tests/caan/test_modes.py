"""Commands work in every mode of the interpreter, and in an environment that has little."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_lines import SMALL
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
# A checkout need not be installed, and -I leaves the current folder out.
sys.path.insert(0, sys.argv[1])
from caan.commands import main

for arguments in sys.argv[2:]:
    if main(arguments.split("\\n")):
        sys.exit(arguments)
"""


@pytest.mark.parametrize(
    ("options", "variables"),
    [
        # Without asserts and docstrings, with warnings as errors, with Python's own checks, apart from the user's settings.
        (["-OO", "-W", "error", "-X", "dev", "-I"], {"LC_ALL": "tr_TR.UTF-8"}),
        # ASCII, and nowhere to keep anything.
        ([], {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HOME": None, "XDG_CACHE_HOME": "/nonexistent"}),
    ],
)
def test_all_commands(data, tmp_path, options, variables):
    photos, run, index = tmp_path / "photos", tmp_path / "run", tmp_path / "index"
    photos.mkdir()
    Image.new("RGB", (64, 64)).save(photos / "x.jpg")
    captions = tmp_path / "captions.csv"
    captions.write_text("image,caption\nx.jpg,caf\u00e9\n", encoding="utf-8")
    extract = ["extract", "--photos", photos, "--captions", captions, "--captions-per-image", 1, "--size", 64]
    commands = [
        [*extract, "--out", tmp_path / "extracted"],
        ["train", "--data", data, "--out", run, *SMALL],
        ["evaluate", run, "--data", data, "--workers", 1],
        ["index", run, "--data", data, "--out", index],
        ["search", index, "caption 1 caf\u00e9", "--html", tmp_path / "page.html", "--json", tmp_path / "hits.json"],
        ["show", "training", run, "--out", tmp_path / "training.png"],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        [sys.executable, *options, "-c", SCRIPT, ROOT, *("\n".join(map(str, command)) for command in commands)],
        env={name: value for name, value in environment.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")
    assert (tmp_path / "extracted" / "test_caps.txt").read_text(encoding="utf-8") == "caf\u00e9\n"
