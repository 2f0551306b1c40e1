"""Torch's state and ours: what a caller has left on reaches no result, and nothing of ours is left on for the caller.

Autocast, gradients, inference mode and the default device belong to a thread, and are set aside here. The default dtype belongs to
the process: nothing may change it, so whatever makes a tensor names its dtype.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

CPU = torch.device("cpu")


@contextmanager
def isolated(gradients: bool = False) -> Iterator[None]:
    """No autocast, no inference mode, the CPU as the default device, and gradients as is said here; also a decorator."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        # As a mode it costs every call of torch something.
        if torch.get_default_device() != CPU:
            stack.enter_context(CPU)
        yield


def integers(values: Sequence) -> Tensor:
    """int64 on the CPU, where the operator wants lengths and indices."""
    return torch.tensor(values, dtype=torch.int64, device="cpu")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread: the library's products, those of a GRU above all, round differently on another number.

    The number is that of the calling thread alone. torch.set_num_threads sets that of threads that begin later, too: where several
    encode at once, some would be left with the one thread that was meant for another.
    """
    threads = torch.get_num_threads()
    of_mkl = _set_threads(1, 1)
    try:
        yield
    finally:
        _set_threads(threads, of_mkl)


def _setter() -> Callable[[int, int], int]:
    """Sets the calling thread's number in OpenMP and, for its own products, in MKL, and gives MKL's number from before."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))
        of_openmp = library.omp_set_num_threads
        of_mkl = library.MKL_Set_Num_Threads_Local if torch.backends.mkl.is_available() else lambda number: 0
    except (OSError, AttributeError):
        # A torch that is built otherwise.
        return lambda threads, of_mkl: torch.set_num_threads(threads) or 0

    def set_threads(threads: int, mkl_threads: int) -> int:
        of_openmp(threads)
        return of_mkl(mkl_threads)

    return set_threads


_set_threads = _setter()
