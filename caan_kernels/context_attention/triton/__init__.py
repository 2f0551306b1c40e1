"""The Triton backend: kernels of our own for NVIDIA GPUs of compute capability 8.0 and later (docs/triton.md)."""

import os

import torch

from .. import gpu

# Regions of an image lie in one tile, whose rows registers hold.
MOST_REGIONS = 256

# Triton's interpreter runs the kernels, on CPU tensors and for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


# The interpreter's products of bfloat16 are wrong.
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)


def _load() -> str:
    """Register the kernels, once for the process; the reason why that failed, or an empty string."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    from . import launch

    gpu.register("triton", launch, "CPU" if INTERPRETED else "CUDA")
    return ""


_MISSING = _load()


# What torch.compile asks while it traces does not change.
@torch.compiler.assume_constant_result
def missing() -> str:
    """Why this backend cannot be used on this machine, or an empty string."""
    if _MISSING or INTERPRETED:
        return _MISSING
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
    return gpu.cannot_run(device)


def too_large(regions: int, words: int) -> str:
    """Why pairs of so many regions and words are not for this backend, or an empty string."""
    return f"it takes at most {MOST_REGIONS} regions an image, these have {regions}" if regions > MOST_REGIONS else ""
