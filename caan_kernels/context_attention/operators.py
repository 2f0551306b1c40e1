"""The operator for PyTorch's dispatcher: schemas, shapes of results, derivatives. Written once, for all backends.

The names exist without a compiled library; a backend only adds its kernels for a device.

    project              items @ weight, rows beyond the lengths 0
    pair_scores          scores from features and their projected products
    raw_scores           the same scores, of sides that may come unprojected, without a derivative
    pair_maps            scores, f, g, A, C and Rᵀ, without a derivative
    *_backward           first derivatives; there is no second
    tanh_                the CPU kernels' tanh, in place: measured by the benchmark, its error by the tests
    cpu_isa              name of the CPU instruction set in use

Shapes and meanings of the arguments are those of `reference.attend`; lengths and pairs are contiguous int64 tensors.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.library import register_autograd, register_vmap

from ..registration import define, fake, once

_PAIR_TENSORS = "Tensor regions, Tensor region_products, Tensor words, Tensor word_products, Tensor region_score, Tensor word_score"
_RAW_TENSORS = (
    "Tensor regions, Tensor? region_products, Tensor words, Tensor? word_products, Tensor? affinity, "
    "Tensor? region_intra, Tensor? region_inter, Tensor? word_intra, Tensor? word_inter, "
    "Tensor region_score, Tensor word_score"
)
_CHOICE = "Tensor? region_lengths, Tensor? word_lengths, Tensor? pairs"
_OPTIONS = "bool cosine, bool inter, bool intra, str backend"

for _schema in (
    "project(Tensor items, Tensor weight, Tensor? lengths, str backend) -> Tensor",
    "project_backward(Tensor grad, Tensor items, Tensor weight, Tensor? lengths, bool need_items, bool need_weight, str backend)"
    " -> (Tensor, Tensor)",
    f"pair_scores({_PAIR_TENSORS}, {_CHOICE}, {_OPTIONS}) -> Tensor",
    f"pair_scores_backward(Tensor grad, {_PAIR_TENSORS}, {_CHOICE}, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"raw_scores({_RAW_TENSORS}, {_CHOICE}, {_OPTIONS}) -> Tensor",
    f"pair_maps({_PAIR_TENSORS}, {_CHOICE}, {_OPTIONS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "tanh_(Tensor(a!) values) -> ()",
    "cpu_isa() -> str",
):
    define(_schema, (torch.Tag.pt2_compliant_tag,))

_ops = torch.ops.caan_kernels
_PAIR_TENSOR_COUNT = 6
NO_FORWARD_MODE = "context_attention has no forward-mode derivative on the compiled backends: take backend='reference'"
_OPTION_COUNT = _OPTIONS.count(",") + 1


def score_dtype(dtype: torch.dtype) -> torch.dtype:
    """dtype of the scores of features of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@fake("project")
def _(items, weight, lengths, backend):
    return items.new_empty((items.shape[0], items.shape[1], weight.shape[1]))


@fake("project_backward")
def _(grad, items, weight, lengths, need_items, need_weight, backend):
    return items.new_empty(items.shape if need_items else (0,)), weight.new_empty(weight.shape if need_weight else (0,))


def _fake_scores(regions: Tensor, words: Tensor, pairs: Tensor | None) -> Tensor:
    shape = (regions.shape[0], words.shape[0]) if pairs is None else (pairs.shape[0],)
    return regions.new_empty(shape, dtype=score_dtype(regions.dtype))


@fake("pair_scores")
def _(regions, region_products, words, word_products, region_score, word_score, region_lengths, word_lengths, pairs, *_):
    return _fake_scores(regions, words, pairs)


@fake("pair_scores_backward")
def _(grad, *arguments):
    return tuple(x.new_empty(x.shape) for x in arguments[:_PAIR_TENSOR_COUNT])


@fake("raw_scores")
def _(regions, region_products, words, *arguments):
    *_, pairs = arguments[:-_OPTION_COUNT]
    return _fake_scores(regions, words, pairs)


@fake("tanh_")
def _(values):
    return None


