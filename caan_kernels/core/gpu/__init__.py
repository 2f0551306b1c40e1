"""What the backends for GPUs share: plans (plan.py), checks (checks.py), and operators that they implement together.

The dispatcher knows a device, not a backend: both stand behind one registration, and an operator's last argument tells
which was chosen.
"""

import functools
from collections.abc import Callable, Iterable
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..namespace import NAMESPACE
from ..registration import once, taking_values

LEAST_CAPABILITY = (8, 0)


def implement(backend: str, kernels: Any, device: str, launch: ModuleType, operators: Iterable[str]) -> None:
    """Have functions run operators on a device, where they launch the kernels of a backend.

    Args:
        backend: its name, the last value of the operators' records.
        kernels: what it launches.
        device: whose tensors the functions take: "CUDA" or, for tests, "CPU".
        launch: the module with `KERNELS`, by backend, and the functions. Each takes an operator's record; the first value of that
            is a tensor.
        operators: names in torch.ops.caan_kernels, which are those of the functions too.
    """
    launch.KERNELS[backend] = kernels
    for name in operators:
        once(f"{name} on {device}", functools.partial(_implement, name, getattr(launch, name), device))


def _implement(name: str, function: Callable, device: str) -> torch.library.Library:
    library = torch.library.Library(NAMESPACE, "IMPL", device)
    library.impl(name, _on_its_device(taking_values(name, function)))
    return library


class Later:
    """A module that is imported when something of it is asked for.

    Args:
        name: of the module, relative to `package`.
        package: that it is of.
    """

    def __init__(self, name: str, package: str):
        self._load = functools.cache(functools.partial(import_module, name, package))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._load(), name)


def _on_its_device(operator: Callable) -> Callable:
    """Kernels are launched on the current device, which need not be that of the tensors."""

    def call(*values):
        with torch.cuda.device_of(values[0]):
            return operator(*values)

    return call


def cannot_run(device: torch.device) -> str:
    """Why no kernel of ours runs on a device, or an empty string."""
    if device.type != "cuda":
        return f"its tensors must be on a CUDA device, these are on {device}"
    capability = torch.cuda.get_device_capability(device)
    if torch.version.hip is None and capability < LEAST_CAPABILITY:
        return f"it needs compute capability 8.0 or later, {torch.cuda.get_device_name(device)} has {capability[0]}.{capability[1]}"
    return ""


def stream_of(x: Tensor) -> int:
    """torch's current stream on the device of a tensor; 0 on the CPU."""
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0


def multiprocessors(device: torch.device) -> int:
    """Multiprocessors of a GPU; 2 on the CPU, where kernels are emulated one block after another."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def aligned(x: Tensor) -> Tensor:
    """With an address that accesses of 16 bytes take: which kernel does the work must not depend on where a tensor begins."""
    return x if x.data_ptr() % 16 == 0 else x.clone()
