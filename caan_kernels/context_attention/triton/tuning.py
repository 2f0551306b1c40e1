"""Measuring the configurations of `scores_kernel`, for whoever asks: CAAN_TRITON_TUNE=1.

What is found holds for the process and for everything that shapes the machine code: device, dtype, widths, options, and
the block of a pair's regions and words. Sizes of batches and lengths are no part of it. Whichever is taken, scores have
the same bits.
"""

import os
from collections.abc import Callable

import torch
import triton

from .configurations import Configuration

_chosen: dict[tuple, Configuration] = {}


def fastest(key: tuple, candidates: list[Configuration], run: Callable[[Configuration], None]) -> Configuration:
    """The first candidate, or the one measured fastest where tuning is asked for; `run` makes the call with one."""
    if os.environ.get("CAAN_TRITON_TUNE", "0") != "1":
        return candidates[0]
    if key not in _chosen:
        # A measurement waits for the device, which a graph that is being captured cannot.
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return candidates[0]
        _chosen[key] = min(candidates, key=lambda candidate: _milliseconds(candidate, run))
    return _chosen[key]


def _milliseconds(candidate: Configuration, run: Callable[[Configuration], None]) -> float:
    try:
        return triton.testing.do_bench(lambda: run(candidate), warmup=5, rep=30, return_mode="median")
    except triton.runtime.errors.OutOfResources:
        return float("inf")
