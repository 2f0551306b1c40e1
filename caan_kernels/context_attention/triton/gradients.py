"""First derivatives, and the attention behind a score: pair by pair for what is small, item by item for what is summed.

A pair that has a gradient holds a slot of scratch memory, float32 in this order, nothing larger than (m, n):

    A (M, N)
    regions, M each: shift and scale of R's rows, f, gradient of the logits
    words, N each: shift and scale of C's columns, g, gradient of the logits
    for derivatives only: gradient of A (M, N), of C (M, N), of v̂ (D) and of û (D)

`pair_kernel` fills it. The other kernels then give every image, and every caption, a program that walks its pairs in a
fixed order and recomputes, from the slots, a panel of the contexts: no two programs write to one place, so nothing is
atomic and the sums have one order. Words are walked in tiles of `TILE`, as many as a caption has; regions lie in one tile.

Products are of float32 numbers, in TF32 where the features are half precision: a gradient spans more than float16's range.
"""

import triton
import triton.language as tl

from .functions import add_with_rest, inverse_norm, softmax_where, tanh


def slot_numbers(regions: int, words: int, width: int, gradient: bool) -> int:
    """float32 numbers of a pair's slot."""
    numbers = regions * words + 4 * (regions + words)
    return numbers + 2 * (regions * words + width) if gradient else numbers


@triton.jit
def region_part(slot, region_rows, word_rows, part):
    return slot + region_rows * word_rows + part * region_rows


@triton.jit
def word_part(slot, region_rows, word_rows, part):
    return slot + region_rows * word_rows + 4 * region_rows + part * word_rows


@triton.jit
def gradient_part(slot, region_rows, word_rows, part):
    """Gradient of A (part 0), of C (part 1), and after them those of v̂ and û (part 2)."""
    return slot + (1 + part) * region_rows * word_rows + 4 * (region_rows + word_rows)


@triton.jit
def block_size(rows):
    """plan.size_of"""
    size = 0 * rows + 16
    while size < rows:
        size *= 2
    return size


@triton.jit
def load_float(pointers, mask):
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def add_to(pointers, x, mask):
    """Add to what this program alone writes."""
    tl.store(pointers, tl.load(pointers, mask=mask, other=0.0) + x, mask=mask)


@triton.jit
def attention_weights(A, exists, shift, scale, temperature, SOFTMAX: tl.constexpr):
    """Equation 2 along one side, from what the sums over that side left behind."""
    if SOFTMAX:
        return tl.where(exists, tl.exp(temperature * A - shift) * scale, 0.0)
    else:
        return tl.where(exists, tl.maximum(A, 0.0) * scale, 0.0)


@triton.jit
def attention_tile(slot, row_shift, row_scale, region, word, m, n, temperature, region_rows, word_rows, SOFTMAX: tl.constexpr):
    """A, R and C for all regions and a tile of words."""
    exists = (region < m)[:, None] & (word < n)[None, :]
    A = load_float(slot + region[:, None] * word_rows + word[None, :], exists)
    column_shift = load_float(word_part(slot, region_rows, word_rows, 0) + word, word < n)
    column_scale = load_float(word_part(slot, region_rows, word_rows, 1) + word, word < n)
    R = attention_weights(A, exists, row_shift[:, None], row_scale[:, None], temperature, SOFTMAX)
    C = attention_weights(A, exists, column_shift[None, :], column_scale[None, :], temperature, SOFTMAX)
    return A, R, C


@triton.jit
def gathered_words(R, VQ1, UQ2, INTER: tl.constexpr, INTRA: tl.constexpr, PRECISION: tl.constexpr):
    """Rᵀ (V Q1) + U Q2 for a tile of words."""
    z = tl.zeros(UQ2.shape, tl.float32)
    if INTER:
        z = UQ2
    if INTRA:
        z = tl.dot(tl.trans(R), VQ1, z, input_precision=PRECISION)
    return z


