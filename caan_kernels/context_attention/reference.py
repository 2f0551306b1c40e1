"""The operator's equations in plain PyTorch, every pair of a call at once.

Any device, any floating dtype, differentiable any number of times. The kernels are tested against it and the benchmark
takes it as the baseline, so it is what one would write by hand: products of one item are done once, pairs go through
batched matrix products, and the second-order matrices are formed. Memory grows with
images × captions × (regions + words) × hidden width.

Names and equation numbers are those of docs/operator.md. In shapes, "..." is (I, T), or (P,) for a list of pairs.
"""

from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = 1e-8


class Attention(NamedTuple):
    """A call's results in the dtype of its features.

    Attributes:
        scores: (...).
        f: (..., M), region attention.
        g: (..., N), word attention.
        A: (..., M, N), alignment.
        C: (..., M, N), every word's weights over the regions.
        Rt: (..., N, M), Rᵀ, every region's weights over the words.
        Hv: (..., M, M), affinity of two regions; None where the scores do not need it.
        Hu: (..., N, N), affinity of two words; likewise.
    """

    scores: Tensor
    f: Tensor
    g: Tensor
    A: Tensor
    C: Tensor
    Rt: Tensor
    Hv: Tensor | None
    Hu: Tensor | None


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


def pair_scores(*arguments: Tensor | bool | None) -> Tensor:
    """Scores (...), float32, or float64 for float64; arguments as for `attend`."""
    return _widened(attend(*arguments).scores)


def pair_maps(*arguments: Tensor | bool | None) -> tuple[Tensor, ...]:
    """All of `Attention` in the dtype of the scores, 0 where a side is empty; arguments as for `attend`."""
    *found, Hv, Hu = attend(*arguments)
    *_, C, Rt = found = [_widened(x) for x in found]
    return *found, *(second_order(x) if H is None else _widened(H) for x, H in ((C, Hv), (Rt, Hu)))


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
    inter: bool,
    intra: bool,
    bilinear: tuple[Tensor, Tensor] | None = None,
) -> Attention:
    """The equations for every pair.

    Args:
        regions: (I, M, D), V.
        region_products: (I, M, 2H), [V Q1 | V Q4].
        words: (T, N, D), U.
        word_products: (T, N, D + 2H), [U Kᵀ | U Q2 | U Q3].
        region_score: (H,), W^v.
        word_score: (H,), W^u.
        region_lengths: (I,) or None.
        word_lengths: (T,) or None.
        pairs: (P, 2) of (image, caption), or None for all of them.
        cosine: score by the cosine of v̂ and û, not by their inner product.
        inter: keep the term of the other side in the context.
        intra: keep the term of the own side in the context.
        bilinear: M1 and M2, (D, D) each, read with `intra`: Hᵛ and Hᵘ by (14, 15); None: by (16, 17).
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
    positive = torch.relu(_widened(A))
    C_wide, Rt_wide = unit_rows(positive.mT).mT, unit_rows(positive).mT
    C, Rt = C_wide.to(A.dtype), Rt_wide.to(A.dtype)

    def logits(terms: list[Tensor], w: Tensor) -> Tensor:
        """tanh(context) w, the context being the sum of its terms."""
        return torch.tanh(sum(terms)) @ w if terms else A.new_zeros(())

    def gathered(attention: Tensor, item: str, product: Tensor) -> Tensor:
        """Attention of pairs times the product of items, these with the item's letter."""
        return torch.einsum(f"{p}xy,{item}yh->{p}xh", attention, product)

    region_terms, word_terms, Hv, Hu = [], [], None, None
    if inter:
        region_terms.append(gathered(C, t, UQ2))
        word_terms.append(gathered(Rt, i, VQ4))
    if intra and bilinear is None:
        Hv, Hu = (second_order(x, A.dtype) for x in (C_wide, Rt_wide))
        region_terms.append(gathered(Hv, i, VQ1))
        word_terms.append(gathered(Hu, t, UQ3))
    elif intra:
        # They belong to one item, and so does their term; a pair with an empty side has none.
        M1, M2 = bilinear
        Hv, Hu = V @ M1 @ V.mT, U @ M2 @ U.mT
        own = Hv @ VQ1, Hu @ UQ3
        if pairs is None:
            Hv, Hu, own = Hv[:, None], Hu[None], (own[0][:, None], own[1][None])
        region_terms.append(own[0])
        word_terms.append(own[1])
        of_pair = exists.any(-1).any(-1)[..., None, None]
        Hv, Hu = (torch.where(of_pair, x, 0) for x in (Hv, Hu))
    f = _softmax(logits(region_terms, region_score), exists.any(-1))
    g = _softmax(logits(word_terms, word_score), exists.any(-2))

    v = torch.einsum(f"{p}m,{i}md->{p}d", f, V)
    u = torch.einsum(f"{p}n,{t}nd->{p}d", g, U)
    if cosine:
        v, u = (unit_rows(_widened(x)).to(x.dtype) for x in (v, u))
    return Attention((v * u).sum(-1), f, g, A, C, Rt, Hv, Hu)