@fake("pair_maps")
def _(regions, region_products, words, word_products, region_score, word_score, region_lengths, word_lengths, pairs, *_):
    scores = _fake_scores(regions, words, pairs)
    count, m, n = pairs.shape[0], regions.shape[1], words.shape[1]
    shapes = (count, m), (count, n), (count, m, n), (count, m, n), (count, n, m)
    return scores, *(scores.new_empty(shape) for shape in shapes)


def differentiable(name: str) -> Callable[..., Any]:
    """The operator of that name, as whatever is at work around the call can take its derivative."""
    if not transformed():
        return getattr(_ops, name)
    # torch.compile traces no function that has a forward-mode derivative, be it an error.
    return (_FUNCTIONS if torch.compiler.is_compiling() else _FUNCTIONS_WITHOUT_TANGENT)[name].apply


def transformed() -> bool:
    """Whether torch.func's transforms, torch.vmap among them, are at work."""
    return torch._C._are_functorch_transforms_active()


def _keep_project(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3])
    ctx.backend = inputs[3]


def _project_backward(ctx, grad):
    needed = ctx.needs_input_grad[:2]
    gradients = differentiable("project_backward")(grad.contiguous(), *ctx.saved_tensors, *needed, ctx.backend)
    return *(x if need else None for x, need in zip(gradients, needed, strict=True)), None, None


def _keep_pair_scores(ctx, inputs, output):
    tensors = _PAIR_TENSOR_COUNT + 3
    ctx.save_for_backward(*inputs[:tensors])
    ctx.options = inputs[tensors:]


def _pair_scores_backward(ctx, grad):
    gradients = differentiable("pair_scores_backward")(grad.contiguous(), *ctx.saved_tensors, *ctx.options)
    return *gradients, *(None for _ in range(3 + len(ctx.options)))


def _refusal(message: str) -> Callable[..., Any]:
    """A derivative that is an error; without one autograd would cut the graph there."""

    def refuse(ctx, *gradients):
        raise RuntimeError(message)

    return refuse


def _keep_nothing(ctx, inputs, output):
    pass


_NO_SECOND = _refusal(
    "caan_kernels.context_attention has no second derivative; backend='reference' has derivatives of any order, "
    "on features that are not projected before"
)
_DERIVATIVES = {
    "project": (_keep_project, _project_backward),
    "project_backward": (_keep_nothing, _NO_SECOND),
    "pair_scores": (_keep_pair_scores, _pair_scores_backward),
    "pair_scores_backward": (_keep_nothing, _NO_SECOND),
}
for _name in ("raw_scores", "pair_maps"):
    _DERIVATIVES[_name] = (
        _keep_nothing,
        _refusal(f"caan_kernels::{_name} has no derivative; caan_kernels.context_attention chooses an operator that has"),
    )


def _function(name: str, keep: Callable[..., None], backward: Callable[..., Any]) -> type[torch.autograd.Function]:
    """An operator with its derivative as torch.func wants it, which does not take what `register_autograd` makes."""
    operator = getattr(_ops, name)

    def forward(*arguments):
        return operator(*arguments)

    # torch.compile counts the parameters to see whether the first is a context.
    names = [argument.name for argument in operator.default._schema.arguments]
    forward.__signature__ = inspect.Signature(inspect.Parameter(x, inspect.Parameter.POSITIONAL_ONLY) for x in names)
    parts = {"forward": forward, "setup_context": keep, "backward": backward}
    return type(name, (torch.autograd.Function,), {"generate_vmap_rule": True, **{k: staticmethod(f) for k, f in parts.items()}})


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


def _register_transforms(name: str) -> None:
    keep, backward = _DERIVATIVES[name]
    register_autograd(f"caan_kernels::{name}", backward, setup_context=keep)
    register_vmap(f"caan_kernels::{name}", _each_in_turn(name))


for _name in _DERIVATIVES:
    once(f"transforms of {_name}", partial(_register_transforms, _name))
_FUNCTIONS = {_name: _function(_name, *parts) for _name, parts in _DERIVATIVES.items()}
_FUNCTIONS_WITHOUT_TANGENT = {
    _name: type(_name, (_derived,), {"jvp": staticmethod(_refusal(NO_FORWARD_MODE))}) for _name, _derived in _FUNCTIONS.items()
}
