"""The CUDA C++ backend: what its kernels of every operator share (docs/cuda.md)."""

import functools
import sys
from typing import NamedTuple

import torch
from torch import Tensor

from . import gpu, library
from .backends import register
from .gpu import aligned, limits, stream_of
from .gpu.plan import Items, Plan, Schedule, Wanted, new_plan
from .gpu.plan import plan_schedule as plan_schedule_of_list
from .modes import EMULATED
from .namespace import NAMESPACE
from .namespace import ops as _ops
from .records import Written, flatten
from .registration import define
from .tracing import constant_while_traced

NAME, ORDER = "cuda", 3
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE_TYPES = ("cpu",) if EMULATED else ("cuda",)
# What the dispatcher calls the device of the tensors that the kernels take.
DEVICE = "CPU" if EMULATED else "CUDA"

# cudaErrorInsufficientDriver and UnsupportedPtxVersion; InvalidDeviceFunction, InvalidKernelImage and NoKernelImageForDevice.
_TOO_OLD_DRIVER = (35, 222)
_NO_KERNEL = (98, 200, 209)


class _Device(NamedTuple):
    device: int


class _Product(NamedTuple):
    left: Tensor
    right: Tensor
    product: Written
    lengths: Tensor
    item_rows: int
    stream: int


class _PlannedSide(NamedTuple):
    given: Tensor | None
    count: int
    rows: int
    halfway: bool
    buckets: int


class _PlanLaunch(NamedTuple):
    """The arguments of `plan` in csrc/core/cuda/plan.h."""

    regions: _PlannedSide
    words: _PlannedSide
    pairs: Tensor | None
    scores: Written
    score_row: int
    numbers: Written
    stream: int


class _ScheduleLaunch(NamedTuple):
    """The arguments of `plan_schedule` there."""

    grad: Tensor
    region_lengths: Tensor
    word_lengths: Tensor
    numbers: Written
    stream: int


# Launches, not operators: they write into what they are given and are called by the operators' implementation only.
define("cuda_device_error", _Device, "int")
define("cuda_multiply", _Product, "()")
define("cuda_plan", _PlanLaunch, "()")
define("cuda_plan_schedule", _ScheduleLaunch, "()")


def product(left: Tensor, right: Tensor, lengths: Tensor, item_rows: int) -> Tensor:
    """(rows, depth) times (depth, columns), of any strides, in their dtype.

    Row r of `left` is row r % item_rows of item r // item_rows: at and beyond the item's length it may hold anything and counts
    as 0.
    """
    result = left.new_empty(left.shape[0], right.shape[1])
    if result.numel() == 0 or left.shape[1] == 0:
        return result.zero_()
    # Rows that no copy of 16 bytes takes may begin anywhere.
    if left.shape[1] % 8 == 0:
        left, right = aligned(left), aligned(right)
    count, stream = lengths.shape[0], stream_of(left)
    step = limits.times(limits.product(item_rows, *right.shape, left.dtype))
    if step >= count:
        _ops.cuda_multiply(*_Product(left, right, result, lengths, item_rows, stream))
        return result
    for first in range(0, count, step):
        items, rows = slice(first, first + step), slice(first * item_rows, (first + step) * item_rows)
        _ops.cuda_multiply(*_Product(left[rows], right, result[rows], lengths[items], item_rows, stream))
    return result


def plan(wanted: Wanted) -> Plan:
    """Sort both sides and fill scores; the class of a listed pair is that of its words."""
    numbers, made = new_plan(wanted)
    regions = _planned_side(wanted.regions, wanted.region_lengths, True, made.regions)
    words = _planned_side(wanted.words, wanted.word_lengths, False, made.words)
    row = wanted.scores.stride(0) if wanted.pairs is None else 0
    launch = _PlanLaunch(regions, words, wanted.pairs, wanted.scores, row, numbers, stream_of(numbers))
    _ops.cuda_plan(*flatten(launch))
    return made


def _planned_side(features: Tensor, lengths: Tensor | None, halfway: bool, items: Items) -> _PlannedSide:
    return _PlannedSide(lengths, features.shape[0], features.shape[1], halfway, len(items.sizes))


def plan_schedule(grad: Tensor, pairs: Tensor | None, region_lengths: Tensor, word_lengths: Tensor) -> Schedule:
    """`plan_schedule` of gpu/plan.py: of all pairs without a sort."""
    if pairs is not None:
        return plan_schedule_of_list(grad, pairs, region_lengths, word_lengths)
    grad, (images, captions) = grad.contiguous(), grad.shape
    count = images * captions
    parts = [count, count, images + 1, count, captions + 1, images + captions, count]
    numbers = grad.new_empty(sum(parts), dtype=torch.int64)
    _ops.cuda_plan_schedule(*_ScheduleLaunch(grad, region_lengths, word_lengths, numbers, stream_of(grad)))
    keys, order, image_starts, by_caption, caption_starts, _, _ = numbers.split_with_sizes(parts)
    return Schedule(keys, order, image_starts[images:], image_starts, by_caption, caption_starts)


@constant_while_traced
def missing() -> str:
    """Why this backend cannot be used on this machine, or an empty string."""
    if EMULATED:
        return ""
    if reason := library.load():
        return reason
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::cuda_multiply", "CUDA"):
        return "caan_kernels was built without CUDA kernels: build it where there is nvcc, on the PATH or in CUDA_HOME"
    return "" if torch.cuda.is_available() else "there is no CUDA device"


def description() -> str:
    """What it is, for `available_backends`."""
    if EMULATED:
        return "CUDA C++ kernels for CPU tensors, emulated, for tests: float16, bfloat16 and float32"
    return "CUDA C++ kernels for CUDA tensors: float16, bfloat16 and float32"


@constant_while_traced
def cannot_run(device: torch.device) -> str:
    """Why tensors of a device are not for this backend, or an empty string."""
    if EMULATED:
        return "" if device.type == "cpu" else f"CAAN_CUDA_EMULATED runs it on CPU tensors, these are on {device}"
    return gpu.cannot_run(device) or _no_code(torch.cuda.current_device() if device.index is None else device.index)


@functools.cache
def _no_code(device: int) -> str:
    """Why the library's kernels cannot be started on a device, or an empty string."""
    error = _ops.cuda_device_error(device)
    if error == 0:
        return ""
    name, major, minor = torch.cuda.get_device_name(device), *torch.cuda.get_device_capability(device)
    if error in _TOO_OLD_DRIVER:
        return (
            "the GPU's driver is older than the CUDA that the kernels were compiled with: update the driver, or build with an nvcc "
            "that it supports"
        )
    if error in _NO_KERNEL:
        return (
            f"caan_kernels was built without code for {name}, compute capability {major}.{minor}: build it with "
            f"CAAN_CUDA_ARCHS={major}{minor}"
        )
    return f"CUDA error {error} while looking up the kernels on {name}"


register(sys.modules[__name__])
