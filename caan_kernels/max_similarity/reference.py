"""The operator's equation in plain PyTorch, every pair of a call at once.

Any device, any floating dtype, differentiable any number of times. Memory grows with images × captions × regions × words.
In shapes, "..." is (I, T), or (P,) for a list of pairs; rows of queries look for their best row of a document.
"""

import torch
from torch import Tensor

from ..core.ragged import nan_where_wrong, real_rows, widened, without_padding
from .call import Call


def max_similarity(call: Call) -> Tensor:
    """Scores (...), float32, or float64 for float64."""
    v_exists, u_exists = real_rows(*call.regions), real_rows(*call.words)
    # As in the kernels no product is rounded: which is the largest would depend on the backend.
    V, U = widened(without_padding(call.regions.features, v_exists)), widened(without_padding(call.words.features, u_exists))
    if call.pairs is None:
        products = torch.einsum("imd,tnd->itmn", V, U)
        v_exists, u_exists = v_exists[:, None], u_exists[None, :]
    else:
        V, v_exists = (x.index_select(0, call.pairs[:, 0]) for x in (V, v_exists))
        U, u_exists = (x.index_select(0, call.pairs[:, 1]) for x in (U, u_exists))
        products = torch.einsum("pmd,pnd->pmn", V, U)
    documents, queries = v_exists, u_exists
    if call.options.over_regions:
        products, documents, queries = products.mT, u_exists, v_exists
    best = _largest(products, documents)
    # Where nothing exists the largest is -Inf.
    best = torch.where(queries & documents.any(-1, keepdim=True), best, 0)
    scores = best.sum(-1) / queries.sum(-1).clamp_min(1) if call.options.mean else best.sum(-1)
    return nan_where_wrong(scores, call.regions, call.words, call.pairs)


def _largest(products: Tensor, exists: Tensor) -> Tensor:
    """Of (..., rows, columns) the largest real product of each column, (..., columns): of equals that of the lowest row.

    A NaN is larger than all numbers. The gradient goes to the one product that is taken, on every device alike: max itself
    may take any of equals, and amax shares the gradient among them.
    """
    if products.shape[-2] == 0:
        return products.sum(-2)
    products = torch.where(exists[..., None], products, -torch.inf)
    row = torch.arange(products.shape[-2], device=products.device)[:, None]
    with torch.no_grad():
        taken = (products == products.amax(-2, keepdim=True)) | products.isnan()
        place = torch.where(taken, row, products.shape[-2]).amin(-2, keepdim=True)
    return products.gather(-2, place).squeeze(-2)
