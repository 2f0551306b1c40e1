"""Ranks and recall, counted from tiles of the score matrix.

A rank is the number of wrong answers that are not worse than the right one. **A wrong answer that scores the same counts
as better**: a tie is a lost place, whatever the order of images and captions, so a model that cannot tell its answers
apart gets 0, never what a sort happens to leave. `Ranks.tied` says how many places that concerns. Two captions with the
same text always tie: in COCO's 5K test 296 of 25,000 captions stand under more than one image.

An image's right answers are all of its captions; its rank is that of the best one. A caption's right answer is its image.
"""

import math
from dataclasses import astuple, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# A caption's score with its own image may come from another batch than the tile, on a backend that rounds differently
# there. Further apart than this, the tile's indices are not those of its scores.
_AGREEMENT = 1e-3


class Ranks(NamedTuple):
    """Ranks of Q queries.

    Attributes:
        queries: (Q,) int64, which images or captions asked.
        better: (Q,) int64, wrong answers that score higher than the right one.
        tied: (Q,) int64, wrong answers that score the same.
    """

    queries: Tensor
    better: Tensor
    tied: Tensor

    @property
    def ranks(self) -> Tensor:
        """(Q,) int64, 0 for a right answer that scores higher than all others."""
        return self.better + self.tied


@dataclass(frozen=True)
class Recall:
    """One direction's figures.

    Attributes:
        r1, r5, r10: percentage of queries with a rank below 1, 5, 10.
        median_rank: 1 for the best; floor of the median, plus 1.
        mean_rank: 1 for the best.
        tied_queries: how many queries lost places to a tie.
    """

    r1: float
    r5: float
    r10: float
    median_rank: float
    mean_rank: float
    tied_queries: float


@dataclass(frozen=True)
class Figures:
    """Figures of both directions."""

    image_to_text: Recall
    text_to_image: Recall

    @property
    def sides(self) -> tuple[Recall, Recall]:
        """Both directions, image→text first."""
        return self.image_to_text, self.text_to_image

    @property
    def rsum(self) -> float:
        """Sum of the six recalls, 600 at best."""
        return sum(side.r1 + side.r5 + side.r10 for side in self.sides)


