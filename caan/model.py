"""CAAN: encoders for regions and words, and context-aware attention between them.

The attention itself is `caan_kernels.context_attention`; here are the learned tensors and what stands before it.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import caan_kernels as ck

from .data.batches import CaptionBatch, ImageBatch, PairBatch
from .isolation import one_thread
from .settings import setting
from .vocabulary import END, PAD

# Parameters, whatever torch's defaults are.
_PARAMETERS = {"dtype": torch.float32, "device": torch.device("cpu")}


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's shape and its scores; plain values, so that a checkpoint can hold it.

    `caan train --help` describes all settings. More about some:

    Attributes:
        region_width: F, the width of the region features.
        vocabulary_size: ids 0 to vocabulary_size - 1, marks included.
        width: D of the operator, and hidden_width its H.
        similarity, inter, intra: options of `caan_kernels.context_attention`; inter and intra are those of the paper's Table 4.
        unit_length: scale regions and words to unit length before the operator. The paper does not say; it is our choice,
            because alignments are then tanh of cosines whatever the scale of the features.
        standardize: give every channel of the region features mean 0 and variance 1, by the statistics of the training
            images. The paper does not; features that differ much in scale between channels need it.
        dropout: in training, the probability that a number of the region features, of the word embeddings or of the GRU's
            results becomes 0.
        region_drop, word_drop: the share of an image's regions and of a caption's words (not its marks) that is left out in
            training, drawn anew each time, as in vse_infty.

    Raises:
        ValueError: a number is out of range.
    """

    region_width: int
    vocabulary_size: int
    width: int = setting(1024, "common width of regions and words")
    hidden_width: int = setting(0, "width inside the attention; 0: as --width")
    word_width: int = setting(300, "width of the word embeddings")
    affinity_scale: float = setting(1.0, "the affinity starts as the identity times this number")
    similarity: str = setting("dot", "how the pooled vectors are compared: dot, as in the paper, or cosine")
    inter: bool = setting(True, "use context from the other side (IA in the paper)")
    intra: str | None = setting(
        "semantics",
        "context from the same side: semantics (SA in the paper), features (FA; only the slow reference computes it) or none",
    )
    unit_length: bool = setting(True, "scale regions and words to unit length before the attention; the paper does not say")
    standardize: bool = setting(False, "give every channel of the region features mean 0 and variance 1")
    dropout: float = setting(0.0, "share of the numbers that are set to 0 in training")
    region_drop: float = setting(0.0, "share of the regions that are left out in training")
    word_drop: float = setting(0.0, "share of the words that are left out in training")

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
        for name, known in (("similarity", ("dot", "cosine")), ("intra", ("semantics", "features", None))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: expected one of {', '.join(map(str, known))}, got {getattr(self, name)!r}")
        if not math.isfinite(self.affinity_scale):
            raise ValueError(f"affinity_scale: expected a finite number, got {self.affinity_scale}")
        for name in ("dropout", "region_drop", "word_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 0 and less than 1, got {getattr(self, name)}")


class Encoded(NamedTuple):
    """Regions or words as the operator takes them.

    Attributes:
        features: (B, L, D).
        lengths: (B,) int64 on the CPU, real items of each.
    """

    features: Tensor
    lengths: Tensor


# torch.load makes only what was declared safe.
torch.serialization.add_safe_globals([Encoded])


class RegionEncoder(nn.Module):
    """Region features to vectors: an affine map, then L2 normalisation.

    Args:
        region_width: F.
        width: D.
        dropout: as in `ModelConfig`.
        unit_length: as in `ModelConfig`.
    """

    def __init__(self, region_width: int, width: int, dropout: float = 0.0, unit_length: bool = True):
        super().__init__()
        self.unit_length = unit_length
        self.projection = nn.Linear(region_width, width, **_PARAMETERS)
        nn.init.xavier_uniform_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("mean", torch.zeros(region_width, **_PARAMETERS))
        self.register_buffer("deviation", torch.ones(region_width, **_PARAMETERS))

    def set_statistics(self, mean: Tensor, deviation: Tensor) -> None:
        """Take the channels' statistics, (F,) each, which features are standardised by from now on.

        A channel that does not vary, apart from rounding, is not scaled; only its mean is subtracted.
        """
        self.mean.copy_(mean)
        self.deviation.copy_(torch.where(deviation > 1e-5 * mean.abs(), deviation, 1))

    def forward(self, regions: Tensor) -> Tensor:
        """(B, R, F) in any floating dtype to (B, R, D)."""
        standardized = (regions.to(self.mean.dtype) - self.mean) / self.deviation
        regions = self.projection(self.dropout(standardized))
        return normalize(regions, dim=-1) if self.unit_length else regions


class WordEncoder(nn.Module):
    """Word ids to vectors in context: embedding, bidirectional GRU, mean of its directions, L2 normalisation.

    The sum and the mean of the directions are the same once they are scaled to unit length.

    Args:
        vocabulary_size: number of ids.
        word_width: width of the embedding, which starts uniform in ±0.1.
        width: D, width of each direction.
        dropout: as in `ModelConfig`.
        unit_length: as in `ModelConfig`.
    """

    def __init__(self, vocabulary_size: int, word_width: int, width: int, dropout: float = 0.0, unit_length: bool = True):
        super().__init__()
        self.unit_length = unit_length
        self.dropout = nn.Dropout(dropout)
        self.embedding = nn.Embedding(vocabulary_size, word_width, padding_idx=PAD, **_PARAMETERS)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.gru = nn.GRU(word_width, width, batch_first=True, bidirectional=True, **_PARAMETERS)

    def forward(self, words: Tensor, word_lengths: Tensor) -> Tensor:
        """(B, N) ids, of which word_lengths, (B,) from 1 to N, on the CPU, are real, to (B, N, D); zeros beyond."""
        packed = pack_padded_sequence(self.dropout(self.embedding(words)), word_lengths, batch_first=True, enforce_sorted=False)
        both, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=words.shape[1])
        forward, backward = both.chunk(2, dim=-1)
        features = self.dropout((forward + backward) / 2)
        return normalize(features, dim=-1) if self.unit_length else features


