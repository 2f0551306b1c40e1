"""Which backends implement the operator."""

from ..core import cpu, reference  # noqa: F401
from ..core.backends import implement

# Kernels can only be added to operators that are defined.
from . import operators  # noqa: F401

NAME = "max_similarity"

implement(NAME, "reference")
implement(NAME, "cpu")
