"""Tensors as the memory of a launch."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from .memory import Buffer


def buffers_of(arguments: Iterable[tuple[str, Any, bool]]) -> list[Buffer]:
    """The storages of the CPU tensors among a launch's arguments: name, value, and whether the kernel may write to it.

    What still holds torch's filling of new memory, NaN or the largest integer, was never written, if
    torch.use_deterministic_algorithms is on: in float32 and int32, which nobody gives but the package, and in floats that the
    kernel writes.
    """
    found: dict[int, Buffer] = {}
    for name, value, writable in arguments:
        if not isinstance(value, torch.Tensor) or not value.untyped_storage().nbytes():
            continue
        storage = value.untyped_storage()
        address = storage.data_ptr()
        memory = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
        known = (writable and value.is_floating_point()) or value.dtype in (torch.float32, torch.int32)
        buffer = Buffer(name, address, memory, _written(memory, value) if known else None, writable)
        if address not in found or writable:
            found[address] = buffer
    return list(found.values())


def _written(memory: np.ndarray, tensor: torch.Tensor) -> np.ndarray:
    """(bytes,) bool: what does not hold the filling of new memory."""
    size = tensor.element_size()
    filling = torch.nan if tensor.is_floating_point() else torch.iinfo(tensor.dtype).max
    filling = torch.full((1,), filling, dtype=tensor.dtype).view(torch.uint8).numpy().view(f"u{size}")
    return (memory.view(f"u{size}") != filling).repeat(size)
