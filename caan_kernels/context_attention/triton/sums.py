"""Gradients that pairs share: what the pairs in the slots add to those of an image, or of a caption, in a block of columns.

No two programs add to one place at once, and the pairs of an item are taken in one order. So nothing is atomic, and a sum has
one order.
"""

import triton
import triton.language as tl

from ...core.triton.functions import tanh
from .slots import (
    add_to,
    dot_of_regions,
    gathered_words,
    gradient_part,
    load_float,
    logit_gradient,
    region_context,
    region_part,
    region_to_word,
    sum_of_regions,
    word_context,
    word_part,
    word_to_region,
)


@triton.jit
def first_from(by_caption, begin, end, place):
    """Where in `by_caption`, from `begin` to `end`, the places in the schedule that are not before `place` begin: they rise."""
    while begin < end:
        middle = (begin + end) // 2
        before = tl.load(by_caption + middle) < place
        begin = tl.where(before, middle + 1, begin)
        end = tl.where(before, end, middle)
    return begin


@triton.jit
def add_image_features(
    image,
    d,
    word_products,
    region_lengths,
    word_lengths,
    keys,
    begin,
    end,
    slots,
    gradients,
    captions,
    region_rows,
    word_rows,
    slot_stride,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of V += Σ dS (U Kᵀ) + f ⊗ dv̂ over the image's pairs, from `begin` to `end` in the schedule, in columns d of D.

    Slot `place` of `slots` is that of the pair there in the schedule.
    """
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    m = tl.load(region_lengths + image).to(tl.int32)
    region = tl.arange(0, REGIONS)
    mask = (region < m)[:, None] & (d < WIDTH)[None, :]
    target = gradients + (image * region_rows + region[:, None]) * WIDTH + d[None, :]
    dV = load_float(target, mask)
    for place in tl.range(begin, end):
        caption = tl.load(keys + place) % captions
        n = tl.load(word_lengths + caption).to(tl.int32)
        slot = slots + place * slot_stride
        f = load_float(region_part(slot, region_rows, word_rows, 2) + region, region < m)
        dv = load_float(gradient_part(slot, region_rows, word_rows, 4) + d, d < WIDTH)
        dV += f[:, None] * dv[None, :]
        for j0 in tl.range(0, n, TILE):
            word = j0 + tl.arange(0, TILE)
            dS = load_float(
                gradient_part(slot, region_rows, word_rows, 0) + region[:, None] * word_rows + word[None, :],
                (region < m)[:, None] & (word < n)[None, :],
            )
            UK = load_float(
                word_products + (caption * word_rows + word[:, None]) * PRODUCTS + d[None, :],
                (word < n)[:, None] & (d < WIDTH)[None, :],
            )
            dV = dot_of_regions(dS, UK, dV, PRECISION)
    tl.store(target, dV, mask=mask)


@triton.jit
def add_image_hidden(
    image,
    h,
    region_products,
    word_products,
    region_score,
    word_score,
    region_lengths,
    word_lengths,
    keys,
    begin,
    end,
    slots,
    gradients,
    region_score_gradients,
    word_score_gradients,
    captions,
    region_rows,
    word_rows,
    slot_stride,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of V Q1 and V Q4, and this image's part of those of both score vectors, in a panel h of the hidden width."""
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    m = tl.load(region_lengths + image).to(tl.int32)
    region = tl.arange(0, REGIONS)
    mask = (region < m)[:, None] & (h < HIDDEN)[None, :]
    row = (image * region_rows + region[:, None]) * (2 * HIDDEN) + h[None, :]
    VQ1 = load_float(region_products + row, mask)
    VQ4 = load_float(region_products + row + HIDDEN, mask)
    wv = load_float(region_score + h, h < HIDDEN)
    wu = load_float(word_score + h, h < HIDDEN)
    dVQ1 = load_float(gradients + row, mask)
    dVQ4 = load_float(gradients + row + HIDDEN, mask)
    dwv = load_float(region_score_gradients + image * HIDDEN + h, h < HIDDEN)
    dwu = load_float(word_score_gradients + image * HIDDEN + h, h < HIDDEN)
    for place in tl.range(begin, end):
        caption = tl.load(keys + place) % captions
        n = tl.load(word_lengths + caption).to(tl.int32)
        of_words = word_products + caption * word_rows * PRODUCTS
        slot = slots + place * slot_stride
        dfv = load_float(region_part(slot, region_rows, word_rows, 3) + region, region < m)
        Y = region_context(
            slot, VQ1, of_words, region, h, m, n, region_rows, word_rows, INTER, INTRA, WIDTH, HIDDEN, TILE, PRECISION
        )
        T = tanh(Y)
        dwv += tl.sum(dfv[:, None] * T, 0)
        if INTRA:
            dY = logit_gradient(dfv, wv, T)
            for j0 in tl.range(0, n, TILE):
                word = j0 + tl.arange(0, TILE)
                _, C_unit = word_to_region(slot, region, word, m, n, region_rows, word_rows)
                dgathered = sum_of_regions(C_unit, dY, PRECISION)
                dVQ1 = dot_of_regions(C_unit, dgathered, dVQ1, PRECISION)
        Z = gathered_words(slot, of_words, region, h, m, n, region_rows, word_rows, INTRA, WIDTH, HIDDEN, TILE, PRECISION)
        for j0 in tl.range(0, n, TILE):
            word = j0 + tl.arange(0, TILE)
            R, R_unit = region_to_word(slot, region, word, m, n, region_rows, word_rows)
            word_T = tanh(word_context(R, R_unit, Z, VQ4, INTER, INTRA, PRECISION))
            dg = load_float(word_part(slot, region_rows, word_rows, 3) + word, word < n)
            dwu += tl.sum(dg[:, None] * word_T, 0)
            if INTER:
                dVQ4 = dot_of_regions(R, logit_gradient(dg, wu, word_T), dVQ4, PRECISION)
    tl.store(gradients + row, dVQ1, mask=mask)
    tl.store(gradients + row + HIDDEN, dVQ4, mask=mask)
    tl.store(region_score_gradients + image * HIDDEN + h, dwv, mask=h < HIDDEN)
    tl.store(word_score_gradients + image * HIDDEN + h, dwu, mask=h < HIDDEN)


@triton.jit
def add_caption_features(
    caption,
    d,
    regions,
    region_lengths,
    word_lengths,
    keys,
    by_caption,
    begin,
    end,
    slots,
    word_gradients,
    product_gradients,
    captions,
    region_rows,
    word_rows,
    slot_stride,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of U += Σ g ⊗ dû and of U Kᵀ += Σ dSᵀ V over the caption's pairs, from `begin` to `end` in `by_caption`, in
    columns d of the width.
    """
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    n = tl.load(word_lengths + caption).to(tl.int32)
    region = tl.arange(0, REGIONS)
    for j0 in tl.range(0, n, TILE):
        word = j0 + tl.arange(0, TILE)
        mask = (word < n)[:, None] & (d < WIDTH)[None, :]
        row = caption * word_rows + word[:, None]
        dU = load_float(word_gradients + row * WIDTH + d[None, :], mask)
        dUK = load_float(product_gradients + row * PRODUCTS + d[None, :], mask)
        for step in tl.range(begin, end):
            place = tl.load(by_caption + step)
            image = tl.load(keys + place) // captions
            m = tl.load(region_lengths + image).to(tl.int32)
            slot = slots + place * slot_stride
            g = load_float(word_part(slot, region_rows, word_rows, 2) + word, word < n)
            du = load_float(gradient_part(slot, region_rows, word_rows, 4) + WIDTH + d, d < WIDTH)
            dU += g[:, None] * du[None, :]
            dS = load_float(
                gradient_part(slot, region_rows, word_rows, 0) + region[:, None] * word_rows + word[None, :],
                (region < m)[:, None] & (word < n)[None, :],
            )
            V = load_float(
                regions + (image * region_rows + region[:, None]) * WIDTH + d[None, :],
                (region < m)[:, None] & (d < WIDTH)[None, :],
            )
            dUK += sum_of_regions(dS, V, PRECISION)
        tl.store(word_gradients + row * WIDTH + d[None, :], dU, mask=mask)
        tl.store(product_gradients + row * PRODUCTS + d[None, :], dUK, mask=mask)


@triton.jit
def add_caption_hidden(
    caption,
    h,
    region_products,
    word_products,
    region_score,
    word_score,
    region_lengths,
    word_lengths,
    keys,
    by_caption,
    begin,
    end,
    slots,
    gradients,
    captions,
    region_rows,
    word_rows,
    slot_stride,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of U Q2 and U Q3 over the caption's pairs, from `begin` to `end` in `by_caption`, in a panel h of the hidden
    width.
    """
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    n = tl.load(word_lengths + caption).to(tl.int32)
    region = tl.arange(0, REGIONS)
    of_words = word_products + caption * word_rows * PRODUCTS
    targets = gradients + caption * word_rows * PRODUCTS + WIDTH
    wv = load_float(region_score + h, h < HIDDEN)
    wu = load_float(word_score + h, h < HIDDEN)
    for step in tl.range(begin, end):
        place = tl.load(by_caption + step)
        image = tl.load(keys + place) // captions
        m = tl.load(region_lengths + image).to(tl.int32)
        slot = slots + place * slot_stride
        mask = (region < m)[:, None] & (h < HIDDEN)[None, :]
        row = (image * region_rows + region[:, None]) * (2 * HIDDEN) + h[None, :]
        VQ1 = load_float(region_products + row, mask)
        VQ4 = load_float(region_products + row + HIDDEN, mask)
        if INTER:
            dfv = load_float(region_part(slot, region_rows, word_rows, 3) + region, region < m)
            Y = region_context(
                slot, VQ1, of_words, region, h, m, n, region_rows, word_rows, INTER, INTRA, WIDTH, HIDDEN, TILE, PRECISION
            )
            dY = logit_gradient(dfv, wv, tanh(Y))
            for j0 in tl.range(0, n, TILE):
                word = j0 + tl.arange(0, TILE)
                C, _ = word_to_region(slot, region, word, m, n, region_rows, word_rows)
                dUQ2 = sum_of_regions(C, dY, PRECISION)
                word_mask = (word < n)[:, None] & (h < HIDDEN)[None, :]
                add_to(targets + word[:, None] * PRODUCTS + h[None, :], dUQ2, word_mask)
        if INTRA:
            Z = gathered_words(slot, of_words, region, h, m, n, region_rows, word_rows, INTRA, WIDTH, HIDDEN, TILE, PRECISION)
            dZ = tl.zeros((REGIONS, h.shape[0]), tl.float32)
            for j0 in tl.range(0, n, TILE):
                word = j0 + tl.arange(0, TILE)
                R, R_unit = region_to_word(slot, region, word, m, n, region_rows, word_rows)
                X = word_context(R, R_unit, Z, VQ4, INTER, INTRA, PRECISION)
                dg = load_float(word_part(slot, region_rows, word_rows, 3) + word, word < n)
                dZ = dot_of_regions(R_unit, logit_gradient(dg, wu, tanh(X)), dZ, PRECISION)
            for j0 in tl.range(0, n, TILE):
                word = j0 + tl.arange(0, TILE)
                _, R_unit = region_to_word(slot, region, word, m, n, region_rows, word_rows)
                dUQ3 = sum_of_regions(R_unit, dZ, PRECISION)
                word_mask = (word < n)[:, None] & (h < HIDDEN)[None, :]
                add_to(targets + word[:, None] * PRODUCTS + HIDDEN + h[None, :], dUQ3, word_mask)
        tl.debug_barrier()
