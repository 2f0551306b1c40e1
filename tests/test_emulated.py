"""The CUDA C++ backend on CPU tensors, its kernels emulated thread by thread: the files that test it."""

import os
import subprocess

import cases
import emulated_library
import pytest
from other_processes import TOGETHER, assert_passes

PROCESSES = [
    pytest.param(["context_attention/test_cuda.py"], id="cuda"),
    pytest.param([*(f"context_attention/test_{name}.py" for name in ("accuracy", "invariance")), "max_similarity"], id="accuracy"),
    pytest.param(TOGETHER, id="others"),
    # Without nvcc nothing is in it.
    pytest.param(
        ["context_attention/ptx"],
        id="ptx",
        marks=pytest.mark.skipif(emulated_library.caan_build.find_nvcc() is None, reason="there is no nvcc"),
    ),
]


@pytest.fixture(scope="module")
def library():
    return emulated_library.build()


@pytest.mark.long
@pytest.mark.skipif(cases.INTERPRETED or cases.EMULATED, reason="CPU tensors have another backend in this process")
@pytest.mark.parametrize("files", PROCESSES)
def test_emulated(files, library):
    assert_passes(files, {"CAAN_CUDA_EMULATED": str(library)})


@pytest.mark.release
@pytest.mark.skipif(cases.INTERPRETED or cases.EMULATED, reason="it needs no backend, and runs once")
def test_no_race(tmp_path):
    """ThreadSanitizer, over the kernels with a thread of the system for each of theirs."""
    program = emulated_library.build_races(tmp_path)
    environment = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    run = subprocess.run([program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert run.returncode == 0 and run.stdout.endswith("no race\n"), run.stdout[:8000]


@pytest.mark.skipif(cases.INTERPRETED or cases.EMULATED, reason="it needs no backend, and runs once")
def test_special_functions(tmp_path):
    """They err by as much as PTX allows, in either direction: what tests pass with them is not luck of one GPU's tables."""
    program = emulated_library.build_program(tmp_path, "tests/emulator/special_functions.cpp")
    run = subprocess.run([program], stdout=subprocess.PIPE, text=True)
    assert run.returncode == 0, run.stdout
