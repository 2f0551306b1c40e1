"""Which of the shared tests a backend takes, and what Triton's interpreter needs to be quick and repeatable."""

import inspect

import cases
import numpy as np
import pytest
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
        if backend not in cases.KERNEL_DTYPES:
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


@pytest.fixture(autouse=True, scope="session")
def language_prepared_once():
    """The interpreter goes through all of Triton's language at each call of a function within a kernel, a third of a test's time,
    although the kernel's own start has done so."""
    if not cases.INTERPRETED:
        yield
        return
    from triton import language
    from triton.runtime import interpreter

    prepare = interpreter._patch_lang

    def prepared(function):
        used = [x for x in function.__globals__.values() if inspect.ismodule(x) and x in (language, language.core)]
        if used and not any(language.core.is_builtin(x.load) for x in used):
            return interpreter._LangPatchScope()
        return prepare(function)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", prepared)
        yield


@pytest.fixture
def sums_in_one_order(monkeypatch):
    """A product of the interpreter is rounded once, and so has the same bits wherever it stands in a tile: as on a GPU, where
    sums have one order, and not as suits the library for each shape."""
    if cases.INTERPRETED:
        library = np.matmul
        exact = np.float64
        monkeypatch.setattr(np, "matmul", lambda a, b, dtype=None: library(a.astype(exact), b.astype(exact)).astype(dtype))
