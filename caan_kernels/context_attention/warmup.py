"""Compile and load ahead of time what the first calls of a training need."""

import torch
from torch import Tensor

from ..core.autocast import without_autocast
from ..core.checks import check_device, check_dtype, check_integer
from ..core.gpu.plan import sizes_up_to
from .arguments import checked_options
from .interface import context_attention
from .types import ContextAttentionWeights


def warmup(
    device: torch.device | str,
    dtype: torch.dtype,
    width: int,
    hidden: int,
    *,
    regions: int = 36,
    words: int = 64,
    similarity: str = "dot",
    inter: bool = True,
    intra: str | None = "semantics",
    backend: str = "auto",
) -> None:
    """Compile and load the kernels that calls of `context_attention` take, forward and backward.

    Triton compiles a kernel at its first launch, which takes minutes for all of them, and CUDA loads it then. During the capture
    of a CUDA graph neither is allowed. Which kernels are needed depends on the arguments of this function and, in float32, on
    torch's setting of float32 products (`torch.backends.cuda.matmul.fp32_precision`). It does not depend on the number of images,
    captions and pairs, nor on lengths. The function makes tiny calls: for each size that Triton rounds words up to, one of all
    pairs and one of a list. These do not synchronise with the GPU, but CUDA may where it loads a kernel. No random number is drawn.

    Args:
        device: where the features will be.
        dtype: of the features; under torch.autocast, its dtype.
        width: D, of the features.
        hidden: H.
        regions: rows of the region tensors, padding included.
        words: the most words of a caption, padding included. Tensors of fewer words are covered too.
        similarity: as for `context_attention`.
        inter: as for `context_attention`.
        intra: as for `context_attention`, but for "features", which has no kernels.
        backend: as for `context_attention`.

    Raises:
        TypeError, ValueError: an argument that does not fit, named with what was expected.
        RuntimeError: the backend asked for cannot run these calls.
    """
    check_device("device", device)
    check_dtype("dtype", dtype)
    for name, value, least in (("width", width, 1), ("hidden", hidden, 1), ("regions", regions, 0), ("words", words, 0)):
        check_integer(name, value, least)
    if checked_options(similarity, inter, intra).bilinear:
        raise ValueError("intra: expected 'semantics' or None, got 'features', which has no kernels")

    def ones(*shape: int) -> Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    options = {"similarity": similarity, "inter": inter, "intra": intra, "backend": backend}
    with without_autocast(torch.device(device)), torch.inference_mode(False), torch.enable_grad():
        matrices = (ones(width, columns) for columns in (width, *[hidden] * 4))
        weights = ContextAttentionWeights(*matrices, ones(hidden), ones(hidden))
        # torch.tensor would wait for its copy to the GPU.
        pairs = torch.arange(2, device=device)[:, None].repeat(1, 2)
        for rows in (min(size, words) for size in sizes_up_to(words, halfway=False)):
            V, U = ones(2, regions, width), ones(2, rows, width)
            needed = [x.requires_grad_() for x in (V, U, *weights[:7])]
            lengths = [torch.full((2,), x, device=device) for x in (regions, rows)]
            for some in (None, pairs):
                scores = context_attention(V, U, weights, *lengths, some, **options)
                torch.autograd.grad(scores.sum(), needed, allow_unused=True)
