"""Modes of the process, read from the environment once, when the package is imported."""

import os

# Triton's interpreter runs Triton's kernels on CPU tensors, for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# A library in which the CUDA kernels run on CPU tensors, for tests.
EMULATED = os.environ.get("CAAN_CUDA_EMULATED", "")


def named_instruction_set() -> str:
    """The CPU kernels that the user has asked for, or an empty string; the compiled library reads the same variable."""
    return os.environ.get("CAAN_CPU_ISA", "")
