"""The CUDA C++ backend: the kernels of csrc/cuda, launched as gpu/launch.py asks (docs/cuda.md)."""

import functools
import os
import sys

import torch
from torch import Tensor

from ..registration import define
from . import gpu
from .gpu.launch import Options, Side, Slots, Vectors, aligned
from .gpu.plan import Walk, plan_list

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Panels of both sides' rows lie in shared memory: what every GPU since compute capability 8.0 has of it.
MOST_ROWS = 340

# Regions of an image and words of a caption that lie in a tile (csrc/cuda/kernels.h).
MOST_REGIONS = 64
MOST_WORDS = 32
MOST_TILED_ROWS = 2**32 - 1

# A library in which the kernels run on the CPU, on CPU tensors and for tests.
EMULATED = os.environ.get("CAAN_CUDA_EMULATED", "")

# cudaErrorInsufficientDriver and UnsupportedPtxVersion; InvalidDeviceFunction, InvalidKernelImage and NoKernelImageForDevice.
_TOO_OLD_DRIVER = (35, 222)
_NO_KERNEL = (98, 200, 209)

_SIDES = (
    "Tensor regions, Tensor region_products, Tensor words, Tensor word_products, Tensor region_score, Tensor word_score, "
    "Tensor region_lengths, Tensor word_lengths"
)
_OPTIONS = "bool cosine, bool inter, bool intra, int stream"
# Launches, not operators: they write into what they are given and are called by the operators' implementation only.
for _schema in (
    "cuda_device_error(int device) -> int",
    "cuda_multiply(Tensor left, Tensor right, Tensor(a!) product, Tensor lengths, int item_rows, bool along_depth, "
    "int stream) -> ()",
    f"cuda_score_pairs({_SIDES}, Tensor(a!) scores, Tensor(b!) scratch, Tensor? pairs, Tensor? keys, Tensor? order, "
    f"Tensor? walked, int first, int count, int score_row, bool skip_tiles, {_OPTIONS}) -> ()",
    f"cuda_score_tiles({_SIDES}, Tensor(a!) scores, Tensor word_order, Tensor word_starts, Tensor? pairs, Tensor? order, "
    f"Tensor? keys, Tensor? ranks, int score_row, int bucket, int word_buckets, int buckets, int together, {_OPTIONS}) -> ()",
    f"cuda_sum_gradients({_SIDES}, Tensor scratch, Tensor keys, Tensor image_starts, Tensor by_caption, Tensor caption_starts, "
    "Tensor walked, Tensor(a!) of_regions, Tensor(b!) of_region_products, Tensor(c!) of_words, Tensor(d!) of_word_products, "
    f"Tensor(e!) of_region_score, Tensor(f!) of_word_score, int first, int slots, {_OPTIONS}) -> ()",
):
    define(_schema)

_ops = torch.ops.caan_kernels


def product(
    left: Tensor, right: Tensor, lengths: Tensor, item_rows: int, *, along_depth: bool = False, forward: bool = False
) -> Tensor:
    result = left.new_empty(left.shape[0], right.shape[1])
    if result.numel() == 0 or left.shape[1] == 0:
        return result.zero_()
    _ops.cuda_multiply(aligned(left), aligned(right), result, lengths, item_rows, along_depth, _stream(left))
    return result


def score_tiles(scores: Tensor, V: Side, U: Side, vectors: Vectors, pairs: Tensor | None, options: Options) -> bool:
    if not _tiled(V, U, vectors):
        return True
    regions, words = V.plan(), U.plan()
    listed = None if pairs is None else plan_list(pairs, regions, words)
    sides = *(aligned(x) for x in (V.features, V.products, U.features, U.products)), *vectors, regions.lengths, words.lengths
    for bucket, size in enumerate(words.sizes):
        if size <= MOST_WORDS:
            _ops.cuda_score_tiles(
                *sides,
                scores,
                words.order,
                words.starts,
                pairs,
                *((None,) * 3 if listed is None else listed),
                0 if listed is not None else scores.stride(0),
                bucket,
                len(words.sizes),
                len(words.sizes) * len(regions.sizes),
                MOST_WORDS // size,
                *options,
                _stream(scores),
            )
    return V.features.shape[1] > MOST_REGIONS or U.features.shape[1] > MOST_WORDS


def _tiled(V: Side, U: Side, vectors: Vectors) -> bool:
    """Whether there are tiles for such a call: rows are counted in 32 bits and copied 16 bytes at a time."""
    copied = V.features.shape[2] % 8 == 0 and len(vectors.region_score) % 8 == 0
    rows = max(x.features.shape[0] * x.features.shape[1] for x in (V, U))
    return V.features.dtype != torch.float32 and copied and rows < MOST_TILED_ROWS


