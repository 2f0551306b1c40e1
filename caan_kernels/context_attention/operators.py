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

import torch
from torch import Tensor
from torch.library import register_autograd, register_fake

_PAIR_TENSORS = "Tensor regions, Tensor region_products, Tensor words, Tensor word_products, Tensor region_score, Tensor word_score"
_RAW_TENSORS = (
    "Tensor regions, Tensor? region_products, Tensor words, Tensor? word_products, Tensor? affinity, "
    "Tensor? region_intra, Tensor? region_inter, Tensor? word_intra, Tensor? word_inter, "
    "Tensor region_score, Tensor word_score"
)
_CHOICE = "Tensor? region_lengths, Tensor? word_lengths, Tensor? pairs"
_OPTIONS = "bool cosine, bool inter, bool intra, str backend"

_LIBRARY = torch.library.Library("caan_kernels", "DEF")
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
    _LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))

_ops = torch.ops.caan_kernels
_PAIR_TENSOR_COUNT = 6
_OPTION_COUNT = _OPTIONS.count(",") + 1


def score_dtype(dtype: torch.dtype) -> torch.dtype:
    """dtype of the scores of features of `dtype`."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@register_fake("caan_kernels::project")
def _(items, weight, lengths, backend):
    return items.new_empty((items.shape[0], items.shape[1], weight.shape[1]))


@register_fake("caan_kernels::project_backward")
def _(grad, items, weight, lengths, need_items, need_weight, backend):
    return items.new_empty(items.shape if need_items else (0,)), weight.new_empty(weight.shape if need_weight else (0,))


def _fake_scores(regions: Tensor, words: Tensor, pairs: Tensor | None) -> Tensor:
    shape = (regions.shape[0], words.shape[0]) if pairs is None else (pairs.shape[0],)
    return regions.new_empty(shape, dtype=score_dtype(regions.dtype))


@register_fake("caan_kernels::pair_scores")
def _(regions, region_products, words, word_products, region_score, word_score, region_lengths, word_lengths, pairs, *_):
    return _fake_scores(regions, words, pairs)


@register_fake("caan_kernels::pair_scores_backward")
def _(grad, *arguments):
    return tuple(x.new_empty(x.shape) for x in arguments[:_PAIR_TENSOR_COUNT])


@register_fake("caan_kernels::raw_scores")
def _(regions, region_products, words, *arguments):
    *_, pairs = arguments[:-_OPTION_COUNT]
    return _fake_scores(regions, words, pairs)


@register_fake("caan_kernels::tanh_")
def _(values):
    return None


@register_fake("caan_kernels::pair_maps")
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
    gradients = _ops.project_backward(grad.contiguous(), *ctx.saved_tensors, *needed, ctx.backend)
    return *(x if need else None for x, need in zip(gradients, needed, strict=True)), None, None


def _keep_pair_scores(ctx, inputs, output):
    tensors = _PAIR_TENSOR_COUNT + 3
    ctx.save_for_backward(*inputs[:tensors])
    ctx.options = inputs[tensors:]


def _pair_scores_backward(ctx, grad):
    gradients = _ops.pair_scores_backward(grad.contiguous(), *ctx.saved_tensors, *ctx.options)
    return *gradients, *(None for _ in range(3 + len(ctx.options)))


register_autograd("caan_kernels::project", _project_backward, setup_context=_keep_project)
register_autograd("caan_kernels::pair_scores", _pair_scores_backward, setup_context=_keep_pair_scores)


def _refuse_derivative(name: str, message: str) -> None:
    """Make backward through an op an error; without it autograd would cut the graph there."""

    def backward(ctx, *gradients):
        raise RuntimeError(message)

    register_autograd(f"caan_kernels::{name}", backward)


for _name in ("project_backward", "pair_scores_backward"):
    _refuse_derivative(
        _name,
        "caan_kernels.context_attention has no second derivative; backend='reference' has derivatives of any order, "
        "on features that are not projected before",
    )
for _name in ("raw_scores", "pair_maps"):
    _refuse_derivative(
        _name,
        f"caan_kernels::{_name} has no derivative; caan_kernels.context_attention chooses an operator that has",
    )
