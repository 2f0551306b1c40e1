"""What the kernels compute element by element, and the matrix products of many small matrices."""

import triton
import triton.language as tl

from ..modes import INTERPRETED

# Triton's interpreter runs the kernels in NumPy,
# which executes no assembly.
_ASSEMBLY = tl.constexpr(not INTERPRETED)


@triton.jit
def tanh(x):
    """tanh in float32, within 4 units in the last place.

    Below 0.55 an odd polynomial, minimax in relative error (9e-10); above, (1 - e^-2|x|) / (1 + e^-2|x|), which loses
    nothing there and would cancel nearer to 0.
    """
    square = x * x
    small = -0.0062355645932257175
    small = small * square + 0.021039679646492004
    small = small * square - 0.053842708468437195
    small = small * square + 0.13332460820674896
    small = small * square - 0.3333331048488617
    small = x + x * square * small
    e = tl.exp(-2.0 * tl.abs(x))
    large = (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.55, small, tl.where(x < 0, -large, large))


@triton.jit
def tanh_to_half(x):
    """tanh of float32 to float16, by the special-function unit.

    The instruction errs by up to 2^-11 of the result and float16 rounds by as much again: together under 2^-10, where
    bfloat16 alone rounds by 2^-9. There is an instruction for a pair of float16 numbers, but it becomes one for each of them
    on sm_80, sm_90 and sm_100 alike, and others that take the pair apart and together: 457 instructions for a panel of
    a kernel on sm_90 instead of 424.
    """
    if _ASSEMBLY:
        y = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
        return y.to(tl.float16)
    else:
        return tanh(x).to(tl.float16)


@triton.jit
def dot_each(a, b, accumulator, BATCH: tl.constexpr):
    """(BATCH, x, k) times (BATCH, k, y) plus (BATCH, x, y); with several, Triton gives each product a warp of its own."""
    if BATCH == 1:
        X: tl.constexpr = a.shape[1]
        K: tl.constexpr = a.shape[2]
        Y: tl.constexpr = b.shape[2]
        product = tl.dot(tl.reshape(a, (X, K)), tl.reshape(b, (K, Y)), tl.reshape(accumulator, (X, Y)))
        return tl.reshape(product, (1, X, Y))
    else:
        return tl.dot(a, b, accumulator)


@triton.jit
def sum_of_rows(x, y, PARTS: tl.constexpr, PRECISION: tl.constexpr):
    """xᵀ y for x (rows, a) and y (rows, b). With several parts each has a warp of its own, whose registers hold its factors."""
    if PARTS == 1:
        return tl.dot(tl.trans(x), y, input_precision=PRECISION)
    else:
        x = tl.permute(tl.reshape(x, (PARTS, x.shape[0] // PARTS, x.shape[1])), (0, 2, 1))
        y = tl.reshape(y, (PARTS, y.shape[0] // PARTS, y.shape[1]))
        return tl.sum(tl.dot(x, y, input_precision=PRECISION), 0)


@triton.jit
def add_with_rest(total, rest, x):
    """total + x, and what rounding left of it added to the rest (Knuth's two-sum)."""
    both = total + x
    added = both - total
    return both, rest + ((total - (both - added)) + (x - added))


@triton.jit
def norm(squares):
    """max(sqrt(squares), 1e-8), rounded so that the norm of a single number is that number."""
    return tl.maximum(tl.sqrt_rn(squares), 1e-8)


@triton.jit
def positive_part(A, exists):
    """max(A, 0) where A exists, 0 elsewhere; NaN stays NaN."""
    return tl.where(exists, tl.where(A <= 0, 0.0, A), 0.0)


@triton.jit
def softmax_where(x, exists, axis: tl.constexpr):
    """Softmax along an axis over what exists, 0 elsewhere and where nothing exists."""
    highest = tl.max(tl.where(exists, x, -float("inf")), axis, keep_dims=True)
    e = tl.where(exists, tl.exp(x - tl.where(highest > -float("inf"), highest, 0.0)), 0.0)
    total = tl.sum(e, axis, keep_dims=True)
    return e / tl.where(total == 0, 1.0, total)


@triton.jit
def load_block(pointers, row_exists, column_exists):
    """(rows, columns), 0 where either does not exist."""
    return tl.load(pointers, mask=row_exists[:, None] & column_exists[None, :], other=0.0)
