"""The CPU backend's instruction sets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import caan_kernels as ck
from caan_kernels.core import cpu


def run(instruction_set, *command):
    """A Python of its own, since a set is chosen once for a process."""
    environment = {**os.environ, "PYTEST_ADDOPTS": "", "CAAN_CPU_ISA": instruction_set}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True)


def asked_for(instruction_set):
    """What available_backends() says of the CPU backend."""
    result = run(instruction_set, "-c", "import caan_kernels as ck; print(*ck.available_backends()['cpu'])")
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("instruction_set", ["generic", "avx2", "avx512"])
def test_every_instruction_set_is_accurate(instruction_set):
    if instruction_set not in ck.build_info()["cpu_instruction_sets"]:
        pytest.skip("not in this build")
    if instruction_set == cpu.instruction_set():
        pytest.skip("the set that all other tests run on")
    asked = asked_for(instruction_set)
    if "one that this processor has" in asked:
        pytest.skip("not on this processor")
    assert asked.startswith("True ") and asked.strip().endswith(instruction_set)
    here = Path(__file__).parent
    chosen = "golden or saturated or alone or (wide_hidden and (half or pair_list))"
    files = here / "test_accuracy.py", here / "test_invariance.py"
    result = run(instruction_set, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", chosen)
    assert result.returncode == 0, result.stdout


def test_unknown_instruction_set():
    assert asked_for("sse").startswith("False CAAN_CPU_ISA: expected avx512, avx2 or generic")
    call = "import torch, caan_kernels as ck; w = ck.ContextAttentionWeights(*[torch.eye(3)] * 5, *[torch.ones(3)] * 2);"
    result = run("sse", "-c", call + "ck.context_attention(torch.ones(1, 2, 3), torch.ones(1, 2, 3), w)")
    assert "RuntimeError: CAAN_CPU_ISA: expected avx512" in result.stderr
