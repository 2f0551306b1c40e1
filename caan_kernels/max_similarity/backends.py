"""Which backends implement the operator."""

from ..core import cpu, cuda, gpu, reference, triton  # noqa: F401
from ..core.backends import implement
from . import cuda as cuda_kernels

# Kernels can only be added to operators that are defined.
from . import operators  # noqa: F401
from .gpu import launch

NAME = "max_similarity"

_OPERATORS = ("max_similarity", "max_similarity_backward")


def _register(backend: str, kernels: launch.Kernels, device: str) -> None:
    launch.KERNELS[backend] = kernels
    gpu.implement({name: getattr(launch, name) for name in _OPERATORS}, device)


implement(NAME, "reference")
implement(NAME, "cpu")
implement(NAME, "triton")
implement(NAME, "cuda")
_register("cuda", cuda_kernels, cuda.DEVICE)
_register("triton", gpu.Later(".triton.launch", __package__), triton.DEVICE)
