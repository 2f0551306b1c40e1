"""Seconds of a pair on an H100, by estimate, from which follows how many a launch takes (core/gpu/limits.py).

Kernels work in whole pieces: rows and widths are rounded up to those. Clocks of a piece are those that benchmarks/gpu_estimate.py
counts, without overlap; tests hold them against its results.
"""

from typing import NamedTuple

from ...core.gpu.limits import ARITHMETIC, CLOCK, LATENCY, MEMORY, MULTIPROCESSORS, seconds_of, steps, times, whole
from ...core.gpu.plan import size_of


class Shape(NamedTuple):
    """Pairs of a call: most regions and words, widths, bytes of a number, and whether scores are cosines."""

    regions: int
    words: int
    width: int
    hidden: int
    itemsize: int
    cosine: bool = False

    @property
    def read(self) -> float:
        """Seconds to read a pair's rows of features and products from memory."""
        numbers = self.regions * (self.width + 2 * self.hidden) + 2 * self.words * (self.width + self.hidden)
        return self.itemsize * numbers / MEMORY


def tile(shape: Shape) -> float:
    """A pair in a tile of tiles.cu, of up to 64 regions and 32 words."""
    if shape.itemsize == 4:
        return seconds_of(190 * steps(shape.width, 32) + 450 * steps(shape.hidden, 32) + 800)
    # Tiles of 8 regions and 16 words.
    cells = (5 if shape.regions <= 40 else 8) * steps(shape.words, 16)
    products = (25 + 11 * cells) * steps(shape.width, 64)
    # Pooled vectors take both sides' rows once more.
    return seconds_of((2 if shape.cosine else 1) * products + (105 + 21 * cells) * steps(shape.hidden, 64) + 180 + 62 * cells)


def listed_tile(shape: Shape) -> float:
    """The same of a list, where no two pairs share rows and half as many warps share a multiprocessor."""
    return 2 * tile(shape) + shape.read


def large(shape: Shape) -> float:
    """A pair in a block of large.cu, where blocks fill the GPU."""
    strips, of_regions, chunks = size_of(shape.words) // 16, steps(shape.regions, 16), steps(shape.regions, 64)
    if shape.itemsize == 4:
        products, sweep = (200 + 400 * strips) * 2, 1000 + 1100 * strips * of_regions
    else:
        products, sweep = 285 + 180 * strips, 1000 + (215 + 150 * strips) * of_regions
    clocks = chunks * products * steps(shape.width, 64) + sweep * steps(shape.hidden, 128)
    clocks += 2000 + 125 * strips * of_regions + 200 * strips**2
    return seconds_of(clocks + _pooling(shape))


def _pooling(shape: Shape) -> int:
    """Clocks of a multiprocessor for pooled vectors, whose rows a thread reads one after another."""
    return 60 * (shape.regions + shape.words) * steps(shape.width, 256) if shape.cosine else 0


def in_float32(shape: Shape) -> float:
    """A score in pair.cu."""
    numbers = shape.regions * whole(shape.words, 4) * (whole(shape.width, 32) + 6 * whole(shape.hidden, 32))
    return seconds_of(numbers / ARITHMETIC + 5000 + _pooling(shape))


def in_triton(shape: Shape, small: bool, exact: bool, listed: bool) -> float:
    """A score of Triton's kernels, where no machine code was counted: as if they took twice as long as those of CUDA C++."""
    read = shape.read if listed else 0
    if exact:
        return in_float32(shape._replace(regions=size_of(shape.regions), words=size_of(shape.words))) + read
    return 2 * (tile if small else large)(shape) + read


def of_blocks(pair: float, blocks: int, resident: int) -> int:
    """Pairs of a launch whose blocks work on one each.

    Args:
        pair: its seconds where blocks fill the GPU.
        blocks: as many as there may be at once, for want of scratch memory.
        resident: blocks that share a multiprocessor. One without the others may be no faster.
    """
    return blocks * times(pair * MULTIPROCESSORS * resident)


class Derivatives(NamedTuple):
    """Seconds of a pair's derivatives where blocks fill the GPU, and of its part of a sum that one block makes."""

    pair: float
    step: float

    @classmethod
    def of(cls, cells: int, of_width: float, of_hidden: float, pieces: tuple[int, int]) -> "Derivatives":
        """From clocks of a cell and piece of the width and of the hidden width. About half of them are sums of an image and of a
        caption; a block that makes one has a multiprocessor to itself where blocks are few, and is as slow as beside two others.
        """
        width, hidden = pieces
        return cls(
            seconds_of(cells * (of_width * width + of_hidden * hidden) + 30_000), 3 / 4 * cells * of_hidden / CLOCK + LATENCY
        )


def derivatives(shape: Shape, tiled: bool) -> Derivatives:
    """On tensor cores (`tiled`) or in float32 arithmetic."""
    if tiled:
        # What gpu_estimate.py counts is a lower bound: half as much again.
        of_width, of_hidden = (1600, 9300) if shape.itemsize == 4 else (1200, 5700)
        cells = steps(shape.regions, 16) * steps(shape.words, 16)
        return Derivatives.of(cells, of_width, of_hidden, (steps(shape.width, 64), steps(shape.hidden, 64)))
    cells = shape.regions * whole(shape.words, 4)
    of_width, of_hidden = (32 * products / ARITHMETIC for products in (6, 35))
    return Derivatives.of(cells, of_width, of_hidden, (steps(shape.width, 32), steps(shape.hidden, 32)))


def most_pairs(of: Derivatives, longest_sum: int, slots: int, turns: int = 0) -> int:
    """Pairs with a gradient that a launch takes.

    Args:
        of: what they take.
        longest_sum: pairs that an image, or a caption, has at most.
        slots: pairs that are worked on at once, before they are added up.
        turns: of blocks that add them up, if only to find nothing.
    """
    at_once = min(slots, 3 * MULTIPROCESSORS)
    pair, turns_of_round = of.pair * 3 * MULTIPROCESSORS / at_once, turns * seconds_of(900)

    def fitting(pair: float, before: float) -> int:
        # All pairs may be of one item, or as many as one has, beside others.
        return max(times(pair + of.step, before), times(pair, before + longest_sum * of.step))

    # A last round that is not full has all turns.
    rounds = steps(fitting(pair + turns_of_round / slots, 0), slots)
    most = max((rounds - 1) * slots, fitting(pair, rounds * turns_of_round))
    # Pairs that are worked on at once take as long as one.
    return max(most, min(at_once, times(of.step)))
