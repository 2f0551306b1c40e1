"""What every test starts from."""

import os
import sys

import cases
import hypothesis
import numpy as np
import pytest
import torch

# torch.use_deterministic_algorithms wants it of matrix products on a GPU.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# Tests of a module's fixture that takes long to make, by what their names have.
TOGETHER = ("/test_cuda_report.py::", "/test_gpu_estimate.py::", "::test_workspace[")

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
        # Each process gets a test when it has ended one, or those of a file that are together.
        config.option.dist = "loadgroup"
        config.option.loadscopereorder = False
        # A thread that waits for others leaves the core to another process's.
        os.environ["OMP_WAIT_POLICY"] = "passive"


def pytest_collection_modifyitems(items):
    """Long tests first, so that no process is at one when the others have ended."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """One process has all tests of a file that share what takes long to make."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return nodeid.split("::")[0] if any(x in nodeid for x in TOGETHER) else nodeid

    return Scheduling(config, log) if config.getvalue("dist") == "loadgroup" else None


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
    """An interpreter's own work is none of a test."""
    if not cases.INTERPRETED:
        yield
        return
    import quick_interpreter

    with pytest.MonkeyPatch.context() as patch:
        quick_interpreter.install(patch)
        yield


@pytest.fixture
def sums_in_one_order(monkeypatch):
    """A product of the interpreter is rounded once, and so has the same bits wherever it stands in a tile: as on a GPU, where
    sums have one order, and not as suits the library for each shape."""
    if cases.INTERPRETED:
        library = np.matmul
        exact = np.float64
        monkeypatch.setattr(np, "matmul", lambda a, b, dtype=None: library(a.astype(exact), b.astype(exact)).astype(dtype))
