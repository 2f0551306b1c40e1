"""The compiled CPU backend: loads the library whose kernels stand behind torch.ops.caan_kernels on CPU tensors."""

from pathlib import Path

import torch

# The library can only add kernels to operators that are defined.
from . import cuda, operators, triton  # noqa: F401

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def _load() -> str:
    """Load the library, once for the process; the reason why that failed, or an empty string."""
    if triton.INTERPRETED:
        return "TRITON_INTERPRET=1 gives CPU tensors to Triton's interpreter in this process"
    if cuda.EMULATED:
        return "CAAN_CUDA_EMULATED gives CPU tensors to the emulated CUDA kernels in this process"
    library = Path(__file__).parents[1] / "_ops.so"
    if not library.exists():
        return "the compiled library caan_kernels/_ops.so is missing: install the package with a C++ compiler at hand"
    try:
        torch.ops.load_library(library)
    except (OSError, RuntimeError) as error:
        return f"the compiled library caan_kernels/_ops.so does not load under torch {torch.__version__}: {error}"
    try:
        instruction_set()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def instruction_set() -> str:
    """Name of the kernel set in use: avx512, avx2 or generic. CAAN_CPU_ISA forces one."""
    return torch.ops.caan_kernels.cpu_isa()


MISSING = _load()
