"""What torch's dispatcher is told, once for a process: it keeps it when the package is imported again, and takes nothing twice.

Every operator takes one record (records.py) and is implemented by functions of that record.
"""

from collections.abc import Callable
from typing import Any

import torch

from .namespace import NAMESPACE, ops
from .records import Layout, layout, schema, unflatten

# With the names, and not in this module: a first import that was broken off leaves no module behind.
_done: dict[str, Any] = ops.__dict__.setdefault("_done", {})
# What each operator takes.
_layouts: dict[str, Layout] = {}


def once(what: str, register: Callable[[], Any]) -> None:
    """Register something unless an earlier import has; what `register` returns is kept as long as the process lives."""
    if what not in _done:
        _done[what] = register()


def define(name: str, takes: type[tuple], gives: str, *tags: torch.Tag) -> None:
    """Define an operator of torch.ops.caan_kernels.

    Args:
        name: the operator's.
        takes: the record of its arguments.
        gives: what it returns, as schemas write it.
        tags: torch's, for it.
    """
    _layouts[name] = layout(takes)
    once(f"definition of {name}", lambda: torch.library.define(f"{NAMESPACE}::{name}", f"({schema(takes)}) -> {gives}", tags=tags))


def fake(name: str) -> Callable[[Callable], Callable]:
    """Decorates what gives the shapes of an operator's results, a function of its record."""

    def decorate(function: Callable) -> Callable:
        flat = _on_one_device(name, taking_values(name, function))
        once(f"fake of {name}", lambda: torch.library.register_fake(f"{NAMESPACE}::{name}", flat))
        return function

    return decorate


def _on_one_device(name: str, function: Callable) -> Callable:
    """One "meta" tensor sends a call to the fake: with others that have memory its result would be one that nobody writes."""

    def call(*values):
        arguments = getattr(ops, name).default._schema.arguments
        tensors = [(x.name, value) for x, value in zip(arguments, values, strict=True) if isinstance(value, torch.Tensor)]
        for argument, tensor in tensors:
            if tensor.device != tensors[0][1].device:
                raise RuntimeError(f"{argument}: expected device {tensors[0][1].device}, got {tensor.device}")
        return function(*values)

    return call


def layout_of(name: str) -> Layout:
    """Of the record that an operator takes."""
    return _layouts[name]


def taking_values(name: str, function: Callable) -> Callable:
    """A function of an operator's record as the dispatcher calls it."""
    found = layout_of(name)
    return lambda *values: function(unflatten(found, values))
