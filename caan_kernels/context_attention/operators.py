"""The operator for PyTorch's dispatcher: schemas, shapes of results, derivatives. Written once, for all backends.

The names exist without a compiled library; a backend only adds its kernels for a device. Each takes a record of call.py:

    project              items @ weight, rows beyond the lengths 0
    pair_scores          scores; sides that come without products are projected, and have no derivative then
    pair_maps            scores, f, g, A, C and Rᵀ of sides that have their products, without a derivative
    *_backward           first derivatives; there is no second
"""

import torch
from torch import Tensor

from ..core.derivatives import derive, differentiable, refuse_derivative
from ..core.ragged import new_scores
from ..core.records import flatten
from ..core.registration import define, fake
from .call import Call, CallGradient, Matrices, Projection, ProjectionGradient, Side, Vectors

_TENSORS = "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
for _name, _takes, _gives in (
    ("project", Projection, "Tensor"),
    ("project_backward", ProjectionGradient, "(Tensor, Tensor)"),
    ("pair_scores", Call, "Tensor"),
    ("pair_scores_backward", CallGradient, _TENSORS),
    ("pair_maps", Call, _TENSORS),
):
    define(_name, _takes, _gives, torch.Tag.pt2_compliant_tag)


@fake("project")
def _(call: Projection) -> Tensor:
    return call.items.new_empty((*call.items.shape[:2], call.weight.shape[1]))


@fake("project_backward")
def _(call: ProjectionGradient) -> tuple[Tensor, Tensor]:
    items, weight = call.projection.items, call.projection.weight
    return items.new_empty(items.shape if call.need_items else (0,)), weight.new_empty(weight.shape if call.need_weight else (0,))


@fake("pair_scores")
def _fake_scores(call: Call) -> Tensor:
    return new_scores(call.regions.features, call.words.features, call.pairs)


@fake("pair_scores_backward")
def _(call: CallGradient) -> tuple[Tensor, ...]:
    V, U = call.call.regions, call.call.words
    return tuple(x.new_empty(x.shape) for x in (V.features, V.products, U.features, U.products, *call.call.vectors))


@fake("pair_maps")
def _(call: Call) -> tuple[Tensor, ...]:
    scores = _fake_scores(call)
    count, m, n = scores.shape[0], call.regions.features.shape[1], call.words.features.shape[1]
    shapes = (count, m), (count, n), (count, m, n), (count, m, n), (count, n, m)
    return scores, *(scores.new_empty(shape) for shape in shapes)


def _project_backward(grads: list[Tensor], call: Projection, needed: Projection) -> Projection:
    gradient = ProjectionGradient(grads[0].contiguous(), call, needed.items, needed.weight)
    items, weight = differentiable("project_backward")(*flatten(gradient))
    return Projection(items if needed.items else None, weight if needed.weight else None, None, call.backend)


def _pair_scores_backward(grads: list[Tensor], call: Call, needed: Call) -> Call:
    if call.regions.products is None or call.words.products is None:
        raise RuntimeError(_NO_DERIVATIVE.format("pair_scores of a side without products"))
    gradient = CallGradient(grads[0].contiguous(), call)
    V, V_products, U, U_products, *vectors = differentiable("pair_scores_backward")(*flatten(gradient))
    regions, words = Side(V, V_products, None), Side(U, U_products, None)
    return Call(regions, words, Vectors(*vectors), Matrices(), None, call.options, call.backend)


_PUBLIC = "context_attention"
_NO_SECOND = (
    "caan_kernels.context_attention has no second derivative; backend='reference' has derivatives of any order, "
    "for features that were not projected before"
)
_NO_DERIVATIVE = "caan_kernels::{} has no derivative: call caan_kernels.context_attention, which uses an operator that has one"
derive("project", _PUBLIC, _project_backward)
derive("pair_scores", _PUBLIC, _pair_scores_backward)
for _name in ("project_backward", "pair_scores_backward"):
    refuse_derivative(_name, _PUBLIC, _NO_SECOND)
refuse_derivative("pair_maps", _PUBLIC, _NO_DERIVATIVE.format("pair_maps"))
