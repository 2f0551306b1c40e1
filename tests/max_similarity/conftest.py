"""Which of the tests a backend takes."""

from pathlib import Path

import cases
import torch

from .problems import SLOW

# What a process with slow kernels tests: the rest is of the CPU's memory, or says the same of every backend.
_SLOW_FILES = ["scores", "gradients", "gpu", "invariance", *(["operators", "ptx", "ptx_triton"] if cases.EMULATED else [])]
# On a GPU: the other files' tests have their tensors on the CPU.
_GPU_FILES = ["test_scores", "test_gradients", "test_invariance"]
collect_ignore = [x.name for x in Path(__file__).parent.glob("test_*.py") if x.stem[5:] not in _SLOW_FILES] if SLOW else []


def takes_too_long(dtype, parameters):
    """Where kernels are slow, means are taken of one shape; the interpreter takes all but two shapes in one way."""
    options, shape = parameters.get("options", parameters.get("given", {})), parameters.get("shape", "")
    if SLOW and options.get("reduce") == "mean" and shape != "odd":
        return True
    if not cases.INTERPRETED or shape in ("ones", "odd"):
        return False
    return (dtype == torch.float32 and "dtype" in parameters) or (bool(shape) and options.get("over") == "regions")


def pytest_collection_modifyitems(config, items):
    """Leave out what a backend does not compute with: dtypes, float64 in tests that need it, threads."""
    kept, left_out = [], []
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        backend = parameters.get("backend")
        if item.path.parent != Path(__file__).parent or backend not in cases.KERNEL_DTYPES:
            kept.append(item)
            continue
        dtypes = cases.KERNEL_DTYPES[backend]
        dtype = parameters.get("dtype", torch.float64 if item.get_closest_marker("float64") else dtypes[0])
        wrong = dtype not in dtypes or takes_too_long(dtype, parameters)
        wrong = wrong or (cases.KERNELS.get(backend) == "cuda" and item.path.stem not in _GPU_FILES)
        wrong = wrong or (item.get_closest_marker("cpu_only") and backend not in ("reference", "cpu"))
        (left_out if wrong else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept
