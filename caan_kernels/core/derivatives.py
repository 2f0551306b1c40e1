"""Derivatives of operators, for autograd, torch.func and torch.vmap."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.library import register_autograd, register_vmap

from .checks import layers
from .namespace import NAMESPACE
from .namespace import ops as _ops
from .records import flatten, unflatten
from .registration import layout_of, once

# By an operator's name: with its derivative as torch.func wants it; for autograd alone; with an error for forward mode.
_FUNCTIONS: dict[str, type[torch.autograd.Function]] = {}
_PLAIN_FUNCTIONS: dict[str, type[torch.autograd.Function]] = {}
_FUNCTIONS_WITHOUT_TANGENT: dict[str, type[torch.autograd.Function]] = {}


def derive(name: str, public: str, backward: Callable[..., tuple]) -> None:
    """Give an operator a derivative and a rule for torch.vmap.

    Args:
        name: the operator's, in torch.ops.caan_kernels.
        public: the function of the package that calls it, for errors.
        backward: takes the gradients of the results in a list, the record that the operator was called with, and the same
            record with True for what needs a gradient; gives the record with gradients for tensors, None where there is none.
    """
    found = layout_of(name)

    def back(ctx, *gradients):
        saved = iter(ctx.saved_tensors)
        call = unflatten(found, [next(saved) if x is None else x[0] for x in ctx.others])
        result = backward(list(gradients), call, unflatten(found, ctx.needs_input_grad))
        return tuple(x if isinstance(x, Tensor) else None for x in flatten(result))

    once(f"derivative of {name}", partial(_register, name, back))
    _FUNCTIONS[name], _PLAIN_FUNCTIONS[name] = _function(name, back), _plain_function(name, back)
    refuse = {"jvp": staticmethod(_raising(_no_forward_mode(public)))}
    _FUNCTIONS_WITHOUT_TANGENT[name] = type(name, (_FUNCTIONS[name],), refuse)


def refuse_derivative(name: str, public: str, message: str) -> None:
    """Make an operator's derivative an error; without one autograd would cut the graph there."""
    derive(name, public, _raising(message))


def differentiable(name: str) -> Callable[..., Any]:
    """The operator of that name, as whatever is at work around the call can take its derivative."""
    if torch.compiler.is_compiling():
        # torch.compile traces no function that has a forward-mode derivative, be it an error.
        return _FUNCTIONS[name].apply if transformed() else getattr(_ops, name)
    if transformed():
        return _FUNCTIONS_WITHOUT_TANGENT[name].apply
    # What `register_autograd` makes of an operator looks at its schema once for each argument: 0.2 ms a call.
    return _PLAIN_FUNCTIONS[name].apply if torch.is_grad_enabled() else without_derivative(name)


def without_derivative(name: str) -> Callable[..., Any]:
    """The operator of that name where nobody takes its derivative."""
    if torch.compiler.is_compiling() or transformed():
        return getattr(_ops, name)
    return partial(_below_autograd, getattr(_ops, name))


def _below_autograd(operator: Callable[..., Any], *arguments: Any) -> Any:
    # Else torch goes through Python to find that there is nothing to differentiate.
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def transformed() -> bool:
    """Whether torch.func's transforms, torch.vmap among them, are at work."""
    return torch._C._are_functorch_transforms_active()


def wants_gradient(tensors: Iterable[Tensor]) -> bool:
    """Whether any of the tensors takes part in autograd."""
    return torch.is_grad_enabled() and any(_requires_grad(x) for x in tensors)


def refuse_tangents(tensors: Iterable[Tensor], public: str) -> None:
    """Compiled operators would drop a forward-mode tangent in silence.

    Raises:
        RuntimeError: a tensor has one.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise RuntimeError(_no_forward_mode(public))


def _no_forward_mode(public: str) -> str:
    return f"caan_kernels.{public} has no forward-mode derivative on the compiled backends: use backend='reference'"


def _requires_grad(x: Tensor) -> bool:
    """A batch of torch.vmap does not tell itself; what it is made of does, where that can be asked."""
    if x.requires_grad or not transformed():
        return x.requires_grad
    return torch.compiler.is_compiling() or any(y.requires_grad for y in layers(x))


def _raising(message: str) -> Callable[..., Any]:
    def refuse(*arguments):
        raise RuntimeError(message)

    return refuse


def _keep(ctx: Any, inputs: tuple, output: Any) -> None:
    """`setup_context` of any operator: its arguments."""
    ctx.save_for_backward(*[x for x in inputs if isinstance(x, Tensor)])
    ctx.others = [None if isinstance(x, Tensor) else (x,) for x in inputs]


def _register(name: str, backward: Callable[..., Any]) -> None:
    register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=_keep)
    register_vmap(f"{NAMESPACE}::{name}", _each_in_turn(name))


def _function(name: str, backward: Callable[..., Any]) -> type[torch.autograd.Function]:
    """An operator with its derivative as torch.func wants it, which does not take what `register_autograd` makes."""
    operator = getattr(_ops, name)

    def forward(*arguments):
        return operator(*arguments)

    # torch.compile counts the parameters to see whether the first is a context.
    names = [argument.name for argument in operator.default._schema.arguments]
    forward.__signature__ = inspect.Signature(inspect.Parameter(x, inspect.Parameter.POSITIONAL_ONLY) for x in names)
    parts = {"forward": forward, "setup_context": _keep, "backward": backward}
    return type(name, (torch.autograd.Function,), {"generate_vmap_rule": True, **{k: staticmethod(f) for k, f in parts.items()}})


def _plain_function(name: str, backward: Callable[..., Any]) -> type[torch.autograd.Function]:
    """The same, which keeps what `backward` reads by itself: torch binds arguments by their names for `setup_context`."""
    operator = getattr(_ops, name)

    def forward(ctx, *arguments):
        _keep(ctx, arguments, None)
        return _below_autograd(operator, *arguments)

    return type(name, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)})


def _each_in_turn(name: str) -> Callable[..., Any]:
    """The rule of torch.vmap: a call for each entry of the batch, so that bits are those of single calls."""
    operator = getattr(_ops, name)

    def entry(x, dim, number):
        if dim is None:
            return x
        # A batch without entries has shapes all the same: those of a call on zeros.
        return x.movedim(dim, 0)[number].contiguous() if x.shape[dim] else x.new_zeros(x.shape[:dim] + x.shape[dim + 1 :])

    def rule(info, in_dims, *arguments):
        numbers = range(max(1, info.batch_size))
        calls = [operator(*(entry(x, dim, number) for x, dim in zip(arguments, in_dims, strict=True))) for number in numbers]
        if isinstance(calls[0], Tensor):
            return torch.stack(calls)[: info.batch_size], 0
        return tuple(torch.stack(parts)[: info.batch_size] for parts in zip(*calls, strict=True)), (0,) * len(calls[0])

    return rule
