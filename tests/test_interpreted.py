"""The Triton backend in Triton's interpreter, on CPU tensors: the files that test it, each in a process of its own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cases
import pytest

HERE = Path(__file__).parent
FILES = [
    *(f"context_attention/test_{name}.py" for name in ("accuracy", "compile", "errors", "interface", "invariance", "limits")),
    *(f"context_attention/test_{name}.py" for name in ("operators", "triton")),
    "test_backends.py",
]


@pytest.mark.skipif(cases.INTERPRETED, reason="this is the interpreter's process")
@pytest.mark.parametrize("file", FILES)
def test_in_the_interpreter(file):
    # Where a row has no norm, NumPy warns of a division whose result nobody takes.
    options = "-q", "-p", "no:cacheprovider", "--color=no", "--durations=5", "-W", "ignore::RuntimeWarning"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, HERE / file],
        cwd=HERE.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = "\n".join(run.stdout.splitlines()[-60:])
    assert run.returncode == 0, end
    assert re.search(r"\d+ passed", end), end
