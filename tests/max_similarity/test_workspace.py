"""Workspace that does not grow with the call, and tensors of more than 2³¹ elements."""

import pytest
import torch
from memory_growth import measured

import caan_kernels as ck

from . import growth
from .problems import KERNELS, problem

# MiB, where less than what is promised shows that the workspace does not grow with the call.
BOUNDS = {"backward_long_list": 128}


@pytest.fixture(scope="module")
def growths():
    return measured(growth.__file__)


@pytest.mark.parametrize("name", growth.CASES)
def test_workspace(name, growths):
    """At most 64 MiB forward and 256 MiB backward beyond inputs and outputs."""
    assert growths[name] <= BOUNDS.get(name, 64 if name.startswith("forward") else 256)


@pytest.mark.parametrize("backend", KERNELS)
@pytest.mark.parametrize("side", ["regions", "words"])
def test_features_beyond_the_32_bit_index(backend, side):
    """Pairs at the end of more than 2³¹ numbers, whose rest is memory that nothing touches."""
    case = problem((3, 36, 2, 36, 64), torch.bfloat16, lengths=False)
    items = getattr(case, side)
    count = 2**31 // items[0].numel() + 2
    large = items.new_empty(count, *items.shape[1:])
    large[count - len(items) :] = items
    lengths = torch.zeros(count, dtype=torch.int64)
    lengths[-len(items) :] = items.shape[1]
    given = {"regions": case.regions, "words": case.words} | {side: large, f"{side[:-1]}_lengths": lengths}
    pairs = torch.tensor([[2, 1], [0, 0], [1, 1]])
    pairs[:, 0 if side == "regions" else 1] += count - len(items)
    found = ck.max_similarity(**given, pairs=pairs, backend=backend)
    assert torch.equal(found, case.call(backend=backend)[[2, 0, 1], [1, 0, 1]])
