"""Workspace that does not grow with the call, and tensors of more than 2³¹ elements."""

import os
import subprocess
import sys
from pathlib import Path

import cases
import memory_growth
import pytest
import torch

import caan_kernels as ck

M, N = 36, 5


@pytest.mark.parametrize("name", memory_growth.CASES)
def test_workspace(name):
    """At most 64 MiB forward and 256 MiB backward beyond inputs and outputs."""
    program = Path(memory_growth.__file__)
    # Blocks that an allocator keeps for later would hide what the call takes anew.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    run = subprocess.run([sys.executable, program, name], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) <= (64 if name.startswith("forward") else 256)


def tail_of(items, count):
    """`items` at the end of a tensor of `count` items, whose rest is memory that nothing touches."""
    large = torch.empty(count, *items.shape[1:], dtype=items.dtype)
    large[count - len(items) :] = items
    return large


@pytest.mark.parametrize("side", ["regions", "words"])
def test_products_beyond_the_32_bit_index(side):
    """Pairs at the end of a projected gallery of more than 2³¹ numbers."""
    case = cases.problem((3, M, 3, N, 8, 64), torch.bfloat16, lengths=False)
    V, U = ck.project_regions(case.regions, case.weights), ck.project_words(case.words, case.weights)
    expected = ck.context_attention(V, U, case.weights)
    gallery = V if side == "regions" else U
    count = 2**31 // gallery.products[0].numel() + 2
    large = gallery._replace(features=tail_of(gallery.features, count), products=tail_of(gallery.products, count))
    assert large.products.numel() > 2**31
    pairs = torch.tensor([[2, 1], [0, 0], [1, 2]])
    far = pairs.clone()
    far[:, 0 if side == "regions" else 1] += count - 3
    V, U = (large, U) if side == "regions" else (V, large)
    assert torch.equal(ck.context_attention(V, U, case.weights, pairs=far), expected[pairs[:, 0], pairs[:, 1]])


def test_features_beyond_the_32_bit_index():
    """All pairs of raw features of more than 2³¹ numbers, nearly all of them padding."""
    case = cases.problem((3, M, 2, N, 64, 4), torch.bfloat16, lengths=False)
    count = 2**31 // case.regions[0].numel() + 2
    lengths = torch.zeros(count, dtype=torch.int64)
    lengths[-3:] = M
    scores = ck.context_attention(tail_of(case.regions, count), case.words, case.weights, lengths)
    assert not scores[:-3].any()
    assert torch.equal(scores[-3:], case.call())
