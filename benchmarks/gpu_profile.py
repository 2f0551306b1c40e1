"""One call of each GPU backend for Nsight Compute to watch, and what it prints as rows.

ncu --profile-from-start off --csv --page details python benchmarks/gpu_profile.py
"""

from __future__ import annotations

import csv
import sys
from typing import Any

# A block of COCO's test set: enough to fill a GPU, few enough launches to be gone through once for each group of counters.
IMAGES, CAPTIONS = 264, 512


def rows_of(printed: str) -> list[dict[str, Any]]:
    """The kernels in ncu's CSV, in the order of their launches.

    Returns:
        {"kernel", "grid", "block", "metrics": {"section: metric": "value unit"}} of each; empty if there is no table.
    """
    lines = printed.splitlines()
    start = next((place for place, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    found: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(line for line in lines[start:] if line.startswith('"')):
        if not row.get("Metric Name"):
            continue
        kernel = {"kernel": row["Kernel Name"], "grid": row["Grid Size"], "block": row["Block Size"], "metrics": {}}
        metrics = found.setdefault(row["ID"], kernel)["metrics"]
        metrics[f"{row['Section Name']}: {row['Metric Name']}"] = f"{row['Metric Value']} {row['Metric Unit']}".strip()
    return list(found.values())


def block(dtype: str = "bfloat16") -> Any:
    """A `Workload` of COCO's test set on the GPU."""
    import torch
    from workloads import CAPTION_LENGTHS, GPU_SPECS, RandomSource, build

    spec = GPU_SPECS["coco-5k"]._replace(images=IMAGES, captions=CAPTIONS)
    return build(spec, RandomSource(CAPTION_LENGTHS[spec.lengths]), getattr(torch, dtype), torch.device("cuda"))


def main() -> int:
    import torch

    import caan_kernels as ck
    from caan_kernels.core import backends

    device, work = torch.device("cuda"), block()
    lengths, target = work.word_lengths.to(device), torch.ones(1, device=device).expand(64, 64)

    def run(backend: str) -> None:
        ck.context_attention(work.regions, work.words, work.weights, word_lengths=lengths, backend=backend)
        regions, words = (x[:64].detach().requires_grad_() for x in (work.regions, work.words))
        scores = ck.context_attention(regions, words, work.weights, word_lengths=lengths[:64], backend=backend)
        torch.autograd.grad(scores, (regions, words), target * torch.eye(64, device=device))

    usable = [x for x in ("cuda", "triton") if backends.can_run("context_attention", x, device, torch.bfloat16, gradient=True)[0]]
    # Compiled and warm before the watch begins.
    for backend in usable:
        run(backend)
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    for backend in usable:
        run(backend)
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    return 0 if usable else 1


if __name__ == "__main__":
    sys.exit(main())