def second_order(attention: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(16) of C, (17) of Rᵀ: cosines between the rows, those of a zero row 0; the product is taken in `dtype`, if given."""
    rows = unit_rows(attention)
    rows = rows if dtype is None else rows.to(dtype)
    return rows @ rows.mT


def unit_rows(x: Tensor) -> Tensor:
    """x / max(‖x‖₂, ε) along the last dimension, for float32 and float64."""
    # torch.compile traces no function that has a forward-mode derivative.
    return (_Unit if torch.compiler.is_compiling() else _UnitWithTangent).apply(x)


class _Unit(torch.autograd.Function):
    """Has the derivative (g - y (y·g)) / ‖x‖: exactly 0 where a row has one entry, unlike autograd's form of x / ‖x‖."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x / _norm(x).clamp_min(EPSILON)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        return _through_unit_rows(ctx.saved_tensors[0], g)


class _UnitWithTangent(_Unit):
    @staticmethod
    def jvp(ctx, tangent):
        return _through_unit_rows(ctx.saved_tensors[0], tangent)


def _through_unit_rows(x: Tensor, g: Tensor) -> Tensor:
    """The Jacobian of `unit_rows`, which is symmetric, times g; differentiable itself."""
    norm, y = _norm(x), unit_rows(x)
    along = torch.where(norm > EPSILON, y * (y * g).sum(-1, keepdim=True), 0)
    return (g - along) / norm.clamp_min(EPSILON)


def _norm(x: Tensor) -> Tensor:
    """‖x‖₂ along the last dimension, kept."""
    # A norm has no second derivative at 0: autograd makes NaN of it unless it is kept away.
    zero = ~x.any(dim=-1, keepdim=True)
    return torch.where(zero, 0, torch.linalg.vector_norm(torch.where(zero, 1, x), dim=-1, keepdim=True))


def _exists(items: Tensor, lengths: Tensor | None) -> Tensor:
    """(B, L) bool: which rows of (B, L, D) items are real."""
    position = torch.arange(items.shape[1], device=items.device)
    if lengths is None:
        return torch.ones_like(position, dtype=torch.bool).expand(items.shape[:2])
    return position < lengths[:, None]


def _without_padding(items: Tensor, exists: Tensor) -> Tensor:
    # A product with the mask would keep NaN and Inf, forward and backward.
    return torch.where(exists[..., None], items, 0)


def _softmax(logits: Tensor, exists: Tensor) -> Tensor:
    """Softmax along the last dimension over what exists, 0 elsewhere and where nothing exists."""
    lowest = torch.finfo(logits.dtype).min
    return torch.where(exists, torch.softmax(torch.where(exists, logits, lowest), dim=-1), 0)


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
