"""Stage 2 for pairs of any size and dtype: from S and X to scores, a pair or a panel of the hidden width a program.

    factors_kernel    Ĉ and R̂ in the inputs' dtype, the norms that lead back to C and R, and Hᵘ: a pair a program
    logits_kernel     tanh(Ĉ (Ĉᵀ V Q1) + C U Q2) and tanh(Hᵘ U Q3 + Rᵀ V Q4) times the score vectors, summed over one panel of the
                      hidden width: a pair and panel a program
    finish_kernel     softmax and the score fᵀ X g; for "cosine" also ‖v̂‖ and ‖û‖: a pair a program

Matrices of a pair are transposed, (words, regions). All words of a caption lie in one tile of a power of two; regions pass by
in blocks, so that their number has no end: what is summed over regions is summed block by block, in their order, before it
is used. Nothing of size (m, H) or (m, m) exists anywhere. Where registers hold Hᵘ (n, n), up to 64 words or 32 in float32,
it is made once a pair; R̂ (R̂ᵀ U Q3) takes more products.

Batch invariance: tiles follow from the caption's own length and the dtype, and the number of blocks from the image's own.
"""

import triton
import triton.language as tl

from ...core.triton.functions import load_block, norm, positive_part, softmax_where, sum_of_rows, tanh, tanh_to_half
from .products import UNALIGNED, VARYING, pair_at


@triton.jit
def positive_alignment(S, at, exists):
    """A₊ where it exists, 0 elsewhere."""
    return positive_part(tanh(tl.load(S + at, mask=exists, other=0.0)), exists)


@triton.jit
def context_tanh(x, HALF: tl.constexpr):
    """tanh of a context in float32: near enough for half precision, or within 4 units in the last place."""
    return tanh_to_half(x).to(tl.float32) if HALF else tanh(x)


