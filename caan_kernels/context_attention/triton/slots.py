"""Scratch memory of a pair for its derivatives or maps, and the contexts as they are recomputed from it.

A pair holds a slot, float32 in this order, nothing larger than (m, n):

    A (M, N)
    regions, M each: norms of the rows of A₊ and of C, f, gradient of the logits
    words, N each: norms of the columns of A₊ and of R, g, gradient of the logits
    for derivatives only, (M, N) each: gradients of C, Ĉ, R and R̂ᵀ, of which the first becomes that of the alignment before
        tanh; and gradients of v̂ (D) and of û (D)

Words come in tiles of `TILE`, as many as a caption has; regions lie in one tile. Products are of float32 numbers, in TF32
where the features are half precision: a gradient spans more than float16's range.
"""

import triton
import triton.language as tl

from ...core.triton.functions import positive_part, sum_of_rows


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
def dot_of_regions(x, y, total, PRECISION: tl.constexpr):
    """x y + total, with a row for every region.

    From 64 rows on tensor cores have them in batches: else Triton takes Hopper's `wgmma` and Blackwell's `tcgen05` (products.py).
    """
    if x.shape[0] < 64 or PRECISION == "ieee":
        return tl.dot(x, y, total, input_precision=PRECISION)
    else:
        PARTS: tl.constexpr = x.shape[0] // 16
        x = tl.reshape(x, (PARTS, 16, x.shape[1]))
        each = tl.broadcast_to(tl.reshape(y, (1, y.shape[0], y.shape[1])), (PARTS, y.shape[0], y.shape[1]))
        sums = tl.dot(x, each, tl.reshape(total, (PARTS, 16, y.shape[1])), input_precision=PRECISION)
        return tl.reshape(sums, (PARTS * 16, y.shape[1]))


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
            Y = dot_of_regions(C_unit, gathered, Y, PRECISION)
        if INTER:
            Y = dot_of_regions(C, word_products(of_words, word, h, n, 0, WIDTH, HIDDEN), Y, PRECISION)
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
            Z = dot_of_regions(R_unit, UQ3, Z, PRECISION)
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
def logit_gradient(logit_gradients, score, T):
    """Gradient of a context Y from that of its logits tanh(Y) w."""
    return logit_gradients[:, None] * score[None, :] * (1.0 - T * T)
