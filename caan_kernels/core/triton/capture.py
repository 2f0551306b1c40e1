"""Kernels that say so where a CUDA graph's capture would compile them."""

import functools
from collections.abc import Mapping
from typing import Any

import torch


def refuse_in_capture(names: Mapping[str, Any]) -> None:
    """Make a compilation during the capture of a CUDA graph an error, for the kernels among a module's names.

    It would load machine code, which CUDA refuses there, after minutes and in words that name no cause.
    """
    for kernel in names.values():
        # The interpreter's functions are never compiled, and operators share kernels.
        if hasattr(kernel, "_do_compile") and not hasattr(kernel._do_compile, "__wrapped__"):
            kernel._do_compile = _refusing(kernel._do_compile, kernel.__name__)


def _refusing(compile_one, name: str):
    @functools.wraps(compile_one)
    def compile_or_refuse(*arguments, **given):
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"{name}: expected to be compiled before a CUDA graph is captured, got a call that needs a new compilation: make "
                "the same call before the capture, or, for a training, call caan_kernels.warmup"
            )
        return compile_one(*arguments, **given)

    return compile_or_refuse
