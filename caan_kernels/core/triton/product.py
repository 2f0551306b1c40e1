"""The products of one item, V Q1, V Q4, U Kᵀ, U Q2 and U Q3: one matrix product, padding left out.

A library's product would be as fast but chooses its kernel by the number of rows, and with it the order of its sums: an
image would get other bits in another batch.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "depth", "item_rows"], do_not_specialize_on_alignment=["lengths"])
def product_kernel(
    left,
    right,
    product,
    lengths,
    rows,
    columns,
    depth,
    item_rows,
    left_row_stride,
    left_depth_stride,
    right_depth_stride,
    right_column_stride,
    EXACT: tl.constexpr,
    ROW_BLOCK: tl.constexpr,
    COLUMN_BLOCK: tl.constexpr,
    DEPTH_BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """product (rows, columns) = left (rows, depth) right (depth, columns), rows of padding taken as 0.

    Rows of items, item_rows to an item, run along the rows of `left`. What is summed is summed in rising order in steps
    that do not depend on the place in a tile; with EXACT, in float64.
    """
    # Columns of one block of rows follow each other: the rows, the larger side, are read once.
    column_blocks = tl.cdiv(columns, COLUMN_BLOCK)
    row = (tl.program_id(0) // column_blocks).to(tl.int64) * ROW_BLOCK + tl.arange(0, ROW_BLOCK)
    column = (tl.program_id(0) % column_blocks) * COLUMN_BLOCK + tl.arange(0, COLUMN_BLOCK)
    row_exists = row < rows
    row_exists &= row % item_rows < tl.load(lengths + row // item_rows, mask=row_exists, other=0)
    column_exists = column < columns
    sums = tl.zeros((ROW_BLOCK, COLUMN_BLOCK), tl.float64 if EXACT else tl.float32)
    for first in tl.range(0, depth, DEPTH_BLOCK):
        step = (first + tl.arange(0, DEPTH_BLOCK)).to(tl.int64)
        step_exists = step < depth
        x = tl.load(
            left + row[:, None] * left_row_stride + step[None, :] * left_depth_stride,
            mask=row_exists[:, None] & step_exists[None, :],
            other=0.0,
        )
        y = tl.load(
            right + step[:, None] * right_depth_stride + column[None, :] * right_column_stride,
            mask=step_exists[:, None] & column_exists[None, :],
            other=0.0,
        )
        if EXACT:
            sums = tl.dot(x.to(tl.float64), y.to(tl.float64), sums, out_dtype=tl.float64)
        else:
            sums = tl.dot(x, y, sums, input_precision=PRECISION)
    tl.store(
        product + row[:, None] * columns + column[None, :],
        sums.to(product.dtype.element_ty),
        mask=(row < rows)[:, None] & column_exists[None, :],
    )
