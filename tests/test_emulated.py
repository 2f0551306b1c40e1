"""The CUDA C++ backend on CPU tensors, its kernels emulated thread by thread: the files that test it, in a process of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cases
import emulated_library
import pytest

HERE = Path(__file__).parent
FILES = [
    *(f"context_attention/test_{name}.py" for name in ("accuracy", "compile", "cuda", "errors", "interface", "invariance")),
    *(f"context_attention/test_{name}.py" for name in ("limits", "operators")),
    "test_backends.py",
]


@pytest.fixture(scope="module")
def library():
    return emulated_library.build()


@pytest.mark.skipif(cases.INTERPRETED or cases.EMULATED, reason="CPU tensors have another backend in this process")
@pytest.mark.parametrize("file", FILES)
def test_emulated(file, library):
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "--durations=5", HERE / file],
        cwd=HERE.parent,
        env={**os.environ, "CAAN_CUDA_EMULATED": str(library)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = "\n".join(run.stdout.splitlines()[-60:])
    assert run.returncode == 0, end
    assert re.search(r"\d+ passed", end), end