def _fours(count: int) -> int:
    return -(-count // 4) * 4


def _parts(regions: int, words: int) -> list[int]:
    """Sizes of what lies in a slot before derivatives (csrc/cuda/kernels.h, Slot)."""
    return [regions * _fours(words)] * 5 + [_fours(regions)] * 4 + [_fours(words)] * 4


def slot_numbers(regions: int, words: int, width: int, gradient: bool) -> int:
    return sum(_parts(regions, words)) + (5 * regions * _fours(words) + 2 * _fours(width) if gradient else 0)


def score_rest(slots: Slots, scores: Tensor, vectors: Vectors, pairs: Tensor | None, options: Options) -> None:
    slots.reserve(scores.numel())
    _score_pairs(slots, 0, scores.numel(), scores, vectors, pairs, None, _tiled(slots.V, slots.U, vectors), options)


def fill(
    slots: Slots,
    first: int,
    count: int,
    scores: Tensor,
    vectors: Vectors,
    pairs: Tensor | None,
    walk: Walk | None,
    options: Options,
) -> None:
    _score_pairs(slots, first, count, scores, vectors, pairs, walk, False, options)


def _score_pairs(
    slots: Slots,
    first: int,
    count: int,
    scores: Tensor,
    vectors: Vectors,
    pairs: Tensor | None,
    walk: Walk | None,
    skip_tiles: bool,
    options: Options,
) -> None:
    _ops.cuda_score_pairs(
        *_sides(slots, vectors),
        scores,
        slots.scratch,
        pairs,
        *((None,) * 3 if walk is None else (walk.keys, walk.order, walk.count)),
        first,
        count,
        scores.stride(0) if walk is None and pairs is None else 0,
        skip_tiles,
        *options,
        _stream(scores),
    )


def maps(slots: Slots, count: int, options: Options) -> tuple[Tensor, ...]:
    m, n = slots.rows
    A, C, R, _, _, _, _, f, _, _, _, g, _ = slots.scratch[:count].split(_parts(m, n), dim=1)
    A, C, R = (x.unflatten(1, (m, _fours(n)))[..., :n] for x in (A, C, R))
    return f[:, :m], g[:, :n], A, C, R


def sum_gradients(slots: Slots, walk: Walk, first: int, vectors: Vectors, sums: tuple[Tensor, ...], options: Options) -> None:
    places = walk.keys, walk.image_starts, walk.by_caption, walk.caption_starts, walk.count
    _ops.cuda_sum_gradients(
        *_sides(slots, vectors), slots.scratch, *places, *sums, first, slots.count, *options, _stream(slots.scratch)
    )


def _stream(x: Tensor) -> int:
    """torch's current stream on the device of a tensor; 0 on the CPU."""
    return torch.cuda.current_stream(x.device).cuda_stream if x.is_cuda else 0


def _sides(slots: Slots, vectors: Vectors) -> tuple[Tensor, ...]:
    V, U = slots.V, slots.U
    return V.features, V.products, U.features, U.products, *vectors, slots.regions.lengths, slots.words.lengths


@torch.compiler.assume_constant_result
def missing() -> str:
    """Why this backend cannot be used on this machine, or an empty string."""
    if EMULATED:
        return ""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("caan_kernels::cuda_multiply", "CUDA"):
        return "caan_kernels was built without CUDA kernels: build it where there is nvcc, on the PATH or in CUDA_HOME"
    return "" if torch.cuda.is_available() else "there is no CUDA device"


def description() -> str:
    """What it is, for `available_backends`."""
    if EMULATED:
        return "CUDA C++ kernels for CPU tensors, emulated, for tests: float16, bfloat16 and float32"
    return "CUDA C++ kernels for CUDA tensors: float16, bfloat16 and float32"


@torch.compiler.assume_constant_result
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
        return "the GPU's driver is older than the CUDA that the kernels were compiled with; update it, or build with its nvcc"
    if error in _NO_KERNEL:
        return (
            f"caan_kernels was built without code for {name}, compute capability {major}.{minor}: build it with "
            f"CAAN_CUDA_ARCHS={major}{minor}"
        )
    return f"CUDA error {error} when the kernels are looked up on {name}"


def too_large(regions: int, words: int) -> str:
    """Why pairs of so many regions and words are not for this backend, or an empty string."""
    if regions + words <= MOST_ROWS:
        return ""
    return f"it takes at most {MOST_ROWS} regions and words together, an image and a caption here have {regions + words}"


if EMULATED:
    torch.ops.load_library(EMULATED)
gpu.register("cuda", sys.modules[__name__], "CPU" if EMULATED else "CUDA")
