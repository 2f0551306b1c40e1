"""The operator's equations in plain PyTorch, every pair of a call at once.

Any device, any floating dtype, differentiable any number of times. The kernels are tested against it and the benchmark
takes it as the baseline, so it is what one would write by hand: products of one item are done once, pairs go through
batched matrix products, and the second-order matrices are formed. Memory grows with
images × captions × (regions + words) × hidden width.

Names are the paper's: V regions, U words, K affinity, Q1..Q4 the context matrices (region_intra, region_inter,
word_intra, word_inter), A alignment, R and Cᵀ attention between the two sides, Hᵛ and Hᵘ attention within one side, f
and g the attention over regions and over words. In shapes, "..." is (I, T), or (P,) for a list of pairs.
"""

import torch
from torch import Tensor


def project(items: Tensor, weight: Tensor, lengths: Tensor | None) -> Tensor:
    """Products of one item that all its pairs share.

    Args:
        items: (B, L, D).
        weight: (D, E).
        lengths: (B,) or None; rows at and beyond a length may hold anything and come out as 0.

    Returns:
        (B, L, E) in the dtype of `items`.
    """
    return _without_padding(items, _exists(items, lengths)) @ weight


def pair_scores(*arguments: Tensor | bool | float | None) -> Tensor:
    """Scores (...), float32, or float64 for float64; arguments as for `attend`."""
    return _widened(attend(*arguments)[0])


def pair_maps(*arguments: Tensor | bool | float | None) -> tuple[Tensor, ...]:
    """scores, f, g, R, Cᵀ, Hᵛ, Hᵘ in the dtype of the scores, 0 where a side is empty; arguments as for `attend`."""
    *maps, R, Ct = attend(*arguments)
    return tuple(_widened(x) for x in (*maps, R, Ct, R @ R.mT, Ct @ Ct.mT))


def attend(
    regions: Tensor,
    region_products: Tensor,
    words: Tensor,
    word_products: Tensor,
    region_score: Tensor,
    word_score: Tensor,
    region_lengths: Tensor | None,
    word_lengths: Tensor | None,
    pairs: Tensor | None,
    cosine: bool,
    softmax: bool,
    temperature: float,
    inter: bool,
    intra: bool,
) -> tuple[Tensor, ...]:
    """The equations for every pair.

    Args:
        regions: (I, M, D), V.
        region_products: (I, M, 2H), [V Q1 | V Q4].
        words: (T, N, D), U.
        word_products: (T, N, D + 2H), [U Kᵀ | U Q2 | U Q3].
        region_score: (H,), w_v.
        word_score: (H,), w_u.
        region_lengths: (I,) or None.
        word_lengths: (T,) or None.
        pairs: (P, 2) of (image, caption), or None for all of them.
        cosine: score by the cosine of v̂ and û, not by their dot product.
        softmax: R and Cᵀ are the row softmax of temperature · A and of its transpose, not clipped and l2-normalised A.
        temperature: read with `softmax` only.
        inter: keep the term of the other side in the context.
        intra: keep the term of the own side in the context.

    Returns:
        score (...), f (..., M), g (..., N), R (..., M, N), Cᵀ (..., N, M), in the dtype of the features.
    """
    hidden, width = region_score.shape[0], regions.shape[2]
    v_exists, u_exists = _exists(regions, region_lengths), _exists(words, word_lengths)
    # The letters by which an einsum names an image, a caption and their pair.
    if pairs is None:
        i, t, p = "i", "t", "it"
        V, U = _without_padding(regions, v_exists), _without_padding(words, u_exists)
        v_exists, u_exists = v_exists[:, None], u_exists[None, :]
    else:
        i = t = p = "p"
        V, region_products, v_exists = (x.index_select(0, pairs[:, 0]) for x in (regions, region_products, v_exists))
        U, word_products, u_exists = (x.index_select(0, pairs[:, 1]) for x in (words, word_products, u_exists))
        V, U = _without_padding(V, v_exists), _without_padding(U, u_exists)
    exists = v_exists[..., :, None] & u_exists[..., None, :]
    VQ1, VQ4 = region_products.split([hidden, hidden], dim=-1)
    UK, UQ2, UQ3 = word_products.split([width, hidden, hidden], dim=-1)

    A = torch.tanh(torch.einsum(f"{i}md,{t}nd->{p}mn", V, UK))
    if softmax:
        R = _softmax(temperature * A, exists)
        Ct = _softmax(temperature * A.mT, exists.mT)
    else:
        R = _normalize(torch.relu(A))
        Ct = _normalize(torch.relu(A.mT))

    def logits(over_regions: Tensor | None, VQ: Tensor, over_words: Tensor | None, UQ: Tensor, w: Tensor) -> Tensor:
        """tanh(over_regions VQ + over_words UQ) w; None drops its term."""
        if over_regions is None and over_words is None:
            return A.new_zeros(())
        context = 0
        if over_regions is not None:
            context = torch.einsum(f"{p}am,{i}mh->{p}ah", over_regions, VQ)
        if over_words is not None:
            context = context + torch.einsum(f"{p}an,{t}nh->{p}ah", over_words, UQ)
        return torch.tanh(context) @ w

    f = logits(R @ R.mT if intra else None, VQ1, R if inter else None, UQ2, region_score)
    g = logits(Ct if inter else None, VQ4, Ct @ Ct.mT if intra else None, UQ3, word_score)
    f = _softmax(f, exists.any(-1))
    g = _softmax(g, exists.any(-2))

    v = torch.einsum(f"{p}m,{i}md->{p}d", f, V)
    u = torch.einsum(f"{p}n,{t}nd->{p}d", g, U)
    if cosine:
        v, u = _normalize(v), _normalize(u)
    return (v * u).sum(-1), f, g, R, Ct


def _exists(items: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, L) bool: which rows of (B, L, D) items are real."""
    position = torch.arange(items.shape[1], device=items.device)
    if lengths is None:
        return torch.ones_like(position, dtype=torch.bool).expand(items.shape[:2])
    return position < lengths[:, None]


def _without_padding(items: Tensor, exists: Tensor) -> Tensor:
    # A product with the mask would keep NaN and Inf, forward and backward.
    return torch.where(exists[..., None], items, 0)


def _normalize(x: Tensor) -> Tensor:
    """x / max(‖x‖₂, 1e-8) along the last dimension."""
    # In float16 1e-8 is 0; the smallest number above 0 does the same, as no norm lies between.
    smallest = max(1e-8, torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps)
    # A norm has no second derivative at 0: autograd makes NaN of it unless it is kept away.
    zero = ~x.any(dim=-1, keepdim=True)
    norm = torch.linalg.vector_norm(torch.where(zero, 1, x), dim=-1, keepdim=True)
    return x / torch.where(zero, smallest, norm.clamp_min(smallest))


def _softmax(logits: Tensor, exists: Tensor) -> Tensor:
    """Softmax along the last dimension over what exists, 0 elsewhere and where nothing exists."""
    lowest = torch.finfo(logits.dtype).min
    return torch.where(exists, torch.softmax(torch.where(exists, logits, lowest), dim=-1), 0)


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
