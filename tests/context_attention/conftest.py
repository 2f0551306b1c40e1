"""Which of the shared tests a backend takes."""

from pathlib import Path

import cases
import torch


def takes_too_long(backend, dtype, parameters):
    """The interpreter takes a thousand times as long as a kernel; on a GPU kernels are compiled for every dtype, option and width.

    All options and lists of pairs go through one shape, the two similarities through the others.
    """
    if backend != "triton":
        return False
    rest = parameters.get("options", {}) not in (cases.OPTIONS["default"], cases.OPTIONS["cosine"])
    if cases.KERNELS[backend] == "cuda" and dtype == torch.float16:
        return rest or "path" in parameters
    return (rest or parameters.get("pairs", False)) and parameters.get("shape", "odd") != "odd"


def pytest_collection_modifyitems(config, items):
    """Leave out what a backend does not compute with: dtypes, float64 in tests that need it, threads on a GPU."""
    kept, left_out = [], []
    for item in items:
        parameters = getattr(getattr(item, "callspec", None), "params", {})
        backend = parameters.get("backend")
        if Path(__file__).parent not in item.path.parents or backend not in cases.KERNEL_DTYPES:
            kept.append(item)
            continue
        dtypes = cases.KERNEL_DTYPES[backend]
        dtype = parameters.get("dtype", torch.float64 if item.get_closest_marker("float64") else dtypes[0])
        wrong = dtype not in dtypes or takes_too_long(backend, dtype, parameters)
        wrong = wrong or (item.get_closest_marker("cpu_only") and backend not in ("reference", "cpu"))
        (left_out if wrong else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept
