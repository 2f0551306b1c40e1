"""A call of the operator, checked and packed; every layer below the interface passes it on whole.

torch's dispatcher takes the values one by one (core/records.py); csrc/context_attention/cpu/bindings.cpp reads them in this order.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Options(NamedTuple):
    """How pairs are scored.

    Attributes:
        cosine: score by the cosine of v̂ and û, not by their inner product.
        inter: keep the term of the other side in the context.
        intra: keep the term of the own side in the context.
    """

    cosine: bool
    inter: bool
    intra: bool


class Side(NamedTuple):
    """Regions, or words.

    Attributes:
        features: (B, L, D), V or U.
        products: (I, M, 2H), [V Q1 | V Q4], or (T, N, D + 2H), [U Kᵀ | U Q2 | U Q3]; None before they are made.
        lengths: (B,) int64, or None.
    """

    features: Tensor
    products: Tensor | None
    lengths: Tensor | None


class Vectors(NamedTuple):
    """The score vectors, (H,) each: W^v and W^u."""

    region_score: Tensor
    word_score: Tensor


class Matrices(NamedTuple):
    """The matrices that features are multiplied by, in the shapes of `ContextAttentionWeights`. None for a side that has its
    products."""

    affinity: Tensor | None = None
    region_intra: Tensor | None = None
    region_inter: Tensor | None = None
    word_intra: Tensor | None = None
    word_inter: Tensor | None = None

    def of_regions(self) -> dict[str, Tensor | None]:
        """In the order of the products' columns."""
        return {"region_intra": self.region_intra, "word_inter": self.word_inter}

    def of_words(self) -> dict[str, Tensor | None]:
        """Likewise."""
        return {"affinity": self.affinity, "region_inter": self.region_inter, "word_intra": self.word_intra}


class Call(NamedTuple):
    """One call.

    Attributes:
        regions, words: the sides.
        vectors: the score vectors.
        matrices: of the sides that have no products.
        pairs: (P, 2) int64 of (image, caption), or None for all of them.
        options: how pairs are scored.
        backend: the name of the one that runs the call.
    """

    regions: Side
    words: Side
    vectors: Vectors
    matrices: Matrices
    pairs: Tensor | None
    options: Options
    backend: str


class CallGradient(NamedTuple):
    """The gradient of a call's scores, and the call, whose sides have their products."""

    grad: Tensor
    call: Call


class Projection(NamedTuple):
    """The products of one side.

    Attributes:
        items: (B, L, D).
        weight: (D, E).
        lengths: (B,) int64, or None.
        backend: as in `Call`.
    """

    items: Tensor
    weight: Tensor
    lengths: Tensor | None
    backend: str


class ProjectionGradient(NamedTuple):
    """The gradient of a side's products, their projection, and which of its tensors need a gradient."""

    grad: Tensor
    projection: Projection
    need_items: bool
    need_weight: bool


def beside(matrices: dict[str, Tensor | None]) -> Tensor:
    """The matrices of a side as one weight; affinity transposed, because words are multiplied by it and regions are not."""
    for name, matrix in matrices.items():
        if matrix is None:
            raise RuntimeError(f"{name}: expected a tensor, since its side is not projected, got None")
    return torch.cat([x.mT if name == "affinity" else x for name, x in matrices.items()], dim=1)
