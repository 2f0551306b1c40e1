"""Which backend runs a call of an operator, and why not another.

A backend is registered with what it is and where it runs; an operator says which backends implement it, and which of its calls
they do not take.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from . import modes


class Backend(Protocol):
    """One implementation of operators; a module can be one.

    Attributes:
        NAME: by which it is asked for.
        ORDER: "auto" takes the backend with the highest that can run a call.
        DTYPES: of features; None takes all.
        DEVICE_TYPES: where "auto" may take it; None: everywhere.
    """

    NAME: str
    ORDER: int
    DTYPES: tuple[torch.dtype, ...] | None
    DEVICE_TYPES: tuple[str, ...] | None

    def missing(self) -> str:
        """Why it cannot be used on this machine, or an empty string."""

    def description(self) -> str:
        """In words what it is, for `available_backends`."""

    def cannot_run(self, device: torch.device) -> str:
        """Why tensors of a device are not for it, or an empty string."""


_backends: dict[str, Backend] = {}
# By operator and backend: why the backend does not take a call, or an empty string.
_operators: dict[str, dict[str, Callable[..., str]]] = {}


def register(backend: Backend) -> None:
    """Add a backend."""
    ordered = sorted([*_backends.values(), backend], key=lambda backend: backend.ORDER)
    _backends.clear()
    _backends.update((backend.NAME, backend) for backend in ordered)


def implement(operator: str, backend: str, refuses: Callable[..., str] = lambda **wanted: "") -> None:
    """Say that a backend implements an operator.

    Args:
        operator: the public function's name.
        backend: a registered one's name.
        refuses: of the features' dtype and a call's other properties, which are the operator's own, gives the reason why the
            backend does not take it, or an empty string.
    """
    _operators.setdefault(operator, {})[backend] = refuses


def available_backends() -> dict[str, tuple[bool, str]]:
    """What can be used on this machine.

    Returns:
        {name: (usable, reason)}: in words, what the backend is or why it cannot be used.
    """
    found = {}
    for name, backend in _backends.items():
        missing = backend.missing()
        found[name] = (not missing, missing or backend.description())
    return found


def can_run(operator: str, name: str, device: torch.device, dtype: torch.dtype, **wanted: Any) -> tuple[bool, str]:
    """Whether a backend can run a call of an operator.

    Args:
        operator: the public function's name.
        name: of a backend that implements it.
        device: where the features are.
        dtype: of the features.
        wanted: the call's other properties, as the operator's own rules take them.

    Returns:
        (True, "") or (False, the reason in words).
    """
    backend = _backends[name]
    reason = backend.missing() or backend.cannot_run(device)
    if not reason and backend.DTYPES is not None and dtype not in backend.DTYPES:
        reason = f"it has no kernels for {dtype}"
    reason = reason or _operators[operator][name](dtype=dtype, **wanted)
    return not reason, reason


def select(operator: str, requested: str, device: torch.device, dtype: torch.dtype, **wanted: Any) -> str:
    """The backend that runs a call: the one asked for. For "auto", the fastest that can run it, which may be the reference.

    Args:
        operator: the public function's name.
        requested: a backend's name, or "auto".
        device: as for `can_run`.
        dtype: as for `can_run`.
        wanted: as for `can_run`.

    Raises:
        TypeError, ValueError: `requested` is no name of a backend that implements the operator.
        RuntimeError: the backend asked for, or the kernel set that CAAN_CPU_ISA names, cannot run this call; the message
            says why.
    """
    names = [name for name in _backends if name in _operators[operator]]
    if requested == "auto":
        _check_instruction_set(device)
        for name in reversed(names):
            types = _backends[name].DEVICE_TYPES
            if (types is None or device.type in types) and can_run(operator, name, device, dtype, **wanted)[0]:
                return name
    if requested not in names:
        kind = ValueError if isinstance(requested, str) else TypeError
        raise kind(f"backend: expected 'auto', {', '.join(map(repr, names))}, got {requested!r}")
    usable, reason = can_run(operator, requested, device, dtype, **wanted)
    if not usable:
        raise RuntimeError(f"backend {requested!r} cannot run this call: {reason}")
    return requested


def _check_instruction_set(device: torch.device) -> None:
    """Whoever names a kernel set wants that set, not the reference."""
    if device.type == "cpu" and modes.named_instruction_set() and (missing := _backends["cpu"].missing()):
        raise RuntimeError(missing)
