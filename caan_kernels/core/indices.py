"""Lengths and pairs on their way to the kernels."""

import torch
from torch import Tensor


def indices_for(indices: Tensor | None, items: Tensor, backend: str) -> Tensor | None:
    """Where and how the operators take lengths and pairs."""
    if indices is None:
        return None
    device = torch.device("cpu") if backend == "cpu" else items.device
    if device.type == "cuda" and indices.device.type == "cpu" and _captures():
        # A graph would copy, at each replay, from memory that may be gone by then.
        raise RuntimeError("lengths and pairs: expected CUDA tensors while a CUDA graph is captured, got one on the CPU")
    if device.type == "cpu" or indices.device.type != "cpu":
        return indices.to(device, torch.int64).contiguous()
    # A copy from pageable memory is staged before it returns, so that not synchronising with the device is safe. One from the
    # caller's pinned memory would still be read when the caller overwrites it.
    return torch.empty_like(indices, dtype=torch.int64, pin_memory=False).copy_(indices).to(device, non_blocking=True)


def _captures() -> bool:
    return not torch.compiler.is_compiling() and torch.cuda.is_current_stream_capturing()
