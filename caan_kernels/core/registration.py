"""What torch's dispatcher is told, once for a process: it keeps it when the package is imported again, and takes nothing twice."""

from collections.abc import Callable
from typing import Any

import torch

# With the names, and not in this module: a first import that was broken off leaves no module behind.
_done: dict[str, Any] = torch.ops.caan_kernels.__dict__.setdefault("_done", {})


def once(what: str, register: Callable[[], Any]) -> None:
    """Register something unless an earlier import has; what `register` returns is kept as long as the process lives."""
    if what not in _done:
        _done[what] = register()


def define(schema: str, tags: tuple[torch.Tag, ...] = ()) -> None:
    """Define an operator of torch.ops.caan_kernels."""
    name = schema.split("(", 1)[0]
    once(f"definition of {name}", lambda: torch.library.define(f"caan_kernels::{name}", schema.removeprefix(name), tags=tags))


def fake(name: str) -> Callable[[Callable], Callable]:
    """Decorates what gives the shapes of an operator's results."""

    def decorate(function: Callable) -> Callable:
        once(f"fake of {name}", lambda: torch.library.register_fake(f"caan_kernels::{name}", function))
        return function

    return decorate
