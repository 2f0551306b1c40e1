"""From logits to scores: both softmaxes, and fᵀ X g for X = U Vᵀ; for "cosine" also the pooled vectors v̂ and û, for their norms."""

import triton
import triton.language as tl

from ...core.triton.functions import load_block, norm, softmax_where
from .products import tile_sum


@triton.jit
def squares_of_pooled(
    f,
    f_tail,
    g,
    regions,
    region_row,
    region_exists,
    tail_row,
    tail_exists,
    words,
    word_row,
    word_exists,
    WIDTH: tl.constexpr,
    TAIL: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
):
    """‖v̂‖² and ‖û‖² of each caption of a tile, for f (TOGETHER, REGIONS) and g (TOGETHER, WORDS)."""
    TOGETHER: tl.constexpr = g.shape[0]
    v_squares = tl.zeros((TOGETHER,), tl.float32)
    u_squares = tl.zeros((TOGETHER,), tl.float32)
    for d0 in tl.range(0, WIDTH, WIDTH_BLOCK):
        d = d0 + tl.arange(0, WIDTH_BLOCK)
        V = load_block(regions + region_row[:, None] * WIDTH + d[None, :], region_exists, d < WIDTH).to(tl.float32)
        v = tl.sum(V[None, :, :] * f[:, :, None], 1)
        if TAIL:
            V = load_block(regions + tail_row[:, None] * WIDTH + d[None, :], tail_exists, d < WIDTH).to(tl.float32)
            v += tl.sum(V[None, :, :] * f_tail[:, :, None], 1)
        U = load_block(words + word_row[:, None] * WIDTH + d[None, :], word_exists, d < WIDTH).to(tl.float32)
        u = tl.sum(tl.reshape(U, (TOGETHER, g.shape[1], WIDTH_BLOCK)) * g[:, :, None], 1)
        v_squares += tl.sum(v * v, 1)
        u_squares += tl.sum(u * u, 1)
    return v_squares, u_squares


@triton.jit
def pool_tile(
    X,
    cells,
    region_logits,
    tail_logits,
    word_logits,
    regions,
    region_row,
    region_exists,
    tail_row,
    tail_exists,
    words,
    word_row,
    real,
    COSINE: tl.constexpr,
    WIDTH: tl.constexpr,
    TAIL: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
):
    """Scores, (TOGETHER,), from X and the logits of regions, in two parts, and of words: equations 5, 6, 9, 11 and 18."""
    TOGETHER: tl.constexpr = word_logits.shape[0]
    WORDS: tl.constexpr = word_logits.shape[1]
    REGIONS: tl.constexpr = region_logits.shape[1]
    g = softmax_where(word_logits, real, 1)
    highest = tl.max(tl.where(region_exists[None, :], region_logits, -float("inf")), 1)
    if TAIL:
        highest = tl.maximum(highest, tl.max(tl.where(tail_exists[None, :], tail_logits, -float("inf")), 1))
    f = tl.where(region_exists[None, :], tl.exp(region_logits - highest[:, None]), 0.0)
    f_tail = tl.where(tail_exists[None, :], tl.exp(tail_logits - highest[:, None]), 0.0)
    total = tl.sum(f, 1)
    if TAIL:
        total += tl.sum(f_tail, 1)
    f = tl.div_rn(f, total[:, None])
    f_tail = tl.div_rn(f_tail, total[:, None])

    word_exists = tl.reshape(real, (TOGETHER * WORDS,))
    products = load_block(X + cells + tl.arange(0, REGIONS)[None, :], word_exists, region_exists)
    pooled = tl.sum(tl.reshape(products, (TOGETHER, WORDS, REGIONS)) * f[:, None, :], 2)
    if TAIL:
        products = load_block(X + cells + REGIONS + tl.arange(0, TAIL)[None, :], word_exists, tail_exists)
        pooled += tl.sum(tl.reshape(products, (TOGETHER, WORDS, TAIL)) * f_tail[:, None, :], 2)
    score = tl.sum(pooled * g, 1)
    if COSINE:
        v_squares, u_squares = squares_of_pooled(
            f, f_tail, g, regions, region_row, region_exists, tail_row, tail_exists, words, word_row, word_exists,
            WIDTH, TAIL, WIDTH_BLOCK,
        )  # fmt: skip
        score = tl.div_rn(score, norm(v_squares) * norm(u_squares))
    return score


