"""Stage 1: S = U Kᵀ Vᵀ and X = U Vᵀ of all pairs of a round, as matrix products of their items' rows.

Both go to the workspace as float32, (pairs, words, regions). A sum runs along the width in one order, in every tile and for
every list. Tiles take tensor cores by `mma.sync`: two warps are too few for Hopper's `wgmma`, before which Triton 3.6 leaves
out a fence (triton-lang/triton issue 10537), and for Blackwell's `tcgen05`.
"""

import triton
import triton.language as tl

from ...core.triton.functions import add_with_rest, load_block

# Nothing that changes from batch to batch may make a kernel of its own.
VARYING = ["first_bucket", "end_bucket", "word_bucket", "first_image", "first_caption", "images", "captions", "score_row"]
VARYING += ["region_rows", "word_rows", "region_stride", "word_stride"]
UNALIGNED = ["region_lengths", "word_lengths", "region_order", "region_starts", "word_order", "word_starts"]
UNALIGNED += ["pairs", "list_order", "list_ranks", "list_starts", "scores"]


@triton.jit
def image_at(number, region_order, region_starts, first_bucket, end_bucket, first_image):
    """The image with this number in a round, and whether there is one."""
    place = tl.load(region_starts + first_bucket) + first_image + number
    exists = place < tl.load(region_starts + end_bucket)
    return tl.load(region_order + place, mask=exists, other=0), exists


@triton.jit
def caption_at(number, word_order, word_starts, word_bucket, first_caption):
    """The caption with this number in a round, and whether there is one."""
    place = tl.load(word_starts + word_bucket) + first_caption + number
    exists = place < tl.load(word_starts + word_bucket + 1)
    return tl.load(word_order + place, mask=exists, other=0), exists


@triton.jit
def listed_at(number, pairs, list_order, list_starts, listed_class, first):
    """Image, caption and place in the list of the pair with this number in a round, and whether there is one."""
    position = tl.load(list_starts + listed_class) + first + number
    exists = position < tl.load(list_starts + listed_class + 1)
    place = tl.load(list_order + position, mask=exists, other=0)
    image = tl.load(pairs + 2 * place, mask=exists, other=0)
    return image, tl.load(pairs + 2 * place + 1, mask=exists, other=0), place, exists


@triton.jit
def pair_at(
    slot,
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
    first_image,
    first_caption,
    captions,
    score_row,
    LISTED: tl.constexpr,
):
    """Image, caption and place among the scores of the pair in this slot of the workspace, and whether there is one."""
    if LISTED:
        return listed_at(slot, pairs, list_order, list_starts, word_bucket, first_caption)
    else:
        image, image_exists = image_at(slot // captions, region_order, region_starts, first_bucket, end_bucket, first_image)
        caption, caption_exists = caption_at(slot % captions, word_order, word_starts, word_bucket, first_caption)
        return image, caption, image * score_row + caption, image_exists & caption_exists


@triton.jit
def tile_sum(
    left,
    right,
    left_exists,
    right_exists,
    WIDTH: tl.constexpr,
    DEPTH_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(words, regions): the product of rows of the width that begin at these pointers, (words, 1) and (1, regions)."""
    sums = tl.zeros((left.shape[0], right.shape[1]), tl.float32)
    rest = tl.zeros((left.shape[0], right.shape[1]), tl.float32)
    for d0 in tl.range(0, WIDTH, DEPTH_BLOCK):
        d = d0 + tl.arange(0, DEPTH_BLOCK)
        x = load_block(left + d[None, :], left_exists, d < WIDTH)
        y = load_block(right + d[:, None], d < WIDTH, right_exists)
        if x.dtype == tl.float32:
            # A column of small alignments divides their errors by its norm, and tensor cores cut sums off: short ones are
            # added so that nothing is lost.
            sums, rest = add_with_rest(sums, rest, tl.dot(x, y, input_precision=PRECISION))
        else:
            sums = tl.dot(x, y, sums)
    return sums + rest


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def products_kernel(
    regions,
    words,
    word_products,
    region_lengths,
    word_lengths,
    region_order,
    region_starts,
    word_order,
    word_starts,
    pairs,
    list_order,
    list_starts,
    S,
    X,
    first_bucket,
    end_bucket,
    word_bucket,
    first_image,
    first_caption,
    images,
    captions,
    region_rows,
    word_rows,
    region_stride,
    word_stride,
    LISTED: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    WORD_BLOCK: tl.constexpr,
    REGION_BLOCK: tl.constexpr,
    DEPTH_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of S or of X: of all words and regions of a round, or, from a list, of one pair."""
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    tile = tl.program_id(0) // 2
    row = tl.arange(0, WORD_BLOCK)
    column = tl.arange(0, REGION_BLOCK)
    if LISTED:
        region_tiles = tl.cdiv(region_stride, REGION_BLOCK)
        tiles = region_tiles * tl.cdiv(word_stride, WORD_BLOCK)
        slot = tile // tiles
        image, caption, _, exists = listed_at(slot, pairs, list_order, list_starts, word_bucket, first_caption)
        first_word = tile % tiles // region_tiles * WORD_BLOCK
        first_region = tile % tiles % region_tiles * REGION_BLOCK
        m = tl.load(region_lengths + image)
        n = tl.load(word_lengths + caption)
        if (exists == 0) | (first_word >= n) | (first_region >= m):
            return
        word = first_word + row
        region = first_region + column
        word_exists = word < n
        region_exists = region < m
        word_place = (slot * word_stride + word) * region_stride
        region_place = region
    else:
        region_tiles = tl.cdiv(images * region_stride, REGION_BLOCK)
        row += tile // region_tiles * WORD_BLOCK
        column += tile % region_tiles * REGION_BLOCK
        word = row % word_stride
        region = column % region_stride
        caption, word_exists = caption_at(row // word_stride, word_order, word_starts, word_bucket, first_caption)
        image, region_exists = image_at(column // region_stride, region_order, region_starts, first_bucket, end_bucket, first_image)
        word_exists &= (row < captions * word_stride) & (word < tl.load(word_lengths + caption))
        region_exists &= (column < images * region_stride) & (region < tl.load(region_lengths + image))
        if (tl.max(word_exists.to(tl.int32)) == 0) | (tl.max(region_exists.to(tl.int32)) == 0):
            return
        word_place = row * region_stride
        region_place = column // region_stride * (captions * word_stride * region_stride) + region
    word_row = (caption * word_rows + word)[:, None]
    right = regions + (image * region_rows + region)[None, :] * WIDTH
    if tl.program_id(0) % 2 == 0:
        left = word_products + word_row * PRODUCTS
        sums = tile_sum(left, right, word_exists, region_exists, WIDTH, DEPTH_BLOCK, PRECISION)
        target = S
    else:
        left = words + word_row * WIDTH
        sums = tile_sum(left, right, word_exists, region_exists, WIDTH, DEPTH_BLOCK, PRECISION)
        target = X
    mask = word_exists[:, None] & region_exists[None, :]
    tl.store(target + word_place[:, None] + region_place[None, :], sums, mask=mask)
