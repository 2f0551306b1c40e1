"""Which of the tests a backend takes."""

from pathlib import Path

import cases
import torch

from .problems import SLOW

# Of the CPU's memory.
collect_ignore = ["test_workspace.py"] if cases.INTERPRETED or cases.EMULATED else []


def takes_too_long(dtype, parameters):
    """Where kernels are slow, means are taken of one shape; the interpreter takes all but two shapes in one way each."""
    options, shape = parameters.get("options", parameters.get("given", {})), parameters.get("shape", "")
    if SLOW and options.get("reduce") == "mean" and shape != "odd":
        return True
    large = shape not in ("", "ones", "odd")
    return cases.INTERPRETED and large and (options.get("over") == "regions" or dtype == torch.float32)


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
        wrong = wrong or (item.get_closest_marker("cpu_only") and backend not in ("reference", "cpu"))
        (left_out if wrong else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept
