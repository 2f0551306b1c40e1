"""What is behind the score of a pair: its slot as far as g, for derivatives and for attention maps."""

import triton
import triton.language as tl

from ...core.triton.functions import add_with_rest, norm, positive_part, softmax_where, tanh
from .slots import (
    add_to,
    alignment_tile,
    dot_of_regions,
    gathered_words,
    load_float,
    load_norm,
    region_context,
    region_part,
    region_to_word,
    word_context,
    word_part,
)


@triton.jit
def attend(
    slot,
    V_rows,
    of_regions,
    of_words,
    region_score,
    word_score,
    m,
    n,
    region_rows,
    word_rows,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    WORDS: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fill the slot of a pair as far as g."""
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    region = tl.arange(0, REGIONS)
    region_exists = region < m

    # Equation 7.
    squares = tl.zeros((REGIONS,), tl.float32)
    for j0 in tl.range(0, n, TILE):
        word = j0 + tl.arange(0, TILE)
        word_exists = word < n
        # A column of small alignments divides their errors by its norm: float32 sums do not lose what they round away.
        alignment = tl.zeros((REGIONS, TILE), tl.float32)
        rest = tl.zeros((REGIONS, TILE), tl.float32)
        for d0 in tl.range(0, WIDTH, WIDTH_BLOCK):
            d = d0 + tl.arange(0, WIDTH_BLOCK)
            V = load_float(V_rows + region[:, None] * WIDTH + d[None, :], region_exists[:, None] & (d < WIDTH)[None, :])
            UK = load_float(of_words + word[None, :] * PRODUCTS + d[:, None], word_exists[None, :] & (d < WIDTH)[:, None])
            if V_rows.dtype.element_ty == tl.float32:
                part = dot_of_regions(V, UK, tl.zeros((REGIONS, TILE), tl.float32), PRECISION)
                alignment, rest = add_with_rest(alignment, rest, part)
            else:
                alignment = dot_of_regions(V, UK, alignment, PRECISION)
        A = tanh(alignment + rest)
        exists = region_exists[:, None] & word_exists[None, :]
        tl.store(slot + region[:, None] * word_rows + word[None, :], A, mask=exists)
        P = positive_part(A, exists)
        squares += tl.sum(P * P, 1)
        tl.store(word_part(slot, region_rows, word_rows, 0) + word, norm(tl.sum(P * P, 0)), mask=word_exists)
    row_norm = norm(squares)
    tl.store(region_part(slot, region_rows, word_rows, 0) + region, row_norm, mask=region_exists)
    # A barrier stands wherever one thread may read from the slot what another wrote.
    tl.debug_barrier()

    # Equations 12 and 13: the norms of C and R take all of those of A₊.
    squares = tl.zeros((REGIONS,), tl.float32)
    for j0 in tl.range(0, n, TILE):
        word = j0 + tl.arange(0, TILE)
        _, P = alignment_tile(slot, region, word, m, n, word_rows)
        C = tl.div_rn(P, load_norm(word_part(slot, region_rows, word_rows, 0) + word, word < n)[None, :])
        R = tl.div_rn(P, row_norm[:, None])
        squares += tl.sum(C * C, 1)
        tl.store(word_part(slot, region_rows, word_rows, 1) + word, norm(tl.sum(R * R, 0)), mask=word < n)
    tl.store(region_part(slot, region_rows, word_rows, 1) + region, norm(squares), mask=region_exists)

    # Equations 8 to 11: f, and the logits of g, which wait where their gradient will be.
    of_word_logits = word_part(slot, region_rows, word_rows, 3)
    every_word = tl.arange(0, WORDS)
    tl.store(of_word_logits + every_word, tl.zeros((WORDS,), tl.float32), mask=every_word < n)
    tl.debug_barrier()
    region_logits = tl.zeros((REGIONS,), tl.float32)
    if INTER or INTRA:
        for h0 in tl.range(0, HIDDEN, HIDDEN_BLOCK):
            h = h0 + tl.arange(0, HIDDEN_BLOCK)
            mask = region_exists[:, None] & (h < HIDDEN)[None, :]
            VQ1 = load_float(of_regions + region[:, None] * (2 * HIDDEN) + h[None, :], mask)
            wv = load_float(region_score + h, h < HIDDEN)
            Y = region_context(
                slot, VQ1, of_words, region, h, m, n, region_rows, word_rows, INTER, INTRA, WIDTH, HIDDEN, TILE, PRECISION
            )
            region_logits += tl.sum(tanh(Y) * wv[None, :], 1)
            VQ4 = load_float(of_regions + region[:, None] * (2 * HIDDEN) + HIDDEN + h[None, :], mask)
            wu = load_float(word_score + h, h < HIDDEN)
            Z = gathered_words(slot, of_words, region, h, m, n, region_rows, word_rows, INTRA, WIDTH, HIDDEN, TILE, PRECISION)
            for j0 in tl.range(0, n, TILE):
                word = j0 + tl.arange(0, TILE)
                R, R_unit = region_to_word(slot, region, word, m, n, region_rows, word_rows)
                X = word_context(R, R_unit, Z, VQ4, INTER, INTRA, PRECISION)
                add_to(of_word_logits + word, tl.sum(tanh(X) * wu[None, :], 1), word < n)
            tl.debug_barrier()
    f = softmax_where(region_logits, region_exists, 0)
    g = softmax_where(load_float(of_word_logits + every_word, every_word < n), every_word < n, 0)
    of_g = word_part(slot, region_rows, word_rows, 2)
    tl.store(region_part(slot, region_rows, word_rows, 2) + region, f, mask=region_exists)
    tl.store(of_g + every_word, g, mask=every_word < n)
    tl.debug_barrier()


@triton.jit(
    do_not_specialize=["images", "captions", "first", "region_rows", "word_rows", "slot_stride"],
    # Views may begin anywhere. None of these is read in blocks of 16 bytes.
    do_not_specialize_on_alignment=["region_lengths", "word_lengths", "pairs", "scratch"],
)
def map_kernel(
    regions,
    region_products,
    word_products,
    region_score,
    word_score,
    region_lengths,
    word_lengths,
    pairs,
    scratch,
    images,
    captions,
    first,
    region_rows,
    word_rows,
    slot_stride,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    WORDS: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fill the slot of a listed pair as far as g."""
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    place = first + tl.program_id(0).to(tl.int64)
    image = tl.load(pairs + 2 * place)
    caption = tl.load(pairs + 2 * place + 1)
    if (image < 0) | (image >= images) | (caption < 0) | (caption >= captions):
        return
    m = tl.load(region_lengths + image).to(tl.int32)
    n = tl.load(word_lengths + caption).to(tl.int32)
    if (m == 0) | (n == 0):
        return
    attend(
        scratch + tl.program_id(0).to(tl.int64) * slot_stride, regions + image * region_rows * WIDTH,
        region_products + image * region_rows * (2 * HIDDEN), word_products + caption * word_rows * PRODUCTS,
        region_score, word_score, m, n, region_rows, word_rows,
        INTER, INTRA, WIDTH, HIDDEN, REGIONS, WORDS, TILE, WIDTH_BLOCK, HIDDEN_BLOCK, PRECISION,
    )  # fmt: skip
