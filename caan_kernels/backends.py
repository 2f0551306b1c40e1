"""Which backend can run a call, and why not."""

import os
from typing import Any

import torch

from .context_attention import cpu, cuda, triton

NAMES = ("reference", "cpu", "triton", "cuda")
# What "auto" tries on a device, the faster first; the reference is left where none can run.
_PREFERRED = {"cpu": ("triton",) if triton.INTERPRETED else ("cuda",) if cuda.EMULATED else ("cpu",), "cuda": ("cuda", "triton")}
_GPU = {"triton": triton, "cuda": cuda}


def available_backends() -> dict[str, tuple[bool, str]]:
    """What can be used on this machine.

    Returns:
        {name: (usable, reason)}: in words, what the backend is or why it cannot be used.
    """
    usable = {
        "reference": "plain PyTorch: any device, float16, bfloat16, float32 and float64",
        "cpu": "" if cpu.MISSING else f"compiled kernels for CPU tensors, instruction set {cpu.instruction_set()}",
        "triton": triton.description(),
        "cuda": cuda.description(),
    }
    return {name: (True, usable[name]) if not _missing(name) else (False, _missing(name)) for name in NAMES}


def build_info() -> dict[str, Any]:
    """What the compiled part was made with and for.

    Returns:
        A dict of strings and lists: version, compiler, cxx_flags, cpu_instruction_sets (those built),
        cpu_instruction_set (the one in use), cuda_architectures, torch_target_abi, torch_built_with.

    Raises:
        RuntimeError: there is no compiled part.
    """
    try:
        from . import _host
    except ImportError as error:
        raise RuntimeError(f"caan_kernels has no compiled part: {error}") from error
    return {**_host.build_info(), "cpu_instruction_set": "none" if cpu.MISSING else cpu.instruction_set()}


def can_run(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    *,
    regions: int = 0,
    words: int = 0,
    gradient: bool = False,
    maps: bool = False,
    bilinear: bool = False,
) -> tuple[bool, str]:
    """Whether a backend can run a call.

    Args:
        name: one of `NAMES`.
        device: where the features are.
        dtype: dtype of the features.
        regions: of an image, padding included.
        words: of a caption, padding included.
        gradient: whether a derivative of the result is wanted.
        maps: whether the attention maps are wanted, not only the scores.
        bilinear: whether a side's own context is gathered by its features, intra="features".

    Returns:
        (True, "") or (False, the reason in words).
    """
    if reason := _missing(name):
        return False, reason
    if name == "reference":
        return True, ""
    if bilinear:
        return False, "intra='features' is there to reproduce the paper's ablation: only the reference computes it"
    if name == "cpu" and device.type != "cpu":
        return False, f"its tensors must be on the CPU, these are on {device}"
    if name in _GPU and (reason := _GPU[name].cannot_run(device) or _GPU[name].too_large(regions, words)):
        return False, reason
    if dtype not in _GPU.get(name, cpu).DTYPES:
        return False, f"it has no kernels for {dtype}"
    if maps and gradient:
        return False, "its maps have no derivative: call under torch.no_grad(), or take backend='reference'"
    return True, ""


def select(requested: str, device: torch.device, dtype: torch.dtype, **wanted: int) -> str:
    """The backend that runs a call: the one asked for; for "auto" the fastest that can, which may be the reference.

    Args:
        requested: a backend's name, or "auto".
        device, dtype: as for `can_run`.
        wanted: `regions`, `words`, `gradient`, `maps` and `bilinear`, as for `can_run`.

    Raises:
        ValueError: `requested` is no backend's name.
        RuntimeError: the backend asked for, or the kernel set that CAAN_CPU_ISA names, cannot run this call; the message
            says why.
    """
    if requested == "auto":
        # Whoever names a kernel set wants that set, not the reference.
        if device.type == "cpu" and cpu.MISSING and os.environ.get("CAAN_CPU_ISA"):
            raise RuntimeError(cpu.MISSING)
        preferred = _PREFERRED.get(device.type, ())
        return next((name for name in preferred if can_run(name, device, dtype, **wanted)[0]), "reference")
    if requested not in NAMES:
        raise ValueError(f"backend: expected 'auto', {', '.join(map(repr, NAMES))}, got {requested!r}")
    usable, reason = can_run(requested, device, dtype, **wanted)
    if not usable:
        raise RuntimeError(f"backend {requested!r} cannot run this call: {reason}")
    return requested


def _missing(name: str) -> str:
    if name in _GPU:
        return _GPU[name].missing()
    return cpu.MISSING if name == "cpu" else ""
