"""First derivatives, and the attention behind a score: pair by pair for what is small, item by item for what is summed.

A pair that has a gradient holds a slot of scratch memory, float32 in this order, nothing larger than (m, n):

    A (M, N)
    regions, M each: norms of the rows of A₊ and of C, f, gradient of the logits
    words, N each: norms of the columns of A₊ and of R, g, gradient of the logits
    for derivatives only, (M, N) each: gradients of C, Ĉ, R and R̂ᵀ, of which the first becomes that of the alignment before
        tanh; and gradients of v̂ (D) and of û (D)

`pair_kernel` fills it. The other kernels then give every image, and every caption, a program that walks its pairs in a
fixed order and recomputes, from the slots, a panel of the contexts: no two programs write to one place, so nothing is
atomic and the sums have one order. Words are walked in tiles of `TILE`, as many as a caption has; regions lie in one tile.

Products are of float32 numbers, in TF32 where the features are half precision: a gradient spans more than float16's range.
"""

import triton
import triton.language as tl

from ...core.triton.functions import add_with_rest, norm, positive_part, softmax_where, sum_of_rows, tanh


def pair_numbers(regions: int, words: int, width: int, gradient: bool) -> int:
    """float32 numbers of a pair's slot."""
    numbers = regions * words + 4 * (regions + words)
    return numbers + 4 * regions * words + 2 * width if gradient else numbers


@triton.jit
def sum_of_regions(x, y, PRECISION: tl.constexpr):
    """xᵀ y over all regions: of many each warp takes some, since registers do not hold a factor that is so long."""
    PARTS: tl.constexpr = 1 if x.shape[0] <= 64 else x.shape[0] // 32
    return sum_of_rows(x, y, PARTS, PRECISION)


@triton.jit
def region_part(slot, region_rows, word_rows, part):
    return slot + region_rows * word_rows + part * region_rows


@triton.jit
def word_part(slot, region_rows, word_rows, part):
    return slot + region_rows * word_rows + 4 * region_rows + part * word_rows


@triton.jit
def gradient_part(slot, region_rows, word_rows, part):
    """Gradients of C, Ĉ, R and R̂ᵀ (parts 0 to 3), and after them those of v̂ and û (part 4)."""
    return slot + (1 + part) * region_rows * word_rows + 4 * (region_rows + word_rows)


@triton.jit
def load_float(pointers, mask):
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def add_to(pointers, x, mask):
    """Add to what this program alone writes."""
    tl.store(pointers, tl.load(pointers, mask=mask, other=0.0) + x, mask=mask)


@triton.jit
def load_norm(pointers, mask):
    """Norms, and 1 for what does not exist: it is divided by."""
    return tl.load(pointers, mask=mask, other=1.0)


@triton.jit
def alignment_tile(slot, region, word, m, n, word_rows):
    """A and A₊ for all regions and a tile of words, 0 where there is none."""
    exists = (region < m)[:, None] & (word < n)[None, :]
    A = load_float(slot + region[:, None] * word_rows + word[None, :], exists)
    return A, positive_part(A, exists)


@triton.jit
def word_to_region(slot, region, word, m, n, region_rows, word_rows):
    """C and Ĉ for all regions and a tile of words, from the alignment and the norms in the slot."""
    _, P = alignment_tile(slot, region, word, m, n, word_rows)
    C = tl.div_rn(P, load_norm(word_part(slot, region_rows, word_rows, 0) + word, word < n)[None, :])
    return C, tl.div_rn(C, load_norm(region_part(slot, region_rows, word_rows, 1) + region, region < m)[:, None])


@triton.jit
def region_to_word(slot, region, word, m, n, region_rows, word_rows):
    """R and R̂ᵀ for all regions and a tile of words, likewise."""
    _, P = alignment_tile(slot, region, word, m, n, word_rows)
    R = tl.div_rn(P, load_norm(region_part(slot, region_rows, word_rows, 0) + region, region < m)[:, None])
    return R, tl.div_rn(R, load_norm(word_part(slot, region_rows, word_rows, 1) + word, word < n)[None, :])


