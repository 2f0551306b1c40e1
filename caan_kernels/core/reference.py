"""The backend that every operator has: plain PyTorch, on any device."""

import sys

import torch

from .backends import register

NAME, ORDER = "reference", 0
DTYPES = DEVICE_TYPES = None


def missing() -> str:
    """It is always there."""
    return ""


def description() -> str:
    """What it is, for `available_backends`."""
    return "plain PyTorch: any device, float16, bfloat16, float32 and float64"


def cannot_run(device: torch.device) -> str:
    """It runs everywhere."""
    return ""


register(sys.modules[__name__])
