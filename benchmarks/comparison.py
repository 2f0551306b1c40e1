"""Which pairs of a call are compared with float64: the rule of docs/operator.md for a function that jumps.

A score jumps where the last positive alignment of a region or word passes 0, and its derivative where any alignment does.
There two precisions may differ by more than rounding, although both are right.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

import caan_kernels as ck
from caan_kernels.core.ragged import real_rows

# How near to 0 float32 may see an alignment on the other side, and the shortest pooled vector that a cosine compares.
TAU = 1e-6
SHORTEST = 1e-2
# Of what is formed at one time.
BLOCK_BYTES = 64 << 20


class LeftOut(NamedTuple):
    """Pairs that a comparison with float64 leaves out, True where it does; (I, T), or (P,) for a list.

    Attributes:
        scores: pairs whose score is not compared.
        gradients: pairs whose upstream gradient is set to 0 where gradients are compared.
    """

    scores: Tensor
    gradients: Tensor

    @property
    def score_count(self) -> int:
        return int(self.scores.sum())

    @property
    def gradient_count(self) -> int:
        return int(self.gradients.sum())

    def text(self) -> str:
        return f"left out of {self.scores.numel()} pairs: {self.score_count} scores, {self.gradient_count} upstream gradients"


@torch.no_grad()
def left_out(
    regions: Tensor,
    words: Tensor,
    weights: ck.ContextAttentionWeights,
    region_lengths: Tensor | None = None,
    word_lengths: Tensor | None = None,
    pairs: Tensor | None = None,
    *,
    similarity: str = "dot",
    inter: bool = True,
    intra: str | None = "semantics",
    tau: float = TAU,
) -> LeftOut:
    """Apply the rule, in float64.

    A score is left out where the largest alignment of a real region or word lies within tau of 0 and, with "cosine", where
    a pooled vector is shorter than `SHORTEST`; an upstream gradient where any alignment of real rows lies within tau of 0.
    A pair with an empty side has neither, and is compared.

    Args:
        regions, words, weights, region_lengths, word_lengths, pairs, similarity, inter, intra: as for `context_attention`;
            features, not projections. The options and the weights other than `affinity` are read with "cosine" only.
        tau: the distance from 0.

    Returns:
        Two masks on the device of the regions. Beyond them and, with "cosine", what is projected, about `BLOCK_BYTES` are held.
    """
    lengths = (None if x is None else x.to(regions.device) for x in (region_lengths, word_lengths))
    exists = tuple(real_rows(*side) for side in zip((regions, words), lengths, strict=True))
    # tanh keeps order and sign, so that its arguments are as good as the alignments.
    sides = regions, words, *exists, weights.affinity.double(), math.atanh(tau)
    found = LeftOut(*(all_pairs(*sides) if pairs is None else pair_list(*sides, pairs.to(regions.device))))
    if similarity == "cosine":
        weights = ck.ContextAttentionWeights(*(None if x is None else x.double() for x in weights))
        pooled = shortest_pooled(regions, words, weights, exists, pairs, inter, intra).view_as(found.scores)
        found = found._replace(scores=found.scores | (pooled < SHORTEST))
    return found


def blocks(count: int, bytes_of_one: int) -> Iterator[slice]:
    """0 to count in pieces of about `BLOCK_BYTES`."""
    size = max(1, BLOCK_BYTES // max(bytes_of_one, 1))
    return (slice(begin, min(begin + size, count)) for begin in range(0, count, size))


def all_pairs(V: Tensor, U: Tensor, v_exists: Tensor, u_exists: Tensor, K: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    scores, gradients = (torch.zeros(len(V), len(U), dtype=torch.bool, device=V.device) for _ in range(2))
    m, n, width = V.shape[1], U.shape[1], V.shape[2]
    for captions in blocks(len(U), 8 * n * max(m, width)):
        UK = U[captions].double() @ K.mT
        for images in blocks(len(V), 8 * m * max(n * len(UK), width)):
            x = torch.einsum("imd,tnd->itmn", V[images].double(), UK)
            exists = v_exists[images, None, :, None] & u_exists[None, captions, None, :]
            scores[images, captions], gradients[images, captions] = near_zero(x, exists, bound)
    return scores, gradients


def pair_list(
    V: Tensor, U: Tensor, v_exists: Tensor, u_exists: Tensor, K: Tensor, bound: float, pairs: Tensor
) -> tuple[Tensor, Tensor]:
    scores, gradients = (torch.zeros(len(pairs), dtype=torch.bool, device=V.device) for _ in range(2))
    m, n, width = V.shape[1], U.shape[1], V.shape[2]
    for block in blocks(len(pairs), 8 * (m * n + (m + n) * width)):
        i, t = pairs[block].unbind(1)
        captions, t_of = t.unique(return_inverse=True)
        UK = U[captions].double() @ K.mT
        x = V[i].double() @ UK[t_of].mT
        scores[block], gradients[block] = near_zero(x, v_exists[i, :, None] & u_exists[t, None, :], bound)
    return scores, gradients


def near_zero(x: Tensor, exists: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Of (..., M, N) arguments of the alignments' tanh, those real by `exists`: (...) bool, whether the largest of some row or
    column lies within `bound` of 0, and whether any does."""
    not_below, above = exists & (x >= -bound), exists & (x > bound)
    jumps = [(not_below.any(side) & ~above.any(side)).any(-1) for side in (-1, -2)]
    return jumps[0] | jumps[1], (not_below & ~above).flatten(-2).any(-1)


def shortest_pooled(
    V: Tensor,
    U: Tensor,
    weights: ck.ContextAttentionWeights,
    exists: tuple[Tensor, Tensor],
    pairs: Tensor | None,
    inter: bool,
    intra: str | None,
) -> Tensor:
    """(P,) length of the shorter of v̂ and û, NaN where a side is empty; all pairs, image by image, if none are given."""
    V, U = (torch.where(real[..., None], x.double(), 0) for x, real in zip((V, U), exists, strict=True))
    counts = [real.sum(1) for real in exists]
    if pairs is None:
        pairs = torch.cartesian_prod(torch.arange(len(V)), torch.arange(len(U))).view(-1, 2)
    pairs = pairs.to(V.device)
    hidden = weights.region_score.shape[0]
    if intra == "features":
        sides, lengths = (V, U), {"region_lengths": counts[0], "word_lengths": counts[1]}
    else:
        project = zip((ck.project_regions, ck.project_words), (V, U), counts, strict=True)
        sides, lengths = [function(x, weights, count, backend="reference") for function, x, count in project], {}
    m, n, width = V.shape[1], U.shape[1], V.shape[2]
    # What `attention_maps` gathers for a pair, and its context; and its maps.
    bytes_of_pair = 8 * ((m + n) * (3 * width + 6 * hidden) + 4 * (m + n) ** 2)
    result = V.new_empty(len(pairs))
    for block in blocks(len(pairs), bytes_of_pair):
        maps = ck.attention_maps(*sides, weights, pairs[block], **lengths, inter=inter, intra=intra, backend="reference")
        i, t = pairs[block].unbind(1)
        pooled = (maps.region_attention[:, None] @ V[i], maps.word_attention[:, None] @ U[t])
        shorter = torch.minimum(*(x.squeeze(1).norm(dim=1) for x in pooled))
        result[block] = torch.where((counts[0][i] > 0) & (counts[1][t] > 0), shorter, torch.nan)
    return result
