"""The operator for PyTorch's dispatcher: schemas, shapes of results, derivatives. Written once, for all backends.

The names exist without a compiled library; a backend only adds its kernels for a device. Each takes a record of call.py:

    max_similarity               scores
    max_similarity_backward      first derivatives, an empty tensor for one that is not needed; there is no second
"""

import torch
from torch import Tensor

from ..core.derivatives import derive, differentiable, refuse_derivative
from ..core.ragged import new_scores
from ..core.records import Items, flatten
from ..core.registration import define, fake
from .call import Call, CallGradient

define("max_similarity", Call, "Tensor", torch.Tag.pt2_compliant_tag)
define("max_similarity_backward", CallGradient, "(Tensor, Tensor)", torch.Tag.pt2_compliant_tag)


@fake("max_similarity")
def _(call: Call) -> Tensor:
    return new_scores(call.regions.features, call.words.features, call.pairs)


@fake("max_similarity_backward")
def _(gradient: CallGradient) -> tuple[Tensor, Tensor]:
    sides = (gradient.call.regions, gradient.need_regions), (gradient.call.words, gradient.need_words)
    regions, words = (x.features.new_empty(x.features.shape if needed else (0,)) for x, needed in sides)
    return regions, words


def _backward(grads: list[Tensor], call: Call, needed: Call) -> Call:
    need_regions, need_words = needed.regions.features, needed.words.features
    gradient = CallGradient(grads[0].contiguous(), call, need_regions, need_words)
    regions, words = differentiable("max_similarity_backward")(*flatten(gradient))
    return call._replace(
        regions=Items(regions if need_regions else None, None), words=Items(words if need_words else None, None), pairs=None
    )


_PUBLIC = "max_similarity"
derive("max_similarity", _PUBLIC, _backward)
refuse_derivative(
    "max_similarity_backward",
    _PUBLIC,
    "caan_kernels.max_similarity has no second derivative; backend='reference' has derivatives of any order",
)
