"""A call of the operator, checked and packed; every layer below the interface passes it on whole.

torch's dispatcher takes the values one by one (core/records.py); csrc/max_similarity/cpu/bindings.cpp reads them in this order.
"""

from typing import NamedTuple

from torch import Tensor

from ..core.records import Items


class Options(NamedTuple):
    """How a pair is scored.

    Attributes:
        over_regions: every region looks for its best word, not every word for its best region.
        mean: the mean of the largest products, not their sum.
    """

    over_regions: bool
    mean: bool


class Call(NamedTuple):
    """One call.

    Attributes:
        regions: (I, M, D) and their lengths.
        words: (T, N, D) and their lengths.
        pairs: (P, 2) int64 of (image, caption), or None for all of them.
        options: how a pair is scored.
        backend: the name of the one that runs the call.
    """

    regions: Items
    words: Items
    pairs: Tensor | None
    options: Options
    backend: str


class CallGradient(NamedTuple):
    """The gradient of a call's scores, the call, and of what a gradient is needed."""

    grad: Tensor
    call: Call
    need_regions: bool
    need_words: bool
