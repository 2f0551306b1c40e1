"""Prints by how many MiB each case's call lets its process grow beyond what it was given and what it gives.

A program of its own, because the peak of a process is only meaningful while nothing else runs in it; a fork for each case.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import torch

import caan_kernels as ck
from caan_kernels.context_attention.call import Call, CallGradient, Matrices, Options, Side, Vectors
from caan_kernels.core.records import flatten

MiB = 2**20


def weights(width, hidden, dtype):
    sizes = [(width, width), *[(width, hidden)] * 4, (hidden,), (hidden,)]
    return ck.ContextAttentionWeights(*(torch.randn(size, dtype=dtype) * width**-0.5 for size in sizes))


def forward(images, captions, width, hidden, projected=(), pairs=0, dtype=torch.float32, longest=16, threads=None, backend="cpu"):
    """A call without gradient, on 36 regions and up to `longest` words."""
    if threads:
        torch.set_num_threads(threads)
    sides = (images, 36), (captions, longest)
    regions, words = (torch.randn(count, rows, width, dtype=dtype) for count, rows in sides)
    parameters = weights(width, hidden, dtype)
    lengths = {} if "words" in projected else {"word_lengths": torch.randint(longest // 4, longest + 1, (captions,))}
    if "regions" in projected:
        regions = ck.project_regions(regions, parameters)
    if "words" in projected:
        words = ck.project_words(words, parameters)
    if pairs:
        lengths["pairs"] = torch.stack([torch.randint(images, (pairs,)), torch.randint(captions, (pairs,))], dim=1)
    return lambda: ck.context_attention(regions, words, parameters, **lengths, backend=backend)


def backward(images, captions, width, hidden, dtype=torch.float32, pairs=0, rows=(36, 16), backend="cpu"):
    """The derivative of all pairs, or of a list, with respect to features, products and score vectors."""
    parameters = weights(width, hidden, dtype)
    V = Side(*ck.project_regions(torch.randn(images, rows[0], width, dtype=dtype), parameters))
    U = Side(*ck.project_words(torch.randn(captions, rows[1], width, dtype=dtype), parameters))
    listed = torch.stack([torch.randint(images, (pairs,)), torch.randint(captions, (pairs,))], dim=1) if pairs else None
    vectors, options = Vectors(parameters.region_score, parameters.word_score), Options(cosine=False, inter=True, intra=True)
    call = Call(V, U, vectors, Matrices(), listed, options, backend)
    gradient = flatten(CallGradient(torch.randn((pairs,) if pairs else (images, captions)), call))
    return lambda: torch.ops.caan_kernels.pair_scores_backward(*gradient)


# What would grow if it were held for all items or all pairs at once is above the bound in each.
CASES = {
    "forward_many_pairs": (forward, {"images": 900, "captions": 900, "width": 32, "hidden": 32}),
    "forward_many_images": (forward, {"images": 3000, "captions": 3, "width": 64, "hidden": 512}),
    "forward_many_captions": (forward, {"images": 3, "captions": 6000, "width": 64, "hidden": 512}),
    "forward_bfloat16": (forward, {"images": 6000, "captions": 2, "width": 64, "hidden": 512, "dtype": torch.bfloat16}),
    "forward_paper_sizes": (forward, {"images": 30, "captions": 500, "width": 1024, "hidden": 1024}),
    "forward_projected": (
        forward,
        {"images": 1500, "captions": 40, "width": 64, "hidden": 256, "projected": ("regions", "words")},
    ),
    "forward_regions_projected": (
        forward,
        {"images": 2, "captions": 400, "width": 512, "hidden": 512, "longest": 40, "projected": ("regions",)},
    ),
    "forward_words_projected": (forward, {"images": 400, "captions": 2, "width": 512, "hidden": 512, "projected": ("words",)}),
    "forward_long_captions": (forward, {"images": 30, "captions": 3, "width": 2048, "hidden": 2048, "longest": 512}),
    "forward_many_threads": (forward, {"images": 90, "captions": 90, "width": 1024, "hidden": 1024, "threads": 8}),
    "forward_pair_list": (forward, {"images": 2000, "captions": 2000, "width": 16, "hidden": 16, "pairs": 1_000_000}),
    "backward_many_pairs": (backward, {"images": 250, "captions": 250, "width": 32, "hidden": 32}),
    "backward_many_images": (backward, {"images": 4000, "captions": 1, "width": 64, "hidden": 256}),
    "backward_bfloat16": (
        backward,
        {"images": 4000, "captions": 1, "width": 64, "hidden": 256, "dtype": torch.bfloat16},
    ),
    "backward_both_sides_bfloat16": (
        backward,
        {"images": 8000, "captions": 14000, "width": 64, "hidden": 64, "dtype": torch.bfloat16, "pairs": 2000},
    ),
    "backward_pair_list": (
        backward,
        {"images": 2000, "captions": 2000, "width": 4, "hidden": 4, "pairs": 2_500_000, "rows": (1, 1)},
    ),
    "backward_paper_sizes": (backward, {"images": 40, "captions": 40, "width": 1024, "hidden": 1024}),
}


def peak():
    """Largest resident size of this process since `forget_peak`, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def forget_peak():
    # What the allocator kept of earlier calls would hide as much of this one's growth.
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def prepared(name, **choice):
    """The call of a case, after a small one that leaves behind what is made once for a process."""
    prepare, sizes = CASES[name]
    prepare(**{**sizes, "images": 2, "captions": 2, **({"pairs": 3} if "pairs" in sizes else {})}, **choice)()
    return prepare(**sizes, **choice)


def size(results):
    """Bytes that a call gives."""
    results = results if isinstance(results, tuple) else (results,)
    return sum(x.numel() * x.element_size() for x in results)


def on_a_gpu(name, backend):
    """The same for a backend on the GPU, where PyTorch keeps count."""
    with torch.device("cuda"):
        call = prepared(name, backend=backend)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = call()
    return (torch.cuda.max_memory_allocated() - before - size(results)) / MiB


def growth(name):
    call = prepared(name)
    forget_peak()
    before = peak()
    results = call()
    return (peak() - before - size(results)) / MiB


def run_apart(cases, growth):
    """A line with a case's name and its growth for each; a case that fails ends the program."""
    for name in cases:
        # No call has started a thread in this process.
        child = os.fork()
        if child == 0:
            print(name, growth(name), flush=True)
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{name} failed")


def measured(program):
    """What such a program prints, by case."""
    # Blocks that an allocator keeps for later would hide what the call takes anew.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return {name: float(growth) for name, growth in map(str.split, run.stdout.splitlines())}


if __name__ == "__main__":
    run_apart(CASES, growth)
