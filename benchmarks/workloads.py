"""What the benchmark scores: paper sizes, real caption lengths, features, weights, and the loss of a training step."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import caan_kernels as ck

REGIONS = 36
WIDTH = 1024
HIDDEN = 1024
MARGIN = 0.2

# {length: captions of that length} over the 5,000 captions of Flickr30K's 1K test and the 25,000 of COCO's 5K test.
# A length is the number of whitespace-separated tokens plus the start and end marks.
CAPTION_LENGTHS: dict[str, dict[int, int]] = {
    "f30k": {
        5: 2, 6: 6, 7: 30, 8: 98, 9: 228, 10: 355, 11: 427, 12: 445, 13: 485, 14: 459, 15: 401, 16: 384, 17: 329,
        18: 270, 19: 192, 20: 170, 21: 131, 22: 95, 23: 87, 24: 74, 25: 70, 26: 36, 27: 33, 28: 36, 29: 26, 30: 22,
        31: 22, 32: 16, 33: 12, 34: 8, 35: 14, 36: 1, 38: 5, 39: 3, 40: 6, 41: 2, 42: 3, 43: 1, 44: 2, 45: 2, 46: 1,
        47: 3, 51: 1, 53: 2, 54: 1, 56: 1, 57: 1, 61: 1, 77: 1,
    },
    "coco": {
        8: 2, 9: 105, 10: 1292, 11: 4272, 12: 5281, 13: 4904, 14: 3530, 15: 2174, 16: 1291, 17: 805, 18: 441, 19: 293,
        20: 186, 21: 125, 22: 72, 23: 46, 24: 42, 25: 33, 26: 29, 27: 16, 28: 14, 29: 9, 30: 5, 31: 3, 32: 6, 33: 4,
        34: 3, 36: 2, 37: 3, 38: 1, 39: 1, 40: 3, 45: 2, 47: 2, 49: 1, 50: 1, 52: 1,
    },
}  # fmt: skip
# What a spec may name: those, or captions of one length.
LENGTHS = CAPTION_LENGTHS | {f"{words} words": {words: 1} for words in (32, 64)}


class Spec(NamedTuple):
    """One workload of the table.

    Attributes:
        name: what --workload calls it.
        title: one line for the reader.
        kind: "training" (scores of B x B, loss and all gradients), "all pairs" or "pair list" (forward alone).
        lengths: key of `LENGTHS`.
        images, captions: how many are scored; for a pair list the size of the gallery and the number of queries.
        candidates: pair list only, images scored for each query.
        baseline_block: (images, captions) that slow baselines score instead; None means the whole workload. 128 captions are
            what evaluation code commonly pads together.
        seconds: this workload's share of the run, compilation included, on two cores or a GPU.
        loop_block: what the loop scores instead; None means what the other baselines do.
        hidden: the hidden width H.
        regions: of an image, where features are random.
    """

    name: str
    title: str
    kind: str
    lengths: str
    images: int
    captions: int
    candidates: int = 0
    baseline_block: tuple[int, int] | None = None
    seconds: float = 20.0
    loop_block: tuple[int, int] | None = None
    hidden: int = HIDDEN
    regions: int = REGIONS


SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        Spec("f30k-1k", "all pairs, slice of Flickr30K 1K", "all pairs", "f30k", 96, 480, 0, (32, 96), 33),
        Spec("coco-5k", "all pairs, slice of COCO 5K", "all pairs", "coco", 96, 480, 0, (32, 96), 27),
        Spec("coco-5k-h64", "the same with H = 64", "all pairs", "coco", 96, 480, 0, (32, 96), 18, hidden=64),
        Spec("rerank-1x200", "pair list, 1 query, gallery projected", "pair list", "f30k", 1000, 1, 200, None, 5),
        Spec("rerank-16x100", "pair list, 16 queries, gallery projected", "pair list", "f30k", 1000, 16, 100, None, 12),
        Spec("train-64", "training step, hardest negatives, B=64", "training", "f30k", 64, 64, seconds=54),
        Spec("train-128", "training step, hardest negatives, B=128", "training", "f30k", 128, 128, seconds=46),
        Spec("train-128-h64", "the same with H = 64", "training", "f30k", 128, 128, seconds=10, hidden=64),
    )
}

# Whole test sets are what a GPU is for. The reference holds 128 x 128 pairs in 16 GiB; the loop is quickest with many
# images to a caption, and has them all.
GPU_SPECS: dict[str, Spec] = SPECS | {
    spec.name: spec
    for spec in (
        Spec("f30k-1k", "all pairs of Flickr30K 1K", "all pairs", "f30k", 1000, 5000, 0, (128, 128), 40, (1000, 128)),
        Spec("coco-5k", "all pairs of COCO 5K", "all pairs", "coco", 5000, 25000, 0, (128, 128), 50, (5000, 128)),
        Spec("coco-5k-h64", "the same with H = 64", "all pairs", "coco", 5000, 25000, 0, (128, 128), 22, (5000, 128), 64),
        # Compiling its step takes most of it, and serves the larger batch too.
        SPECS["train-64"]._replace(seconds=70),
        SPECS["train-128"]._replace(seconds=18),
        # Patches of a vision transformer: 14 x 14, and 24 x 24.
        Spec("patches-196x32", "196 regions, 32 words", "all pairs", "32 words", 264, 512, 0, (32, 32), 14, (264, 32), regions=196),
        Spec("patches-576x64", "576 regions, 64 words", "all pairs", "64 words", 64, 256, 0, (16, 16), 10, (64, 16), regions=576),
    )
}


@dataclass(frozen=True)
class Workload:
    """Tensors to be scored, all in one dtype on one device.

    Attributes:
        name: the spec's name.
        training: whether a run is forward, loss and backward.
        regions: (I, M, D) L2-normalised region features, no padding.
        words: (T, N, D) L2-normalised word features; rows at and beyond the length are 0.
        word_lengths: (T,) int64 on the CPU.
        weights: the operator's seven learned tensors.
        pairs: None for every image with every caption, else (P, 2) int64 of (image, caption) on the CPU.
        gallery: `regions` projected ahead of time, or None when a run starts from raw features.
    """

    name: str
    training: bool
    regions: Tensor
    words: Tensor
    word_lengths: Tensor
    weights: ck.ContextAttentionWeights
    pairs: Tensor | None = None
    gallery: ck.ProjectedRegions | None = None

    @property
    def pair_count(self) -> int:
        return self.regions.shape[0] * self.words.shape[0] if self.pairs is None else self.pairs.shape[0]

    @property
    def shape(self) -> str:
        if self.pairs is not None:
            return f"{self.pairs.shape[0]} pairs"
        return f"{self.regions.shape[0]} x {self.words.shape[0]}"

    def block(self, images: int, captions: int) -> Workload:
        """The same workload cut to its first images and captions.

        A smaller training batch is padded to its own longest caption, as its loader would. A slice of all pairs keeps
        the padding of the whole: a test set's captions are encoded into one array.
        """
        lengths = self.word_lengths[:captions]
        longest = int(lengths.max()) if self.training else self.words.shape[1]
        words = self.words[:captions, :longest].contiguous()
        return replace(self, regions=self.regions[:images].contiguous(), words=words, word_lengths=lengths)

    def half(self) -> Workload:
        """Half of it: half the pair list, half the batch of a training step, or half the captions of all pairs."""
        images, captions = self.regions.shape[0], self.words.shape[0]
        if self.pairs is not None:
            return replace(self, pairs=self.pairs[: (len(self.pairs) + 1) // 2])
        return self.block((images + 1) // 2 if self.training else images, (captions + 1) // 2)

    def first_pairs(self, count: int) -> Workload:
        """The first pairs of a pair list, with only the images and captions that they name, gallery dropped."""
        if self.pairs is None:
            raise ValueError("first_pairs: expected a workload with a pair list, got one of all pairs")
        images, image_of = self.pairs[:count, 0].unique(return_inverse=True)
        captions, caption_of = self.pairs[:count, 1].unique(return_inverse=True)
        return replace(
            self,
            regions=self.regions[images],
            words=self.words[captions],
            word_lengths=self.word_lengths[captions],
            pairs=torch.stack([image_of, caption_of], 1),
            gallery=None,
        )

    def double(self) -> Workload:
        """The same values in float64; a projected gallery is dropped."""
        weights = cast_weights(self.weights, torch.float64)
        return replace(self, regions=self.regions.double(), words=self.words.double(), weights=weights, gallery=None)


def sample_lengths(histogram: dict[int, int], count: int, seed: int) -> Tensor:
    """(count,) int64 lengths drawn from a {length: count} table, the same for the same seed."""
    lengths = torch.tensor(list(histogram), dtype=torch.int64)
    weights = torch.tensor(list(histogram.values()), dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return lengths[torch.multinomial(weights, count, replacement=True, generator=generator)]


def make_weights(width: int, hidden: int, seed: int) -> ck.ContextAttentionWeights:
    """Random float32 weights for unit-length features under which no part of the operator is idle or saturated.

    Affinity entries of deviation 0.5 give tanh arguments of deviation 0.5. A context sums several unit rows, so 0.3
    keeps its tanh arguments near 1. Score vectors of deviation 2/sqrt(H) give attention logits of deviation near 1.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, deviation: float) -> Tensor:
        return torch.randn(*shape, generator=generator) * deviation

    score = 2.0 / hidden**0.5
    return ck.ContextAttentionWeights(
        affinity=normal(width, width, deviation=0.5),
        region_intra=normal(width, hidden, deviation=0.3),
        region_inter=normal(width, hidden, deviation=0.3),
        word_intra=normal(width, hidden, deviation=0.3),
        word_inter=normal(width, hidden, deviation=0.3),
        region_score=normal(hidden, deviation=score),
        word_score=normal(hidden, deviation=score),
    )


