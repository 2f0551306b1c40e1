"""Plans of a call (core/gpu/plan.py), written by one kernel: a program for half a bucket of either side, and programs for pairs."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ..gpu.plan import SMALLEST, Plan, Wanted, new_plan

# Items, and pairs, that a program takes at once; most programs that fill scores.
ITEMS, FILLED, MOST_FILLING = 256, 1024, 4096
COMPILED = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": False}


@triton.jit
def read_length(given, item, exists, rows, given_count):
    """Lengths of items, 0 where one is out of range, and whether it is in range; all rows where no length is given."""
    length = tl.load(given + item, mask=exists & (item < given_count), other=rows)
    fits = (length >= 0) & (length <= rows)
    return tl.where(fits, length, 0), fits


@triton.jit
def half_bucket_of(length, buckets, HALFWAY: tl.constexpr, FIRST: tl.constexpr):
    """Twice the place among sizes of each length, and one more beyond three quarters of the size; 2 * `buckets` for 0."""
    bucket = tl.where(length > 0, 0, buckets)
    size = tl.full((), FIRST, tl.int32)
    late = length > size // 4 * 3
    for k in tl.range(0, buckets - 1):
        beyond = length > size
        bucket += beyond.to(tl.int32)
        up = tl.where(k % 2 == 1, size // 2 * 3, size // 3 * 4)
        size = tl.where((k > 0) & HALFWAY, up, 2 * size)
        late = tl.where(beyond, length > size // 4 * 3, late)
    return 2 * bucket + late.to(tl.int32)


@triton.jit
def sort_half_bucket(
    half,
    given,
    lengths,
    order,
    starts,
    count,
    rows,
    given_count,
    buckets,
    HALFWAY: tl.constexpr,
    FIRST: tl.constexpr,
    ITEMS: tl.constexpr,
):
    place = tl.full((), 0, tl.int64)
    for first in tl.range(0, count, ITEMS):
        item = first + tl.arange(0, ITEMS)
        length, _ = read_length(given, item, item < count, rows, given_count)
        lower = (half_bucket_of(length, buckets, HALFWAY, FIRST) < half) & (item < count)
        place += tl.sum(lower.to(tl.int32), 0)
    tl.store(starts + half // 2, place, mask=half % 2 == 0)
    for first in tl.range(0, count, ITEMS):
        item = first + tl.arange(0, ITEMS)
        length, _ = read_length(given, item, item < count, rows, given_count)
        own = (half_bucket_of(length, buckets, HALFWAY, FIRST) == half) & (item < count)
        before = tl.cumsum(own.to(tl.int32), 0) - own.to(tl.int32)
        tl.store(lengths + item, length, mask=own)
        tl.store(order + place + before, item, mask=own)
        place += tl.sum(own.to(tl.int32), 0)


# Nothing that changes from batch to batch may make a kernel of its own.
VARYING = [
    "images",
    "captions",
    "region_rows",
    "word_rows",
    "region_given_count",
    "word_given_count",
    "region_buckets",
    "word_buckets",
]
VARYING += ["rows", "columns", "score_row", "small_regions", "small_words"]
UNALIGNED = ["region_given", "word_given", "m", "image_order", "image_starts", "n", "caption_order", "caption_starts"]
UNALIGNED += ["pairs", "keys", "scores"]


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def plan_kernel(
    region_given,
    word_given,
    m,
    image_order,
    image_starts,
    n,
    caption_order,
    caption_starts,
    pairs,
    keys,
    scores,
    images,
    captions,
    region_rows,
    word_rows,
    region_given_count,
    word_given_count,
    region_buckets,
    word_buckets,
    small_regions,
    small_words,
    rows,
    columns,
    score_row,
    LISTED: tl.constexpr,
    FIRST: tl.constexpr,
    ITEMS: tl.constexpr,
    FILLED: tl.constexpr,
):
    """Buckets of regions, buckets of words, and scores, (rows, columns), by programs in this order.

    A list's scores are one row, and have keys.
    """
    program = tl.program_id(0)
    if program <= 2 * region_buckets:
        sort_half_bucket(
            program,
            region_given,
            m,
            image_order,
            image_starts,
            images,
            region_rows,
            region_given_count,
            region_buckets,
            True,
            FIRST,
            ITEMS,
        )
        return
    program -= 2 * region_buckets + 1
    if program <= 2 * word_buckets:
        sort_half_bucket(
            program,
            word_given,
            n,
            caption_order,
            caption_starts,
            captions,
            word_rows,
            word_given_count,
            word_buckets,
            False,
            FIRST,
            ITEMS,
        )
        return
    program -= 2 * word_buckets + 1
    programs = tl.num_programs(0) - 2 * (region_buckets + word_buckets) - 2
    pieces = tl.cdiv(columns, FILLED)
    for piece in tl.range(program, rows * pieces, programs):
        row = (piece // pieces).to(tl.int64)
        column = piece % pieces * FILLED + tl.arange(0, FILLED)
        exists = column < columns
        if LISTED:
            image = tl.load(pairs + 2 * column, mask=exists, other=0)
            caption = tl.load(pairs + 2 * column + 1, mask=exists, other=0)
        else:
            image = row + tl.zeros((FILLED,), tl.int64)
            caption = column
        named = exists & (image >= 0) & (image < images) & (caption >= 0) & (caption < captions)
        region_length, region_fits = read_length(region_given, image, named, region_rows, region_given_count)
        word_length, word_fits = read_length(word_given, caption, named, word_rows, word_given_count)
        tl.store(scores + row * score_row + column, tl.where(named & region_fits & word_fits, 0.0, float("nan")), mask=exists)
        if LISTED:
            region = half_bucket_of(region_length, region_buckets, True, FIRST) // 2
            word = half_bucket_of(word_length, word_buckets, False, FIRST) // 2
            scored = named & (region < region_buckets) & (word < word_buckets)
            of_regions = tl.where((word < small_words) & (region < small_regions), region, small_regions)
            kind = tl.where(scored, of_regions * word_buckets + word, (small_regions + 1) * word_buckets)
            tl.store(keys + column, kind.to(tl.int64) * images + tl.where(named, image, 0), mask=exists)


class Planning(NamedTuple):
    """A plan that is still to be written, and what writes it: `plan_kernel[programs](*arguments, **constants)`."""

    plan: Plan
    programs: tuple[int]
    arguments: tuple[Tensor | int, ...]
    constants: dict[str, int | bool]


def planning(wanted: Wanted, most_regions: int = 0, most_words: int = 0) -> Planning:
    """Plan a call; blocks of up to `most_regions` regions, and of up to `most_words` words, are small (`Plan.keys`)."""
    numbers, made = new_plan(wanted)
    regions, words, keys = made
    images, captions = wanted.regions.shape[0], wanted.words.shape[0]
    scores = wanted.scores if wanted.scores.dim() == 2 else wanted.scores[None]
    rows, columns = scores.shape
    arguments = (
        *(numbers if x is None else x for x in (wanted.region_lengths, wanted.word_lengths)),
        *(regions.lengths, regions.order, regions.starts),
        *(words.lengths, words.order, words.starts),
        *((numbers, numbers) if keys is None else (wanted.pairs, keys)),
        scores,
        *(images, captions, wanted.regions.shape[1], wanted.words.shape[1]),
        *(0 if x is None else x.shape[0] for x in (wanted.region_lengths, wanted.word_lengths)),
        *(len(regions.sizes), len(words.sizes)),
        *(sum(size <= most for size in x.sizes) for x, most in ((regions, most_regions), (words, most_words))),
        *(rows, columns, scores.stride(0)),
    )
    constants = {"LISTED": keys is not None, "FIRST": SMALLEST, "ITEMS": ITEMS, "FILLED": FILLED, **COMPILED}
    programs = 2 * (len(regions.sizes) + len(words.sizes)) + 2 + min(rows * -(-columns // FILLED), MOST_FILLING)
    return Planning(made, (programs,), arguments, constants)
