"""What a compiled graph skips of the operator's checks."""

import torch
from torch import Tensor

from ...core.gpu.checks import check, check_lengths, check_rank, check_values
from ..call import CallGradient, Projection, ProjectionGradient, Vectors


def check_projection(call: Projection) -> None:
    """Arguments of `project`."""
    items = call.items
    check_rank("items", items, 3)
    check("items", items, items.shape, items.dtype, items.device)
    check("weight", call.weight, (items.shape[2], call.weight.shape[-1]), items.dtype, items.device)
    check_lengths("lengths", call.lengths, items)


def check_projection_gradient(gradient: ProjectionGradient) -> None:
    """The gradient of a side's products, and what made them."""
    call = gradient.projection
    check_projection(call)
    check("grad", gradient.grad, (*call.items.shape[:2], call.weight.shape[1]), call.items.dtype, call.items.device)


def check_gradient(gradient: CallGradient) -> None:
    """The gradient of a call's scores."""
    V, U, pairs = gradient.call.regions.features, gradient.call.words.features, gradient.call.pairs
    shape = (V.shape[0], U.shape[0]) if pairs is None else (pairs.shape[0],)
    check("grad", gradient.grad, shape, torch.float32, V.device)


def check_call(V, U, vectors: Vectors, pairs: Tensor | None) -> None:
    """Arguments of the operators that score; V and U are `launch.PlannedSide`s."""
    for side, name in ((V, "regions"), (U, "words")):
        check_rank(name, side.features, 3)
    dtype, device, width = V.features.dtype, V.features.device, V.features.shape[2]
    check_rank("region_score", vectors.region_score, 1)
    hidden = vectors.region_score.shape[0]
    for side, name in ((V, "regions"), (U, "words")):
        check(name, side.features, (*side.features.shape[:2], width), dtype, device)
    for name, vector in zip(vectors._fields, vectors, strict=True):
        check(name, vector, (hidden,), dtype, device)
    for side, columns in ((V, 2 * hidden), (U, width + 2 * hidden)):
        if side.products is not None:
            check(f"{side.kind}_products", side.products, (*side.features.shape[:2], columns), dtype, device)
        else:
            check(f"the matrices of the {side.kind}s", side.weight, (width, columns), dtype, device, contiguous=False)
        check_lengths(f"{side.kind}_lengths", side.lengths, side.features)
    if pairs is not None:
        check("pairs", pairs, (len(pairs), 2), torch.int64, device)
        for column, side in enumerate((V, U)):
            check_values("pairs", pairs[:, column], len(side.features) - 1)
