"""The Triton backend: kernels of our own for NVIDIA GPUs of compute capability 8.0 and later (docs/triton.md)."""

import functools
import os

import torch

# Kernels can only be added to operators that are defined.
from .. import operators  # noqa: F401

LEAST_CAPABILITY = (8, 0)
# Regions of an image lie in one tile, whose rows registers hold.
MOST_REGIONS = 256

_OPERATORS = ("project", "project_backward", "pair_scores", "pair_scores_backward", "raw_scores", "pair_maps")


# Triton's interpreter runs the kernels, on CPU tensors and for tests.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


# The interpreter's products of bfloat16 are wrong.
DTYPES = (torch.float32, torch.float16) if INTERPRETED else (torch.float32, torch.float16, torch.bfloat16)


def _on_its_device(operator):
    """Triton launches on the current device, which need not be that of the tensors."""

    @functools.wraps(operator)
    def call(tensor, *rest):
        with torch.cuda.device_of(tensor):
            return operator(tensor, *rest)

    return call


def _load() -> str:
    """Register the kernels, once for the process; the reason why that failed, or an empty string."""
    try:
        import triton  # noqa: F401
    except ImportError as error:
        return f"Triton cannot be imported: {error}"
    from . import launch

    library = torch.library.Library("caan_kernels", "IMPL", "CPU" if INTERPRETED else "CUDA")
    for name in _OPERATORS:
        library.impl(name, _on_its_device(getattr(launch, name)))
    # A library takes its kernels along when it is deleted.
    _KEPT.append(library)
    return ""


_KEPT: list[torch.library.Library] = []
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
    if device.type != "cuda":
        return f"its tensors must be on a CUDA device, these are on {device}"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < LEAST_CAPABILITY:
        return f"it needs compute capability 8.0 or later, {torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
    return ""


def too_large(regions: int) -> str:
    """Why images of so many regions are not for this backend, or an empty string."""
    return f"it takes at most {MOST_REGIONS} regions an image, these have {regions}" if regions > MOST_REGIONS else ""
