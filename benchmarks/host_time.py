"""What a call on a GPU asks of the host, measured on CPU tensors: kernels of the CUDA C++ backend are left out, all else runs.

    python benchmarks/host_time.py [--batch 128] [--against CHECKOUT]

Prints microseconds of the processor a call, the median of many with the lowest and highest of its rounds, and how many torch
operations and kernels a GPU would be given. A launch left out costs a call of the dispatcher into Python. Items have few rows and
small widths, since PyTorch's own operations run here. With another checkout of the project, processes of either take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REGIONS, WORDS, WIDTH, ROUNDS, CALLS = 4, 2, 8, 7, 100
# torch operations that only look at a tensor in another way, or give it memory.
FREE = """
    view slice select unbind expand transpose unsqueeze flatten split reshape permute narrow alias detach mT t empty empty_like
    new_empty unflatten split_with_sizes contiguous result_type
""".split()


def without_kernels(counted: list[str]) -> None:
    """Give CPU tensors to the CUDA C++ backend, and have its launches do nothing but be counted."""
    os.environ["CAAN_CUDA_EMULATED"] = "nothing"
    import torch

    torch.ops.load_library = lambda path: None
    from caan_kernels.context_attention.gpu import checks as call_checks
    from caan_kernels.core import checks, registration
    from caan_kernels.core.gpu import checks as gpu_checks

    # The host does not read lengths and pairs that lie on a GPU.
    checks._at_hand = lambda values: None
    gpu_checks.check_values = call_checks.check_values = lambda *arguments: None
    library = torch.library.Library("caan_kernels", "IMPL", "CPU")
    for name in [x for x in registration._layouts if x.startswith("cuda_") and x != "cuda_device_error"]:
        library.impl(name, lambda *arguments, name=name: counted.append(name))
    without_kernels.library = library


def calls(batch: int) -> dict[str, Callable[[], None]]:
    """By what they do."""
    import torch

    import caan_kernels as ck

    torch.manual_seed(0)
    shapes = [(WIDTH, WIDTH)] * 5 + [(WIDTH,)] * 2
    weights = ck.ContextAttentionWeights(*(torch.randn(x, dtype=torch.bfloat16) for x in shapes))
    trained = ck.ContextAttentionWeights(*(x.clone().requires_grad_() for x in weights[:7]))
    regions, words = (torch.randn(batch, x, WIDTH, dtype=torch.bfloat16) for x in (REGIONS, WORDS))
    m, n = (torch.randint(1, x + 1, (batch,)) for x in (REGIONS, WORDS))
    sides = ck.project_regions(regions, weights, m, backend="cuda"), ck.project_words(words, weights, n, backend="cuda")
    pairs, gradient = torch.randint(0, batch, (batch, 2)), torch.eye(batch)

    def scored(*arguments, **given) -> None:
        with torch.no_grad():
            ck.context_attention(*arguments, weights, **given, backend="cuda")

    def trained_once() -> None:
        scores = ck.context_attention(regions, words, trained, m, n, backend="cuda")
        torch.autograd.grad(scores, trained[:7], gradient)

    return {
        "scores of projected sides": lambda: scored(*sides),
        "scores of features": lambda: scored(regions, words, region_lengths=m, word_lengths=n),
        "scores of a list": lambda: scored(*sides, pairs=pairs),
        "forward and backward": trained_once,
    }


def measure(batch: int) -> dict[str, dict[str, float]]:
    """Of each call: microseconds, torch operations and our kernels."""
    counted: list[str] = []
    without_kernels(counted)
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.set_num_threads(1)
    found = {}
    for name, call in calls(batch).items():
        for _ in range(20):
            call()
        seconds = []
        for _ in range(CALLS):
            start = time.process_time()
            call()
            seconds.append(time.process_time() - start)
        counted.clear()
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            call()
        operations = [x for x in seen.events() if x.name.startswith("aten::") and not _is_part(x)]
        # A conversion to what a tensor is already has no part.
        launching = sum(x.name[6:] not in FREE and (x.name != "aten::to" or bool(x.cpu_children)) for x in operations)
        found[name] = {"us": statistics.median(seconds) * 1e6, "operations": launching, "kernels": len(counted)}
    return found


def _is_part(event) -> bool:
    """Whether an operation is a part of another."""
    return event.cpu_parent is not None and event.cpu_parent.name.startswith("aten::")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT")
    parser.add_argument("--json", action="store_true", help="one measurement of this process's package, as JSON")
    given = parser.parse_args()
    if given.json:
        print(json.dumps(measure(given.batch)))
        return
    checkouts = [x for x in (given.against, Path(__file__).resolve().parents[1]) if x]
    rounds: dict[Path, list] = {x: [] for x in checkouts}
    for _ in range(ROUNDS):
        for checkout in checkouts:
            command = [sys.executable, "-W", "ignore", __file__, "--json", "--batch", str(given.batch)]
            environment = {**os.environ, "PYTHONPATH": str(checkout)}
            run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
            rounds[checkout].append(json.loads(run.stdout.splitlines()[-1]))
    for name in rounds[checkouts[0]][0]:
        print(f"{name}, {given.batch} by {given.batch}")
        for checkout, found in rounds.items():
            us, one = sorted(x[name]["us"] for x in found), found[0][name]
            spread = f"{statistics.median(us):6.0f} us ({us[0]:.0f} to {us[-1]:.0f})"
            print(f"    {spread}, {one['operations']:3} torch operations, {one['kernels']} kernels   {checkout}")


if __name__ == "__main__":
    main()
