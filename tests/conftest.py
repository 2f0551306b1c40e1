"""What every test starts from."""

import functools
import inspect
import os
import sys

import cases
import hypothesis
import numpy as np
import pytest
import torch

# torch.use_deterministic_algorithms wants it of matrix products on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """A run of all tests takes as many processes as there are cores, eight at most; of some, this one, unless -n says otherwise."""
    if "PYTEST_XDIST_WORKER" in os.environ or not config.pluginmanager.has_plugin("xdist"):
        return
    if config.args_source is config.ArgsSource.TESTPATHS and config.option.numprocesses is None:
        config.option.numprocesses = "auto"
        config.option.maxprocesses = config.option.maxprocesses or 8
        # Each process gets a test when it has ended one.
        config.option.maxschedchunk = 1
        # A thread that waits for others leaves the core to another process's.
        os.environ["OMP_WAIT_POLICY"] = "passive"


def pytest_collection_modifyitems(items):
    """Long tests first, so that no process is at one when the others have ended."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("long") is None)


def gpu_is_lost() -> bool:
    """Whether a kernel has ended this process's use of the GPU: every later call fails."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Ends a process that has lost the GPU: pytest-xdist starts another worker for the other tests, and without it the run ends."""
    report = yield
    if report.failed and gpu_is_lost():
        if "PYTEST_XDIST_WORKER" in os.environ:
            # What is wrong would go with the worker.
            print(report.longreprtext, file=sys.stderr, flush=True)
            os._exit(1)
        item.session.shouldstop = f"{item.nodeid} lost the GPU"
    return report


@pytest.fixture
def threads():
    """torch.set_num_threads, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def poisoned_memory():
    """Memory that PyTorch hands out unwritten holds NaN, so that a result which was not written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(7).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def quick_interpreter():
    """Triton's interpreter without half of its own work, none of which is of a test: at each call of a function within a kernel it
    goes through all of Triton's language, although the kernel's own start has done so; for each value it makes a table of dtypes;
    and it computes whether whole numbers overflow, to say so nowhere but in its debug mode."""
    if not cases.INTERPRETED:
        yield
        return
    from triton import language
    from triton.runtime import interpreter

    prepare, dtype_of = interpreter._patch_lang, interpreter._get_np_dtype
    dtypes = {x.name: dtype_of(x) for x in (language.int1, language.int32, language.int64, language.float16, language.float32)}.get

    @functools.cache
    def languages(function):
        return [x for x in function.__globals__.values() if inspect.ismodule(x) and x in (language, language.core)]

    def prepared(function):
        used = languages(function)
        if used and not any(language.core.is_builtin(x.load) for x in used):
            return interpreter._LangPatchScope()
        return prepare(function)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", prepared)
        patch.setattr(interpreter, "_get_np_dtype", lambda kind: dtypes(kind.scalar.name) or dtype_of(kind))
        patch.setattr(interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(sanitize_overflow=False))
        yield


@pytest.fixture
def sums_in_one_order(monkeypatch):
    """A product of the interpreter is rounded once, and so has the same bits wherever it stands in a tile: as on a GPU, where
    sums have one order, and not as suits the library for each shape."""
    if cases.INTERPRETED:
        library = np.matmul
        exact = np.float64
        monkeypatch.setattr(np, "matmul", lambda a, b, dtype=None: library(a.astype(exact), b.astype(exact)).astype(dtype))
