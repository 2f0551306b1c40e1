"""What the backends for GPUs share: operators written once (launch.py), plans (plan.py), checks, and their registration.

The dispatcher knows a device, not a backend: both stand behind one registration, and the operators' last argument tells
which was chosen.
"""

import functools
from types import ModuleType

import torch

from ...registration import once

# Kernels can only be added to operators that are defined.
from .. import operators  # noqa: F401
from . import launch

LEAST_CAPABILITY = (8, 0)

_OPERATORS = ("project", "project_backward", "pair_scores", "pair_scores_backward", "raw_scores", "pair_maps")


def register(backend: str, kernels: ModuleType, device: str) -> None:
    """Let a backend's kernels, functions as `launch.Kernels` has them, run the operators on a device: "CUDA" or "CPU"."""
    launch.KERNELS[backend] = kernels
    once(f"operators on {device}", functools.partial(_register_operators, device))


def _register_operators(device: str) -> torch.library.Library:
    library = torch.library.Library("caan_kernels", "IMPL", device)
    for name in _OPERATORS:
        library.impl(name, _on_its_device(getattr(launch, name)))
    return library


def _on_its_device(operator):
    """Kernels are launched on the current device, which need not be that of the tensors."""

    @functools.wraps(operator)
    def call(tensor, *rest):
        with torch.cuda.device_of(tensor):
            return operator(tensor, *rest)

    return call


def cannot_run(device: torch.device) -> str:
    """Why no kernel of ours runs on a device, or an empty string."""
    if device.type != "cuda":
        return f"its tensors must be on a CUDA device, these are on {device}"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < LEAST_CAPABILITY:
        return f"it needs compute capability 8.0 or later, {torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
    return ""
