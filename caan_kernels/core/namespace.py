"""The name under which torch knows the package's operators.

It is caan_kernels, unless setup.py was given another (CAAN_NAMESPACE): then several builds can be loaded into one process, as a
kernel of the Hugging Face hub has to be (docs/hub-kernel.md).
"""

import json
from importlib import metadata
from pathlib import Path

import torch

LIBRARY = Path(__file__).parents[1] / "_ops.so"
# What setup.py built the library with: readable without loading it.
FACTS = LIBRARY.with_name("_build.json")

_facts = json.loads(FACTS.read_text()) if FACTS.exists() else {}
NAMESPACE: str = _facts.get("namespace", "caan_kernels")
ops = getattr(torch.ops, NAMESPACE)


def version() -> str:
    """Of this build, which may lie beside another that is installed; of the package that is installed where nothing is built."""
    if "version" in _facts:
        return _facts["version"]
    try:
        return metadata.version("caan_kernels")
    except metadata.PackageNotFoundError:
        return "0+unknown"
