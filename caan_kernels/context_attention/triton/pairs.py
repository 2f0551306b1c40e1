"""Scores of pairs of any size and dtype: a program has one pair at a time, and a part of the workspace for it.

    multiply_pair          S
    make_factors           Ĉ and R̂ in the inputs' dtype, the norms that lead back to C and R, and Hᵘ
    sum_logits             tanh(Ĉ (Ĉᵀ V Q1) + C U Q2) and tanh(Hᵘ U Q3 + Rᵀ V Q4) times the score vectors, a panel of the hidden
                           width at a time
    pool_pair              softmax and the score, for which X is made in passing

Matrices of a pair are transposed, (words, regions). All words of a caption lie in one tile of a power of two; regions pass by
in blocks, so that their number has no end: what is summed over regions is summed block by block, in their order, before it
is used. Nothing of size (m, H) or (m, m) exists anywhere. Where registers hold Hᵘ (n, n), up to 64 words or 32 in float32,
it is made once a pair; R̂ (R̂ᵀ U Q3) takes more products.

Batch invariance: tiles follow from the caption's own length and the dtype, and the number of blocks from the image's own.
"""

import triton
import triton.language as tl

from ...core.triton.functions import load_block, norm, positive_part, softmax_where, sum_of_rows, tanh, tanh_to_half
from .pooling import pool_pair
from .products import multiply_pair, whole_rows
from .schedule import UNALIGNED, VARYING, first_and_count, pair_at, turns


@triton.jit
def positive_alignment(S, rows, region, word_exists, m):
    """A₊ where it exists, 0 elsewhere."""
    alignment = load_block(S + rows + region[None, :], word_exists, region < whole_rows(m))
    return positive_part(tanh(alignment), word_exists[:, None] & (region < m)[None, :])


@triton.jit
def load_units(units, rows, region, word_exists, m):
    """Rows of Ĉ or R̂, which hold 0 beyond an image's regions."""
    return load_block(units + rows + region[None, :], word_exists, region < whole_rows(m))


@triton.jit
def context_tanh(x, HALF: tl.constexpr):
    """tanh of a context in float32: near enough for half precision, or within 4 units in the last place."""
    return tanh_to_half(x).to(tl.float32) if HALF else tanh(x)


