"""Which backends implement the operator."""

from ..core import cpu, cuda, gpu, reference, triton  # noqa: F401
from ..core.backends import implement
from . import cuda as cuda_kernels

# Kernels can only be added to operators that are defined.
from . import operators  # noqa: F401
from .gpu import launch

NAME = "max_similarity"

_OPERATORS = ("max_similarity", "max_similarity_backward")

implement(NAME, "reference")
implement(NAME, "cpu")
implement(NAME, "triton")
implement(NAME, "cuda")
gpu.implement("cuda", cuda_kernels, cuda.DEVICE, launch, _OPERATORS)
gpu.implement("triton", gpu.Later(".triton.launch", __package__), triton.DEVICE, launch, _OPERATORS)
