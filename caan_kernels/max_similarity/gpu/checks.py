"""What a compiled graph skips of the operator's checks."""

import torch
from torch import Tensor

from ...core.gpu.checks import check, check_lengths, check_rank, check_values
from ..call import Call

# Rows of an item, which kernels count in 31 bits.
MOST_ROWS = 2**31 - 1


def check_call(call: Call) -> None:
    """Features, lengths and pairs of a call."""
    regions = call.regions.features
    check_rank("regions", regions, 3)
    width = regions.shape[2]
    if width == 0:
        raise RuntimeError(f"regions: expected a width of at least 1, got shape {tuple(regions.shape)}")
    for name, (features, lengths) in (("regions", call.regions), ("words", call.words)):
        check_rank(name, features, 3)
        check(name, features, (*features.shape[:2], width), regions.dtype, regions.device)
        if features.shape[1] > MOST_ROWS:
            raise RuntimeError(f"{name}: expected at most {MOST_ROWS} rows of an item, got {features.shape[1]}")
        check_lengths(f"{name[:-1]}_lengths", lengths, features)
    if call.pairs is not None:
        check("pairs", call.pairs, (len(call.pairs), 2), torch.int64, regions.device)
        for column, items in enumerate((call.regions, call.words)):
            check_values("pairs", call.pairs[:, column], len(items.features) - 1)


def check_gradient(grad: Tensor, call: Call) -> None:
    """The gradient of a call's scores."""
    regions, words = call.regions.features, call.words.features
    shape = (len(regions), len(words)) if call.pairs is None else (len(call.pairs),)
    check("grad", grad, shape, torch.float32, regions.device)
