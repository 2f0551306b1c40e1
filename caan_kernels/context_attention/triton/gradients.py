"""The derivatives of a schedule's pairs. A launch has a part of the schedule, however many of its pairs the device finds.

A round fills the slots of scratch memory with pairs (slots.py), a program a pair, and then adds up what they give (sums.py), a
program an item and some columns. Programs take their turns from a counter. A turn waits until all turns of the steps before are
done, and those have been taken before: by programs that are running. So no program waits for one that has not begun, and the
grid may be of any size. Whichever program takes a turn, its sums have the same order and bits.
"""

import triton
import triton.language as tl

from .pair_gradients import differentiate_pair
from .sums import add_caption_features, add_caption_hidden, add_image_features, add_image_hidden, first_from


@triton.jit
def end_of(count, first, beyond):
    """The place in the schedule before which this launch ends."""
    return tl.maximum(tl.minimum(tl.load(count), beyond), first)


@triton.jit
def turns_of(count, first, beyond, slots, tasks):
    """Turns of this launch: one for each pair, and in each round one for each task."""
    pairs = end_of(count, first, beyond) - first
    return pairs + tl.cdiv(pairs, slots) * tasks


@triton.jit(
    do_not_specialize=["images", "captions", "first", "beyond", "slots", "region_rows", "word_rows", "slot_stride"],
    # Some of these are views, which may begin anywhere. Each is read one number at a time.
    do_not_specialize_on_alignment=[
        *("region_lengths", "word_lengths", "keys", "order", "count", "image_starts", "by_caption", "caption_starts"),
        *("score_gradients", "turns"),
    ],
)
def gradient_kernel(
    regions,
    region_products,
    words,
    word_products,
    region_score,
    word_score,
    region_lengths,
    word_lengths,
    keys,
    order,
    count,
    image_starts,
    by_caption,
    caption_starts,
    score_gradients,
    scratch,
    turns,
    of_regions,
    of_region_products,
    of_words,
    of_word_products,
    of_region_score,
    of_word_score,
    images,
    captions,
    first,
    beyond,
    slots,
    region_rows,
    word_rows,
    slot_stride,
    COSINE: tl.constexpr,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    WORDS: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
    WIDTH_SUMS: tl.constexpr,
    HIDDEN_SUMS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of the places of the schedule from `first` to before `beyond`, as far as there are so many.

    `turns` holds how many turns were taken, and how many are done: (2,) int64, 0 before the launch. Sums are float32.
    """
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    HIDDEN_BLOCKS: tl.constexpr = (HIDDEN + HIDDEN_SUMS - 1) // HIDDEN_SUMS if INTER or INTRA else 0
    WIDTH_BLOCKS: tl.constexpr = (WIDTH + WIDTH_SUMS - 1) // WIDTH_SUMS
    TASKS: tl.constexpr = HIDDEN_BLOCKS + WIDTH_BLOCKS
    turn = tl.atomic_add(turns, 1, sem="relaxed")
    # What is the same for all turns would take registers from every one of them.
    while tl.condition(turn < turns_of(count, first, beyond, slots, (images + captions) * TASKS), disable_licm=True):
        round_turns = slots + (images + captions).to(tl.int64) * TASKS
        before = turn // round_turns * round_turns
        begin = first + turn // round_turns * slots
        end = tl.minimum(begin + slots, end_of(count, first, beyond))
        # The last round may fill fewer slots.
        task = turn - before - (end - begin)
        needed = tl.where(task < 0, before, before + (end - begin))
        while tl.atomic_add(turns + 1, 0, sem="acquire") < needed:
            pass
        if task < 0:
            place = begin + turn - before
            key = tl.load(keys + place)
            image = key // captions
            caption = key % captions
            differentiate_pair(
                scratch + (turn - before) * slot_stride,
                regions + image * region_rows * WIDTH, words + caption * word_rows * WIDTH,
                region_products + image * region_rows * (2 * HIDDEN), word_products + caption * word_rows * PRODUCTS,
                region_score, word_score, tl.load(score_gradients + tl.load(order + place)),
                tl.load(region_lengths + image).to(tl.int32), tl.load(word_lengths + caption).to(tl.int32),
                region_rows, word_rows,
                COSINE, INTER, INTRA, WIDTH, HIDDEN, REGIONS, WORDS, TILE, WIDTH_BLOCK, HIDDEN_BLOCK, PRECISION,
            )  # fmt: skip
        else:
            # What takes longest comes first.
            hidden = task < (images + captions) * HIDDEN_BLOCKS
            task = tl.where(hidden, task, task - (images + captions) * HIDDEN_BLOCKS)
            blocks = tl.where(hidden, HIDDEN_BLOCKS, WIDTH_BLOCKS)
            item = task // blocks
            block = task % blocks
            h = block.to(tl.int32) * HIDDEN_SUMS + tl.arange(0, HIDDEN_SUMS)
            d = block.to(tl.int32) * WIDTH_SUMS + tl.arange(0, WIDTH_SUMS)
            in_slots = scratch - begin * slot_stride
            if item < images:
                from_place = tl.maximum(tl.load(image_starts + item), begin)
                to_place = tl.minimum(tl.load(image_starts + item + 1), end)
                if from_place < to_place:
                    if hidden:
                        if HIDDEN_BLOCKS:
                            add_image_hidden(
                                item, h, region_products, word_products, region_score, word_score, region_lengths, word_lengths,
                                keys, from_place, to_place, in_slots, of_region_products, of_region_score, of_word_score,
                                captions, region_rows, word_rows, slot_stride,
                                INTER, INTRA, WIDTH, HIDDEN, REGIONS, TILE, PRECISION,
                            )  # fmt: skip
                    else:
                        add_image_features(
                            item, d, word_products, region_lengths, word_lengths,
                            keys, from_place, to_place, in_slots, of_regions,
                            captions, region_rows, word_rows, slot_stride, WIDTH, HIDDEN, REGIONS, TILE, PRECISION,
                        )  # fmt: skip
            else:
                caption = item - images
                its_end = tl.load(caption_starts + caption + 1)
                from_step = first_from(by_caption, tl.load(caption_starts + caption), its_end, begin)
                to_step = first_from(by_caption, from_step, its_end, end)
                if from_step < to_step:
                    if hidden:
                        if HIDDEN_BLOCKS:
                            add_caption_hidden(
                                caption, h, region_products, word_products, region_score, word_score, region_lengths,
                                word_lengths, keys, by_caption, from_step, to_step, in_slots, of_word_products,
                                captions, region_rows, word_rows, slot_stride,
                                INTER, INTRA, WIDTH, HIDDEN, REGIONS, TILE, PRECISION,
                            )  # fmt: skip
                    else:
                        add_caption_features(
                            caption, d, regions, region_lengths, word_lengths,
                            keys, by_caption, from_step, to_step, in_slots, of_words, of_word_products,
                            captions, region_rows, word_rows, slot_stride, WIDTH, HIDDEN, REGIONS, TILE, PRECISION,
                        )  # fmt: skip
        # Every thread has written before one says so.
        tl.debug_barrier()
        tl.atomic_add(turns + 1, 1, sem="release")
        turn = tl.atomic_add(turns, 1, sem="relaxed")
