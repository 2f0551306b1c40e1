"""Asking whether a GPU can run a kernel leaves no trace, on a CUDA runtime of our own: no context on another GPU, no error."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "build_backend"))
import caan_build  # noqa: E402


def test_no_trace(tmp_path):
    program = tmp_path / "error_on"
    flags = ["-std=c++20", f"-I{ROOT / 'tests/fake_cuda'}", f"-I{ROOT / 'csrc'}", "-pthread", "-o", str(program)]
    subprocess.run([*caan_build.find_cxx(), str(ROOT / "tests/fake_cuda/error_on.cpp"), *flags], check=True)
    run = subprocess.run([program], stdout=subprocess.PIPE, text=True)
    assert run.returncode == 0, run.stdout
