"""torch.autocast: what it makes of an operator's tensors, as it would of torch.matmul's."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
# Asked once: torch.compile of torch 2.11 cannot trace the question.
_DEVICES = tuple(x for x in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(x))


def autocast_dtype(items: Sequence[Tensor], fixed: Sequence[Tensor] = ()) -> torch.dtype | None:
    """The dtype that autocast asks for; None to leave all as it is.

    Args:
        items: the features of a call.
        fixed: those of them that keep their dtype, since they were made before: the rest follows them.
    """
    if not (tensors := (*fixed, *items)) or not _is_on(tensors[0].device):
        return None
    if fixed:
        return tensors[0].dtype if tensors[0].dtype in _DTYPES else None
    return torch.get_autocast_dtype(tensors[0].device.type)


def cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The autocast rule, for one tensor."""
    return x.to(dtype) if dtype is not None and isinstance(x, Tensor) and x.dtype in _DTYPES else x


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Once all is cast: what computes takes the dtype that it is given, as the kernels do."""
    return torch.autocast(device.type, enabled=False) if _is_on(device) else nullcontext()


def _is_on(device: torch.device) -> bool:
    return device.type in _DEVICES and torch.is_autocast_enabled(device.type)
