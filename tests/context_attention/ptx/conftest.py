"""Where PTX is executed: launches are taken from the emulator (tests/test_emulated.py)."""

import cases
import pytest
from support.ptx import compilers

collect_ignore_glob = [] if cases.EMULATED and compilers.find_nvcc() else ["test_*.py"]


@pytest.fixture(autouse=True)
def poisoned(poisoned_memory):
    """What nothing has written is known by torch's filling."""