class RankCounter:
    """Counts ranks from the tiles of a score matrix, one after the other.

    It keeps a few numbers for each image and each caption. It needs beforehand each caption's score with its own image, from
    `caan_kernels.context_attention` with the pairs (image_of_caption[t], t). These scores have the same bits as in the matrix.

    Args:
        positives: (T,) score of each caption with its image.
        image_of_caption: (T,) int64, from 0 to num_images - 1; images may have any number of captions. An image
            without captions is a wrong answer to every caption, and is no query.
        num_images: I.
        fold_of_image: (I,) int64, the number of each image's fold; an image competes with the captions of its fold only. None:
            one fold.

    Raises:
        ValueError: a shape or value that does not fit.
    """

    def __init__(self, positives: Tensor, image_of_caption: Tensor, num_images: int, fold_of_image: Tensor | None = None):
        image_of_caption = image_of_caption.to("cpu", torch.int64)
        if image_of_caption.dim() != 1 or len(image_of_caption) == 0:
            raise ValueError(f"image_of_caption: expected shape (T,) with T at least 1, got {tuple(image_of_caption.shape)}")
        if image_of_caption.min() < 0 or image_of_caption.max() >= num_images:
            low, high = int(image_of_caption.min()), int(image_of_caption.max())
            raise ValueError(f"image_of_caption: expected images from 0 to {num_images - 1}, got {low} to {high}")
        if positives.shape != image_of_caption.shape:
            raise ValueError(
                f"positives: expected shape ({len(image_of_caption)},), as image_of_caption, got {tuple(positives.shape)}"
            )
        if fold_of_image is None:
            fold_of_image = torch.zeros(num_images, dtype=torch.int64, device="cpu")
        if fold_of_image.shape != (num_images,):
            raise ValueError(f"fold_of_image: expected shape ({num_images},), got {tuple(fold_of_image.shape)}")
        _check_numbers("positives", positives)

        self._image_of_caption = image_of_caption
        self._fold_of_image = fold_of_image.to("cpu", torch.int64)
        self._num_folds = len(self._fold_of_image.unique())
        self._has_captions = torch.bincount(image_of_caption, minlength=num_images) > 0
        self._positives = positives.detach()
        index = image_of_caption.to(positives.device)
        self._best = torch.full((num_images,), float("-inf"), dtype=positives.dtype, device=positives.device)
        self._best.scatter_reduce_(0, index, self._positives, "amax")
        # Rows: wrong answers that are better, that are tied, and all that were seen.
        self._by_image = torch.zeros(3, num_images, dtype=torch.int64, device="cpu")
        self._by_caption = torch.zeros(3, len(image_of_caption), dtype=torch.int64, device="cpu")

    def add(self, scores: Tensor, images: Tensor | slice, captions: Tensor | slice) -> None:
        """Count a tile. Together the tiles must have every pair of a fold once; pairs across folds may be missing.

        Args:
            scores: (i, t), of the positives' dtype and device.
            images: which images the rows are: (i,) int64, or a slice.
            captions: which captions the columns are: (t,) int64, or a slice.

        Raises:
            TypeError, ValueError: the tile does not fit, holds NaN, or contradicts the positives.
        """
        images, captions = _indices(images, len(self._best)), _indices(captions, len(self._positives))
        if scores.shape != (len(images), len(captions)):
            raise ValueError(f"scores: expected shape {(len(images), len(captions))} for this tile, got {tuple(scores.shape)}")
        if (scores.dtype, scores.device) != (self._positives.dtype, self._positives.device):
            expected = f"{self._positives.dtype} on {self._positives.device}, as the positives"
            raise TypeError(f"scores: expected {expected}, got {scores.dtype} on {scores.device}")
        _check_numbers("scores", scores)

        scores = scores.detach()
        if self._num_folds == 1:
            self._count(scores, images, captions)
            return
        row_folds, column_folds = self._fold_of_image[images], self._fold_of_image[self._image_of_caption[captions]]
        for fold in row_folds.unique():
            rows, columns = (row_folds == fold).nonzero()[:, 0], (column_folds == fold).nonzero()[:, 0]
            tile = scores.index_select(0, rows.to(scores.device)).index_select(1, columns.to(scores.device))
            self._count(tile, images[rows], captions[columns])

    def _count(self, scores: Tensor, images: Tensor, captions: Tensor) -> None:
        """Count a tile of one fold."""
        device = scores.device
        positives, best = self._positives[captions.to(device)], self._best[images.to(device)]

        # Right answers are few: they are counted with the rest, and taken off again one by one.
        row_of_image = torch.full((len(self._best),), -1, dtype=torch.int64, device="cpu")
        row_of_image[images] = torch.arange(len(images), device="cpu")
        rows = row_of_image[self._image_of_caption[captions]]
        columns = (rows >= 0).nonzero()[:, 0]
        rows = rows[columns]
        right = scores[rows.to(device), columns.to(device)]
        self._check_agreement(right, images[rows], captions[columns])

        for counts, index, thresholds, dim, own, place in (
            (self._by_image, images, best, 1, best[rows.to(device)], rows),
            (self._by_caption, captions, positives, 0, positives[columns.to(device)], columns),
        ):
            compared = thresholds.unsqueeze(dim)
            tile = torch.stack([_count_true(scores > compared, dim), _count_true(scores == compared, dim)]).cpu()
            tile.index_add_(1, place, -torch.stack([right > own, right == own]).to(tile))
            seen = torch.full_like(index, scores.shape[dim]).index_add_(0, place, torch.full_like(place, -1))
            counts.index_add_(1, index, torch.cat((tile, seen[None])))

    @property
    def counts(self) -> tuple[Tensor, Tensor]:
        """The counts so far, (3, I) and (3, T) int64 on the CPU; rows: wrong answers that are better, tied, and all that were seen.

        Counts of disjoint tiles add up: `add_counts` takes those of a counter with the same positives.
        """
        return self._by_image, self._by_caption

    def add_counts(self, by_image: Tensor, by_caption: Tensor) -> None:
        """Add the counts of another counter, or of this one in an earlier process."""
        self._by_image += by_image
        self._by_caption += by_caption

    def ranks(self) -> tuple[Ranks, Ranks]:
        """Ranks of image→text, for images with captions, and of text→image.

        Raises:
            ValueError: pairs are missing or came twice.
        """
        fold_of_caption = self._fold_of_image[self._image_of_caption]
        images_in_fold = torch.bincount(self._fold_of_image)
        captions_in_fold = torch.bincount(fold_of_caption, minlength=len(images_in_fold))
        own = torch.bincount(self._image_of_caption, minlength=len(self._best))
        for what, counts, expected in (
            ("image", self._by_image, captions_in_fold[self._fold_of_image] - own),
            ("caption", self._by_caption, images_in_fold[fold_of_caption] - 1),
        ):
            wrong = (counts[2] != expected).nonzero()
            if len(wrong):
                item = int(wrong[0])
                found = f"found {int(counts[2, item])} for {what} {item}"
                raise ValueError(f"scores: expected {int(expected[item])} wrong answers from the tiles, each once, {found}")
        images = self._has_captions.nonzero()[:, 0]
        captions = torch.arange(len(self._positives), device="cpu")
        return Ranks(images, *self._by_image[:2, images]), Ranks(captions, *self._by_caption[:2])

    def figures(self) -> Figures:
        """The field's figures; with folds, each figure's mean over the folds.

        Raises:
            ValueError: pairs are missing or came twice.
        """
        image_ranks, caption_ranks = self.ranks()
        image_folds = self._fold_of_image[image_ranks.queries]
        caption_folds = self._fold_of_image[self._image_of_caption]
        present = image_folds.unique()
        return Figures(
            _mean([recall(_chosen(image_ranks, image_folds == fold)) for fold in present]),
            _mean([recall(_chosen(caption_ranks, caption_folds == fold)) for fold in present]),
        )

    def _check_agreement(self, found: Tensor, images: Tensor, captions: Tensor) -> None:
        """Scores of captions with their images, from a tile, against the positives."""
        expected = self._positives[captions.to(found.device)]
        differs = ((found - expected).abs() > _AGREEMENT * expected.abs().clamp(min=1)).nonzero()
        if len(differs):
            first = int(differs[0])
            pair = f"image {int(images[first])} with caption {int(captions[first])}"
            wanted = f"{float(expected[first])} for {pair}, its score in positives"
            raise ValueError(f"scores: expected {wanted}, got {float(found[first])}")