@triton.jit
def weight_of(logits, exists, highest):
    """e to the logits over the highest, 0 for what does not exist."""
    return tl.where(exists, tl.exp(tl.load(logits, mask=exists, other=0.0) - highest), 0.0)


@triton.jit
def pool_pair(
    logits,
    g,
    regions,
    words,
    m,
    n,
    COSINE: tl.constexpr,
    WIDTH: tl.constexpr,
    WORDS: tl.constexpr,
    REGION_BLOCK: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    TILE_WORDS: tl.constexpr,
    TILE_REGIONS: tl.constexpr,
    DEPTH_BLOCK: tl.constexpr,
    DEPTH_STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Equations 5, 6, 9 and 18, from the logits of regions and from g; f is e over its sum."""
    highest = -float("inf")
    for r0 in tl.range(0, m, REGION_BLOCK):
        region = r0 + tl.arange(0, REGION_BLOCK)
        highest = tl.maximum(highest, tl.max(tl.load(logits + region, mask=region < m, other=-float("inf"))))
    total = 0.0
    for r0 in tl.range(0, m, REGION_BLOCK):
        region = r0 + tl.arange(0, REGION_BLOCK)
        total += tl.sum(weight_of(logits + region, region < m, highest))
    score = 0.0
    for w0 in tl.range(0, n, TILE_WORDS, disable_licm=True):
        word = w0 + tl.arange(0, TILE_WORDS)
        pooled = tl.zeros((TILE_WORDS,), tl.float32)
        for r0 in tl.range(0, m, TILE_REGIONS):
            region = r0 + tl.arange(0, TILE_REGIONS)
            X = tile_sum(
                words + word[:, None] * WIDTH, regions + region[None, :] * WIDTH, word < n, region < m,
                WIDTH, DEPTH_BLOCK, DEPTH_STAGES, PRECISION,
            )  # fmt: skip
            e = weight_of(logits + region, region < m, highest)
            # What is not finite has no part in rows and columns that do not exist.
            pooled += tl.sum(tl.where((word < n)[:, None] & (region < m)[None, :], X * e[None, :], 0.0), 1)
        score += tl.sum(pooled * tl.load(g + word, mask=word < n, other=0.0))
    score = tl.div_rn(score, total)
    if COSINE:
        word = tl.arange(0, WORDS)
        own_g = tl.load(g + word, mask=word < n, other=0.0)
        v_squares = tl.zeros((WIDTH_BLOCK,), tl.float32)
        u_squares = tl.zeros((WIDTH_BLOCK,), tl.float32)
        for d0 in tl.range(0, WIDTH, WIDTH_BLOCK):
            d = d0 + tl.arange(0, WIDTH_BLOCK)
            v = tl.zeros((WIDTH_BLOCK,), tl.float32)
            for r0 in tl.range(0, m, REGION_BLOCK):
                region = r0 + tl.arange(0, REGION_BLOCK)
                e = weight_of(logits + region, region < m, highest)
                V = load_block(regions + region[:, None] * WIDTH + d[None, :], region < m, d < WIDTH)
                v += tl.sum(V.to(tl.float32) * e[:, None], 0)
            v = tl.div_rn(v, total)
            U = load_block(words + word[:, None] * WIDTH + d[None, :], word < n, d < WIDTH)
            u = tl.sum(U.to(tl.float32) * own_g[:, None], 0)
            v_squares += v * v
            u_squares += u * u
        score = tl.div_rn(score, norm(tl.sum(v_squares)) * norm(tl.sum(u_squares)))
    return score