def learned(weights: ck.ContextAttentionWeights) -> tuple[Tensor, ...]:
    """The seven tensors that intra="semantics" reads."""
    return weights[:7]


def cast_weights(weights: ck.ContextAttentionWeights, *where: torch.dtype | torch.device) -> ck.ContextAttentionWeights:
    """The same weights in another dtype or on another device."""
    return ck.ContextAttentionWeights(*(tensor.to(*where) for tensor in learned(weights)))


def pad_words(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Captions as (length, D) tensors -> ((T, N, D) padded with 0 to the longest, (T,) int64 lengths)."""
    lengths = torch.tensor([row.shape[0] for row in rows], dtype=torch.int64)
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), lengths


class RandomSource:
    """Random unit-length features whose caption lengths follow a real histogram; the same at every call."""

    name = "random features, real caption lengths"

    # Under this seed the mean and the longest of the first 64, 128 and 480 lengths are those of a typical batch: nobody
    # pays for more padding than usual.
    def __init__(self, histogram: dict[int, int], regions: int = REGIONS, seed: int = 4402) -> None:
        self.histogram = histogram
        self.regions = regions
        self.seed = seed

    def load(self, images: int, captions: int, captions_per_image: int) -> tuple[Tensor, Tensor, Tensor]:
        """(images, m, 1024) regions, (captions, N, 1024) words and (captions,) lengths, float32.

        `captions_per_image` has no meaning for features that belong to no photograph, and is ignored.
        """
        generator = torch.Generator().manual_seed(self.seed)
        regions = F.normalize(torch.randn(images, self.regions, WIDTH, generator=generator), dim=-1)
        lengths = sample_lengths(self.histogram, captions, self.seed)
        rows = [F.normalize(torch.randn(int(n), WIDTH, generator=generator), dim=-1) for n in lengths]
        words, _ = pad_words(rows)
        return regions, words, lengths


def captions_of_images(images: int, captions: int) -> np.ndarray:
    """(captions,) image index of each caption in a SCAN-layout split.

    Five captions to an image in image order, or, in the legacy layout, one feature row to a caption.

    Raises:
        ValueError: the two counts fit neither layout.
    """
    if captions == images:
        return np.arange(captions)
    if captions == 5 * images:
        return np.arange(captions) // 5
    raise ValueError(
        f"captions: expected {images} (one row a caption) or {5 * images} (five captions an image) "
        f"for {images} images, got {captions}"
    )


class ScanSource:
    """Features in SCAN layout: `{split}_ims.npy` (N, m, F) and `{split}_caps.txt`, one caption a line.

    Regions are standardised per channel, projected from F to 1024 by a fixed random matrix and L2-normalised. A word is
    a fixed random unit vector of its token, so that lengths and repetitions are the real ones.

    Raises:
        FileNotFoundError: the folder holds no split with both files.
        ValueError: the counts of images and captions fit neither SCAN layout.
    """

    SPLITS = ("test", "dev", "testall", "train")

    def __init__(self, directory: Path, seed: int = 0) -> None:
        files = ("{}_ims.npy", "{}_caps.txt")
        found = [split for split in self.SPLITS if all((directory / file.format(split)).exists() for file in files)]
        if not found:
            names = " or ".join(self.SPLITS)
            raise FileNotFoundError(f"{directory}: expected {' and '.join(files)} with {names} for {{}}, found none")
        self.name = f"{directory.name}, split {found[0]}"
        self.seed = seed
        self.images = np.load(directory / f"{found[0]}_ims.npy", mmap_mode="r")
        if self.images.ndim != 3:
            raise ValueError(f"{found[0]}_ims.npy: expected (images, regions, features), got shape {self.images.shape}")
        text = (directory / f"{found[0]}_caps.txt").read_text(encoding="utf-8")
        self.captions = [["<start>", *line.lower().split(), "<end>"] for line in text.splitlines() if line.strip()]
        self.image_of_caption = captions_of_images(len(self.images), len(self.captions))

    def within(self, spec: Spec) -> Spec:
        """The workload of all pairs with no more images and captions than there are."""
        images, captions = min(spec.images, len(self.images)), min(spec.captions, len(self.captions))
        return spec._replace(images=images, captions=captions)

    def embed(self, token: str) -> Tensor:
        """(1024,) float32 unit vector that depends on the token alone."""
        generator = np.random.default_rng([self.seed, zlib.crc32(token.encode())])
        return F.normalize(torch.from_numpy(generator.standard_normal(WIDTH, dtype=np.float32)), dim=0)

    def load(self, images: int, captions: int, captions_per_image: int) -> tuple[Tensor, Tensor, Tensor]:
        """(images, m, 1024) regions, (captions, N, 1024) words and (captions,) lengths, float32.

        Image i is the split's i-th; its first `captions_per_image` captions are taken, image by image.

        Raises:
            ValueError: the split holds fewer images or captions than asked for.
        """
        if images > len(self.images):
            raise ValueError(f"{self.name}: the workload needs {images} images, the split holds {len(self.images)}")
        first_of_image = np.searchsorted(self.image_of_caption, np.arange(len(self.images)))
        group = np.arange(min(captions_per_image, len(self.captions) // len(self.images)))
        chosen = (first_of_image[:, None] + group).reshape(-1)[:captions]
        if len(chosen) < captions:
            raise ValueError(f"{self.name}: the workload needs {captions} captions, the split offers {len(chosen)}")
        raw = torch.from_numpy(np.asarray(self.images[:images], dtype=np.float32))
        raw = (raw - raw.mean((0, 1))) / raw.std((0, 1)).clamp_min(1e-6)
        generator = torch.Generator().manual_seed(self.seed)
        regions = F.normalize(raw @ torch.randn(raw.shape[-1], WIDTH, generator=generator), dim=-1)
        table = {token: self.embed(token) for index in chosen for token in self.captions[index]}
        words, lengths = pad_words([torch.stack([table[token] for token in self.captions[index]]) for index in chosen])
        return regions, words, lengths


def build(spec: Spec, source: RandomSource | ScanSource, dtype: torch.dtype, device: torch.device) -> Workload:
    """The tensors of a workload, in `dtype` on `device`; a pair list comes with its gallery projected."""
    per_image = 1 if spec.kind != "all pairs" else 5
    regions, words, lengths = source.load(spec.images, spec.captions, per_image)
    weights = cast_weights(make_weights(WIDTH, spec.hidden, seed=1), device, dtype)
    workload = Workload(spec.name, spec.kind == "training", regions.to(device, dtype), words.to(device, dtype), lengths, weights)
    if spec.kind != "pair list":
        return workload
    generator = torch.Generator().manual_seed(2)
    candidates = [torch.randperm(spec.images, generator=generator)[: spec.candidates] for _ in range(spec.captions)]
    pairs = torch.stack([torch.cat(candidates), torch.arange(spec.captions).repeat_interleave(spec.candidates)], 1)
    with torch.no_grad():
        gallery = ck.project_regions(workload.regions, workload.weights)
    return replace(workload, pairs=pairs, gallery=gallery)


def hardest_negative_loss(scores: Tensor) -> Tensor:
    """Triplet loss on the hardest negative of each image and of each caption, summed (VSE++, SCAN and their heirs).

    Args:
        scores: (B, B), true pairs on the diagonal.

    Returns:
        The scalar sum over i of max_j [a + s_ij - s_ii]_+ and over j of max_i [a + s_ij - s_jj]_+, i != j, with a = `MARGIN`.
    """
    true = scores.diagonal()
    own = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    by_image = (MARGIN + scores - true[:, None]).clamp_min(0).masked_fill(own, 0)
    by_caption = (MARGIN + scores - true[None, :]).clamp_min(0).masked_fill(own, 0)
    return by_image.max(1).values.sum() + by_caption.max(0).values.sum()


def loss_gradient(scores: Tensor) -> Tensor:
    """(B, B) derivative of `hardest_negative_loss` with respect to the scores; at most about 3 B entries are not 0."""
    leaf = scores.detach().requires_grad_()
    return torch.autograd.grad(hardest_negative_loss(leaf), leaf)[0]
