"""Products of features: S = U Kᵀ Vᵀ and X = U Vᵀ, as float32, (words, regions).

A sum runs along the width in one order, in every tile and for every list. Tiles take tensor cores by `mma.sync`: two warps
are too few for Hopper's `wgmma`, before which Triton 3.6 leaves out a fence (triton-lang/triton issue 10537), and for
Blackwell's `tcgen05`.
"""

import triton
import triton.language as tl

from ...core.triton.functions import add_with_rest, load_block


@triton.jit
def tile_sum(
    left,
    right,
    left_exists,
    right_exists,
    WIDTH: tl.constexpr,
    DEPTH_BLOCK: tl.constexpr,
    DEPTH_STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(words, regions): the product of rows of the width that begin at these pointers, (words, 1) and (1, regions)."""
    sums = tl.zeros((left.shape[0], right.shape[1]), tl.float32)
    rest = tl.zeros((left.shape[0], right.shape[1]), tl.float32)
    for d0 in tl.range(0, WIDTH, DEPTH_BLOCK, num_stages=DEPTH_STAGES):
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


@triton.jit
def whole_rows(m):
    """Regions up to which matrices are filled: so many that a thread takes 16 bytes at once."""
    return tl.cdiv(m, 16) * 16


@triton.jit
def multiply_pair(
    S,
    left,
    right,
    m,
    n,
    region_stride,
    WIDTH: tl.constexpr,
    PRODUCTS: tl.constexpr,
    TILE_WORDS: tl.constexpr,
    TILE_REGIONS: tl.constexpr,
    DEPTH_BLOCK: tl.constexpr,
    DEPTH_STAGES: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """S of the rows of a caption's products and of an image's features that begin at these pointers."""
    for w0 in tl.range(0, n, TILE_WORDS, disable_licm=True):
        word = w0 + tl.arange(0, TILE_WORDS)
        for r0 in tl.range(0, m, TILE_REGIONS):
            region = r0 + tl.arange(0, TILE_REGIONS)
            sums = tile_sum(
                left + word[:, None] * PRODUCTS, right + region[None, :] * WIDTH, word < n, region < m,
                WIDTH, DEPTH_BLOCK, DEPTH_STAGES, PRECISION,
            )  # fmt: skip
            mask = (word < n)[:, None] & (region < whole_rows(m))[None, :]
            tl.store(S + word[:, None] * region_stride + region[None, :], sums, mask=mask)


@triton.jit
def multiply_tile(
    S,
    X,
    cells,
    regions,
    region_row,
    region_exists,
    tail_row,
    tail_exists,
    words,
    word_products,
    word_row,
    word_exists,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    TAIL: tl.constexpr,
    DEPTH_BLOCK: tl.constexpr,
    DEPTH_STAGES: tl.constexpr,
):
    """Write S = U Kᵀ Vᵀ and X = U Vᵀ of a tile, (ROWS, REGIONS) and (ROWS, TAIL), to where their rows begin: `cells`, (ROWS, 1)."""
    ROWS: tl.constexpr = word_row.shape[0]
    REGIONS: tl.constexpr = region_row.shape[0]
    REST: tl.constexpr = tail_row.shape[0]
    own = word_products + word_row[:, None] * (WIDTH + 2 * HIDDEN)
    alignments = tl.zeros((ROWS, REGIONS), tl.float32)
    products = tl.zeros((ROWS, REGIONS), tl.float32)
    tail_alignments = tl.zeros((ROWS, REST), tl.float32)
    tail_products = tl.zeros((ROWS, REST), tl.float32)
    for d0 in tl.range(0, WIDTH, DEPTH_BLOCK, num_stages=DEPTH_STAGES):
        d = d0 + tl.arange(0, DEPTH_BLOCK)
        UK = load_block(own + d[None, :], word_exists, d < WIDTH)
        U = load_block(words + word_row[:, None] * WIDTH + d[None, :], word_exists, d < WIDTH)
        V = load_block(regions + region_row[None, :] * WIDTH + d[:, None], d < WIDTH, region_exists)
        alignments = tl.dot(UK, V, alignments)
        products = tl.dot(U, V, products)
        if TAIL:
            V = load_block(regions + tail_row[None, :] * WIDTH + d[:, None], d < WIDTH, tail_exists)
            tail_alignments = tl.dot(UK, V, tail_alignments)
            tail_products = tl.dot(U, V, tail_products)
    column = tl.arange(0, REGIONS)[None, :]
    tl.store(S + cells + column, alignments)
    tl.store(X + cells + column, products)
    if TAIL:
        column = REGIONS + tl.arange(0, TAIL)[None, :]
        tl.store(S + cells + column, tail_alignments)
        tl.store(X + cells + column, tail_products)