@triton.jit
def make_factors(
    S,
    C_units,
    R_units,
    Hu,
    region_norms,
    word_norms,
    m,
    n,
    region_stride,
    INTRA: tl.constexpr,
    GRAM: tl.constexpr,
    WORDS: tl.constexpr,
    FACTOR_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Equations 7, 12 and 13, and 17 where registers hold Hᵘ."""
    dtype = C_units.dtype.element_ty
    word = tl.arange(0, WORDS)
    rows = word[:, None] * region_stride

    # Norms of the columns of A₊ and of R take all regions.
    squares = tl.zeros((WORDS, 1), tl.float32)
    R_squares = tl.zeros((WORDS, 1), tl.float32)
    for r0 in tl.range(0, m, FACTOR_BLOCK):
        region = r0 + tl.arange(0, FACTOR_BLOCK)
        P = positive_alignment(S, rows, region, word < n, m)
        squares += tl.sum(P * P, 1, keep_dims=True)
        R = tl.div_rn(P, norm(tl.sum(P * P, 0, keep_dims=True)))
        R_squares += tl.sum(R * R, 1, keep_dims=True)
    column_norm = norm(squares)
    word_norm = norm(R_squares)
    tl.store(word_norms + word[:, None], word_norm, mask=(word < n)[:, None])
    for r0 in tl.range(0, whole_rows(m), FACTOR_BLOCK):
        region = r0 + tl.arange(0, FACTOR_BLOCK)
        mask = (word < n)[:, None] & (region < whole_rows(m))[None, :]
        P = positive_alignment(S, rows, region, word < n, m)
        C = tl.div_rn(P, column_norm)
        region_norm = norm(tl.sum(C * C, 0, keep_dims=True))
        tl.store(C_units + rows + region[None, :], tl.div_rn(C, region_norm).to(dtype), mask=mask)
        R = tl.div_rn(P, norm(tl.sum(P * P, 0, keep_dims=True)))
        tl.store(R_units + rows + region[None, :], tl.div_rn(R, word_norm).to(dtype), mask=mask)
        tl.store(region_norms + region[None, :], region_norm, mask=(region < m)[None, :])
    if INTRA and GRAM:
        # Other threads than those that wrote R̂ may read it.
        tl.debug_barrier()
        gram = tl.zeros((WORDS, WORDS), tl.float32)
        for r0 in tl.range(0, m, FACTOR_BLOCK):
            region = r0 + tl.arange(0, FACTOR_BLOCK)
            R_unit = load_units(R_units, rows, region, word < n, m)
            gram = tl.dot(R_unit, tl.trans(R_unit), gram, input_precision=PRECISION)
        other = tl.arange(0, WORDS)
        tl.store(Hu + word[:, None] * WORDS + other[None, :], gram.to(dtype))


@triton.jit
def sum_logits(
    logits,
    C_units,
    R_units,
    Hu,
    region_norms,
    word_norms,
    region_products,
    word_products,
    region_score,
    word_score,
    m,
    n,
    region_stride,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    GRAM: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    WORDS: tl.constexpr,
    REGION_BLOCK: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
    WORD_PARTS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Logits of words, (WORDS,), from rows of products that begin at these pointers. Those of regions are added up in memory.

    There, panels write by turns to one of two places, so that no thread overwrites what another is still to read.
    """
    dtype = C_units.dtype.element_ty
    word = tl.arange(0, WORDS)
    rows = word[:, None] * region_stride
    word_logits = tl.zeros((WORDS,), tl.float32)
    for h0 in tl.range(0, HIDDEN, HIDDEN_BLOCK, disable_licm=True):
        h = h0 + tl.arange(0, HIDDEN_BLOCK)
        h_exists = h < HIDDEN
        of_regions = region_products + h[None, :]
        of_words = word_products + word[:, None] * (WIDTH + 2 * HIDDEN) + WIDTH + h[None, :]

        # Equations 10 and 11, regions block by block.
        context = tl.zeros((WORDS, HIDDEN_BLOCK), tl.float32)
        if INTER:
            for r0 in tl.range(0, m, REGION_BLOCK):
                region = r0 + tl.arange(0, REGION_BLOCK)
                R_unit = load_units(R_units, rows, region, word < n, m)
                VQ4 = load_block(of_regions + region[:, None] * (2 * HIDDEN) + HIDDEN, region < m, h_exists)
                context = tl.dot(R_unit, VQ4, context, input_precision=PRECISION)
            context *= tl.load(word_norms + word, mask=word < n, other=0.0)[:, None]
        if INTRA:
            UQ3 = load_block(of_words + HIDDEN, word < n, h_exists)
            if GRAM:
                own = tl.load(Hu + word[:, None] * WORDS + word[None, :])
                context = tl.dot(own, UQ3, context, input_precision=PRECISION)
            else:
                for r0 in tl.range(0, m, REGION_BLOCK):
                    region = r0 + tl.arange(0, REGION_BLOCK)
                    R_unit = load_units(R_units, rows, region, word < n, m)
                    Z = sum_of_rows(R_unit, UQ3, WORD_PARTS, PRECISION)
                    context = tl.dot(R_unit, Z.to(dtype), context, input_precision=PRECISION)
        wu = tl.load(word_score + h, mask=h_exists, other=0.0).to(tl.float32)
        word_logits += tl.sum(context_tanh(context, HALF) * wu[None, :], 1)

        # Equations 8 and 9: Ĉᵀ (V Q1) takes all regions before any has its context.
        wv = tl.load(region_score + h, mask=h_exists, other=0.0).to(tl.float32)
        gathered = tl.zeros((WORDS, HIDDEN_BLOCK), tl.float32)
        if INTRA:
            for r0 in tl.range(0, m, REGION_BLOCK):
                region = r0 + tl.arange(0, REGION_BLOCK)
                C_unit = load_units(C_units, rows, region, word < n, m)
                VQ1 = load_block(of_regions + region[:, None] * (2 * HIDDEN), region < m, h_exists)
                gathered = tl.dot(C_unit, VQ1, gathered, input_precision=PRECISION)
        gathered = gathered.to(dtype)
        turn = h0 // HIDDEN_BLOCK % 2
        before = logits + (1 - turn) * region_stride
        after = logits + turn * region_stride
        for r0 in tl.range(0, m, REGION_BLOCK):
            region = r0 + tl.arange(0, REGION_BLOCK)
            C_unit = load_units(C_units, rows, region, word < n, m)
            Y = tl.zeros((REGION_BLOCK, HIDDEN_BLOCK), tl.float32)
            if INTER:
                Y = sum_of_rows(C_unit, load_block(of_words, word < n, h_exists), WORD_PARTS, PRECISION)
                Y *= tl.load(region_norms + region, mask=region < m, other=0.0)[:, None]
            if INTRA:
                Y += sum_of_rows(C_unit, gathered, WORD_PARTS, PRECISION)
            so_far = tl.load(before + region, mask=(region < m) & (h0 > 0), other=0.0)
            tl.store(after + region, so_far + tl.sum(context_tanh(Y, HALF) * wv[None, :], 1), mask=region < m)
        tl.debug_barrier()
    return word_logits


@triton.jit(do_not_specialize=[*VARYING, "word_stride"], do_not_specialize_on_alignment=UNALIGNED)
def large_kernel(
    regions,
    region_products,
    words,
    word_products,
    region_score,
    word_score,
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
    factors,
    grams,
    numbers,
    scores,
    first_bucket,
    end_bucket,
    word_bucket,
    launch,
    launch_size,
    score_row,
    region_rows,
    word_rows,
    region_stride,
    word_stride,
    LISTED: tl.constexpr,
    COSINE: tl.constexpr,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    GRAM: tl.constexpr,
    HALF: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    WORDS: tl.constexpr,
    PRECISION: tl.constexpr,
    TILE_WORDS: tl.constexpr,
    TILE_REGIONS: tl.constexpr,
    DEPTH_BLOCK: tl.constexpr,
    DEPTH_STAGES: tl.constexpr,
    FACTOR_BLOCK: tl.constexpr,
    REGION_BLOCK: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
    WORD_PARTS: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
):
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    # The program's own part of the workspace.
    slot = tl.program_id(0).to(tl.int64)
    cells = word_stride * region_stride
    S += slot * cells
    C_units = factors + slot * (2 * cells)
    R_units = C_units + cells
    Hu = grams + slot * (WORDS * WORDS)
    region_norms = numbers + slot * (3 * region_stride + 2 * word_stride)
    word_norms = region_norms + region_stride
    g = word_norms + word_stride
    logits = g + word_stride
    if LISTED:
        count = first_and_count(list_starts, word_bucket, word_bucket + 1)[1]
    else:
        images = first_and_count(region_starts, first_bucket, end_bucket)[1]
        count = images * first_and_count(word_starts, word_bucket, word_bucket + 1)[1]
    # What follows from the thread alone would take registers for the whole loop.
    for turn in tl.range(tl.program_id(0), turns(launch, launch_size, count), tl.num_programs(0), disable_licm=True):
        image, caption, place = pair_at(
            launch.to(tl.int64) * launch_size + turn, region_order, region_starts, word_order, word_starts, pairs, list_order,
            list_starts, first_bucket, end_bucket, word_bucket, score_row, LISTED,
        )  # fmt: skip
        m = tl.load(region_lengths + image).to(tl.int32)
        n = tl.load(word_lengths + caption).to(tl.int32)
        V = regions + image * region_rows * WIDTH
        VQ = region_products + image * region_rows * (2 * HIDDEN)
        U = words + caption * word_rows * WIDTH
        UQ = word_products + caption * word_rows * PRODUCTS
        # Other threads than those that wrote it read it, here and below.
        if INTER or INTRA:
            multiply_pair(
                S, UQ, V, m, n, region_stride, WIDTH, PRODUCTS, TILE_WORDS, TILE_REGIONS, DEPTH_BLOCK, DEPTH_STAGES, PRECISION
            )
            tl.debug_barrier()
            make_factors(
                S, C_units, R_units, Hu, region_norms, word_norms, m, n, region_stride,
                INTRA, GRAM, WORDS, FACTOR_BLOCK, PRECISION,
            )  # fmt: skip
            tl.debug_barrier()
            word_logits = sum_logits(
                logits, C_units, R_units, Hu, region_norms, word_norms, VQ, UQ, region_score, word_score, m, n, region_stride,
                INTER, INTRA, GRAM, HALF, WIDTH, HIDDEN, WORDS, REGION_BLOCK, HIDDEN_BLOCK, WORD_PARTS, PRECISION,
            )  # fmt: skip
        else:
            # Without contexts all logits are 0.
            word_logits = tl.zeros((WORDS,), tl.float32)
            for r0 in tl.range(0, m, REGION_BLOCK):
                region = r0 + tl.arange(0, REGION_BLOCK)
                tl.store(logits + region, tl.zeros((REGION_BLOCK,), tl.float32), mask=region < m)
        word = tl.arange(0, WORDS)
        tl.store(g + word, softmax_where(word_logits, word < n, 0), mask=word < n)
        tl.debug_barrier()
        LAST: tl.constexpr = (HIDDEN + HIDDEN_BLOCK - 1) // HIDDEN_BLOCK - 1 if INTER or INTRA else 0
        score = pool_pair(
            logits + LAST % 2 * region_stride, g, V, U, m, n, COSINE, WIDTH, WORDS, REGION_BLOCK, WIDTH_BLOCK,
            TILE_WORDS, TILE_REGIONS, DEPTH_BLOCK, DEPTH_STAGES, PRECISION,
        )  # fmt: skip
        tl.store(scores + place, score)
        # The next pair takes the same part.
        tl.debug_barrier()
