"""The Triton backend: kernels of our own for NVIDIA GPUs of compute capability 8.0 and later (docs/triton.md)."""

import functools
import sys

import torch

from .. import gpu
from ..backends import register
from ..modes import INTERPRETED
from ..tracing import constant_while_traced

NAME, ORDER = "triton", 2
# The version that the lowest torch brings.
LOWEST = 3, 6
# The interpreter's products of bfloat16 are wrong.
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)
DEVICE_TYPES = ("cpu",) if INTERPRETED else ("cuda",)
# What the dispatcher calls the device of the tensors that the kernels take.
DEVICE = "CPU" if INTERPRETED else "CUDA"


# What torch.compile asks while it traces does not change.
@constant_while_traced
def missing() -> str:
    """Why this backend cannot be used on this machine, or an empty string."""
    if not INTERPRETED and not torch.cuda.is_available():
        return "there is no CUDA device; TRITON_INTERPRET=1 runs its kernels on the CPU, for tests"
    return _unusable()


# Not with this package: it takes a quarter of a second, which a process without a GPU need not wait.
@functools.cache
def _unusable() -> str:
    try:
        import triton
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    if tuple(map(int, triton.__version__.split(".")[:2])) < LOWEST:
        return f"Triton {triton.__version__} does not compile its kernels: expected {'.'.join(map(str, LOWEST))} or newer"
    return ""


def description() -> str:
    """What it is, for `available_backends`."""
    if INTERPRETED:
        return "Triton kernels for CPU tensors, in Triton's interpreter, for tests: float16 and float32"
    return "Triton kernels for CUDA tensors: float16, bfloat16 and float32"


@constant_while_traced
def cannot_run(device: torch.device) -> str:
    """Why tensors of a device are not for this backend, or an empty string."""
    if INTERPRETED:
        return "" if device.type == "cpu" else f"TRITON_INTERPRET=1 runs it on CPU tensors, these are on {device}"
    if torch.version.hip:
        return "its kernels are for NVIDIA GPUs: not all of them compile for AMD's"
    return gpu.cannot_run(device)


register(sys.modules[__name__])
