"""Time and memory against the number of pairs, and where the reference's training step stops for lack of memory."""

from __future__ import annotations

from typing import Any

from baselines import COMPILED, LOOP, REFERENCE, attention_by, loop_over_captions, run
from measure import available_bytes, seconds_of
from measuring import MEMORY_SHARE, Benchmark, pair_rows
from workloads import RandomSource, ScanSource, Spec, Workload, build

TRAINING_BATCHES = (4, 8, 16, 32, 64, 128, 256)
FORWARD_SIZES = (8, 16, 32, 64, 128, 256)
# Seconds that one point may be expected to take.
LONGEST_POINT = 15.0


def measure_scaling(benchmark: Benchmark, source: RandomSource | ScanSource) -> None:
    """Fill the report's `scaling` and `eager_limit`; an implementation stops where time or memory get too much."""
    report = benchmark.report
    implementations = {name: attention_by(name) for name in benchmark.backends}
    implementations |= {REFERENCE: attention_by(REFERENCE), LOOP: loop_over_captions}
    for kind, sizes in (("training step", TRAINING_BATCHES), ("forward", FORWARD_SIZES)):
        largest = Spec("scaling", "", "training" if kind == "training step" else "all pairs", "f30k", sizes[-1], sizes[-1])
        workload = build(largest, source, benchmark.dtype, benchmark.device)
        for name, scores in implementations.items():
            for size in sizes:
                block = workload.block(size, size)
                earlier = [p for p in report.scaling if (p["implementation"], p["kind"]) == (name, kind)]
                if earlier and not affordable(earlier[-1], block, benchmark):
                    break
                benchmark.clock.say(f"plot: {kind}, {name}, {block.shape}")
                with benchmark.memory.watch(f"plot {name}") as seen:
                    seconds = seconds_of(lambda: run(scores, block), benchmark.device, 0)  # noqa: B023
                if seconds < 1:
                    seconds = seconds_of(lambda: run(scores, block), benchmark.device)  # noqa: B023
                report.scaling.append(
                    {
                        "implementation": name,
                        "kind": kind,
                        "pairs": block.pair_count,
                        "seconds": seconds,
                        "bytes": seen["bytes"],
                    }
                    | {"pair_rows": pair_rows(block)}
                )
        if kind == "training step":
            report.eager_limit = eager_limit(benchmark, workload)
    # Every size would have to be compiled anew: only what the table has anyway is shown.
    seen_at = set()
    for row in report.rows:
        kind = "training step" if "gradients" in row.errors else "forward"
        if row.implementation != COMPILED or (kind, row.pairs) in seen_at:
            continue
        seen_at.add((kind, row.pairs))
        point = {"implementation": COMPILED, "kind": kind, "pairs": row.pairs, "seconds": row.seconds}
        report.scaling.append(point | {"bytes": row.extra_bytes})


def eager_limit(benchmark: Benchmark, workload: Workload) -> dict[str, Any]:
    """The smallest batch whose training step through the reference is estimated to need more than the free memory.

    Returns:
        {"batch", "pairs", "bytes", "free_bytes"}, bytes estimated; empty where memory cannot be measured.
    """
    steps = [p for p in benchmark.report.scaling if (p["implementation"], p["kind"]) == (REFERENCE, "training step") and p["bytes"]]
    free = available_bytes(benchmark.device)
    if not steps or free is None:
        return {}
    bytes_of_pair_row = steps[-1]["bytes"] / steps[-1]["pair_rows"]
    batch = 8
    while True:
        rows = pair_rows(workload.block(batch, batch)) * (batch / min(batch, workload.regions.shape[0])) ** 2
        if bytes_of_pair_row * rows > free:
            return {"batch": batch, "pairs": batch**2, "bytes": int(bytes_of_pair_row * rows), "free_bytes": free}
        batch += 8


def affordable(last: dict[str, Any], block: Workload, benchmark: Benchmark) -> bool:
    """Whether a block should stay within the time and memory of one point, going by the last one measured."""
    growth = pair_rows(block) / last["pair_rows"]
    free = available_bytes(benchmark.device)
    memory = (last["bytes"] or 0) * growth
    return last["seconds"] * growth <= LONGEST_POINT and (free is None or memory <= MEMORY_SHARE * free)
