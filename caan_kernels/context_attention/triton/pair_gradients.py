"""From the gradient of a score to those of its pair, in the pair's slot."""

import triton
import triton.language as tl

from ...core.triton.functions import norm, tanh
from .attention import attend
from .slots import (
    add_to,
    alignment_tile,
    dot_of_regions,
    gathered_words,
    gradient_part,
    load_float,
    load_norm,
    logit_gradient,
    region_context,
    region_part,
    region_to_word,
    sum_of_regions,
    word_context,
    word_part,
    word_products,
    word_to_region,
)


@triton.jit
def through_norm(g, y, along, held_norm):
    """Gradient of x from that of y = x / held_norm, g, where along = y·g. A norm held at 1e-8 passes none."""
    return tl.div_rn(g - tl.where(held_norm > 1e-8, y * along, 0.0), held_norm)


@triton.jit
def weight_gradients(
    slot,
    V_rows,
    U_rows,
    grad,
    v_norm,
    u_norm,
    along_v,
    along_u,
    m,
    n,
    region_rows,
    word_rows,
    WIDTH: tl.constexpr,
    REGIONS: tl.constexpr,
    WORDS: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
):
    """From v̂ and û in the slot to the gradients of v̂, û and the logits there; those of the regions' logits are returned too.

    With v = v̂ / v_norm and u likewise, the gradient of v̂ is grad (u - along_v v) / v_norm, and that of û is likewise.
    """
    region = tl.arange(0, REGIONS)
    region_exists = region < m
    every_word = tl.arange(0, WORDS)
    of_word_logits = word_part(slot, region_rows, word_rows, 3)
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
    f = load_float(region_part(slot, region_rows, word_rows, 2) + region, region_exists)
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
    g = load_float(word_part(slot, region_rows, word_rows, 2) + every_word, every_word < n)
    dg = g * (dg - tl.sum(g * dg))
    tl.debug_barrier()
    tl.store(of_word_logits + every_word, dg, mask=every_word < n)
    tl.debug_barrier()
    return dfv


@triton.jit
def context_gradients(
    slot,
    of_regions,
    of_words,
    region_score,
    word_score,
    dfv,
    m,
    n,
    region_rows,
    word_rows,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    TILE: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Add to the gradients of C, Ĉ, R and R̂ᵀ in the slot, panel by panel, from those of the logits."""
    region = tl.arange(0, REGIONS)
    region_exists = region < m
    of_word_logits = word_part(slot, region_rows, word_rows, 3)
    of_dC = gradient_part(slot, region_rows, word_rows, 0)
    of_dC_unit = gradient_part(slot, region_rows, word_rows, 1)
    of_dR = gradient_part(slot, region_rows, word_rows, 2)
    of_dR_unit = gradient_part(slot, region_rows, word_rows, 3)
    none = tl.zeros((REGIONS, TILE), tl.float32)
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
                add_to(of_dC + at, dot_of_regions(dY, tl.trans(UQ2), none, PRECISION), exists)
            if INTRA:
                _, C_unit = word_to_region(slot, region, word, m, n, region_rows, word_rows)
                gathered = sum_of_regions(C_unit, VQ1, PRECISION)
                dC_unit = dot_of_regions(dY, tl.trans(gathered), none, PRECISION)
                dgathered = sum_of_regions(C_unit, dY, PRECISION)
                dC_unit = dot_of_regions(VQ1, tl.trans(dgathered), dC_unit, PRECISION)
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
                add_to(of_dR + at, dot_of_regions(VQ4, tl.trans(dX), none, PRECISION), exists)
            if INTRA:
                add_to(of_dR_unit + at, dot_of_regions(Z, tl.trans(dX), none, PRECISION), exists)
                dZ = dot_of_regions(R_unit, dX, dZ, PRECISION)
        tl.debug_barrier()
        if INTRA:
            for j0 in tl.range(0, n, TILE):
                word = j0 + tl.arange(0, TILE)
                exists = region_exists[:, None] & (word < n)[None, :]
                at = region[:, None] * word_rows + word[None, :]
                UQ3 = word_products(of_words, word, h, n, 1, WIDTH, HIDDEN)
                add_to(of_dR_unit + at, dot_of_regions(dZ, tl.trans(UQ3), none, PRECISION), exists)
            tl.debug_barrier()


@triton.jit
def alignment_gradients(slot, m, n, region_rows, word_rows, REGIONS: tl.constexpr, TILE: tl.constexpr):
    """From the gradients of C, Ĉ, R and R̂ᵀ in the slot to that of the alignment before tanh, in the place of C's.

    Back through the norms, the last one first. What alignment is not positive gives nothing: an overflow there must not meet a
    factor of 0.
    """
    region = tl.arange(0, REGIONS)
    region_exists = region < m
    of_dC = gradient_part(slot, region_rows, word_rows, 0)
    of_dC_unit = gradient_part(slot, region_rows, word_rows, 1)
    of_dR = gradient_part(slot, region_rows, word_rows, 2)
    of_dR_unit = gradient_part(slot, region_rows, word_rows, 3)
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


@triton.jit
def differentiate_pair(
    slot,
    V_rows,
    U_rows,
    of_regions,
    of_words,
    region_score,
    word_score,
    grad,
    m,
    n,
    region_rows,
    word_rows,
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
    """Fill the slot of a pair, from the gradient of its score."""
    attend(
        slot, V_rows, of_regions, of_words, region_score, word_score, m, n, region_rows, word_rows,
        INTER, INTRA, WIDTH, HIDDEN, REGIONS, WORDS, TILE, WIDTH_BLOCK, HIDDEN_BLOCK, PRECISION,
    )  # fmt: skip
    region = tl.arange(0, REGIONS)
    region_exists = region < m
    f = load_float(region_part(slot, region_rows, word_rows, 2) + region, region_exists)
    of_g = word_part(slot, region_rows, word_rows, 2)
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
    dfv = weight_gradients(
        slot, V_rows, U_rows, grad, v_norm, u_norm, along_v, along_u, m, n, region_rows, word_rows,
        WIDTH, REGIONS, WORDS, TILE, WIDTH_BLOCK,
    )  # fmt: skip
    none = tl.zeros((REGIONS, TILE), tl.float32)
    for j0 in tl.range(0, n, TILE):
        word = j0 + tl.arange(0, TILE)
        at = region[:, None] * word_rows + word[None, :]
        for part in tl.static_range(4):
            of_part = gradient_part(slot, region_rows, word_rows, part)
            tl.store(of_part + at, none, mask=region_exists[:, None] & (word < n)[None, :])
    tl.debug_barrier()
    if INTER or INTRA:
        context_gradients(
            slot, of_regions, of_words, region_score, word_score, dfv, m, n, region_rows, word_rows,
            INTER, INTRA, WIDTH, HIDDEN, REGIONS, TILE, HIDDEN_BLOCK, PRECISION,
        )  # fmt: skip
    alignment_gradients(slot, m, n, region_rows, word_rows, REGIONS, TILE)
