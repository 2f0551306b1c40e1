"""Which programs a launch needs: items sorted by size, lists sorted by image, pairs with a gradient counted; all on the
device, so that nothing waits for it and a CUDA graph can hold it.

A kernel is compiled for a block of regions and words, and a pair takes the block that its own lengths need, whatever else
is in the call. That makes its score batch invariant.
"""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# Tensor cores multiply 16 rows at a time.
SMALLEST = 16


def size_of(rows: int) -> int:
    """The power of two, at least `SMALLEST`, that holds this many rows."""
    return max(SMALLEST, 1 << (max(rows, 1) - 1).bit_length())


def sizes_up_to(rows: int, halfway: bool) -> list[int]:
    """Sizes that items of up to `rows` rows may need: powers of two, and with `halfway` what lies between two of them."""
    sizes = [SMALLEST]
    while sizes[-1] < rows:
        power = size_of(sizes[-1])
        sizes.append(power * 3 // 2 if halfway and power == sizes[-1] > SMALLEST else 2 * power if power == sizes[-1] else power)
    return sizes


def parts_of(size: int) -> tuple[int, int]:
    """A size as a power of two and the power of two, or 0, that is left."""
    power = size_of(size)
    return (size, 0) if power == size else (power // 2, size - power // 2)


@dataclass(frozen=True)
class Items:
    """One side of a call, sorted where somebody asks: each step is a launch, and few calls need all of them.

    Attributes:
        lengths: (B,) int64, each from 0 to the rows of the tensor.
        sizes: blocks that may hold an item, in rising order.
        alike: whether all items are as long as the tensor, and so in the only bucket.
        buckets: (B,) int64, the place in `sizes` of each item's block; len(sizes) for an item without rows.
        order: (B,) int64, the items sorted by bucket and, within one, by length: blocks of tiles then have items alike.
        starts: (len(sizes) + 1,) int64, where in `order` each bucket begins.
    """

    lengths: Tensor
    sizes: list[int]
    alike: bool

    @functools.cached_property
    def buckets(self) -> Tensor:
        buckets = torch.where(self.lengths > 0, 0, len(self.sizes))
        for size in self.sizes[:-1]:
            buckets += self.lengths > size
        return buckets

    @functools.cached_property
    def _sorted(self) -> tuple[Tensor, Tensor]:
        return torch.sort(self.buckets * self._step + self.lengths, stable=True)

    @property
    def _step(self) -> int:
        return self.sizes[-1] + 1

    @functools.cached_property
    def order(self) -> Tensor:
        return torch.arange(len(self.lengths), device=self.lengths.device) if self.alike else self._sorted[1]

    @functools.cached_property
    def starts(self) -> Tensor:
        first = torch.arange(len(self.sizes) + 1, device=self.lengths.device) * self._step
        return torch.searchsorted(self._sorted[0], first)


def plan_lengths(features: Tensor, lengths: Tensor | None) -> Tensor:
    """Lengths of (B, L, D) features, (B,) int64; 0 for one out of range: the operator says what becomes of its scores."""
    count, rows = features.shape[:2]
    if lengths is None:
        return torch.full((count,), rows, device=features.device)
    # A remainder leaves alone what is in range, and nothing else.
    return torch.where(lengths.remainder(rows + 1) == lengths, lengths, 0)


def plan_items(features: Tensor, lengths: Tensor | None, halfway: bool = False) -> Items:
    """Sort the items of (B, L, D) features by size, one of `sizes_up_to`; without lengths all are of one."""
    sizes = sizes_up_to(features.shape[1], halfway)
    return Items(plan_lengths(features, lengths), sizes[-1:] if lengths is None else sizes, lengths is None)


class Listed(NamedTuple):
    """A list of pairs in the order in which tiles take it: by bucket, then by image.

    Attributes:
        order: (P,) int64, places in the list.
        keys: (P,) int64, bucket of the pair · images + image; a bucket beyond all others for a pair with an empty side.
    """

    order: Tensor
    keys: Tensor


def plan_list(pairs: Tensor, regions: Items, words: Items) -> Listed:
    """Sort (P, 2) pairs. The bucket of a pair is that of its image times the number of words' buckets, plus its caption's."""
    images, captions = len(regions.lengths), len(words.lengths)
    image, caption = pairs.unbind(1)
    inside = exist(pairs, images, captions)
    image, caption = torch.where(inside, image, 0), torch.where(inside, caption, 0)
    region_bucket, word_bucket = regions.buckets[image], words.buckets[caption]
    real = inside & (region_bucket < len(regions.sizes)) & (word_bucket < len(words.sizes))
    bucket = torch.where(real, region_bucket * len(words.sizes) + word_bucket, len(regions.sizes) * len(words.sizes))
    keys, order = torch.sort(bucket * images + image, stable=True)
    return Listed(order, keys)


def exist(pairs: Tensor, images: int, captions: int) -> Tensor:
    """(P,) bool: which of (P, 2) pairs name an image and a caption that exist."""
    image, caption = pairs.unbind(1)
    return (image >= 0) & (image < images) & (caption >= 0) & (caption < captions)


class Walk(NamedTuple):
    """The pairs that have a gradient, in the order in which it is summed.

    Attributes:
        keys: (P,) int64, image · captions + caption, rising; the first `count` are pairs with a gradient.
        order: (P,) int64, place of each in the call.
        count: (1,) int64.
        image_starts: (I + 1,) int64, where in `keys` each image's pairs begin.
        by_caption: (P,) int64, places in `keys`, those of one caption after each other and by image within it.
        caption_starts: (T + 1,) int64, where in `by_caption` each caption's begin.
    """

    keys: Tensor
    order: Tensor
    count: Tensor
    image_starts: Tensor
    by_caption: Tensor
    caption_starts: Tensor


def plan_walk(wanted: Tensor, pairs: Tensor | None, regions: Items, words: Items) -> Walk:
    """Find the pairs that `wanted` marks ((I, T), or (P,) with pairs) and that have regions and words."""
    images, captions = len(regions.lengths), len(words.lengths)
    none = images * captions
    places = torch.arange(max(none if pairs is None else 0, images + 1, captions + 1), device=wanted.device)
    if pairs is None:
        real = (wanted & (regions.lengths > 0)[:, None] & (words.lengths > 0)).flatten()
        keys = places[:none]
    else:
        inside = exist(pairs, images, captions)
        image, caption = torch.where(inside[:, None], pairs, 0).unbind(1)
        real = wanted & inside & (regions.lengths[image] > 0) & (words.lengths[caption] > 0)
        keys = image * captions + caption
    keys, order = torch.sort(torch.where(real, keys, none), stable=True)
    image_starts = torch.searchsorted(keys, places[: images + 1] * captions)
    sorted_captions, by_caption = torch.sort(torch.where(keys < none, keys % captions, captions), stable=True)
    caption_starts = torch.searchsorted(sorted_captions, places[: captions + 1])
    # Those of the last image end where all do.
    return Walk(keys, order, image_starts[images:], image_starts, by_caption, caption_starts)
