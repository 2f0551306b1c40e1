"""Which kernel scores which pairs, and in what pieces, so that no launch takes long."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.gpu.plan import Items, Listed

# Pairs of up to so many regions and words have kernels of their own in half precision, several captions a program.
SMALL_REGIONS, SMALL_WORDS = 64, 32


class Class(NamedTuple):
    """Pairs that take the same kernels.

    Attributes:
        small: whether a program scores several captions at once.
        region_buckets: the first bucket of regions, and the one after the last.
        word_bucket: the bucket of words.
        rows: most regions and words of a pair in this call.
        sizes: the block of a small pair's regions, 0 for others, and the block of words.
        number: what lists are sorted by.
    """

    small: bool
    region_buckets: tuple[int, int]
    word_bucket: int
    rows: tuple[int, int]
    sizes: tuple[int, int]
    number: int


def classes_of(regions: Items, words: Items, rows: tuple[int, int], half: bool) -> list[Class]:
    """The classes of a call whose tensors hold `rows` regions and words an item: small ones, then one for each block of words."""
    few = sum(size <= SMALL_REGIONS for size in regions.sizes) if half else 0
    classes = []
    for t, words_size in enumerate(words.sizes):
        first = few if words_size <= SMALL_WORDS else 0
        most = min(words_size, rows[1])
        for i, size in enumerate(regions.sizes[:first]):
            classes.append(Class(True, (i, i + 1), t, (min(size, rows[0]), most), (size, words_size), i * len(words.sizes) + t))
        if first < len(regions.sizes):
            number = few * len(words.sizes) + t
            classes.append(Class(False, (first, len(regions.sizes)), t, (rows[0], most), (0, words_size), number))
    return classes


class Ranks(NamedTuple):
    """Runs of a sorted list.

    Attributes:
        ranks: (P,) int64, how many pairs of the same class and image come before.
        starts: int64, where in the list each class begins, and the last ends.
    """

    ranks: Tensor
    starts: Tensor


def rank(listed: Listed, images: int, classes: list[Class]) -> Ranks:
    """Find the runs of a list of pairs of so many images."""
    keys = listed.keys
    ranks = torch.arange(keys.shape[0], device=keys.device) - torch.searchsorted(keys, keys)
    return Ranks(ranks, torch.searchsorted(keys, torch.arange(max(x.number for x in classes) + 2, device=keys.device) * images))


class Launches(NamedTuple):
    """Launches that go through a class's tiles, or through its pairs, one piece after another.

    Attributes:
        count: how many there may be of them; how many there are, only the device knows.
        size: how many of them a launch takes.
        programs: of a launch, at most.
    """

    count: int
    size: int
    programs: int

    def grids(self) -> Iterator[tuple[int, int]]:
        """Number and programs of each launch."""
        for number in range(-(-self.count // self.size)):
            yield number, min(self.programs, self.count - number * self.size)
