"""What a compiled graph skips: it calls the operators without the checks of arguments.py."""

import torch
from torch import Tensor


def check_items(items: Tensor, weight: Tensor, lengths: Tensor | None) -> None:
    """Arguments of `project`."""
    _check_rank("items", items, 3)
    _check("weight", weight, (items.shape[2], weight.shape[-1]), items.dtype, items.device)
    _check_lengths("lengths", lengths, items)


def check_call(V, U, region_score: Tensor, word_score: Tensor, pairs: Tensor | None) -> None:
    """Arguments of the operators that score; V and U are `launch.Side`s."""
    for side, name in ((V, "regions"), (U, "words")):
        _check_rank(name, side.features, 3)
    dtype, device, width = V.features.dtype, V.features.device, V.features.shape[2]
    _check_rank("region_score", region_score, 1)
    hidden = region_score.shape[0]
    _check("words", U.features, (*U.features.shape[:2], width), dtype, device)
    for name, vector in (("region_score", region_score), ("word_score", word_score)):
        _check(name, vector, (hidden,), dtype, device)
    for side, columns in ((V, 2 * hidden), (U, width + 2 * hidden)):
        if side.products is not None:
            _check(f"{side.kind}_products", side.products, (*side.features.shape[:2], columns), dtype, device)
        else:
            _check(f"the matrices of the {side.kind}s", side.weight, (width, columns), dtype, device, contiguous=False)
        _check_lengths(f"{side.kind}_lengths", side.lengths, side.features)
    if pairs is not None:
        _check("pairs", pairs, (len(pairs), 2), torch.int64, device)
        for column, side in enumerate((V, U)):
            _check_values("pairs", pairs[:, column], len(side.features) - 1)


def _check(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, contiguous: bool = True
) -> None:
    # First of all: a kernel would take an address on another device for one of its own.
    if tensor.device != device:
        raise RuntimeError(f"{name}: expected device {device}, got {tensor.device}")
    if tuple(tensor.shape) != shape:
        raise RuntimeError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != dtype:
        raise RuntimeError(f"{name}: expected dtype {dtype}, got {tensor.dtype}")
    if contiguous and not tensor.is_contiguous():
        raise RuntimeError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")


def _check_rank(name: str, tensor: Tensor, rank: int) -> None:
    if tensor.dim() != rank:
        raise RuntimeError(f"{name}: expected {rank} dimensions, got shape {tuple(tensor.shape)}")


def _check_lengths(name: str, lengths: Tensor | None, items: Tensor) -> None:
    if lengths is not None:
        _check(name, lengths, (len(items),), torch.int64, items.device)
        _check_values(name, lengths, items.shape[1])


def _check_values(name: str, values: Tensor, highest: int) -> None:
    # On a GPU the look would make the host wait: there the kernels leave such items out and their scores are NaN.
    if values.device.type == "cpu" and bool(((values < 0) | (values > highest)).any()):
        raise RuntimeError(f"{name}: expected values from 0 to {highest}, got {values.tolist()}")