def folds(num_images: int, size: int) -> Tensor:
    """(I,) int64, the fold of each image: consecutive folds of `size`, as in COCO's 5 × 1,000.

    Raises:
        ValueError: size does not divide num_images.
    """
    if size < 1 or num_images % size:
        raise ValueError(f"size: expected a divisor of {num_images} images, got {size}")
    return torch.arange(num_images, device="cpu") // size


def recall(ranks: Ranks) -> Recall:
    """Figures of one direction.

    Raises:
        ValueError: there are no queries.
    """
    places = ranks.ranks.sort().values
    count = len(places)
    if count == 0:
        raise ValueError("ranks: expected at least one query, got none")
    r1, r5, r10 = (100 * int((places < k).sum()) / count for k in (1, 5, 10))
    median = int(places[(count - 1) // 2] + places[count // 2]) // 2
    return Recall(r1, r5, r10, median + 1, int(places.sum()) / count + 1, int((ranks.tied > 0).sum()))


def chance(image_of_caption: Tensor, num_images: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """R@1, R@5 and R@10 that scores without meaning have on average, image→text and text→image.

    Args:
        image_of_caption, num_images: as for `RankCounter`.
    """
    captions = len(image_of_caption)
    own = torch.bincount(image_of_caption, minlength=num_images)
    counts, images = own[own > 0].unique(return_counts=True)
    by_image, by_caption = [], []
    for k in (1, 5, 10):
        # An image's first own caption is at the k-th place or before it, unless the first k are all others'.
        missed = [math.comb(captions - c, k) / math.comb(captions, k) if k <= captions else 0.0 for c in counts.tolist()]
        by_image.append(100 - 100 * sum(n * m for n, m in zip(images.tolist(), missed, strict=True)) / int(images.sum()))
        by_caption.append(100 * min(1.0, k / num_images))
    return tuple(by_image), tuple(by_caption)


def chance_limit(image_of_caption: Tensor, num_images: int, queries: int) -> float:
    """What rsum scores without meaning exceed in about one evaluation of a hundred: two standard deviations above its mean.

    Captions of an image are much alike, and so are the two directions: each counts as `queries` independent trials, and their
    deviations add up.

    Args:
        image_of_caption, num_images: as for `RankCounter`; of one fold where figures are means over folds.
        queries: images that ask.
    """
    limit = 0.0
    for recalls in chance(image_of_caption, num_images):
        r1, r5, r10 = (recall / 100 for recall in recalls)
        # A query that is right at the first place is right at the first five.
        variance = sum(r * (1 - r) for r in (r1, r5, r10)) + 2 * (r1 * (1 - r5) + (r1 + r5) * (1 - r10))
        limit += sum(recalls) + 200 * math.sqrt(max(variance, 0.0) / queries)
    return limit


def _mean(sides: list[Recall]) -> Recall:
    return Recall(*(sum(values) / len(sides) for values in zip(*map(astuple, sides), strict=True)))


def _chosen(ranks: Ranks, mask: Tensor) -> Ranks:
    return Ranks(*(values[mask] for values in ranks))


def _indices(index: Tensor | slice, count: int) -> Tensor:
    if isinstance(index, slice):
        return torch.arange(*index.indices(count), device="cpu")
    return index.to("cpu", torch.int64)


def _count_true(mask: Tensor, dim: int) -> Tensor:
    """int64 number of true elements along dim; several times as fast as `mask.sum`, which widens each of them."""
    return mask.view(torch.uint8).sum(dim, dtype=torch.int32).long()


def _check_numbers(name: str, scores: Tensor) -> None:
    # Every comparison with NaN is false: it would count as a perfect rank.
    if scores.isnan().any():
        raise ValueError(f"{name}: expected numbers, got NaN at {tuple(scores.isnan().nonzero()[0].tolist())}")
