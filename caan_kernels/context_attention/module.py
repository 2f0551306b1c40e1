"""The operator with its learned tensors, as a module of PyTorch."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..core.checks import check_device, check_dtype, check_integer, check_number
from .arguments import checked_options
from .interface import attention_maps, context_attention, project_regions, project_words
from .types import AttentionMaps, ContextAttentionWeights, ProjectedRegions, ProjectedWords


class ContextAwareAttention(nn.Module):
    """Context-aware attention with its learned tensors: `context_attention` as a module.

    The paper does not say how the tensors start. Here, for regions and words of unit length:

    - `affinity` is a multiple of the identity, so an alignment starts as tanh of the scaled cosine. The scale cancels in
      the L2 normalisations as far as tanh is linear.
    - the four context matrices are normal with variance 1/D, which keeps contexts out of the ends of tanh, and the two
      score vectors are 0: pooling starts as the plain mean. What is random in it at the start has to be unlearned
      (docs/flickr8k.md has the measurement).
    - `region_bilinear` and `word_bilinear`, which are there with intra="features" only, are the identity: the affinity
      of two regions starts as their cosine, as that of "semantics" is the cosine of their responses. (14) and (15) are
      not normalised, so a multiple of the identity would scale the whole term.

    Args:
        width: D, the width of the features.
        hidden_width: H; 0 means D.
        affinity_scale: the multiple of the identity that `affinity` starts as.
        similarity: as for `context_attention`.
        inter: as for `context_attention`.
        intra: as for `context_attention`.
        device: of the parameters; None is torch's default.
        dtype: of the parameters; None is torch's default.

    Attributes:
        options: `similarity`, `inter` and `intra` by name.

    Raises:
        TypeError, ValueError: an argument that does not fit, named with what was expected.

    Examples:
        >>> attention = ContextAwareAttention(64, 32)
        >>> regions = torch.nn.functional.normalize(torch.randn(8, 36, 64), dim=-1)
        >>> words = torch.nn.functional.normalize(torch.randn(8, 24, 64), dim=-1)
        >>> word_mask = torch.arange(24) < torch.randint(5, 25, (8, 1))
        >>> attention(regions, words, word_mask=word_mask).shape
        torch.Size([8, 8])
    """

    def __init__(
        self,
        width: int,
        hidden_width: int = 0,
        *,
        affinity_scale: float = 1.0,
        similarity: str = "dot",
        inter: bool = True,
        intra: str | None = "semantics",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        check_integer("width", width, 1)
        check_integer("hidden_width", hidden_width, 0)
        check_number("affinity_scale", affinity_scale)
        if device is not None:
            check_device("device", device)
        if dtype is not None:
            check_dtype("dtype", dtype)
        bilinear = checked_options(similarity, inter, intra).bilinear
        self.options: dict[str, Any] = {"similarity": similarity, "inter": inter, "intra": intra}
        self.affinity_scale = affinity_scale
        hidden = hidden_width or width

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.affinity = parameter(width, width)
        self.region_intra, self.region_inter, self.word_intra, self.word_inter = (parameter(width, hidden) for _ in range(4))
        self.region_score, self.word_score = parameter(hidden), parameter(hidden)
        for name in ("region_bilinear", "word_bilinear"):
            self.register_parameter(name, parameter(width, width) if bilinear else None)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Give all parameters the values that they start with; only the context matrices are random."""
        # torch.nn.init.eye_ fails where torch's default device is another one.
        self.affinity.zero_().diagonal().fill_(self.affinity_scale)
        for matrix in (self.region_intra, self.region_inter, self.word_intra, self.word_inter):
            matrix.normal_().div_(math.sqrt(matrix.shape[0]))
        for vector in (self.region_score, self.word_score):
            vector.zero_()
        for matrix in (self.region_bilinear, self.word_bilinear):
            if matrix is not None:
                matrix.zero_().diagonal().fill_(1)

    @property
    def weights(self) -> ContextAttentionWeights:
        """The parameters as the operator takes them."""
        return ContextAttentionWeights(**{name: getattr(self, name) for name in ContextAttentionWeights._fields})

    def forward(
        self,
        regions: Tensor | ProjectedRegions,
        words: Tensor | ProjectedWords,
        region_lengths: Tensor | None = None,
        word_lengths: Tensor | None = None,
        pairs: Tensor | None = None,
        *,
        region_mask: Tensor | None = None,
        word_mask: Tensor | None = None,
        backend: str = "auto",
    ) -> Tensor:
        """Scores of all pairs, (I, T), or of the (P, 2) pairs given, (P,); all arguments are those of `context_attention`."""
        given = regions, words, self.weights, region_lengths, word_lengths, pairs
        return context_attention(*given, region_mask=region_mask, word_mask=word_mask, **self.options, backend=backend)

    def maps(
        self,
        regions: Tensor | ProjectedRegions,
        words: Tensor | ProjectedWords,
        pairs: Tensor,
        region_lengths: Tensor | None = None,
        word_lengths: Tensor | None = None,
        *,
        region_mask: Tensor | None = None,
        word_mask: Tensor | None = None,
        backend: str = "auto",
    ) -> AttentionMaps:
        """The attention of (P, 2) pairs; all arguments are those of `attention_maps`."""
        given = regions, words, self.weights, pairs, region_lengths, word_lengths
        return attention_maps(*given, region_mask=region_mask, word_mask=word_mask, **self.options, backend=backend)

    def project_regions(
        self, regions: Tensor, region_lengths: Tensor | None = None, *, region_mask: Tensor | None = None, backend: str = "auto"
    ) -> ProjectedRegions:
        """Images ready to be scored with any number of captions; see `project_regions`."""
        return project_regions(regions, self.weights, region_lengths, region_mask=region_mask, backend=backend)

    def project_words(
        self, words: Tensor, word_lengths: Tensor | None = None, *, word_mask: Tensor | None = None, backend: str = "auto"
    ) -> ProjectedWords:
        """Captions ready to be scored with any number of images; see `project_words`."""
        return project_words(words, self.weights, word_lengths, word_mask=word_mask, backend=backend)

    def extra_repr(self) -> str:
        """Widths and options."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.affinity.shape[0]}, {self.region_score.shape[0]}, {options}"
