"""Errors for arguments that do not fit, as every operator has them.

Every error names the argument, what was expected and what came: `TypeError` for a wrong type or dtype, `ValueError` for
a wrong rank, width, device, length or index. Values of lengths and pairs are looked at only where there are values and looking
does not synchronise with a GPU: on the CPU, and not while a graph is traced. The kernels look again.
"""

from collections.abc import Iterator
from numbers import Integral, Real
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

FEATURE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INDEX_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class Named(NamedTuple):
    """A tensor and what an error calls it."""

    name: str
    tensor: Tensor


def check_integer(name: str, value: int, least: int) -> None:
    """An integer, and no Boolean, from `least` on."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")


def check_number(name: str, value: float) -> None:
    """A number, and no Boolean."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """A dtype that features have."""
    if not isinstance(dtype, torch.dtype) or dtype not in FEATURE_DTYPES:
        expected = "torch.float16, torch.bfloat16, torch.float32 or torch.float64"
        raise TypeError(f"{name}: expected {expected}, got {dtype!r}")


def check_device(name: str, device: torch.device | str) -> None:
    """A device, or the name of one."""
    try:
        torch.device(device)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{name}: expected a device, such as 'cpu' or 'cuda:0', got {device!r}") from None


def check_features(name: str, features: Tensor, or_projected: str = "") -> None:
    """(B, L, D), floating."""
    if not isinstance(features, Tensor):
        raise TypeError(f"{name}: expected a tensor{or_projected}, got {type(features).__name__}")
    if features.dtype not in FEATURE_DTYPES:
        raise TypeError(f"{name}: expected dtype float16, bfloat16, float32 or float64, got {features.dtype}")
    if features.dim() != 3:
        raise ValueError(f"{name}: expected 3 dimensions (items, rows, width), got shape {tuple(features.shape)}")
    if features.shape[2] == 0:
        raise ValueError(f"{name}: expected a width of at least 1, got shape {tuple(features.shape)}")


def check_same_width(words: Named, regions: Named) -> None:
    """One width, dtype and device."""
    check_alike(words, regions)
    width = regions.tensor.shape[2]
    if words.tensor.shape[2] != width:
        raise ValueError(f"{words.name}: expected width {width}, that of {regions.name}, got shape {tuple(words.tensor.shape)}")


def lengths_of(side: str, lengths: Tensor | None, mask: Tensor | None, items: Named) -> Tensor | None:
    """The lengths of (B, L, D) items, (B,), from lengths or a mask; None where neither is given.

    Args:
        side: "regions" or "words"; errors call its arguments by it.
        lengths: (B,) integers from 0 to L.
        mask: (B, L) Boolean, True for the first rows of each item, those that are real, and False for the rest.
        items: the features.

    Raises:
        TypeError, ValueError: an argument does not fit, both are given, or a False comes before a True.
    """
    lengths_name, mask_name = f"{side[:-1]}_lengths", f"{side[:-1]}_mask"
    if mask is None:
        if lengths is not None:
            check_lengths(lengths_name, lengths, items)
        return lengths
    if lengths is not None:
        raise ValueError(f"{mask_name}: expected None beside {lengths_name}, got {type(mask).__name__}: give one of them")
    return _lengths_of_mask(mask_name, mask, items, side)


def _lengths_of_mask(name: str, mask: Tensor, items: Named, rows: str) -> Tensor:
    check_tensor(name, mask)
    if mask.dtype != torch.bool:
        raise TypeError(f"{name}: expected dtype torch.bool, got {mask.dtype}")
    shape = tuple(items.tensor.shape[:2])
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, an entry for each row of {items.name}, got {tuple(mask.shape)}")
    _check_index_device(name, mask, items)
    wrong = (mask[:, 1:] & ~mask[:, :-1]).any(1)
    expected = f"{name}: expected True for the real {rows}, which come first, and False after them"
    if mask.device.type == "cpu" and torch.compiler.is_compiling():
        torch._assert_async(~wrong.any(), f"{expected}, got False before True")
    elif (found := _at_hand(wrong)) is not None and found.any():
        raise ValueError(f"{expected}, got False before True in item {int(found.nonzero()[0, -1])}")
    # On a GPU nobody reads a length: one that is out of range makes the item's scores NaN.
    return mask.sum(1).masked_fill(wrong, -1)


def check_lengths(name: str, lengths: Tensor, items: Named) -> None:
    """(B,) integers from 0 to L, for (B, L, D) items."""
    count, rows = items.tensor.shape[:2]
    check_tensor(name, lengths)
    if lengths.dtype not in INDEX_DTYPES:
        raise TypeError(f"{name}: expected an integer dtype, got {lengths.dtype}")
    if lengths.shape != (count,):
        raise ValueError(f"{name}: expected shape ({count},), one for each item of {items.name}, got {tuple(lengths.shape)}")
    _check_index_device(name, lengths, items)
    _check_values(name, lengths, rows, f"the number of rows in {items.name}")


def check_pairs(pairs: Tensor, regions: Named, words: Named) -> None:
    """(P, 2) int64 indices (image, caption)."""
    check_tensor("pairs", pairs)
    if pairs.dtype != torch.int64:
        raise TypeError(f"pairs: expected dtype torch.int64, got {pairs.dtype}")
    if pairs.dim() != 2 or pairs.shape[1] != 2:
        raise ValueError(f"pairs: expected shape (P, 2), got {tuple(pairs.shape)}")
    _check_index_device("pairs", pairs, regions)
    for column, items in enumerate((regions, words)):
        _check_values(f"pairs[:, {column}]", pairs[:, column], items.tensor.shape[0] - 1, f"the last item of {items.name}")


def check_tensor(name: str, value: Tensor) -> None:
    """A tensor, and nothing else."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")


def check_alike(one: Named, like: Named) -> None:
    """One dtype and device."""
    if one.tensor.dtype != like.tensor.dtype:
        raise TypeError(f"{one.name}: expected dtype {like.tensor.dtype}, that of {like.name}, got {one.tensor.dtype}")
    if one.tensor.device != like.tensor.device:
        raise ValueError(f"{one.name}: expected device {like.tensor.device}, that of {like.name}, got {one.tensor.device}")


def _check_index_device(name: str, indices: Tensor, items: Named) -> None:
    device = items.tensor.device
    if indices.device.type != "cpu" and indices.device != device:
        raise ValueError(f"{name}: expected device cpu or {device}, that of {items.name}, got {indices.device}")


def _check_values(name: str, indices: Tensor, highest: int, meaning: str) -> None:
    if (indices := _at_hand(indices)) is None:
        return
    lowest_found, highest_found = indices.aminmax()
    if int(lowest_found) < 0 or int(highest_found) > highest:
        wrong = indices[(indices < 0) | (indices > highest)]
        raise ValueError(f"{name}: expected values from 0 to {highest}, {meaning}, got {int(wrong[0])}")


def _at_hand(values: Tensor) -> Tensor | None:
    """A tensor's values, without what transforms have wrapped them in; None where looking would synchronise with a GPU.

    None also where there are no values: while a graph is traced.
    """
    if torch.compiler.is_compiling() or values.device.type != "cpu" or values.numel() == 0:
        return None
    *_, values = layers(values)
    # Under a FakeTensorMode, what is computed of a real tensor is fake.
    if get_proxy_mode() is not None or isinstance(values[:0], FakeTensor):
        return None
    return values


def layers(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor, and what torch.func's transforms have wrapped in it, one within the other; under torch.vmap that is a batch."""
    yield tensor
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
        yield tensor