class EncodedAttention(ck.ContextAwareAttention):
    """The operator with its learned tensors, for what the encoders give."""

    def forward(
        self,
        regions: Encoded | ck.ProjectedRegions,
        words: Encoded | ck.ProjectedWords,
        pairs: Tensor | None = None,
        backend: str = "auto",
    ) -> Tensor:
        """Scores of all pairs, (I, T), or of the (P, 2) pairs given, (P,); see `caan_kernels.context_attention`."""
        sides, lengths = self._sides(regions, words)
        return super().forward(*sides, *lengths, pairs, backend=backend)

    def maps(
        self, regions: Encoded | ck.ProjectedRegions, words: Encoded | ck.ProjectedWords, pairs: Tensor, backend: str = "auto"
    ) -> ck.AttentionMaps:
        """The attention of (P, 2) pairs; see `caan_kernels.attention_maps`."""
        sides, lengths = self._sides(regions, words)
        return super().maps(*sides, pairs, *lengths, backend=backend)

    @staticmethod
    def _sides(*sides) -> tuple[list, list]:
        """Regions and words, and their lengths, as the operator takes them."""
        lengths = [side.lengths if isinstance(side, Encoded) else None for side in sides]
        return [side.features if isinstance(side, Encoded) else side for side in sides], lengths


class CAAN(nn.Module):
    """The whole model: features and ids in, scores out."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        common = config.dropout, config.unit_length
        self.region_encoder = RegionEncoder(config.region_width, config.width, *common)
        self.word_encoder = WordEncoder(config.vocabulary_size, config.word_width, config.width, *common)
        options = {"similarity": config.similarity, "inter": config.inter, "intra": config.intra}
        self.attention = EncodedAttention(
            config.width, config.hidden_width, affinity_scale=config.affinity_scale, **options, **_PARAMETERS
        )

    @property
    def dense(self) -> bool:
        """Whether only the reference scores this model, from features and with every intermediate in memory."""
        return self.config.intra == "features"

    def encode_images(self, images: ImageBatch) -> Encoded:
        """Vectors of a batch's regions, (B, R, D); in training without those that `region_drop` leaves out."""
        regions, lengths = images.regions, images.region_lengths
        if self.training and self.config.region_drop:
            regions, lengths = keep_some(regions, lengths, self.config.region_drop)
        return Encoded(self.region_encoder(regions), lengths)

    def encode_captions(self, captions: CaptionBatch) -> Encoded:
        """Vectors of a batch's words, (B, N, D); in training without those that `word_drop` leaves out."""
        words, lengths = captions.words, captions.word_lengths
        if self.training and self.config.word_drop:
            words, lengths = keep_some(words, lengths, self.config.word_drop, marks=1)
        return Encoded(self.word_encoder(words, lengths), lengths)

    def forward(self, batch: PairBatch) -> Tensor:
        """Score every image of a batch with every caption of it: (B, B), as `caan.triplet_loss` takes it."""
        return self.attention(self.encode_images(batch.images), self.encode_captions(batch.captions))

    @torch.no_grad()
    def prepare_images(self, images: ImageBatch) -> ck.ProjectedRegions | Encoded:
        """Images ready to be scored with any number of captions: projected, or only encoded for a dense model. No gradients.

        The same batch gives the same bits on any number of threads.
        """
        with one_thread():
            encoded = self.encode_images(images)
        return encoded if self.dense else ck.project_regions(encoded.features, self.attention.weights, encoded.lengths)

    @torch.no_grad()
    def prepare_captions(self, captions: CaptionBatch) -> ck.ProjectedWords | Encoded:
        """Captions ready to be scored with any number of images: projected, or only encoded for a dense model. No gradients.

        The same batch gives the same bits on any number of threads.
        """
        with one_thread():
            encoded = self.encode_captions(captions)
        return encoded if self.dense else ck.project_words(encoded.features, self.attention.weights, encoded.lengths)


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
    position = torch.arange(count, device="cpu")
    order = torch.rand(len(items), count, dtype=torch.float32, device="cpu")
    order[(position < marks) | (position >= lengths[:, None] - marks)] = -1
    order[position >= lengths[:, None]] = 2
    chosen = order.argsort(dim=1).masked_fill(position >= kept[:, None], count).sort(dim=1).values[:, : max(1, int(kept.max()))]
    beyond = (chosen == count).to(items.device)
    chosen = chosen.clamp(max=count - 1).to(items.device)
    if items.dim() == 3:
        chosen, beyond = chosen[..., None].expand(-1, -1, items.shape[2]), beyond[..., None]
    return items.gather(1, chosen).masked_fill(beyond, 0), kept
