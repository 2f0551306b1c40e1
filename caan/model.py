"""CAAN: encoders for regions and words, and context-aware attention between them.

The attention itself is `caan_kernels.context_attention`; here are the learned tensors and what stands before it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import caan_kernels as ck

from .data.batches import CaptionBatch, ImageBatch, PairBatch
from .vocabulary import END, PAD


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's shape and its scores; plain values, so that a checkpoint can hold it.

    Attributes:
        region_width: F, the width of the region features.
        vocabulary_size: ids 0 to vocabulary_size - 1, marks included.
        width: D, common width of regions and words.
        hidden_width: H of the operator; 0 means D.
        word_width: width of the word embedding.
        affinity_scale: the affinity starts as this times the identity.
        similarity, normalization, temperature, inter, intra: options of `context_attention`; inter and intra are the
            paper's ablations.
        standardize: give every channel of the region features mean 0 and variance 1, by the statistics of the training
            images (`RegionEncoder.set_statistics`). The paper does not; features that differ much in scale between
            channels need it.
        dropout: probability, in training, with which a number of the region features, of the word embeddings and of the
            GRU's results becomes 0.
        region_drop, word_drop: the part of an image's regions and of a caption's words (not its marks) left out in
            training, others each time, as in vse_infty.

    Raises:
        ValueError: a number is out of range.
    """

    region_width: int
    vocabulary_size: int
    width: int = 1024
    hidden_width: int = 0
    word_width: int = 300
    affinity_scale: float = 1.0
    similarity: str = "cosine"
    normalization: str = "l2"
    temperature: float = 9.0
    inter: bool = True
    intra: bool = True
    standardize: bool = False
    dropout: float = 0.0
    region_drop: float = 0.0
    word_drop: float = 0.0

    def __post_init__(self):
        for name, least in (
            ("region_width", 1),
            ("vocabulary_size", END + 1),
            ("width", 1),
            ("hidden_width", 0),
            ("word_width", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}: expected at least {least}, got {getattr(self, name)}")
        for name, known in (("similarity", ("cosine", "dot")), ("normalization", ("l2", "softmax"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("affinity_scale", "temperature"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: expected a finite number, got {getattr(self, name)}")
        for name in ("dropout", "region_drop", "word_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 0 and less than 1, got {getattr(self, name)}")


class Encoded(NamedTuple):
    """Regions or words of unit length, ready for the operator.

    Attributes:
        features: (B, L, D).
        lengths: (B,) int64 on the CPU, real items of each.
    """

    features: Tensor
    lengths: Tensor


class RegionEncoder(nn.Module):
    """Region features to vectors of unit length: an affine map, then L2 normalisation.

    Args:
        region_width: F.
        width: D.
        dropout: as in `ModelConfig`.
    """

    def __init__(self, region_width: int, width: int, dropout: float = 0.0):
        super().__init__()
        self.projection = nn.Linear(region_width, width)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mean", torch.zeros(region_width))
        self.register_buffer("deviation", torch.ones(region_width))

    def set_statistics(self, mean: Tensor, deviation: Tensor) -> None:
        """Take the channels' statistics, (F,) each, which features are standardised by from now on.

        A channel that never varies, but for rounding, stays as it is, less its mean.
        """
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-5 * mean.abs(), deviation, 1))

    def forward(self, regions: Tensor) -> Tensor:
        """(B, R, F) in any floating dtype to (B, R, D)."""
        standardized = (regions.to(self.mean.dtype) - self.mean) / self.deviation
        return normalize(self.projection(self.dropout(standardized)), dim=-1)


class WordEncoder(nn.Module):
    """Word ids to vectors of unit length in context: embedding, bidirectional GRU, mean of its directions, L2 norm.

    Args:
        vocabulary_size: number of ids.
        word_width: width of the embedding, which starts uniform in ±0.1.
        width: D, width of each direction.
        dropout: as in `ModelConfig`.
    """

    def __init__(self, vocabulary_size: int, word_width: int, width: int, dropout: float = 0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.embedding = nn.Embedding(vocabulary_size, word_width, padding_idx=PAD)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.gru = nn.GRU(word_width, width, batch_first=True, bidirectional=True)

    def forward(self, words: Tensor, word_lengths: Tensor) -> Tensor:
        """(B, N) ids, of which word_lengths, (B,) from 1 to N, on the CPU, are real, to (B, N, D); zeros beyond."""
        packed = pack_padded_sequence(self.dropout(self.embedding(words)), word_lengths, batch_first=True, enforce_sorted=False)
        both, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=words.shape[1])
        forward, backward = both.chunk(2, dim=-1)
        return normalize(self.dropout(forward + backward), dim=-1)


class ContextAwareAttention(nn.Module):
    """The operator with its learned tensors.

    How they start, for regions and words of unit length:

    - `affinity` is a multiple of the identity, so an alignment starts as tanh of the scaled cosine. The scale cancels in
      the L2 normalisation as far as tanh is linear.
    - the four context matrices are normal with variance 1/D, the two score vectors with variance 1/H. Contexts and
      logits of unit vectors are then small, and pooling starts near the plain mean. Matrices of variance 1, whose
      contexts are near ±1, start with a pooling that is random and sharp, and learn later.

    Args:
        width: D.
        hidden_width: H; 0 means D.
        affinity_scale: the multiple.
        similarity, normalization, temperature, inter, intra: options of `caan_kernels.context_attention`.
    """

    def __init__(
        self,
        width: int,
        hidden_width: int = 0,
        affinity_scale: float = 1.0,
        similarity: str = "cosine",
        normalization: str = "l2",
        temperature: float = 9.0,
        inter: bool = True,
        intra: bool = True,
    ):
        super().__init__()
        hidden = hidden_width or width
        self.affinity = nn.Parameter(affinity_scale * torch.eye(width))
        for name in ("region_intra", "region_inter", "word_intra", "word_inter"):
            setattr(self, name, nn.Parameter(torch.randn(width, hidden) / math.sqrt(width)))
        for name in ("region_score", "word_score"):
            setattr(self, name, nn.Parameter(torch.randn(hidden) / math.sqrt(hidden)))
        self.options = {
            "similarity": similarity,
            "normalization": normalization,
            "temperature": temperature,
            "inter": inter,
            "intra": intra,
        }

    @property
    def weights(self) -> ck.ContextAttentionWeights:
        """The parameters as the operator takes them."""
        return ck.ContextAttentionWeights(**{name: getattr(self, name) for name in ck.ContextAttentionWeights._fields})

    def forward(
        self,
        regions: Encoded | ck.ProjectedRegions,
        words: Encoded | ck.ProjectedWords,
        pairs: Tensor | None = None,
        backend: str = "auto",
    ) -> Tensor:
        """Scores of all pairs, (I, T), or of the (P, 2) pairs given, (P,); see `caan_kernels.context_attention`."""
        return ck.context_attention(*self._arguments(regions, words), pairs=pairs, backend=backend, **self.options)

    def maps(
        self, regions: Encoded | ck.ProjectedRegions, words: Encoded | ck.ProjectedWords, pairs: Tensor, backend: str = "auto"
    ) -> ck.AttentionMaps:
        """The attention of (P, 2) pairs; see `caan_kernels.attention_maps`."""
        return ck.attention_maps(*self._arguments(regions, words), pairs=pairs, backend=backend, **self.options)

    def _arguments(self, regions, words) -> tuple:
        regions, region_lengths = (regions.features, regions.lengths) if isinstance(regions, Encoded) else (regions, None)
        words, word_lengths = (words.features, words.lengths) if isinstance(words, Encoded) else (words, None)
        return regions, words, self.weights, region_lengths, word_lengths


class CAAN(nn.Module):
    """The whole model: features and ids in, scores out."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.region_encoder = RegionEncoder(config.region_width, config.width, config.dropout)
        self.word_encoder = WordEncoder(config.vocabulary_size, config.word_width, config.width, config.dropout)
        self.attention = ContextAwareAttention(
            config.width,
            config.hidden_width,
            config.affinity_scale,
            config.similarity,
            config.normalization,
            config.temperature,
            config.inter,
            config.intra,
        )

    def encode_images(self, images: ImageBatch) -> Encoded:
        """Unit vectors of a batch's regions, (B, R, D); in training of those that `region_drop` leaves."""
        regions, lengths = images.regions, images.region_lengths
        if self.training and self.config.region_drop:
            regions, lengths = keep_some(regions, lengths, self.config.region_drop)
        return Encoded(self.region_encoder(regions), lengths)

    def encode_captions(self, captions: CaptionBatch) -> Encoded:
        """Unit vectors of a batch's words, (B, N, D); in training of those that `word_drop` leaves."""
        words, lengths = captions.words, captions.word_lengths
        if self.training and self.config.word_drop:
            words, lengths = keep_some(words, lengths, self.config.word_drop, marks=1)
        return Encoded(self.word_encoder(words, lengths), lengths)

    def forward(self, batch: PairBatch) -> Tensor:
        """Score every image of a batch with every caption of it: (B, B), as `caan.loss.triplet_loss` takes it."""
        return self.attention(self.encode_images(batch.images), self.encode_captions(batch.captions))

    @torch.no_grad()
    def project_images(self, images: ImageBatch) -> ck.ProjectedRegions:
        """What a gallery keeps of images, so that `attention` scores them with any number of captions. No gradients.

        The same batch gives the same bits on any number of threads.
        """
        with _one_thread():
            features, lengths = self.encode_images(images)
        return ck.project_regions(features, self.attention.weights, lengths)

    @torch.no_grad()
    def project_captions(self, captions: CaptionBatch) -> ck.ProjectedWords:
        """What a gallery keeps of captions, so that `attention` scores them with any number of images. No gradients.

        The same batch gives the same bits on any number of threads.
        """
        with _one_thread():
            features, lengths = self.encode_captions(captions)
        return ck.project_words(features, self.attention.weights, lengths)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The library's matrix products, those of the GRU above all, round differently on another number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def keep_some(items: Tensor, lengths: Tensor, drop: float, marks: int = 0) -> tuple[Tensor, Tensor]:
    """Leave out random items, as many of each row as `drop` says, and move the others together in their order.

    The choice uses PyTorch's global CPU generator, wherever the items are.

    Args:
        items: (B, L) ids or (B, L, F) features.
        lengths: (B,) int64 on the CPU, real items of each row.
        drop: the part to leave out, rounded down.
        marks: this many real items at either end always stay.

    Returns:
        (B, K) or (B, K, F), K the largest of the new lengths, zeros beyond them; and those lengths.
    """
    count = items.shape[1]
    kept = lengths - (drop * (lengths - 2 * marks).clamp(min=0)).long()
    position = torch.arange(count)
    order = torch.rand(len(items), count)
    order[(position < marks) | (position >= lengths[:, None] - marks)] = -1
    order[position >= lengths[:, None]] = 2
    chosen = order.argsort(dim=1).masked_fill(position >= kept[:, None], count).sort(dim=1).values[:, : max(1, int(kept.max()))]
    beyond = (chosen == count).to(items.device)
    chosen = chosen.clamp(max=count - 1).to(items.device)
    if items.dim() == 3:
        chosen, beyond = chosen[..., None].expand(-1, -1, items.shape[2]), beyond[..., None]
    return items.gather(1, chosen).masked_fill(beyond, 0), kept
