"""Prints by how many MiB each case's call lets its process grow beyond what it was given and what it gives: memory_growth.py."""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))
import memory_growth

import caan_kernels as ck


def features(images, regions, captions, words, width, dtype):
    return torch.randn(images, regions, width, dtype=dtype), torch.randn(captions, words, width, dtype=dtype)


def forward(images, regions, captions, words, width, pairs=0, dtype=torch.float32, over="words"):
    sides = features(images, regions, captions, words, width, dtype)
    listed = torch.stack([torch.randint(images, (pairs,)), torch.randint(captions, (pairs,))], dim=1) if pairs else None
    return lambda: ck.max_similarity(*sides, pairs=listed, over=over, backend="cpu")


def backward(images, regions, captions, words, width, pairs=0, dtype=torch.float32, over="words"):
    sides = [x.requires_grad_() for x in features(images, regions, captions, words, width, dtype)]
    listed = torch.stack([torch.randint(images, (pairs,)), torch.randint(captions, (pairs,))], dim=1) if pairs else None
    scores = ck.max_similarity(*sides, pairs=listed, over=over, backend="cpu")
    grad = torch.randn(scores.shape)
    return lambda: torch.autograd.grad(scores, sides, grad)


def backward_one_row(count, rows, _captions, _words, width):
    """Items of one row, in half precision, each in one pair: most of the memory would be the sums of both sides."""
    sides = [x.bfloat16().requires_grad_() for x in features(count, rows, count, rows, width, torch.float32)]
    own = torch.arange(count)[:, None].repeat(1, 2)
    scores = ck.max_similarity(*sides, torch.ones(count, dtype=torch.int64), None, own, backend="cpu")
    return lambda: torch.autograd.grad(scores, sides, torch.ones_like(scores))


# What would grow if it were held for all items or all pairs at once is above the bound in each.
CASES = {
    "forward_many_pages": (forward, (100_000, 8, 40, 32, 8)),
    "forward_many_captions": (forward, (3, 8, 200_000, 10, 16)),
    "forward_very_many_captions": (forward, (1, 1, 6_000_000, 1, 1)),
    "forward_many_strips": (forward, (4096, 1, 1100, 1000, 1)),
    "forward_long_captions": (forward, (8, 1, 2, 1_000_000, 1)),
    "forward_many_pairs": (forward, (4000, 4, 4000, 4, 4)),
    "forward_wide": (forward, (40, 36, 300, 20, 4096)),
    "forward_bfloat16": (forward, (30, 1030, 60, 32, 128, 0, torch.bfloat16)),
    "forward_over_regions": (forward, (30, 1030, 60, 32, 128, 0, torch.float32, "regions")),
    "forward_8_threads": (forward, (90, 300, 90, 20, 128, 0, torch.bfloat16)),
    "forward_list": (forward, (2000, 5, 2000, 5, 16, 1_000_000)),
    "backward_many_pairs": (backward, (1500, 2, 1500, 40, 4)),
    "backward_many_pages": (backward, (100_000, 8, 10, 32, 8)),
    "backward_bfloat16": (backward, (300, 1030, 3, 20, 128, 0, torch.bfloat16)),
    "backward_bfloat16_over_regions": (backward, (300, 1030, 3, 20, 128, 0, torch.bfloat16, "regions")),
    "backward_list": (backward, (2000, 5, 2000, 5, 16, 1_000_000)),
    "backward_long_list": (backward, (2000, 1, 2000, 1, 1, 10_000_000)),
    "backward_both_sides_bfloat16": (backward_one_row, (4000, 1050, 4000, 1050, 8)),
}


def growth(name):
    torch.set_num_threads(8 if name.endswith("8_threads") else 1)
    prepare, sizes = CASES[name]
    # A small call leaves behind what is made once for a process.
    prepare(2, *sizes[1:2], 2, *sizes[3:5])()
    call = prepare(*sizes)
    memory_growth.forget_peak()
    before = memory_growth.peak()
    results = call()
    return (memory_growth.peak() - before - memory_growth.size(results)) / memory_growth.MiB


if __name__ == "__main__":
    memory_growth.run_apart(CASES, growth)
