"""Run by test_backends.py: the package is imported again, after an import that was broken off, after a whole one, and by reload."""

import importlib
import sys
from pathlib import Path

import torch


class BrokenOff(Exception):
    pass


class Breaker:
    def find_spec(self, name, path=None, target=None):
        if name == "caan_kernels.core.cpu":
            raise BrokenOff


def forget():
    for name in [name for name in sys.modules if name.split(".")[0] in ("caan_kernels", "caan")]:
        del sys.modules[name]


def scores_and_gradients(ck):
    generator = torch.Generator().manual_seed(0)
    regions, words, *weights = (
        torch.randn(*shape, generator=generator) for shape in [(2, 3, 4), (2, 5, 4), *[(4, 4)] * 5, (4,), (4,)]
    )
    scores = ck.context_attention(regions.requires_grad_(), words, ck.ContextAttentionWeights(*weights))
    scores.sum().backward()
    return torch.cat([scores.detach().flatten(), regions.grad.flatten()])


sys.path.insert(0, str(Path(__file__).parents[1]))
sys.meta_path.insert(0, Breaker())
try:
    importlib.import_module("caan_kernels")
except BrokenOff:
    sys.meta_path.pop(0)
forget()
first = importlib.import_module("caan_kernels")
expected = scores_and_gradients(first)
forget()
second = importlib.import_module("caan_kernels")
importlib.import_module("caan.training")
if second is first or not second.available_backends()["cpu"][0]:
    sys.exit("the second import gave the first package, or no kernels")
for name in [name for name in sys.modules if name.startswith("caan_kernels")]:
    importlib.reload(sys.modules[name])
for package in (first, second, sys.modules["caan_kernels"]):
    if not torch.equal(scores_and_gradients(package), expected):
        sys.exit("another import gives other bits")
