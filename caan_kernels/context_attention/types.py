"""What the operator takes and returns besides tensors."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.namespace import NAMESPACE


class ContextAttentionWeights(NamedTuple):
    """The operator's learned tensors. D is the width of the features, H the hidden width.

    Attributes:
        affinity: (D, D), bilinear affinity of region and word (the paper's K).
        region_intra: (D, H), context of a region gathered from regions (Q1).
        region_inter: (D, H), context of a region gathered from words (Q2).
        word_intra: (D, H), context of a word gathered from words (Q3).
        word_inter: (D, H), context of a word gathered from regions (Q4).
        region_score: (H,), logit of a region's attention (W^v).
        word_score: (H,), logit of a word's attention (W^u).
        region_bilinear: (D, D), affinity of two regions (M1); needed with intra="features", not read otherwise.
        word_bilinear: (D, D), affinity of two words (M2); likewise.
    """

    affinity: Tensor
    region_intra: Tensor
    region_inter: Tensor
    word_intra: Tensor
    word_inter: Tensor
    region_score: Tensor
    word_score: Tensor
    region_bilinear: Tensor | None = None
    word_bilinear: Tensor | None = None


class ProjectedRegions(NamedTuple):
    """Images ready to be scored, from `project_regions`.

    Attributes:
        features: (I, M, D) regions.
        products: (I, M, 2H), [V region_intra | V word_inter].
        lengths: (I,) number of real regions in each image; None means all M.
    """

    features: Tensor
    products: Tensor
    lengths: Tensor | None


class ProjectedWords(NamedTuple):
    """Captions ready to be scored, from `project_words`.

    Attributes:
        features: (T, N, D) words.
        products: (T, N, D + 2H), [U affinityᵀ | U region_inter | U word_intra].
        lengths: (T,) number of real words in each caption; None means all N.
    """

    features: Tensor
    products: Tensor
    lengths: Tensor | None


class AttentionMaps(NamedTuple):
    """Scores and the attention behind them, pair by pair. 0 beyond the lengths; a pair with an empty side is all 0.

    Attributes:
        scores: (P,).
        region_attention: (P, M), f.
        word_attention: (P, N), g.
        alignment: (P, M, N), A (7).
        word_to_region: (P, M, N), C (12): column j holds the weights of word j over the regions.
        region_to_word: (P, N, M), Rᵀ (13): column r holds the weights of region r over the words.
        region_affinity: (P, M, M), Hᵛ: by (14) with intra="features", else by (16).
        word_affinity: (P, N, N), Hᵘ: by (15) or (17).
    """

    scores: Tensor
    region_attention: Tensor
    word_attention: Tensor
    alignment: Tensor
    word_to_region: Tensor
    region_to_word: Tensor
    region_affinity: Tensor
    word_affinity: Tensor


for _type in (ContextAttentionWeights, ProjectedRegions, ProjectedWords, AttentionMaps):
    # torch.load makes only what was declared safe, and torch.export saves only what has a name.
    torch.serialization.add_safe_globals([_type])
    torch.utils._pytree._register_namedtuple(_type, serialized_type_name=f"{NAMESPACE}.{_type.__name__}")
