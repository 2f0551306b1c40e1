"""The Triton backend: kernels of our own for NVIDIA GPUs of compute capability 8.0 and later (docs/triton.md)."""

import sys

import torch

from .. import gpu
from ..backends import register
from ..modes import INTERPRETED

try:
    import triton  # noqa: F401
except ImportError as error:
    NOT_THERE = f"Triton cannot be imported: {error}"
else:
    NOT_THERE = ""

NAME, ORDER = "triton", 2
# The interpreter's products of bfloat16 are wrong.
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
DEVICE_TYPES = ("cpu",) if INTERPRETED else ("cuda",)
# What the dispatcher calls the device of the tensors that the kernels take.
DEVICE = "CPU" if INTERPRETED else "CUDA"


# What torch.compile asks while it traces does not change.
@torch.compiler.assume_constant_result
def missing() -> str:
    """Why this backend cannot be used on this machine, or an empty string."""
    if NOT_THERE or INTERPRETED:
        return NOT_THERE
    return "" if torch.cuda.is_available() else "there is no CUDA device; TRITON_INTERPRET=1 runs its kernels on the CPU, for tests"


def description() -> str:
    """What it is, for `available_backends`."""
    if INTERPRETED:
        return "Triton kernels for CPU tensors, in Triton's interpreter, for tests: float16 and float32"
    return "Triton kernels for CUDA tensors: float16, bfloat16 and float32"


@torch.compiler.assume_constant_result
def cannot_run(device: torch.device) -> str:
    """Why tensors of a device are not for this backend, or an empty string."""
    if INTERPRETED:
        return "" if device.type == "cpu" else f"TRITON_INTERPRET=1 runs it on CPU tensors, these are on {device}"
    if torch.version.hip:
        return "its kernels are for NVIDIA GPUs: not all of them compile for AMD's"
    return gpu.cannot_run(device)


register(sys.modules[__name__])
