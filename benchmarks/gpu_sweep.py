"""Whether other tile sizes or pipeline depths of Triton's kernels are faster on the GPU at hand.

    python benchmarks/gpu_sweep.py [DONE]      a line of JSON for each but the first DONE, as soon as it is measured

Each takes turns with the configuration that is shipped, on a block of COCO's test set: scores in bfloat16 and float32, and
derivatives in bfloat16. One is worth having ("faster") if it is faster by more than the spread and gives the same bits. Its tile
sizes and stages then go by hand into its function of caan_kernels/context_attention/triton/configurations.py.
"""

from __future__ import annotations

import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from measure import median

ROUNDS = 5
# Less of a gain is not told from noise.
LEAST_GAIN = 0.02
# Images and captions of a batch whose derivatives are made.
BATCH = 64
# By function of configurations.py: tile sizes and stages to try in place of what it gives. No sum has other steps in any of them.
# Kernels of derivatives come last: they compile for longest.
SWEPT: dict[str, tuple[list[dict[str, int]], tuple[int, ...]]] = {
    "tiles": ([{"TOGETHER": pairs, "DEPTH_STAGES": stages} for pairs in (1, 2, 4) for stages in (2, 3, 4)], (1, 2)),
    "large": ([{"TILE_REGIONS": regions, "DEPTH_STAGES": stages} for regions in (32, 64) for stages in (2, 3, 4)], (1, 2)),
    "product": ([{"ROW_BLOCK": r, "COLUMN_BLOCK": c} for r in (64, 128) for c in (64, 128)], (2, 3, 4)),
    "gradients": ([{"WIDTH_SUMS": d, "HIDDEN_SUMS": h} for d in (32, 64) for h in (16, 32)], (1,)),
}
# In float32 `large_kernel` scores every pair.
DTYPES = {"large": ("bfloat16", "float32")}


def candidates() -> Iterator[tuple[str, str, dict[str, int], int]]:
    """(function, dtype, tile sizes, stages)."""
    for function, (blocks, stages) in SWEPT.items():
        for dtype, tile, depth in itertools.product(DTYPES.get(function, ("bfloat16",)), blocks, stages):
            yield function, dtype, tile, depth


@contextmanager
def configured(module: Any, function: str, blocks: dict[str, int], stages: int) -> Iterator[None]:
    """`function` of configurations.py gives these tile sizes and stages; undone at the end."""
    shipped = getattr(module, function)

    def replaced(*arguments: Any) -> Any:
        given = shipped(*arguments)
        return given._replace(blocks={**given.blocks, **blocks}, stages=stages)

    setattr(module, function, replaced)
    try:
        yield
    finally:
        setattr(module, function, shipped)


def compared(shipped: Callable[[], Any], other: Callable[[], Any], same: Callable[[Any, Any], bool], seconds_of: Callable) -> dict:
    """Medians of runs that take turns, whether results have the same bits, and whether the other is faster by more than noise."""
    equal = same(shipped(), other())
    times: tuple[list[float], list[float]] = [], []
    for _ in range(ROUNDS if equal else 0):
        for call, found in zip((shipped, other), times, strict=True):
            found.append(seconds_of(call))
    if not equal:
        return {"same_bits": False, "faster": False}
    before, after = map(median, times)
    quicker = max(times[1]) < min(times[0]) and after < (1 - LEAST_GAIN) * before
    return {"same_bits": True, "faster": quicker, "shipped_s": before, "seconds": after}


def main() -> int:
    import torch
    from gpu_profile import block
    from measure import seconds_of

    import caan_kernels as ck
    from caan_kernels.context_attention.triton import configurations

    device, works = torch.device("cuda"), {dtype: block(dtype) for dtype in ("bfloat16", "float32")}
    lengths = works["bfloat16"].word_lengths.to(device)
    few = [works["bfloat16"].regions[:BATCH], works["bfloat16"].words[:BATCH]]

    def scored(dtype: str) -> tuple[torch.Tensor, ...]:
        work = works[dtype]
        return (ck.context_attention(work.regions, work.words, work.weights, word_lengths=lengths, backend="triton"),)

    def derived(dtype: str) -> tuple[torch.Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in few]
        scores = ck.context_attention(*leaves, works[dtype].weights, word_lengths=lengths[:BATCH], backend="triton")
        return torch.autograd.grad(scores, leaves, torch.eye(BATCH, device=device, dtype=scores.dtype))

    def same(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
        return all(map(torch.equal, one, other))

    done = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    for function, dtype, blocks, stages in itertools.islice(candidates(), done, None):
        shipped = functools.partial(derived if function == "gradients" else scored, dtype)

        def other(call: Callable = shipped, asked: tuple[Any, ...] = (function, blocks, stages)) -> tuple[torch.Tensor, ...]:
            with configured(configurations, *asked):
                return call()

        row: dict[str, Any] = {"function": function, "dtype": dtype, "blocks": blocks, "stages": stages}
        try:
            row |= compared(shipped, other, same, lambda call: seconds_of(call, device, 0.05))
        except Exception as error:  # what asks for too much shared memory or too many registers
            row |= {"same_bits": False, "faster": False, "error": str(error).splitlines()[0] if str(error) else repr(error)}
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
