"""The compiled library, whose kernels stand behind torch.ops.caan_kernels on CPU and CUDA tensors."""

import functools

import torch

from . import modes
from .namespace import LIBRARY


@functools.cache
def load() -> str:
    """Load the library, once for the process; the reason why that failed, or an empty string.

    It can only add kernels to operators that are defined: the package calls this when all are.
    """
    if modes.INTERPRETED:
        return "TRITON_INTERPRET=1 gives CPU tensors to Triton's interpreter in this process"
    if modes.EMULATED:
        torch.ops.load_library(modes.EMULATED)
        return "CAAN_CUDA_EMULATED gives CPU tensors to the emulated CUDA kernels in this process"
    if not LIBRARY.exists():
        return "the compiled library caan_kernels/_ops.so is missing: install the package with a C++ compiler at hand"
    try:
        torch.ops.load_library(LIBRARY)
    except (OSError, RuntimeError) as error:
        return f"the compiled library caan_kernels/_ops.so does not load under torch {torch.__version__}: {error}"
    return ""
