"""What a compiled graph skips: it calls the operators without the checks of core/checks.py."""

import torch
from torch import Tensor


def check(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, contiguous: bool = True
) -> None:
    """Shape, dtype and device are these."""
    # First of all: a kernel would take an address on another device for one of its own.
    if tensor.device != device:
        raise RuntimeError(f"{name}: expected device {device}, got {tensor.device}")
    if tensor.shape != shape:
        raise RuntimeError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != dtype:
        raise RuntimeError(f"{name}: expected dtype {dtype}, got {tensor.dtype}")
    if contiguous and not tensor.is_contiguous():
        raise RuntimeError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")


def check_rank(name: str, tensor: Tensor, rank: int) -> None:
    """So many dimensions."""
    if tensor.dim() != rank:
        raise RuntimeError(f"{name}: expected {rank} dimensions, got shape {tuple(tensor.shape)}")


def check_lengths(name: str, lengths: Tensor | None, items: Tensor) -> None:
    """(B,) int64 from 0 to L, for (B, L, D) items."""
    if lengths is not None:
        check(name, lengths, (items.shape[0],), torch.int64, items.device)
        check_values(name, lengths, items.shape[1])


def check_values(name: str, values: Tensor, highest: int) -> None:
    """Values from 0 to `highest`, where looking does not synchronise with a GPU."""
    # On a GPU the kernels leave such items out, and their scores are NaN.
    if values.device.type == "cpu" and bool(((values < 0) | (values > highest)).any()):
        raise RuntimeError(f"{name}: expected values from 0 to {highest}, got {values.tolist()}")
