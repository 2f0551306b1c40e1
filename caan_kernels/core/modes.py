"""Modes of the process, from the environment. The constants are read once, when the package is imported."""

import os

# Triton's interpreter runs Triton's kernels on CPU tensors, for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
# A library in which the CUDA kernels run on CPU tensors, for tests.
EMULATED = os.environ.get("CAAN_CUDA_EMULATED", "")


def named_instruction_set() -> str:
    """The CPU kernels that the user has asked for, or an empty string.

    Read at each call. The compiled library reads the same variable once, at the first use of its CPU kernels.
    """
    return os.environ.get("CAAN_CPU_ISA", "")
