"""Which pairs of a class a program scores: it goes through the numbers of a launch, in steps of as many programs as there are.

How many pairs a class has, only the device knows. So a launch says which numbers it takes, and ends where the class does.
"""

import triton
import triton.language as tl

# Nothing that changes from batch to batch may make a kernel of its own.
VARYING = ["first_bucket", "end_bucket", "word_bucket", "launch", "launch_size", "score_row", "region_rows", "word_rows"]
UNALIGNED = ["region_lengths", "word_lengths", "region_order", "region_starts", "word_order", "word_starts"]
UNALIGNED += ["pairs", "list_order", "list_ranks", "list_starts", "scores"]

# Images whose tiles follow each other with the same captions: rows of both stay in the L2 cache.
BAND = tl.constexpr(32)


@triton.jit
def first_and_count(starts, begin, end):
    """Where these buckets begin in their side's order, or a class in a sorted list, and how many there are."""
    first = tl.load(starts + begin)
    return first, tl.load(starts + end) - first


@triton.jit
def turns(launch, launch_size, count):
    """How many numbers there are for this launch, of a class that has so many."""
    return tl.minimum(tl.maximum(count - launch.to(tl.int64) * launch_size, 0), launch_size).to(tl.int32)


@triton.jit
def in_bands(number, images, captions):
    """Image and caption, or group of captions, with this number, in bands of images that share captions."""
    band = number // (captions * BAND)
    wide = tl.minimum(images - band * BAND, BAND)
    rest = number - band * BAND * captions
    return band * BAND + rest % wide, rest // wide


@triton.jit
def listed_at(position, exists, pairs, list_order):
    """Image, caption and place in the list of the pair at this position of the sorted list."""
    place = tl.load(list_order + position, mask=exists, other=0)
    image = tl.load(pairs + 2 * place, mask=exists, other=0)
    return image, tl.load(pairs + 2 * place + 1, mask=exists, other=0), place


@triton.jit
def pair_at(
    number,
    region_order,
    region_starts,
    word_order,
    word_starts,
    pairs,
    list_order,
    list_starts,
    first_bucket,
    end_bucket,
    word_bucket,
    score_row,
    LISTED: tl.constexpr,
):
    """Image and caption of the pair with this number, and the place of its score."""
    if LISTED:
        return listed_at(tl.load(list_starts + word_bucket) + number, True, pairs, list_order)
    else:
        first_image, images = first_and_count(region_starts, first_bucket, end_bucket)
        first_caption, captions = first_and_count(word_starts, word_bucket, word_bucket + 1)
        image_place, caption_place = in_bands(number, images, captions)
        image = tl.load(region_order + first_image + image_place)
        caption = tl.load(word_order + first_caption + caption_place)
        return image, caption, image * score_row + caption
