"""Where PTX is executed: launches are taken from the emulator (tests/test_emulated.py)."""

import cases
import pytest
from support.ptx import compilers

collect_ignore_glob = [] if cases.EMULATED and compilers.find_nvcc() else ["test_*.py"]


@pytest.fixture(autouse=True)
def poisoned(poisoned_memory):
    """What nothing has written is known by torch's filling."""


@pytest.fixture
def triton_on_cpu(monkeypatch):
    """The Triton backend takes CPU tensors for a GPU's."""
    from caan_kernels.core import triton

    monkeypatch.setattr(triton, "missing", lambda: "")
    monkeypatch.setattr(triton, "cannot_run", lambda device: "")
