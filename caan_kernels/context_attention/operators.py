"""The operator for PyTorch's dispatcher: schemas, shapes of results, derivatives. Written once, for all backends.

The names exist without a compiled library; a backend only adds its kernels for a device.

    project              items @ weight, rows beyond the lengths 0
    pair_scores          scores from features and their projected products
    raw_scores           the same scores, of sides that may come unprojected, without a derivative
    pair_maps            scores, f, g, A, C and Rᵀ, without a derivative
    *_backward           first derivatives; there is no second

Shapes and meanings of the arguments are those of `reference.attend`; lengths and pairs are contiguous int64 tensors.
"""

import torch
from torch import Tensor

from ..core.derivatives import derive, differentiable, refuse_derivative
from ..core.registration import define, fake

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
):
    define(_schema, (torch.Tag.pt2_compliant_tag,))

_PAIR_TENSOR_COUNT = 6
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


@fake("pair_maps")
def _(regions, region_products, words, word_products, region_score, word_score, region_lengths, word_lengths, pairs, *_):
    scores = _fake_scores(regions, words, pairs)
    count, m, n = pairs.shape[0], regions.shape[1], words.shape[1]
    shapes = (count, m), (count, n), (count, m, n), (count, m, n), (count, n, m)
    return scores, *(scores.new_empty(shape) for shape in shapes)


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


_PUBLIC = "context_attention"
_NO_SECOND = (
    "caan_kernels.context_attention has no second derivative; backend='reference' has derivatives of any order, "
    "on features that are not projected before"
)
derive("project", _PUBLIC, _keep_project, _project_backward)
derive("pair_scores", _PUBLIC, _keep_pair_scores, _pair_scores_backward)
for _name in ("project_backward", "pair_scores_backward"):
    refuse_derivative(_name, _PUBLIC, _NO_SECOND)
for _name in ("raw_scores", "pair_maps"):
    _message = f"caan_kernels::{_name} has no derivative; caan_kernels.context_attention chooses an operator that has"
    refuse_derivative(_name, _PUBLIC, _message)
