"""Which programs a launch needs: items sorted by size, lists sorted by image, pairs with a gradient counted. All of it happens on
the GPU: the host does not synchronise with it, so that a CUDA graph can hold a call.

A kernel is compiled for a block of regions and words, and a pair takes the block that its own lengths need, whatever else
is in the call. That makes its score batch invariant.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

# Tensor cores multiply 16 rows at a time.
SMALLEST = 16


def size_of(rows: int) -> int:
    """The power of two, at least `SMALLEST`, that holds this many rows."""
    return max(SMALLEST, 1 << (max(rows, 1) - 1).bit_length())


@functools.cache
def sizes_up_to(rows: int, halfway: bool) -> tuple[int, ...]:
    """Sizes that items of up to `rows` rows may need: powers of two, and with `halfway` what lies between two of them."""
    sizes = [SMALLEST]
    while sizes[-1] < rows:
        power = size_of(sizes[-1])
        sizes.append(power * 3 // 2 if halfway and power == sizes[-1] > SMALLEST else 2 * power if power == sizes[-1] else power)
    return tuple(sizes)


def parts_of(size: int) -> tuple[int, int]:
    """A size as a power of two and the power of two, or 0, that is left."""
    power = size_of(size)
    return (size, 0) if power == size else (power // 2, size - power // 2)


class Wanted(NamedTuple):
    """What is planned. Lengths may hold anything, and pairs may name items that do not exist.

    Attributes:
        regions: (I, M, D).
        region_lengths: (I,) int64, or None.
        words: (T, N, D).
        word_lengths: (T,) int64, or None.
        pairs: (P, 2) int64 of (image, caption), or None.
        scores: (I, T) with rows of any stride, or (P,) with pairs; empty where none are wanted. Planning fills them: 0 is the score
            of a pair with an empty side, and NaN is that of one whose index, or an item's length, is out of range.
    """

    regions: Tensor
    region_lengths: Tensor | None
    words: Tensor
    word_lengths: Tensor | None
    pairs: Tensor | None
    scores: Tensor


class Items(NamedTuple):
    """One side of a call, sorted.

    Attributes:
        lengths: (B,) int64, each from 0 to the rows of the tensor; 0 for one out of range.
        sizes: blocks that may hold an item, in rising order; without given lengths the one that holds all.
        order: (B,) int64, items sorted by bucket, the place in `sizes` of an item's block; those without rows come last. In
            a bucket the items of up to three quarters of the block come first: tiles that have these alone have less to do.
        starts: (len(sizes) + 1,) int64, where in `order` each bucket begins.
    """

    lengths: Tensor
    sizes: tuple[int, ...]
    order: Tensor
    starts: Tensor


class Plan(NamedTuple):
    """A planned call.

    Attributes:
        regions, words: both sides.
        keys: (P,) int64, class · images + image of each pair of a list; None without one. The class is r · (number of word
            buckets) + bucket of the words. A backend says which of the first buckets of a side are small. Where a pair's buckets
            are small on both sides, r is the bucket of the regions; otherwise it is the number of small buckets of regions. A pair
            with an empty side, or that does not exist, has a class beyond all others.
    """

    regions: Items
    words: Items
    keys: Tensor | None


class Listed(NamedTuple):
    """A list of pairs in the order in which tiles take it: by class, then by image.

    Attributes:
        keys: (P,) int64, those of the plan, in rising order.
        order: (P,) int64, places in the list.
    """

    keys: Tensor
    order: Tensor


def sort_list(plan: Plan) -> Listed | None:
    """The list of a plan, sorted."""
    return None if plan.keys is None else Listed(*torch.sort(plan.keys, stable=True))


def new_plan(wanted: Wanted) -> tuple[Tensor, Plan]:
    """A plan that a kernel is to write, and the tensor that holds its numbers.

    In that, one behind the other, lie lengths, order and starts of regions, those of words, and keys.
    """
    region_sizes = _sizes_of(wanted.regions, wanted.region_lengths, True)
    word_sizes = _sizes_of(wanted.words, wanted.word_lengths, False)
    images, captions = wanted.regions.shape[0], wanted.words.shape[0]
    parts = [images, images, len(region_sizes) + 1, captions, captions, len(word_sizes) + 1]
    parts.append(0 if wanted.pairs is None else wanted.pairs.shape[0])
    numbers = wanted.regions.new_empty(sum(parts), dtype=torch.int64)
    m, image_order, image_starts, n, caption_order, caption_starts, keys = numbers.split_with_sizes(parts)
    regions, words = Items(m, region_sizes, image_order, image_starts), Items(n, word_sizes, caption_order, caption_starts)
    return numbers, Plan(regions, words, None if wanted.pairs is None else keys)


def _sizes_of(features: Tensor, lengths: Tensor | None, halfway: bool) -> tuple[int, ...]:
    sizes = sizes_up_to(features.shape[1], halfway)
    return sizes[-1:] if lengths is None else sizes


def exist(pairs: Tensor, images: int, captions: int) -> Tensor:
    """(P,) bool: which of (P, 2) pairs name an image and a caption that exist."""
    image, caption = pairs.unbind(1)
    return (image >= 0) & (image < images) & (caption >= 0) & (caption < captions)


class Schedule(NamedTuple):
    """The pairs that have a gradient, in the order in which it is summed.

    Attributes:
        keys: (P,) int64, image · captions + caption, rising; the first `count` are pairs with a gradient.
        order: (P,) int64, place of each in the call.
        count: (1,) int64.
        image_starts: (I + 1,) int64, where in `keys` each image's pairs begin.
        by_caption: (P,) int64, of which `count` say places in `keys`, those of one caption after each other and by image within it.
        caption_starts: (T + 1,) int64, where in `by_caption` each caption's begin.
    """

    keys: Tensor
    order: Tensor
    count: Tensor
    image_starts: Tensor
    by_caption: Tensor
    caption_starts: Tensor


def plan_schedule(grad: Tensor, pairs: Tensor | None, region_lengths: Tensor, word_lengths: Tensor) -> Schedule:
    """Find the pairs whose gradient ((I, T), or (P,) with pairs) is not 0 and that have regions and words."""
    wanted, images, captions = grad != 0, region_lengths.shape[0], word_lengths.shape[0]
    none = images * captions
    places = torch.arange(max(none if pairs is None else 0, images + 1, captions + 1), device=wanted.device)
    if pairs is None:
        real = (wanted & (region_lengths > 0)[:, None] & (word_lengths > 0)).flatten()
        keys = places[:none]
    else:
        inside = exist(pairs, images, captions)
        image, caption = torch.where(inside[:, None], pairs, 0).unbind(1)
        real = wanted & inside & (region_lengths[image] > 0) & (word_lengths[caption] > 0)
        keys = image * captions + caption
    keys, order = torch.sort(torch.where(real, keys, none), stable=True)
    image_starts = torch.searchsorted(keys, places[: images + 1] * captions)
    sorted_captions, by_caption = torch.sort(torch.where(keys < none, keys % captions, captions), stable=True)
    caption_starts = torch.searchsorted(sorted_captions, places[: captions + 1])
    # Those of the last image end where all do.
    return Schedule(keys, order, image_starts[images:], image_starts, by_caption, caption_starts)
