"""Measuring the configurations of `scores_kernel`, for whoever asks: CAAN_TRITON_TUNE=1.

What is found holds for the process and for everything that shapes the machine code: device, dtype, widths, options, and
the block of a pair's regions and words. Sizes of batches and lengths are no part of it. Whichever is taken, scores have
the same bits.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
import triton

from ..modes import TUNED

_Configuration = TypeVar("_Configuration")
_chosen: dict[tuple, object] = {}


def fastest(key: tuple, candidates: list[_Configuration], run: Callable[[_Configuration], None]) -> _Configuration:
    """The first candidate, or the one measured fastest where tuning is asked for; `run` makes the call with one."""
    if not TUNED:
        return candidates[0]
    if key not in _chosen:
        # A measurement waits for the device, which a graph that is being captured cannot.
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return candidates[0]
        _chosen[key] = min(candidates, key=lambda candidate: _milliseconds(candidate, run))
    return _chosen[key]


def _milliseconds(candidate: _Configuration, run: Callable[[_Configuration], None]) -> float:
    try:
        return triton.testing.do_bench(lambda: run(candidate), warmup=5, rep=30, return_mode="median")
    except triton.runtime.errors.OutOfResources:
        return float("inf")
