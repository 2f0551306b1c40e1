"""Small ragged cases on the GPU, forward, backward and maps, for compute-sanitizer to watch.

    export PYTHONPATH=.:tests PYTORCH_NO_CUDA_MEMORY_CACHING=1
    compute-sanitizer --tool memcheck --padding 2048 python tests/sanitize/gpu_small_cases.py

torch's allocator would give a kernel that runs over its tensor's end memory that is allocated, too. Shapes and options are
those of the tests, whose compiled kernels Triton then has at hand.
"""

import sys

import cases
import torch
from max_similarity import problems as similarity

import caan_kernels as ck
from caan_kernels.core import backends

# The last is for tiles of the CUDA backend, which take widths that are multiples of 8.
SHAPES = (*cases.SHAPES, (2, 36, 3, 34, 72, 40))
SIMILARITY_SHAPES = ("odd", "pages")
OPTIONS = ("default", "cosine")
DTYPES = (torch.bfloat16, torch.float32, torch.float16)


def check(backend: str, shape: str | tuple[int, ...], options: str, dtype: torch.dtype) -> None:
    """Run every kernel of a case; padding holds NaN, which must not come through."""
    for listed in (False, True):
        case = cases.problem(shape, dtype, pairs=listed, device="cuda")
        with torch.no_grad():
            results = [case.call(backend=backend, **cases.OPTIONS[options])]
            if listed:
                results += case.call(ck.attention_maps, backend=backend, **cases.OPTIONS[options])
        scores, gradients = cases.run(case, backend=backend, **cases.OPTIONS[options])
        for result in (*results, scores, *gradients.values()):
            assert result.isfinite().all(), f"{backend}, {shape}, {options}, {dtype}: not finite"


def check_similarity(backend: str, shape: str, dtype: torch.dtype) -> None:
    """The same of MaxSim; scores and gradients come back to the CPU."""
    for listed in (False, True):
        case = similarity.problem(shape, dtype, pairs=listed)
        scores, gradients = similarity.run(case, backend=backend)
        for result in (scores, *gradients.values()):
            assert result.isfinite().all(), f"{backend}, max_similarity, {shape}, {dtype}: not finite"


def main() -> int:
    usable, device = [], torch.device("cuda")
    for backend in ("triton", "cuda"):
        able, reason = backends.can_run("context_attention", backend, device, torch.bfloat16, gradient=True)
        print(f"{backend}: {'watched' if able else reason}", flush=True)
        usable += [backend] if able else []
    done = 0
    for shape in SHAPES:
        some = usable if isinstance(shape, str) else [backend for backend in usable if backend == "cuda"]
        for backend, options, dtype in ((b, o, d) for b in some for o in OPTIONS for d in DTYPES):
            check(backend, shape, options, dtype)
            done += 1
        print(f"{shape}: done, {done} cases so far", flush=True)
    for backend, shape, dtype in ((b, s, d) for b in usable for s in SIMILARITY_SHAPES for d in DTYPES):
        check_similarity(backend, shape, dtype)
        done += 1
    torch.cuda.synchronize()
    print(f"all {done} cases done", flush=True)
    return 0 if usable else 1


if __name__ == "__main__":
    sys.exit(main())