@triton.jit
def contexts(
    slot,
    row_shift,
    row_scale,
    VQ1,
    VQ4,
    of_words,
    region,
    h,
    m,
    n,
    temperature,
    region_rows,
    word_rows,
    SOFTMAX: tl.constexpr,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Y = R (Rᵀ V Q1 + U Q2), the regions' context, and Z = C (U Q3) + V Q4, where the words' is Cᵀ Z, in a panel h."""
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    Y = tl.zeros(VQ1.shape, tl.float32)
    Z = tl.zeros(VQ1.shape, tl.float32)
    if INTER:
        Z = VQ4
    for j0 in tl.range(0, n, TILE):
        word = j0 + tl.arange(0, TILE)
        _, R, C = attention_tile(slot, row_shift, row_scale, region, word, m, n, temperature, region_rows, word_rows, SOFTMAX)
        mask = (word < n)[:, None] & (h < HIDDEN)[None, :]
        rows = of_words + word[:, None] * PRODUCTS + WIDTH + h[None, :]
        z = gathered_words(R, VQ1, load_float(rows, mask), INTER, INTRA, PRECISION)
        Y = tl.dot(R, z, Y, input_precision=PRECISION)
        if INTRA:
            Z = tl.dot(C, load_float(rows + HIDDEN, mask), Z, input_precision=PRECISION)
    return Y, Z


@triton.jit
def logit_gradient(logit_gradients, score, T):
    """Gradient of a context Y from that of its logits tanh(Y) w."""
    return logit_gradients[:, None] * score[None, :] * (1.0 - T * T)


@triton.jit
def pair_gradients(
    slot,
    V_rows,
    U_rows,
    of_regions,
    of_words,
    region_score,
    word_score,
    row_shift,
    row_scale,
    f,
    g,
    across,
    along_v,
    along_u,
    m,
    n,
    temperature,
    region_rows,
    word_rows,
    SOFTMAX: tl.constexpr,
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
    """From v̂ and û in the slot to the gradients of v̂, û, the logits and the alignment there.

    The gradient of v̂ is across û - along_v v̂, that of û is across v̂ - along_u û.
    """
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    region = tl.arange(0, REGIONS)
    region_exists = region < m
    every_word = tl.arange(0, WORDS)
    of_word_logits = word_part(slot, region_rows, word_rows, 3)
    of_v = gradient_part(slot, region_rows, word_rows, 2)
    of_u = of_v + WIDTH
    of_dA = gradient_part(slot, region_rows, word_rows, 0)
    of_dC = gradient_part(slot, region_rows, word_rows, 1)
    df = tl.zeros((REGIONS,), tl.float32)
    for d0 in tl.range(0, WIDTH, WIDTH_BLOCK):
        d = d0 + tl.arange(0, WIDTH_BLOCK)
        V = load_float(V_rows + region[:, None] * WIDTH + d[None, :], region_exists[:, None] & (d < WIDTH)[None, :])
        v = load_float(of_v + d, d < WIDTH)
        u = load_float(of_u + d, d < WIDTH)
        dv = across * u - along_v * v
        tl.debug_barrier()
        tl.store(of_v + d, dv, mask=d < WIDTH)
        tl.store(of_u + d, across * v - along_u * u, mask=d < WIDTH)
        df += tl.sum(V * dv[None, :], 1)
    tl.debug_barrier()
    dfv = tl.where(region_exists, f * (df - tl.sum(f * df)), 0.0)
    tl.store(region_part(slot, region_rows, word_rows, 3) + region, dfv, mask=region_exists)
    for j0 in tl.range(0, n, TILE):
        word = j0 + tl.arange(0, TILE)
        dg = tl.zeros((TILE,), tl.float32)
        for d0 in tl.range(0, WIDTH, WIDTH_BLOCK):
            d = d0 + tl.arange(0, WIDTH_BLOCK)
            U = load_float(U_rows + word[:, None] * WIDTH + d[None, :], (word < n)[:, None] & (d < WIDTH)[None, :])
            dg += tl.sum(U * load_float(of_u + d, d < WIDTH)[None, :], 1)
        tl.store(of_word_logits + word, dg, mask=word < n)
    tl.debug_barrier()
    dg = load_float(of_word_logits + every_word, every_word < n)
    dg = g * (dg - tl.sum(g * dg))
    tl.debug_barrier()
    tl.store(of_word_logits + every_word, dg, mask=every_word < n)

    # Gradients of R and C, summed over the panels in the slot.
    for j0 in tl.range(0, n, TILE):
        word = j0 + tl.arange(0, TILE)
        exists = region_exists[:, None] & (word < n)[None, :]
        at = region[:, None] * word_rows + word[None, :]
        tl.store(of_dA + at, tl.zeros((REGIONS, TILE), tl.float32), mask=exists)
        tl.store(of_dC + at, tl.zeros((REGIONS, TILE), tl.float32), mask=exists)
    tl.debug_barrier()
    if INTER or INTRA:
        for h0 in tl.range(0, HIDDEN, HIDDEN_BLOCK):
            h = h0 + tl.arange(0, HIDDEN_BLOCK)
            mask = region_exists[:, None] & (h < HIDDEN)[None, :]
            VQ1 = load_float(of_regions + region[:, None] * (2 * HIDDEN) + h[None, :], mask)
            VQ4 = load_float(of_regions + region[:, None] * (2 * HIDDEN) + HIDDEN + h[None, :], mask)
            wv = load_float(region_score + h, h < HIDDEN)
            wu = load_float(word_score + h, h < HIDDEN)
            Y, Z = contexts(
                slot, row_shift, row_scale, VQ1, VQ4, of_words, region, h, m, n, temperature, region_rows, word_rows,
                SOFTMAX, INTER, INTRA, WIDTH, HIDDEN, TILE, PRECISION,
            )  # fmt: skip
            dY = logit_gradient(dfv, wv, tanh(Y))
            dZ = tl.zeros((REGIONS, HIDDEN_BLOCK), tl.float32)
            for j0 in tl.range(0, n, TILE):
                word = j0 + tl.arange(0, TILE)
                exists = region_exists[:, None] & (word < n)[None, :]
                at = region[:, None] * word_rows + word[None, :]
                _, R, C = attention_tile(
                    slot, row_shift, row_scale, region, word, m, n, temperature, region_rows, word_rows, SOFTMAX
                )
                word_mask = (word < n)[:, None] & (h < HIDDEN)[None, :]
                UQ2 = load_float(of_words + word[:, None] * PRODUCTS + WIDTH + h[None, :], word_mask)
                z = gathered_words(R, VQ1, UQ2, INTER, INTRA, PRECISION)
                dR = tl.dot(dY, tl.trans(z), input_precision=PRECISION)
                if INTRA:
                    dz = tl.dot(tl.trans(R), dY, input_precision=PRECISION)
                    dR = tl.dot(VQ1, tl.trans(dz), dR, input_precision=PRECISION)
                add_to(of_dA + at, dR, exists)
                context = tl.dot(tl.trans(C), Z, input_precision=PRECISION)
                dcontext = logit_gradient(load_float(of_word_logits + word, word < n), wu, tanh(context))
                add_to(of_dC + at, tl.dot(Z, tl.trans(dcontext), input_precision=PRECISION), exists)
                dZ = tl.dot(C, dcontext, dZ, input_precision=PRECISION)
            tl.debug_barrier()
            if INTRA:
                for j0 in tl.range(0, n, TILE):
                    word = j0 + tl.arange(0, TILE)
                    exists = region_exists[:, None] & (word < n)[None, :]
                    at = region[:, None] * word_rows + word[None, :]
                    word_mask = (word < n)[:, None] & (h < HIDDEN)[None, :]
                    UQ3 = load_float(of_words + word[None, :] * PRODUCTS + WIDTH + HIDDEN + h[:, None], tl.trans(word_mask))
                    add_to(of_dC + at, tl.dot(dZ, UQ3, input_precision=PRECISION), exists)
                tl.debug_barrier()

    # Through equations 2 and 1.
    along_rows = tl.zeros((REGIONS,), tl.float32)
    for j0 in tl.range(0, n, TILE):
        word = j0 + tl.arange(0, TILE)
        exists = region_exists[:, None] & (word < n)[None, :]
        _, R, C = attention_tile(slot, row_shift, row_scale, region, word, m, n, temperature, region_rows, word_rows, SOFTMAX)
        along_rows += tl.sum(load_float(of_dA + region[:, None] * word_rows + word[None, :], exists) * R, 1)
    for j0 in tl.range(0, n, TILE):
        word = j0 + tl.arange(0, TILE)
        exists = region_exists[:, None] & (word < n)[None, :]
        at = region[:, None] * word_rows + word[None, :]
        A, R, C = attention_tile(slot, row_shift, row_scale, region, word, m, n, temperature, region_rows, word_rows, SOFTMAX)
        dR = load_float(of_dA + at, exists)
        dC = load_float(of_dC + at, exists)
        along_columns = tl.sum(dC * C, 0)
        if SOFTMAX:
            dA = temperature * (R * (dR - along_rows[:, None]) + C * (dC - along_columns[None, :]))
        else:
            column_scale = load_float(word_part(slot, region_rows, word_rows, 1) + word, word < n)
            # A scale of 1e8 is that of a norm held at 1e-8.
            kept_rows = tl.where(row_scale < 1e8, along_rows, 0.0)
            kept_columns = tl.where(column_scale < 1e8, along_columns, 0.0)
            dP = row_scale[:, None] * (dR - R * kept_rows[:, None])
            dP += column_scale[None, :] * (dC - C * kept_columns[None, :])
            dA = tl.where(A > 0, dP, 0.0)
        tl.debug_barrier()
        tl.store(of_dA + at, dA * (1.0 - A * A), mask=exists)


@triton.jit(
    do_not_specialize=["images", "captions", "score_row", "first", "region_rows", "word_rows", "slot_stride"],
    do_not_specialize_on_alignment=["scores"],
)
def pair_kernel(
    regions,
    region_products,
    words,
    word_products,
    region_score,
    word_score,
    region_lengths,
    word_lengths,
    pairs,
    keys,
    order,
    count,
    scores,
    scratch,
    images,
    captions,
    score_row,
    first,
    region_rows,
    word_rows,
    slot_stride,
    temperature,
    LISTED: tl.constexpr,
    GRADIENT: tl.constexpr,
    COSINE: tl.constexpr,
    SOFTMAX: tl.constexpr,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    WORDS: tl.constexpr,
    MOST_WORDS: tl.constexpr,
    MOST_CELLS: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fill the slot of a pair: with GRADIENT all of it, from the scores' gradient; else as far as g, and give its score.

    With GRADIENT programs take the pairs of a walk, else those of the call in its own order. A block of regions and words
    that `scores_kernel` takes, of at most MOST_WORDS words and MOST_CELLS in all, is left to it.
    """
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    place = first + tl.program_id(0).to(tl.int64)
    if GRADIENT:
        if place >= tl.load(count):
            return
        key = tl.load(keys + place)
        image = key // captions
        caption = key % captions
    elif LISTED:
        image = tl.load(pairs + 2 * place)
        caption = tl.load(pairs + 2 * place + 1)
        if (image < 0) | (image >= images) | (caption < 0) | (caption >= captions):
            return
    else:
        image = place // captions
        caption = place % captions
    m = tl.load(region_lengths + image).to(tl.int32)
    n = tl.load(word_lengths + caption).to(tl.int32)
    if not GRADIENT:
        if (m == 0) | (n == 0):
            return
        words_block = block_size(n)
        if (words_block <= MOST_WORDS) & (block_size(m) * words_block <= MOST_CELLS):
            return
    slot = scratch + tl.program_id(0).to(tl.int64) * slot_stride
    V_rows = regions + image * region_rows * WIDTH
    U_rows = words + caption * word_rows * WIDTH
    of_regions = region_products + image * region_rows * (2 * HIDDEN)
    of_words = word_products + caption * word_rows * PRODUCTS
    region = tl.arange(0, REGIONS)
    region_exists = region < m

    # Equations 1 and 2.
    highest = tl.full((REGIONS,), -float("inf"), tl.float32)
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
            if regions.dtype.element_ty == tl.float32:
                alignment, rest = add_with_rest(alignment, rest, tl.dot(V, UK, input_precision=PRECISION))
            else:
                alignment = tl.dot(V, UK, alignment, input_precision=PRECISION)
        A = tanh(alignment + rest)
        exists = region_exists[:, None] & word_exists[None, :]
        tl.store(slot + region[:, None] * word_rows + word[None, :], A, mask=exists)
        column_stats = word_part(slot, region_rows, word_rows, 0) + word
        if SOFTMAX:
            x = tl.where(exists, temperature * A, -float("inf"))
            highest = tl.maximum(highest, tl.max(x, 1))
            shift = tl.where(word_exists, tl.max(x, 0), 0.0)
            total = tl.sum(tl.where(exists, tl.exp(x - shift[None, :]), 0.0), 0)
            tl.store(column_stats, shift, mask=word_exists)
            tl.store(column_stats + word_rows, 1.0 / total, mask=word_exists)
        else:
            P = tl.where(exists, tl.maximum(A, 0.0), 0.0)
            squares += tl.sum(P * P, 1)
            tl.store(column_stats, tl.zeros((TILE,), tl.float32), mask=word_exists)
            tl.store(column_stats + word_rows, inverse_norm(tl.sum(P * P, 0)), mask=word_exists)
    # A barrier stands wherever one thread may read from the slot what another wrote.
    tl.debug_barrier()
    row_shift = tl.zeros((REGIONS,), tl.float32)
    if SOFTMAX:
        row_shift = tl.where(region_exists, highest, 0.0)
        totals = tl.zeros((REGIONS,), tl.float32)
        for j0 in tl.range(0, n, TILE):
            word = j0 + tl.arange(0, TILE)
            exists = region_exists[:, None] & (word < n)[None, :]
            A = load_float(slot + region[:, None] * word_rows + word[None, :], exists)
            totals += tl.sum(tl.where(exists, tl.exp(temperature * A - row_shift[:, None]), 0.0), 1)
        row_scale = 1.0 / tl.where(region_exists, totals, 1.0)
    else:
        row_scale = inverse_norm(squares)
    tl.store(region_part(slot, region_rows, word_rows, 0) + region, row_shift, mask=region_exists)
    tl.store(region_part(slot, region_rows, word_rows, 1) + region, row_scale, mask=region_exists)

    # Equations 4 and 5: f, and the logits of g, which wait where their gradient will be.
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
            VQ4 = load_float(of_regions + region[:, None] * (2 * HIDDEN) + HIDDEN + h[None, :], mask)
            wv = load_float(region_score + h, h < HIDDEN)
            wu = load_float(word_score + h, h < HIDDEN)
            Y, Z = contexts(
                slot, row_shift, row_scale, VQ1, VQ4, of_words, region, h, m, n, temperature, region_rows, word_rows,
                SOFTMAX, INTER, INTRA, WIDTH, HIDDEN, TILE, PRECISION,
            )  # fmt: skip
            region_logits += tl.sum(tanh(Y) * wv[None, :], 1)
            for j0 in tl.range(0, n, TILE):
                word = j0 + tl.arange(0, TILE)
                _, _, C = attention_tile(
                    slot, row_shift, row_scale, region, word, m, n, temperature, region_rows, word_rows, SOFTMAX
                )
                context = tl.dot(tl.trans(C), Z, input_precision=PRECISION)
                add_to(of_word_logits + word, tl.sum(tanh(context) * wu[None, :], 1), word < n)
            tl.debug_barrier()
    f = softmax_where(region_logits, region_exists, 0)
    g = softmax_where(load_float(of_word_logits + every_word, every_word < n), every_word < n, 0)
    of_g = word_part(slot, region_rows, word_rows, 2)
    tl.store(region_part(slot, region_rows, word_rows, 2) + region, f, mask=region_exists)
    tl.store(of_g + every_word, g, mask=every_word < n)
    tl.debug_barrier()

    # Equations 6 and 7.
    of_v = gradient_part(slot, region_rows, word_rows, 2)
    of_u = of_v + WIDTH
    product = tl.zeros((WIDTH_BLOCK,), tl.float32)
    v_squares = tl.zeros((WIDTH_BLOCK,), tl.float32)
    u_squares = tl.zeros((WIDTH_BLOCK,), tl.float32)
    for d0 in tl.range(0, WIDTH, WIDTH_BLOCK):
        d = d0 + tl.arange(0, WIDTH_BLOCK)
        V = load_float(V_rows + region[:, None] * WIDTH + d[None, :], region_exists[:, None] & (d < WIDTH)[None, :])
        v = tl.sum(V * f[:, None], 0)
        u = tl.zeros((WIDTH_BLOCK,), tl.float32)
        for j0 in tl.range(0, n, TILE):
            word = j0 + tl.arange(0, TILE)
            U = load_float(U_rows + word[:, None] * WIDTH + d[None, :], (word < n)[:, None] & (d < WIDTH)[None, :])
            u += tl.sum(U * load_float(of_g + word, word < n)[:, None], 0)
        product += v * u
        v_squares += v * v
        u_squares += u * u
        if GRADIENT:
            tl.store(of_v + d, v, mask=d < WIDTH)
            tl.store(of_u + d, u, mask=d < WIDTH)
    v_square = tl.sum(v_squares)
    u_square = tl.sum(u_squares)
    across = 1.0
    if COSINE:
        across = inverse_norm(v_square) * inverse_norm(u_square)
    if GRADIENT:
        across *= tl.load(scores + tl.load(order + place))
        along_v = 0.0
        along_u = 0.0
        if COSINE:
            towards = across * tl.sum(product)
            # A norm held at 1e-8 passes no gradient.
            along_v = tl.where(tl.sqrt(v_square) > 1e-8, towards / v_square, 0.0)
            along_u = tl.where(tl.sqrt(u_square) > 1e-8, towards / u_square, 0.0)
        tl.debug_barrier()
        pair_gradients(
            slot, V_rows, U_rows, of_regions, of_words, region_score, word_score, row_shift, row_scale, f, g,
            across, along_v, along_u, m, n, temperature, region_rows, word_rows,
            SOFTMAX, INTER, INTRA, WIDTH, HIDDEN, REGIONS, WORDS, TILE, WIDTH_BLOCK, HIDDEN_BLOCK, PRECISION,
        )  # fmt: skip
    elif LISTED:
        tl.store(scores + place, tl.sum(product) * across)
    else:
        tl.store(scores + image * score_row + caption, tl.sum(product) * across)


@triton.jit(do_not_specialize=["captions", "first_slot", "slots", "region_rows", "word_rows", "slot_stride"])
def image_features_kernel(
    word_products,
    region_lengths,
    word_lengths,
    keys,
    starts,
    count,
    scratch,
    gradients,
    captions,
    first_slot,
    slots,
    region_rows,
    word_rows,
    slot_stride,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradient of V += Σ dS (U Kᵀ) + f ⊗ dv̂ over the image's pairs, for a block of the width."""
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    BLOCKS: tl.constexpr = (WIDTH + WIDTH_BLOCK - 1) // WIDTH_BLOCK
    image = (tl.program_id(0) // BLOCKS).to(tl.int64)
    d = (tl.program_id(0) % BLOCKS) * WIDTH_BLOCK + tl.arange(0, WIDTH_BLOCK)
    begin = tl.maximum(tl.load(starts + image), first_slot)
    end = tl.minimum(tl.minimum(tl.load(starts + image + 1), tl.load(count)), first_slot + slots)
    if begin >= end:
        return
    m = tl.load(region_lengths + image).to(tl.int32)
    region = tl.arange(0, REGIONS)
    mask = (region < m)[:, None] & (d < WIDTH)[None, :]
    target = gradients + (image * region_rows + region[:, None]) * WIDTH + d[None, :]
    dV = load_float(target, mask)
    for place in tl.range(begin, end):
        caption = tl.load(keys + place) % captions
        n = tl.load(word_lengths + caption).to(tl.int32)
        slot = scratch + (place - first_slot) * slot_stride
        f = load_float(region_part(slot, region_rows, word_rows, 2) + region, region < m)
        dv = load_float(gradient_part(slot, region_rows, word_rows, 2) + d, d < WIDTH)
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
            dV = tl.dot(dS, UK, dV, input_precision=PRECISION)
    tl.store(target, dV, mask=mask)


@triton.jit(do_not_specialize=["captions", "first_slot", "slots", "region_rows", "word_rows", "slot_stride"])
def image_hidden_kernel(
    region_products,
    word_products,
    region_score,
    word_score,
    region_lengths,
    word_lengths,
    keys,
    starts,
    count,
    scratch,
    gradients,
    region_score_gradients,
    word_score_gradients,
    captions,
    first_slot,
    slots,
    region_rows,
    word_rows,
    slot_stride,
    temperature,
    SOFTMAX: tl.constexpr,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    TILE: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of V Q1 and V Q4, and this image's part of those of both score vectors, for a panel of the hidden width."""
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    BLOCKS: tl.constexpr = (HIDDEN + HIDDEN_BLOCK - 1) // HIDDEN_BLOCK
    image = (tl.program_id(0) // BLOCKS).to(tl.int64)
    h = (tl.program_id(0) % BLOCKS) * HIDDEN_BLOCK + tl.arange(0, HIDDEN_BLOCK)
    begin = tl.maximum(tl.load(starts + image), first_slot)
    end = tl.minimum(tl.minimum(tl.load(starts + image + 1), tl.load(count)), first_slot + slots)
    if begin >= end:
        return
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
        slot = scratch + (place - first_slot) * slot_stride
        row_shift = load_float(region_part(slot, region_rows, word_rows, 0) + region, region < m)
        row_scale = load_float(region_part(slot, region_rows, word_rows, 1) + region, region < m)
        dfv = load_float(region_part(slot, region_rows, word_rows, 3) + region, region < m)
        Y, Z = contexts(
            slot, row_shift, row_scale, VQ1, VQ4, of_words, region, h, m, n, temperature, region_rows, word_rows,
            SOFTMAX, INTER, INTRA, WIDTH, HIDDEN, TILE, PRECISION,
        )  # fmt: skip
        T = tanh(Y)
        dwv += tl.sum(dfv[:, None] * T, 0)
        dY = logit_gradient(dfv, wv, T)
        for j0 in tl.range(0, n, TILE):
            word = j0 + tl.arange(0, TILE)
            _, R, C = attention_tile(slot, row_shift, row_scale, region, word, m, n, temperature, region_rows, word_rows, SOFTMAX)
            if INTRA:
                dz = tl.dot(tl.trans(R), dY, input_precision=PRECISION)
                dVQ1 = tl.dot(R, dz, dVQ1, input_precision=PRECISION)
            word_T = tanh(tl.dot(tl.trans(C), Z, input_precision=PRECISION))
            dg = load_float(word_part(slot, region_rows, word_rows, 3) + word, word < n)
            dwu += tl.sum(dg[:, None] * word_T, 0)
            if INTER:
                dVQ4 = tl.dot(C, logit_gradient(dg, wu, word_T), dVQ4, input_precision=PRECISION)
    tl.store(gradients + row, dVQ1, mask=mask)
    tl.store(gradients + row + HIDDEN, dVQ4, mask=mask)
    tl.store(region_score_gradients + image * HIDDEN + h, dwv, mask=h < HIDDEN)
    tl.store(word_score_gradients + image * HIDDEN + h, dwu, mask=h < HIDDEN)


@triton.jit(do_not_specialize=["captions", "first_slot", "slots", "region_rows", "word_rows", "slot_stride"])
def caption_features_kernel(
    regions,
    region_lengths,
    word_lengths,
    keys,
    walk,
    starts,
    count,
    scratch,
    word_gradients,
    product_gradients,
    captions,
    first_slot,
    slots,
    region_rows,
    word_rows,
    slot_stride,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of U += Σ g ⊗ dû and of U Kᵀ += Σ dSᵀ V over the caption's pairs, for a block of the width."""
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    BLOCKS: tl.constexpr = (WIDTH + WIDTH_BLOCK - 1) // WIDTH_BLOCK
    caption = (tl.program_id(0) // BLOCKS).to(tl.int64)
    d = (tl.program_id(0) % BLOCKS) * WIDTH_BLOCK + tl.arange(0, WIDTH_BLOCK)
    begin = tl.load(starts + caption)
    end = tl.minimum(tl.load(starts + caption + 1), tl.load(count))
    n = tl.load(word_lengths + caption).to(tl.int32)
    region = tl.arange(0, REGIONS)
    for j0 in tl.range(0, n, TILE):
        word = j0 + tl.arange(0, TILE)
        mask = (word < n)[:, None] & (d < WIDTH)[None, :]
        row = caption * word_rows + word[:, None]
        dU = load_float(word_gradients + row * WIDTH + d[None, :], mask)
        dUK = load_float(product_gradients + row * PRODUCTS + d[None, :], mask)
        for step in tl.range(begin, end):
            place = tl.load(walk + step)
            if (place >= first_slot) & (place < first_slot + slots):
                image = tl.load(keys + place) // captions
                m = tl.load(region_lengths + image).to(tl.int32)
                slot = scratch + (place - first_slot) * slot_stride
                g = load_float(word_part(slot, region_rows, word_rows, 2) + word, word < n)
                du = load_float(gradient_part(slot, region_rows, word_rows, 2) + WIDTH + d, d < WIDTH)
                dU += g[:, None] * du[None, :]
                dS = load_float(
                    gradient_part(slot, region_rows, word_rows, 0) + region[None, :] * word_rows + word[:, None],
                    (region < m)[None, :] & (word < n)[:, None],
                )
                V = load_float(
                    regions + (image * region_rows + region[:, None]) * WIDTH + d[None, :],
                    (region < m)[:, None] & (d < WIDTH)[None, :],
                )
                dUK = tl.dot(dS, V, dUK, input_precision=PRECISION)
        tl.store(word_gradients + row * WIDTH + d[None, :], dU, mask=mask)
        tl.store(product_gradients + row * PRODUCTS + d[None, :], dUK, mask=mask)


@triton.jit(do_not_specialize=["captions", "first_slot", "slots", "region_rows", "word_rows", "slot_stride"])
def caption_hidden_kernel(
    region_products,
    word_products,
    region_score,
    word_score,
    region_lengths,
    word_lengths,
    keys,
    walk,
    starts,
    count,
    scratch,
    gradients,
    captions,
    first_slot,
    slots,
    region_rows,
    word_rows,
    slot_stride,
    temperature,
    SOFTMAX: tl.constexpr,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    TILE: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Gradients of U Q2 and U Q3 over the caption's pairs, for a panel of the hidden width."""
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    BLOCKS: tl.constexpr = (HIDDEN + HIDDEN_BLOCK - 1) // HIDDEN_BLOCK
    caption = (tl.program_id(0) // BLOCKS).to(tl.int64)
    h = (tl.program_id(0) % BLOCKS) * HIDDEN_BLOCK + tl.arange(0, HIDDEN_BLOCK)
    begin = tl.load(starts + caption)
    end = tl.minimum(tl.load(starts + caption + 1), tl.load(count))
    n = tl.load(word_lengths + caption).to(tl.int32)
    region = tl.arange(0, REGIONS)
    of_words = word_products + caption * word_rows * PRODUCTS
    targets = gradients + caption * word_rows * PRODUCTS + WIDTH
    wv = load_float(region_score + h, h < HIDDEN)
    wu = load_float(word_score + h, h < HIDDEN)
    for step in tl.range(begin, end):
        place = tl.load(walk + step)
        if (place >= first_slot) & (place < first_slot + slots):
            image = tl.load(keys + place) // captions
            m = tl.load(region_lengths + image).to(tl.int32)
            slot = scratch + (place - first_slot) * slot_stride
            mask = (region < m)[:, None] & (h < HIDDEN)[None, :]
            row = (image * region_rows + region[:, None]) * (2 * HIDDEN) + h[None, :]
            VQ1 = load_float(region_products + row, mask)
            VQ4 = load_float(region_products + row + HIDDEN, mask)
            row_shift = load_float(region_part(slot, region_rows, word_rows, 0) + region, region < m)
            row_scale = load_float(region_part(slot, region_rows, word_rows, 1) + region, region < m)
            dfv = load_float(region_part(slot, region_rows, word_rows, 3) + region, region < m)
            Y, Z = contexts(
                slot, row_shift, row_scale, VQ1, VQ4, of_words, region, h, m, n, temperature, region_rows, word_rows,
                SOFTMAX, INTER, INTRA, WIDTH, HIDDEN, TILE, PRECISION,
            )  # fmt: skip
            dY = logit_gradient(dfv, wv, tanh(Y))
            dZ = tl.zeros((REGIONS, HIDDEN_BLOCK), tl.float32)
            for j0 in tl.range(0, n, TILE):
                word = j0 + tl.arange(0, TILE)
                _, R, C = attention_tile(
                    slot, row_shift, row_scale, region, word, m, n, temperature, region_rows, word_rows, SOFTMAX
                )
                word_mask = (word < n)[:, None] & (h < HIDDEN)[None, :]
                if INTER:
                    dz = tl.dot(tl.trans(R), dY, input_precision=PRECISION)
                    add_to(targets + word[:, None] * PRODUCTS + h[None, :], dz, word_mask)
                context = tl.dot(tl.trans(C), Z, input_precision=PRECISION)
                dg = load_float(word_part(slot, region_rows, word_rows, 3) + word, word < n)
                dZ = tl.dot(C, logit_gradient(dg, wu, tanh(context)), dZ, input_precision=PRECISION)
            if INTRA:
                for j0 in tl.range(0, n, TILE):
                    word = j0 + tl.arange(0, TILE)
                    _, _, C = attention_tile(
                        slot, row_shift, row_scale, region, word, m, n, temperature, region_rows, word_rows, SOFTMAX
                    )
                    word_mask = (word < n)[:, None] & (h < HIDDEN)[None, :]
                    dUQ3 = tl.dot(tl.trans(C), dZ, input_precision=PRECISION)
                    add_to(targets + word[:, None] * PRODUCTS + HIDDEN + h[None, :], dUQ3, word_mask)
            tl.debug_barrier()
