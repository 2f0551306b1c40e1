"""Products of which only the largest of every query row is kept, sums of these, and gradients.

A program takes 32 rows of queries and one document, 64 rows after each other. On every GPU such a tile becomes `mma.sync`: Hopper's
`wgmma` wants 64 rows, and Triton 3.6 leaves out a fence that it needs (docs/triton.md). Every call has tiles of this one shape, so
that an inner product is one chain over the width in one order: scores are batch invariant.
"""

import triton
import triton.language as tl

_FAR = tl.constexpr(2**31 - 1)
# Views may begin anywhere, and must not make a kernel of their own. None of these is read in blocks of 16 bytes.
UNALIGNED = ["query_lengths", "document_lengths", "query_rows", "query_starts", "pairs", "starts", "order", "scores"]


@triton.jit(
    do_not_specialize=["rows", "query_count", "document_count", "N", "M"],
    do_not_specialize_on_alignment=UNALIGNED,
)
def search_kernel(
    queries,
    query_lengths,
    query_rows,
    documents,
    document_lengths,
    pairs,
    out,
    rows,
    query_count,
    document_count,
    N,
    M,
    LISTED: tl.constexpr,
    PLACED: tl.constexpr,
    DOCUMENT_COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERY_ROWS: tl.constexpr,
    DOCUMENT_ROWS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """out (documents, rows), or (pairs, N) with LISTED: the largest product of each row of queries, or with PLACED its place.

    Of all pairs, query_rows (rows,) has which row of all queries each one is, -1 for none. `rows` are N with LISTED.
    """
    tiles = tl.cdiv(rows, QUERY_ROWS)
    target = (tl.program_id(0) // tiles).to(tl.int64)
    row = (tl.program_id(0) % tiles) * QUERY_ROWS + tl.arange(0, QUERY_ROWS)
    if LISTED:
        document = tl.load(pairs + 2 * target + DOCUMENT_COLUMN)
        query = tl.load(pairs + 2 * target + 1 - DOCUMENT_COLUMN)
        inside = (document >= 0) & (document < document_count) & (query >= 0) & (query < query_count)
        document = tl.where(inside, document, 0)
        query = tl.where(inside, query, 0)
        exists = row < tl.where(inside, tl.load(query_lengths + query), 0)
        source = query * N + row
        m = tl.where(inside, tl.load(document_lengths + document), 0)
    else:
        document = target
        source = tl.load(query_rows + row, mask=row < rows, other=-1)
        exists = source >= 0
        m = tl.load(document_lengths + document)
    best = tl.full((QUERY_ROWS,), -float("inf"), tl.float32)
    place = tl.full((QUERY_ROWS,), _FAR, tl.int32)
    # NaN is larger than all numbers. Whether one was seen is kept aside, since tl.max may leave it out.
    seen_nan = tl.full((QUERY_ROWS,), 0, tl.int32)
    for first in tl.range(0, m, DOCUMENT_ROWS):
        other = (first + tl.arange(0, DOCUMENT_ROWS)).to(tl.int64)
        real = other < m
        products = tl.zeros((QUERY_ROWS, DOCUMENT_ROWS), tl.float32)
        for begin in tl.range(0, WIDTH, DEPTH):
            column = begin + tl.arange(0, DEPTH)
            x = tl.load(
                queries + source[:, None] * WIDTH + column[None, :], mask=exists[:, None] & (column < WIDTH)[None, :], other=0.0
            )
            y = tl.load(
                documents + (document * M + other)[:, None] * WIDTH + column[None, :],
                mask=real[:, None] & (column < WIDTH)[None, :],
                other=0.0,
            )
            products = tl.dot(x, tl.trans(y), products, input_precision="ieee")
        nan = (products != products) & real[None, :]
        numbers = tl.where(nan | ~real[None, :], -float("inf"), products)
        any_nan = tl.max(nan.to(tl.int32), 1)
        highest = tl.max(numbers, 1)
        if PLACED:
            largest = tl.where(any_nan[:, None] > 0, nan, (numbers == highest[:, None]) & real[None, :])
            at = tl.min(tl.where(largest, other.to(tl.int32)[None, :], _FAR), 1)
            better = (seen_nan == 0) & ((any_nan > 0) | (highest > best) | (place == _FAR))
            place = tl.where(better, at, place)
        best = tl.maximum(best, highest)
        seen_nan = tl.maximum(seen_nan, any_nan)
    if PLACED:
        tl.store(out + target * rows + row, place, mask=exists)
    else:
        tl.store(out + target * rows + row, tl.where(seen_nan > 0, float("nan"), best), mask=exists)


@triton.jit(
    do_not_specialize=["count", "rows", "query_count", "document_count", "N", "document_step", "query_step"],
    do_not_specialize_on_alignment=UNALIGNED,
)
def add_kernel(
    query_lengths,
    query_starts,
    document_lengths,
    pairs,
    largest,
    scores,
    count,
    rows,
    query_count,
    document_count,
    N,
    document_step,
    query_step,
    LISTED: tl.constexpr,
    MEAN: tl.constexpr,
    DOCUMENT_COLUMN: tl.constexpr,
    PAIRS: tl.constexpr,
    CHAIN: tl.constexpr,
):
    """Scores of `count` pairs, PAIRS a program: sums of `largest` (documents, rows), or (pairs, N), in rising order of rows.

    CHAIN of them become one number, which joins the others: a chain of 1,030 would lose three bits.
    """
    pair = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    inside = pair < count
    if LISTED:
        document = tl.load(pairs + 2 * pair + DOCUMENT_COLUMN, mask=inside, other=-1)
        query = tl.load(pairs + 2 * pair + 1 - DOCUMENT_COLUMN, mask=inside, other=-1)
        inside = inside & (document >= 0) & (document < document_count) & (query >= 0) & (query < query_count)
        begin = pair * rows
    else:
        document = pair // query_count
        query = pair % query_count
        begin = document * rows + tl.load(query_starts + query, mask=inside, other=0) - tl.load(query_starts)
    n = tl.load(query_lengths + query, mask=inside, other=0)
    inside = inside & (n > 0) & (tl.load(document_lengths + document, mask=inside, other=0) > 0)
    total = tl.zeros((PAIRS,), tl.float32)
    for first in tl.range(0, N, CHAIN):
        chain = tl.zeros((PAIRS,), tl.float32)
        for row in tl.range(first, first + CHAIN):
            chain += tl.load(largest + begin + row, mask=inside & (row < n), other=0.0)
        total += chain
    if MEAN:
        total = total / n.to(tl.float32)
    if LISTED:
        tl.store(scores + pair, total, mask=inside)
    else:
        tl.store(scores + document * document_step + query * query_step, total, mask=inside)


@triton.jit(do_not_specialize=["listed", "first", "N", "M"], do_not_specialize_on_alignment=UNALIGNED)
def query_gradients_kernel(
    query_lengths,
    documents,
    pairs,
    coefficients,
    places,
    starts,
    order,
    sums,
    listed,
    first,
    N,
    M,
    ORDERED: tl.constexpr,
    DOCUMENT_COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add to ROWS rows and COLUMNS columns of a query, pair after pair, coefficient times the document's rows at their places."""
    slabs: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    blocks = tl.cdiv(N, ROWS)
    query = (tl.program_id(0) // (blocks * slabs)).to(tl.int64)
    row = (tl.program_id(0) // slabs % blocks) * ROWS + tl.arange(0, ROWS)
    column = (tl.program_id(0) % slabs) * COLUMNS + tl.arange(0, COLUMNS)
    real = row < tl.load(query_lengths + query)
    mask = real[:, None] & (column < WIDTH)[None, :]
    to = sums + (query * N + row)[:, None] * WIDTH + column[None, :]
    total = tl.load(to, mask=mask, other=0.0)
    for step in tl.range(tl.load(starts + query), tl.load(starts + query + 1)):
        pair = (tl.load(order + step) if ORDERED else step) - first
        if (pair >= 0) & (pair < listed):
            document = tl.load(pairs + 2 * pair + DOCUMENT_COLUMN)
            place = tl.load(places + pair * N + row, mask=real, other=0)
            x = tl.load(documents + (document * M + place)[:, None] * WIDTH + column[None, :], mask=mask, other=0.0)
            total += tl.load(coefficients + pair) * x.to(tl.float32)
    tl.store(to, total, mask=mask)


@triton.jit(do_not_specialize=["listed", "first", "N", "M"], do_not_specialize_on_alignment=UNALIGNED)
def document_gradients_kernel(
    queries,
    query_lengths,
    document_lengths,
    pairs,
    coefficients,
    places,
    starts,
    order,
    sums,
    listed,
    first,
    N,
    M,
    ORDERED: tl.constexpr,
    DOCUMENT_COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Add to ROWS rows and COLUMNS columns of a document, pair after pair, coefficient times the query's rows that found them."""
    slabs: tl.constexpr = (WIDTH + COLUMNS - 1) // COLUMNS
    blocks = tl.cdiv(M, ROWS)
    document = (tl.program_id(0) // (blocks * slabs)).to(tl.int64)
    begin = (tl.program_id(0) // slabs % blocks) * ROWS
    row = begin + tl.arange(0, ROWS)
    column = (tl.program_id(0) % slabs) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (row < tl.load(document_lengths + document))[:, None] & (column < WIDTH)[None, :]
    to = sums + (document * M + row)[:, None] * WIDTH + column[None, :]
    total = tl.load(to, mask=mask, other=0.0)
    for step in tl.range(tl.load(starts + document), tl.load(starts + document + 1)):
        pair = (tl.load(order + step) if ORDERED else step) - first
        if (pair >= 0) & (pair < listed):
            query = tl.load(pairs + 2 * pair + 1 - DOCUMENT_COLUMN)
            coefficient = tl.load(coefficients + pair)
            # A long query's terms come to the others as one number.
            of_pair = tl.zeros((ROWS, COLUMNS), tl.float32)
            for word in tl.range(0, tl.load(query_lengths + query)):
                place = tl.load(places + pair * N + word)
                if (place >= begin) & (place < begin + ROWS):
                    x = tl.load(queries + (query * N + word) * WIDTH + column, mask=column < WIDTH, other=0.0)
                    of_pair += tl.where((row == place)[:, None], (coefficient * x.to(tl.float32))[None, :], 0.0)
            total += of_pair
    tl.store(to, total, mask=mask)
