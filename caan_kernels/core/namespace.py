"""The name under which torch knows the package's operators.

It is caan_kernels, unless setup.py was given another (CAAN_NAMESPACE): then several builds can be loaded into one process, as a
kernel of the Hugging Face hub has to be (docs/hub-kernel.md).
"""

import json
from pathlib import Path

import torch

LIBRARY = Path(__file__).parents[1] / "_ops.so"
# What setup.py built the library with: readable without loading it.
FACTS = LIBRARY.with_name("_build.json")

NAMESPACE: str = json.loads(FACTS.read_text())["namespace"] if FACTS.exists() else "caan_kernels"
ops = getattr(torch.ops, NAMESPACE)