@triton.jit
def weight_of(logits, exists, highest):
    """e to the logits over the highest, 0 for what does not exist."""
    return tl.where(exists, tl.exp(tl.load(logits, mask=exists, other=0.0) - highest), 0.0)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def factors_kernel(
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
    C_units,
    R_units,
    region_norms,
    word_norms,
    Hu,
    first_bucket,
    end_bucket,
    word_bucket,
    first_image,
    first_caption,
    captions,
    region_stride,
    word_stride,
    LISTED: tl.constexpr,
    INTRA: tl.constexpr,
    GRAM: tl.constexpr,
    WORDS: tl.constexpr,
    REGION_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    slot = tl.program_id(0)
    image, caption, _, exists = pair_at(
        slot, region_order, region_starts, word_order, word_starts, pairs, list_order, list_starts,
        first_bucket, end_bucket, word_bucket, first_image, first_caption, captions, 0, LISTED,
    )  # fmt: skip
    if exists == 0:
        return
    m = tl.load(region_lengths + image).to(tl.int32)
    n = tl.load(word_lengths + caption).to(tl.int32)
    dtype = C_units.dtype.element_ty
    word = tl.arange(0, WORDS)
    rows = (slot.to(tl.int64) * word_stride + word)[:, None] * region_stride

    # Equations 12 and 13: norms of the columns of A₊ and of R, which take all regions.
    squares = tl.zeros((WORDS, 1), tl.float32)
    R_squares = tl.zeros((WORDS, 1), tl.float32)
    for r0 in tl.range(0, m, REGION_BLOCK):
        region = r0 + tl.arange(0, REGION_BLOCK)
        P = positive_alignment(S, rows + region[None, :], (word < n)[:, None] & (region < m)[None, :])
        squares += tl.sum(P * P, 1, keep_dims=True)
        R = tl.div_rn(P, norm(tl.sum(P * P, 0, keep_dims=True)))
        R_squares += tl.sum(R * R, 1, keep_dims=True)
    column_norm = norm(squares)
    word_norm = norm(R_squares)
    tl.store(word_norms + slot * word_stride + word[:, None], word_norm, mask=(word < n)[:, None])

    # What equations 8 to 11 read panel by panel, and equation 17.
    for r0 in tl.range(0, m, REGION_BLOCK):
        region = r0 + tl.arange(0, REGION_BLOCK)
        real = (word < n)[:, None] & (region < m)[None, :]
        P = positive_alignment(S, rows + region[None, :], real)
        C = tl.div_rn(P, column_norm)
        region_norm = norm(tl.sum(C * C, 0, keep_dims=True))
        tl.store(C_units + rows + region[None, :], tl.div_rn(C, region_norm).to(dtype), mask=real)
        R = tl.div_rn(P, norm(tl.sum(P * P, 0, keep_dims=True)))
        R_unit = tl.div_rn(R, word_norm).to(dtype)
        tl.store(R_units + rows + region[None, :], R_unit, mask=real)
        tl.store(region_norms + slot * region_stride + region[None, :], region_norm, mask=(region < m)[None, :])
    if INTRA and GRAM:
        # Other threads than those that wrote R̂ may read it.
        tl.debug_barrier()
        gram = tl.zeros((WORDS, WORDS), tl.float32)
        for r0 in tl.range(0, m, REGION_BLOCK):
            region = r0 + tl.arange(0, REGION_BLOCK)
            R_unit = load_block(R_units + rows + region[None, :], word < n, region < m)
            gram = tl.dot(R_unit, tl.trans(R_unit), gram, input_precision=PRECISION)
        other = tl.arange(0, WORDS)
        at = (slot.to(tl.int64) * word_stride + word)[:, None] * word_stride + other[None, :]
        tl.store(Hu + at, gram.to(dtype), mask=(word < n)[:, None] & (other < n)[None, :])


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def logits_kernel(
    region_products,
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
    C_units,
    R_units,
    region_norms,
    word_norms,
    Hu,
    logits,
    first_bucket,
    end_bucket,
    word_bucket,
    first_image,
    first_caption,
    captions,
    region_rows,
    word_rows,
    region_stride,
    word_stride,
    LISTED: tl.constexpr,
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
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    PANELS: tl.constexpr = (HIDDEN + HIDDEN_BLOCK - 1) // HIDDEN_BLOCK
    slot = tl.program_id(0) // PANELS
    image, caption, _, exists = pair_at(
        slot, region_order, region_starts, word_order, word_starts, pairs, list_order, list_starts,
        first_bucket, end_bucket, word_bucket, first_image, first_caption, captions, 0, LISTED,
    )  # fmt: skip
    if exists == 0:
        return
    m = tl.load(region_lengths + image).to(tl.int32)
    n = tl.load(word_lengths + caption).to(tl.int32)
    dtype = region_products.dtype.element_ty
    word = tl.arange(0, WORDS)
    h = tl.program_id(0) % PANELS * HIDDEN_BLOCK + tl.arange(0, HIDDEN_BLOCK)
    h_exists = h < HIDDEN
    rows = (slot.to(tl.int64) * word_stride + word)[:, None] * region_stride
    of_regions = region_products + image * region_rows * (2 * HIDDEN) + h[None, :]
    of_words = word_products + (caption * word_rows + word)[:, None] * PRODUCTS + WIDTH + h[None, :]
    target = logits + tl.program_id(0).to(tl.int64) * (region_stride + word_stride)

    # Equations 10 and 11, regions block by block.
    context = tl.zeros((WORDS, HIDDEN_BLOCK), tl.float32)
    if INTER:
        for r0 in tl.range(0, m, REGION_BLOCK):
            region = r0 + tl.arange(0, REGION_BLOCK)
            R_unit = load_block(R_units + rows + region[None, :], word < n, region < m)
            VQ4 = load_block(of_regions + region[:, None] * (2 * HIDDEN) + HIDDEN, region < m, h_exists)
            context = tl.dot(R_unit, VQ4, context, input_precision=PRECISION)
        context *= tl.load(word_norms + slot * word_stride + word, mask=word < n, other=0.0)[:, None]
    if INTRA:
        UQ3 = load_block(of_words + HIDDEN, word < n, h_exists)
        if GRAM:
            at = (slot.to(tl.int64) * word_stride + word)[:, None] * word_stride + word[None, :]
            context = tl.dot(load_block(Hu + at, word < n, word < n), UQ3, context, input_precision=PRECISION)
        else:
            for r0 in tl.range(0, m, REGION_BLOCK):
                region = r0 + tl.arange(0, REGION_BLOCK)
                R_unit = load_block(R_units + rows + region[None, :], word < n, region < m)
                Z = sum_of_rows(R_unit, UQ3, WORD_PARTS, PRECISION)
                context = tl.dot(R_unit, Z.to(dtype), context, input_precision=PRECISION)
    wu = tl.load(word_score + h, mask=h_exists, other=0.0).to(tl.float32)
    tl.store(target + region_stride + word, tl.sum(context_tanh(context, HALF) * wu[None, :], 1), mask=word < n)

    # Equations 8 and 9: Ĉᵀ (V Q1) takes all regions before any has its context.
    wv = tl.load(region_score + h, mask=h_exists, other=0.0).to(tl.float32)
    gathered = tl.zeros((WORDS, HIDDEN_BLOCK), tl.float32)
    if INTRA:
        for r0 in tl.range(0, m, REGION_BLOCK):
            region = r0 + tl.arange(0, REGION_BLOCK)
            C_unit = load_block(C_units + rows + region[None, :], word < n, region < m)
            VQ1 = load_block(of_regions + region[:, None] * (2 * HIDDEN), region < m, h_exists)
            gathered = tl.dot(C_unit, VQ1, gathered, input_precision=PRECISION)
    gathered = gathered.to(dtype)
    for r0 in tl.range(0, m, REGION_BLOCK):
        region = r0 + tl.arange(0, REGION_BLOCK)
        C_unit = load_block(C_units + rows + region[None, :], word < n, region < m)
        Y = tl.zeros((REGION_BLOCK, HIDDEN_BLOCK), tl.float32)
        if INTER:
            Y = sum_of_rows(C_unit, load_block(of_words, word < n, h_exists), WORD_PARTS, PRECISION)
            Y *= tl.load(region_norms + slot * region_stride + region, mask=region < m, other=0.0)[:, None]
        if INTRA:
            Y += sum_of_rows(C_unit, gathered, WORD_PARTS, PRECISION)
        tl.store(target + region, tl.sum(context_tanh(Y, HALF) * wv[None, :], 1), mask=region < m)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def finish_kernel(
    regions,
    words,
    region_lengths,
    word_lengths,
    region_order,
    region_starts,
    word_order,
    word_starts,
    pairs,
    list_order,
    list_starts,
    X,
    logits,
    scores,
    first_bucket,
    end_bucket,
    word_bucket,
    first_image,
    first_caption,
    captions,
    score_row,
    region_rows,
    word_rows,
    region_stride,
    word_stride,
    LISTED: tl.constexpr,
    COSINE: tl.constexpr,
    PANELS: tl.constexpr,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
    REGION_BLOCK: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
):
    slot = tl.program_id(0)
    image, caption, place, exists = pair_at(
        slot, region_order, region_starts, word_order, word_starts, pairs, list_order, list_starts,
        first_bucket, end_bucket, word_bucket, first_image, first_caption, captions, score_row, LISTED,
    )  # fmt: skip
    if exists == 0:
        return
    m = tl.load(region_lengths + image).to(tl.int32)
    n = tl.load(word_lengths + caption).to(tl.int32)
    word = tl.arange(0, WORDS)
    rows = (slot.to(tl.int64) * word_stride + word)[:, None] * region_stride
    row = region_stride + word_stride
    # Without contexts all logits are 0, and there is still room for one panel.
    logits += slot.to(tl.int64) * row * max(PANELS, 1)

    # Equations 9 and 11, panels in their order.
    word_logits = tl.zeros((WORDS,), tl.float32)
    for panel in tl.range(0, PANELS):
        word_logits += tl.load(logits + panel * row + region_stride + word, mask=word < n, other=0.0)
    g = softmax_where(word_logits, word < n, 0)
    highest = -float("inf")
    for r0 in tl.range(0, m, REGION_BLOCK):
        region = r0 + tl.arange(0, REGION_BLOCK)
        region_logits = tl.zeros((REGION_BLOCK,), tl.float32)
        for panel in tl.range(0, PANELS):
            region_logits += tl.load(logits + panel * row + region, mask=region < m, other=0.0)
        highest = tl.maximum(highest, tl.max(tl.where(region < m, region_logits, -float("inf"))))
        tl.store(logits + region, region_logits, mask=region < m)
    # Other threads than those that wrote them may read the sums.
    tl.debug_barrier()

    # Equations 5, 6 and 18; f is e over its sum.
    total = 0.0
    pooled = tl.zeros((WORDS,), tl.float32)
    for r0 in tl.range(0, m, REGION_BLOCK):
        region = r0 + tl.arange(0, REGION_BLOCK)
        e = weight_of(logits + region, region < m, highest)
        total += tl.sum(e)
        pooled += tl.sum(load_block(X + rows + region[None, :], word < n, region < m) * e[None, :], 1)
    score = tl.div_rn(tl.sum(pooled * g), total)
    if COSINE:
        v_squares = tl.zeros((WIDTH_BLOCK,), tl.float32)
        u_squares = tl.zeros((WIDTH_BLOCK,), tl.float32)
        for d0 in tl.range(0, WIDTH, WIDTH_BLOCK):
            d = d0 + tl.arange(0, WIDTH_BLOCK)
            v = tl.zeros((WIDTH_BLOCK,), tl.float32)
            for r0 in tl.range(0, m, REGION_BLOCK):
                region = r0 + tl.arange(0, REGION_BLOCK)
                e = weight_of(logits + region, region < m, highest)
                V = load_block(regions + (image * region_rows + region)[:, None] * WIDTH + d[None, :], region < m, d < WIDTH)
                v += tl.sum(V.to(tl.float32) * e[:, None], 0)
            v = tl.div_rn(v, total)
            U = load_block(words + (caption * word_rows + word)[:, None] * WIDTH + d[None, :], word < n, d < WIDTH)
            u = tl.sum(U.to(tl.float32) * g[:, None], 0)
            v_squares += v * v
            u_squares += u * u
        score = tl.div_rn(score, norm(tl.sum(v_squares)) * norm(tl.sum(u_squares)))
    tl.store(scores + place, score)