@triton.jit
def word_products(of_words, word, h, n, part, WIDTH: tl.constexpr, HIDDEN: tl.constexpr):
    """U Q2 (part 0) or U Q3 (part 1) for a tile of words in a panel h."""
    rows = of_words + word[:, None] * (WIDTH + 2 * HIDDEN) + WIDTH + part * HIDDEN
    return load_float(rows + h[None, :], (word < n)[:, None] & (h < HIDDEN)[None, :])


@triton.jit
def region_context(
    slot,
    VQ1,
    of_words,
    region,
    h,
    m,
    n,
    region_rows,
    word_rows,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Y = Ĉ (Ĉᵀ V Q1) + C (U Q2) in a panel h of the hidden width."""
    Y = tl.zeros(VQ1.shape, tl.float32)
    for j0 in tl.range(0, n, TILE):
        word = j0 + tl.arange(0, TILE)
        C, C_unit = word_to_region(slot, region, word, m, n, region_rows, word_rows)
        if INTRA:
            gathered = sum_of_regions(C_unit, VQ1, PRECISION)
            Y = tl.dot(C_unit, gathered, Y, input_precision=PRECISION)
        if INTER:
            Y = tl.dot(C, word_products(of_words, word, h, n, 0, WIDTH, HIDDEN), Y, input_precision=PRECISION)
    return Y


@triton.jit
def gathered_words(
    slot,
    of_words,
    region,
    h,
    m,
    n,
    region_rows,
    word_rows,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Z = R̂ᵀ (U Q3) in a panel h of the hidden width; 0 where it is not needed."""
    Z = tl.zeros((region.shape[0], h.shape[0]), tl.float32)
    if INTRA:
        for j0 in tl.range(0, n, TILE):
            word = j0 + tl.arange(0, TILE)
            _, R_unit = region_to_word(slot, region, word, m, n, region_rows, word_rows)
            UQ3 = word_products(of_words, word, h, n, 1, WIDTH, HIDDEN)
            Z = tl.dot(R_unit, UQ3, Z, input_precision=PRECISION)
    return Z


@triton.jit
def word_context(R, R_unit, Z, VQ4, INTER: tl.constexpr, INTRA: tl.constexpr, PRECISION: tl.constexpr):
    """X = R̂ Z + Rᵀ (V Q4) for a tile of words."""
    X = tl.zeros((R.shape[1], Z.shape[1]), tl.float32)
    if INTRA:
        X += sum_of_regions(R_unit, Z, PRECISION)
    if INTER:
        X += sum_of_regions(R, VQ4, PRECISION)
    return X


@triton.jit
def through_norm(g, y, along, held_norm):
    """Gradient of x from that of y = x / held_norm, g, where along = y·g. A norm held at 1e-8 passes none."""
    return tl.div_rn(g - tl.where(held_norm > 1e-8, y * along, 0.0), held_norm)


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
    f,
    g,
    grad,
    v_norm,
    u_norm,
    along_v,
    along_u,
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
    """From v̂ and û in the slot to the gradients of v̂, û, the logits and the alignment there.

    With v = v̂ / v_norm and u likewise, the gradient of v̂ is grad (u - along_v v) / v_norm, and that of û is likewise.
    """
    region = tl.arange(0, REGIONS)
    region_exists = region < m
    every_word = tl.arange(0, WORDS)
    of_word_logits = word_part(slot, region_rows, word_rows, 3)
    of_dC = gradient_part(slot, region_rows, word_rows, 0)
    of_dC_unit = gradient_part(slot, region_rows, word_rows, 1)
    of_dR = gradient_part(slot, region_rows, word_rows, 2)
    of_dR_unit = gradient_part(slot, region_rows, word_rows, 3)
    of_v = gradient_part(slot, region_rows, word_rows, 4)
    of_u = of_v + WIDTH
    df = tl.zeros((REGIONS,), tl.float32)
    for d0 in tl.range(0, WIDTH, WIDTH_BLOCK):
        d = d0 + tl.arange(0, WIDTH_BLOCK)
        V = load_float(V_rows + region[:, None] * WIDTH + d[None, :], region_exists[:, None] & (d < WIDTH)[None, :])
        v = tl.div_rn(load_float(of_v + d, d < WIDTH), v_norm)
        u = tl.div_rn(load_float(of_u + d, d < WIDTH), u_norm)
        dv = grad * tl.div_rn(u - along_v * v, v_norm)
        tl.debug_barrier()
        tl.store(of_v + d, dv, mask=d < WIDTH)
        tl.store(of_u + d, grad * tl.div_rn(v - along_u * u, u_norm), mask=d < WIDTH)
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

    # Gradients of C, Ĉ, R and R̂ᵀ, summed over the panels in the slot.
    for j0 in tl.range(0, n, TILE):
        word = j0 + tl.arange(0, TILE)
        exists = region_exists[:, None] & (word < n)[None, :]
        at = region[:, None] * word_rows + word[None, :]
        none = tl.zeros((REGIONS, TILE), tl.float32)
        tl.store(of_dC + at, none, mask=exists)
        tl.store(of_dC_unit + at, none, mask=exists)
        tl.store(of_dR + at, none, mask=exists)
        tl.store(of_dR_unit + at, none, mask=exists)
    tl.debug_barrier()
    if INTER or INTRA:
        for h0 in tl.range(0, HIDDEN, HIDDEN_BLOCK):
            h = h0 + tl.arange(0, HIDDEN_BLOCK)
            mask = region_exists[:, None] & (h < HIDDEN)[None, :]
            VQ1 = load_float(of_regions + region[:, None] * (2 * HIDDEN) + h[None, :], mask)
            Y = region_context(
                slot, VQ1, of_words, region, h, m, n, region_rows, word_rows, INTER, INTRA, WIDTH, HIDDEN, TILE, PRECISION
            )
            dY = logit_gradient(dfv, load_float(region_score + h, h < HIDDEN), tanh(Y))
            for j0 in tl.range(0, n, TILE):
                word = j0 + tl.arange(0, TILE)
                exists = region_exists[:, None] & (word < n)[None, :]
                at = region[:, None] * word_rows + word[None, :]
                if INTER:
                    UQ2 = word_products(of_words, word, h, n, 0, WIDTH, HIDDEN)
                    add_to(of_dC + at, tl.dot(dY, tl.trans(UQ2), input_precision=PRECISION), exists)
                if INTRA:
                    _, C_unit = word_to_region(slot, region, word, m, n, region_rows, word_rows)
                    gathered = sum_of_regions(C_unit, VQ1, PRECISION)
                    dC_unit = tl.dot(dY, tl.trans(gathered), input_precision=PRECISION)
                    dgathered = sum_of_regions(C_unit, dY, PRECISION)
                    dC_unit = tl.dot(VQ1, tl.trans(dgathered), dC_unit, input_precision=PRECISION)
                    add_to(of_dC_unit + at, dC_unit, exists)

            VQ4 = load_float(of_regions + region[:, None] * (2 * HIDDEN) + HIDDEN + h[None, :], mask)
            wu = load_float(word_score + h, h < HIDDEN)
            Z = gathered_words(slot, of_words, region, h, m, n, region_rows, word_rows, INTRA, WIDTH, HIDDEN, TILE, PRECISION)
            dZ = tl.zeros((REGIONS, HIDDEN_BLOCK), tl.float32)
            for j0 in tl.range(0, n, TILE):
                word = j0 + tl.arange(0, TILE)
                exists = region_exists[:, None] & (word < n)[None, :]
                at = region[:, None] * word_rows + word[None, :]
                R, R_unit = region_to_word(slot, region, word, m, n, region_rows, word_rows)
                X = word_context(R, R_unit, Z, VQ4, INTER, INTRA, PRECISION)
                dX = logit_gradient(load_float(of_word_logits + word, word < n), wu, tanh(X))
                if INTER:
                    add_to(of_dR + at, tl.dot(VQ4, tl.trans(dX), input_precision=PRECISION), exists)
                if INTRA:
                    add_to(of_dR_unit + at, tl.dot(Z, tl.trans(dX), input_precision=PRECISION), exists)
                    dZ = tl.dot(R_unit, dX, dZ, input_precision=PRECISION)
            tl.debug_barrier()
            if INTRA:
                for j0 in tl.range(0, n, TILE):
                    word = j0 + tl.arange(0, TILE)
                    exists = region_exists[:, None] & (word < n)[None, :]
                    at = region[:, None] * word_rows + word[None, :]
                    UQ3 = word_products(of_words, word, h, n, 1, WIDTH, HIDDEN)
                    add_to(of_dR_unit + at, tl.dot(dZ, tl.trans(UQ3), input_precision=PRECISION), exists)
                tl.debug_barrier()

    # Back through the norms, the last one first. What alignment is not positive gives nothing: an overflow there must not meet
    # a factor of 0.
    along_C_unit = tl.zeros((REGIONS,), tl.float32)
    along_R = tl.zeros((REGIONS,), tl.float32)
    for j0 in tl.range(0, n, TILE):
        word = j0 + tl.arange(0, TILE)
        at = region[:, None] * word_rows + word[None, :]
        _, P = alignment_tile(slot, region, word, m, n, word_rows)
        _, C_unit = word_to_region(slot, region, word, m, n, region_rows, word_rows)
        R, R_unit = region_to_word(slot, region, word, m, n, region_rows, word_rows)
        along_C_unit += tl.sum(C_unit * load_float(of_dC_unit + at, P > 0), 1)
        dR_unit = load_float(of_dR_unit + at, P > 0)
        word_norm = load_norm(word_part(slot, region_rows, word_rows, 1) + word, word < n)
        dR = load_float(of_dR + at, P > 0)
        dR += through_norm(dR_unit, R_unit, tl.sum(R_unit * dR_unit, 0)[None, :], word_norm[None, :])
        along_R += tl.sum(R * dR, 1)
        tl.debug_barrier()
        tl.store(of_dR + at, dR, mask=P > 0)
    tl.debug_barrier()
    row_norm = load_norm(region_part(slot, region_rows, word_rows, 0) + region, region_exists)
    region_norm = load_norm(region_part(slot, region_rows, word_rows, 1) + region, region_exists)
    for j0 in tl.range(0, n, TILE):
        word = j0 + tl.arange(0, TILE)
        at = region[:, None] * word_rows + word[None, :]
        A, P = alignment_tile(slot, region, word, m, n, word_rows)
        C, C_unit = word_to_region(slot, region, word, m, n, region_rows, word_rows)
        R, _ = region_to_word(slot, region, word, m, n, region_rows, word_rows)
        dC = load_float(of_dC + at, P > 0)
        dC += through_norm(load_float(of_dC_unit + at, P > 0), C_unit, along_C_unit[:, None], region_norm[:, None])
        column_norm = load_norm(word_part(slot, region_rows, word_rows, 0) + word, word < n)
        dP = through_norm(dC, C, tl.sum(C * dC, 0)[None, :], column_norm[None, :])
        dP += through_norm(load_float(of_dR + at, P > 0), R, along_R[:, None], row_norm[:, None])
        tl.debug_barrier()
        tl.store(of_dC + at, dP * (1.0 - A * A), mask=region_exists[:, None] & (word < n)[None, :])


@triton.jit(
    do_not_specialize=["images", "captions", "first", "region_rows", "word_rows", "slot_stride"],
    do_not_specialize_on_alignment=["score_gradients"],
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
    score_gradients,
    scratch,
    images,
    captions,
    first,
    region_rows,
    word_rows,
    slot_stride,
    GRADIENT: tl.constexpr,
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
    PRECISION: tl.constexpr,
):
    """Fill the slot of a pair: with GRADIENT all of it, from the scores' gradient; else as far as g.

    With GRADIENT programs take the pairs of a walk, else those of the call's list.
    """
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    place = first + tl.program_id(0).to(tl.int64)
    if GRADIENT:
        if place >= tl.load(count):
            return
        key = tl.load(keys + place)
        image = key // captions
        caption = key % captions
    else:
        image = tl.load(pairs + 2 * place)
        caption = tl.load(pairs + 2 * place + 1)
        if (image < 0) | (image >= images) | (caption < 0) | (caption >= captions):
            return
    m = tl.load(region_lengths + image).to(tl.int32)
    n = tl.load(word_lengths + caption).to(tl.int32)
    # Pairs of a walk have both.
    if (m == 0) | (n == 0):
        return
    slot = scratch + tl.program_id(0).to(tl.int64) * slot_stride
    V_rows = regions + image * region_rows * WIDTH
    U_rows = words + caption * word_rows * WIDTH
    of_regions = region_products + image * region_rows * (2 * HIDDEN)
    of_words = word_products + caption * word_rows * PRODUCTS
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
            if regions.dtype.element_ty == tl.float32:
                alignment, rest = add_with_rest(alignment, rest, tl.dot(V, UK, input_precision=PRECISION))
            else:
                alignment = tl.dot(V, UK, alignment, input_precision=PRECISION)
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

    if GRADIENT:
        # Equations 5, 6 and 18.
        of_v = gradient_part(slot, region_rows, word_rows, 4)
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
            tl.store(of_v + d, v, mask=d < WIDTH)
            tl.store(of_u + d, u, mask=d < WIDTH)
        v_norm = 1.0
        u_norm = 1.0
        along_v = 0.0
        along_u = 0.0
        if COSINE:
            v_norm = norm(tl.sum(v_squares))
            u_norm = norm(tl.sum(u_squares))
            score = tl.div_rn(tl.sum(product), v_norm * u_norm)
            # A norm held at 1e-8 passes no gradient.
            along_v = tl.where(v_norm > 1e-8, score, 0.0)
            along_u = tl.where(u_norm > 1e-8, score, 0.0)
        tl.debug_barrier()
        pair_gradients(
            slot, V_rows, U_rows, of_regions, of_words, region_score, word_score, f, g,
            tl.load(score_gradients + tl.load(order + place)), v_norm, u_norm, along_v, along_u, m, n, region_rows, word_rows,
            INTER, INTRA, WIDTH, HIDDEN, REGIONS, WORDS, TILE, WIDTH_BLOCK, HIDDEN_BLOCK, PRECISION,
        )  # fmt: skip


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
                dVQ1 = tl.dot(C_unit, dgathered, dVQ1, input_precision=PRECISION)
        Z = gathered_words(slot, of_words, region, h, m, n, region_rows, word_rows, INTRA, WIDTH, HIDDEN, TILE, PRECISION)
        for j0 in tl.range(0, n, TILE):
            word = j0 + tl.arange(0, TILE)
            R, R_unit = region_to_word(slot, region, word, m, n, region_rows, word_rows)
            word_T = tanh(word_context(R, R_unit, Z, VQ4, INTER, INTRA, PRECISION))
            dg = load_float(word_part(slot, region_rows, word_rows, 3) + word, word < n)
            dwu += tl.sum(dg[:, None] * word_T, 0)
            if INTER:
                dVQ4 = tl.dot(R, logit_gradient(dg, wu, word_T), dVQ4, input_precision=PRECISION)
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
                du = load_float(gradient_part(slot, region_rows, word_rows, 4) + WIDTH + d, d < WIDTH)
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
                dZ = tl.zeros((REGIONS, HIDDEN_BLOCK), tl.float32)
                for j0 in tl.range(0, n, TILE):
                    word = j0 + tl.arange(0, TILE)
                    R, R_unit = region_to_word(slot, region, word, m, n, region_rows, word_rows)
                    X = word_context(R, R_unit, Z, VQ4, INTER, INTRA, PRECISION)
                    dg = load_float(word_part(slot, region_rows, word_rows, 3) + word, word < n)
                    dZ = tl.dot(R_unit, logit_gradient(dg, wu, tanh(X)), dZ, input_precision=PRECISION)
                for j0 in tl.range(0, n, TILE):
                    word = j0 + tl.arange(0, TILE)
                    _, R_unit = region_to_word(slot, region, word, m, n, region_rows, word_rows)
                    dUQ3 = sum_of_regions(R_unit, dZ, PRECISION)
                    word_mask = (word < n)[:, None] & (h < HIDDEN)[None, :]
                    add_to(targets + word[:, None] * PRODUCTS + HIDDEN + h[None, :], dUQ3, word_mask)
            tl.debug_barrier()
