"""Which backends implement the operator, and which of its calls they leave to others."""

from typing import Any

import torch

from ..core import cpu, cuda, gpu, reference, triton  # noqa: F401
from ..core.backends import implement
from . import cuda as cuda_kernels

# Kernels can only be added to operators that are defined.
from . import operators  # noqa: F401
from .gpu import launch

NAME = "context_attention"
# Words of a caption lie in one tile of Triton's kernels, and regions of an image in one tile of those for derivatives and maps.
MOST_WORDS, MOST_REGIONS = 128, 256

_OPERATORS = ("project", "project_backward", "pair_scores", "pair_scores_backward", "pair_maps")


def _compiled(*, gradient: bool = False, maps: bool = False, bilinear: bool = False, **_: Any) -> str:
    """Why no compiled backend takes such a call."""
    if bilinear:
        return "only the reference computes intra='features', which exists to reproduce the paper's ablation"
    if maps and gradient:
        return "its maps have no derivative: call under torch.no_grad(), or use backend='reference'"
    return ""


# Regions an image and words a caption, padding included.
def _triton(
    *, regions: int = 0, words: int = 0, gradient: bool = False, maps: bool = False, bilinear: bool = False, **_: Any
) -> str:
    if reason := _compiled(gradient=gradient, maps=maps, bilinear=bilinear):
        return reason
    if words > MOST_WORDS:
        return f"it takes at most {MOST_WORDS} words a caption; these have {words}"
    if regions > MOST_REGIONS and (gradient or maps):
        what = "derivatives" if gradient else "maps"
        return f"it has {what} for at most {MOST_REGIONS} regions an image; these have {regions}"
    return ""


def _cuda(
    *,
    dtype: torch.dtype,
    regions: int = 0,
    words: int = 0,
    width: int = 0,
    hidden: int = 0,
    gradient: bool = False,
    maps: bool = False,
    bilinear: bool = False,
) -> str:
    if reason := _compiled(gradient=gradient, maps=maps, bilinear=bilinear):
        return reason
    return cuda_kernels.too_large(regions, words, width, hidden, dtype, gradient=gradient, maps=maps)


implement(NAME, "reference")
implement(NAME, "cpu", _compiled)
implement(NAME, "triton", _triton)
implement(NAME, "cuda", _cuda)
gpu.implement("cuda", cuda_kernels, cuda.DEVICE, launch, _OPERATORS)
gpu.implement("triton", gpu.Later(".triton.launch", __package__), triton.DEVICE, launch, _OPERATORS)
