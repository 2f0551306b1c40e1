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

from ..core.ragged import nan_where_wrong, real_rows, widened, without_padding
from .call import Call, Projection

# M1 and M2.
Bilinear = tuple[Tensor, Tensor] | None

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


def project(call: Projection) -> Tensor:
    """Products that all pairs of an item share, (B, L, E). At and beyond a length items may hold anything; products are 0."""
    return without_padding(call.items, real_rows(call.items, call.lengths)) @ call.weight


def pair_scores(call: Call, bilinear: Bilinear = None) -> Tensor:
    """Scores (...), float32, or float64 for float64; arguments as for `attend`."""
    return widened(attend(call, bilinear).scores)


def pair_maps(call: Call, bilinear: Bilinear = None) -> tuple[Tensor, ...]:
    """All of `Attention` in the dtype of the scores, 0 where a side is empty; arguments as for `attend`."""
    *found, Hv, Hu = attend(call, bilinear)
    *_, C, Rt = found = [widened(x) for x in found]
    return *found, *(second_order(x) if H is None else widened(H) for x, H in ((C, Hv), (Rt, Hu)))


def attend(call: Call, bilinear: Bilinear = None) -> Attention:
    """The equations for every pair.

    Args:
        call: sides with their products.
        bilinear: M1 and M2, (D, D) each, read with `intra`: Hᵛ and Hᵘ by (14, 15); None: by (16, 17).
    """
    x, options = _operands(call), call.options
    A = torch.tanh(torch.einsum(f"{x.i}md,{x.t}nd->{x.p}mn", x.V, x.UK))  # (7)
    positive = torch.relu(widened(A))
    C_wide, Rt_wide = unit_rows(positive.mT).mT, unit_rows(positive).mT  # (12, 13)
    C, Rt = C_wide.to(A.dtype), Rt_wide.to(A.dtype)

    region_terms, word_terms, Hv, Hu = [], [], None, None
    if options.inter:
        region_terms.append(x.gathered(C, x.t, x.UQ2))
        word_terms.append(x.gathered(Rt, x.i, x.VQ4))
    if options.intra and bilinear is None:
        Hv, Hu = (second_order(attention, A.dtype) for attention in (C_wide, Rt_wide))
        region_terms.append(x.gathered(Hv, x.i, x.VQ1))
        word_terms.append(x.gathered(Hu, x.t, x.UQ3))
    elif options.intra:
        Hv, Hu, of_regions, of_words = _of_one_item(x, bilinear)
        region_terms.append(of_regions)
        word_terms.append(of_words)
    w_v, w_u = call.vectors
    f = _softmax(_logits(region_terms, w_v), x.exists.any(-1))  # (8, 9)
    g = _softmax(_logits(word_terms, w_u), x.exists.any(-2))  # (10, 11)

    v = torch.einsum(f"{x.p}m,{x.i}md->{x.p}d", f, x.V)  # (5)
    u = torch.einsum(f"{x.p}n,{x.t}nd->{x.p}d", g, x.U)  # (6)
    if options.cosine:
        v, u = (unit_rows(widened(pooled)).to(pooled.dtype) for pooled in (v, u))
    # Attention is 0 where the other side is empty. 0 times features that are not finite makes the pooled vector NaN.
    score = torch.where(x.exists.any(-1).any(-1), (v * u).sum(-1), 0)  # (18)
    sides = [(side.features, side.lengths) for side in (call.regions, call.words)]
    score = nan_where_wrong(score, *sides, call.pairs)
    return Attention(score, f, g, A, C, Rt, Hv, Hu)


class _Operands(NamedTuple):
    """Both sides of a call: all items, or with a list one item a pair. They are 0 beyond the lengths.

    An item whose partners are all empty is 0, too. It may hold numbers that are not finite, and 0 times those makes gradients NaN.

    Attributes:
        V, VQ1, VQ4: of the images.
        U, UK, UQ2, UQ3: of the captions.
        exists: (..., M, N), where both a region and a word are real.
        i, t, p: the letters by which an einsum names an image, a caption and their pair.
    """

    V: Tensor
    VQ1: Tensor
    VQ4: Tensor
    U: Tensor
    UK: Tensor
    UQ2: Tensor
    UQ3: Tensor
    exists: Tensor
    i: str
    t: str
    p: str

    def gathered(self, attention: Tensor, item: str, product: Tensor) -> Tensor:
        """Attention of pairs times products of items; `item` is the letter of these items."""
        return torch.einsum(f"{self.p}xy,{item}yh->{self.p}xh", attention, product)


def _operands(call: Call) -> _Operands:
    (regions, region_products, region_lengths), (words, word_products, word_lengths) = call.regions, call.words
    hidden, width, pairs = call.vectors.region_score.shape[0], regions.shape[2], call.pairs
    v_exists, u_exists = real_rows(regions, region_lengths), real_rows(words, word_lengths)
    if pairs is None:
        i, t, p = "i", "t", "it"
        v_exists, u_exists = v_exists & u_exists.any(), u_exists & v_exists.any()
    else:
        i = t = p = "p"
        regions, region_products, v_exists = (x.index_select(0, pairs[:, 0]) for x in (regions, region_products, v_exists))
        words, word_products, u_exists = (x.index_select(0, pairs[:, 1]) for x in (words, word_products, u_exists))
        v_exists, u_exists = v_exists & u_exists.any(-1, keepdim=True), u_exists & v_exists.any(-1, keepdim=True)
    V, region_products = (without_padding(x, v_exists) for x in (regions, region_products))
    U, word_products = (without_padding(x, u_exists) for x in (words, word_products))
    if pairs is None:
        v_exists, u_exists = v_exists[:, None], u_exists[None, :]
    exists = v_exists[..., :, None] & u_exists[..., None, :]
    of_regions, of_words = region_products.split([hidden, hidden], dim=-1), word_products.split([width, hidden, hidden], dim=-1)
    return _Operands(V, *of_regions, U, *of_words, exists, i, t, p)


def _of_one_item(x: _Operands, bilinear: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Hᵛ and Hᵘ by (14, 15) and their terms of both contexts, which one item decides. H is 0 for a pair with an empty side."""
    M1, M2 = bilinear
    Hv, Hu = x.V @ M1 @ x.V.mT, x.U @ M2 @ x.U.mT
    of_regions, of_words = Hv @ x.VQ1, Hu @ x.UQ3
    if x.p == "it":
        Hv, Hu, of_regions, of_words = Hv[:, None], Hu[None], of_regions[:, None], of_words[None]
    of_pair = x.exists.any(-1).any(-1)[..., None, None]
    return *(torch.where(of_pair, H, 0) for H in (Hv, Hu)), of_regions, of_words


def _logits(terms: list[Tensor], w: Tensor) -> Tensor:
    """tanh(context) w, the context being the sum of its terms."""
    return torch.tanh(sum(terms)) @ w if terms else w.new_zeros(())


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
    # A norm has no second derivative at 0: autograd would make NaN of it, so it is taken of 1 there.
    zero = ~x.any(dim=-1, keepdim=True)
    return torch.where(zero, 0, torch.linalg.vector_norm(torch.where(zero, 1, x), dim=-1, keepdim=True))


def _softmax(logits: Tensor, exists: Tensor) -> Tensor:
    """Softmax along the last dimension over what exists, 0 elsewhere and where nothing exists."""
    lowest = torch.finfo(logits.dtype).min
    return torch.where(exists, torch.softmax(torch.where(exists, logits, lowest), dim=-1), 0)
