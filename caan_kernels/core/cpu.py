"""The compiled CPU backend."""

import functools
import json
import sys
from typing import Any, NamedTuple

import torch

from . import library
from .backends import register
from .namespace import FACTS, ops
from .records import Written
from .registration import define, fake
from .tracing import constant_while_traced

NAME, ORDER = "cpu", 1
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DEVICE_TYPES = ("cpu",)


class _Nothing(NamedTuple):
    pass


class _Values(NamedTuple):
    values: Written


define("cpu_isa", _Nothing, "str", torch.Tag.pt2_compliant_tag)
# The CPU kernels' tanh, in place: measured by the benchmark, its error by the tests.
define("tanh_", _Values, "()", torch.Tag.pt2_compliant_tag)
fake("tanh_")(lambda call: None)


def instruction_set() -> str:
    """Name of the kernel set in use: avx512, avx2 or generic. CAAN_CPU_ISA forces one."""
    return ops.cpu_isa()


# What torch.compile asks while it traces does not change.
@constant_while_traced
def missing() -> str:
    """Why the kernels cannot be used in this process, or an empty string."""
    return library.load() or _no_instruction_set()


@functools.cache
def _no_instruction_set() -> str:
    try:
        instruction_set()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def description() -> str:
    """What it is, for `available_backends`."""
    return f"compiled kernels for CPU tensors, instruction set {instruction_set()}"


def cannot_run(device: torch.device) -> str:
    """Why tensors of a device are not for this backend, or an empty string."""
    return "" if device.type == "cpu" else f"its tensors must be on the CPU, these are on {device}"


def build_info() -> dict[str, Any]:
    """How the compiled part was built, and for which hardware.

    Returns:
        A dict of strings and lists: version, namespace (of the operators in torch.ops), compiler, cxx_flags,
        cpu_instruction_sets (those built), cpu_instruction_set (the one in use), cuda_architectures, torch_target_abi,
        torch_built_with.

    Raises:
        RuntimeError: there is no compiled part.
    """
    try:
        facts = json.loads(FACTS.read_text())
    except OSError as error:
        raise RuntimeError(f"caan_kernels has no compiled part: {error}") from error
    return {**facts, "cpu_instruction_set": "none" if missing() else instruction_set()}


register(sys.modules[__name__])
