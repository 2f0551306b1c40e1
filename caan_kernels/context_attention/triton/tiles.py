"""Scores of small pairs in float16 and bfloat16: a program has one image with several captions at a time.

A tile is one image and TOGETHER captions whose words are padded to WORDS, ROWS = TOGETHER · WORDS rows in all.

    multiply_tile           S and X, to the program's own part of the workspace
    word_logits_of_tile     A₊, R̂ and Hᵘ; then tanh(Hᵘ U Q3 + Rᵀ V Q4) times the score vector, a panel of the hidden width at a time
    region_logits_of_tile   Ĉ; then tanh(Ĉ (Ĉᵀ V Q1) + C U Q2) times the score vector likewise
    pool_tile               softmax and scores

R̂ and Ĉᵀ stay in registers in the inputs' dtype, as factors of products; registers do not hold both. Rᵀ is R̂ with its rows
scaled, and C is Ĉ so: one factor serves both products of a side, and float32 scales one of them.

For a pair of m regions and n words, with H the hidden width:

    multiply-add flops   (8mn + 2n²)H + 4mnD, on padded sizes
    tanh                 (m + n)H: 50 k real at m = 36, n = 12.5, H = 1024, 66 k on blocks of 48 and 16 rows
    bytes from L2        (2D + 4H) m / TOGETHER + 4(D + H) n, and 32mn for S, A₊ and X

Two warps a program, so that products take `mma.sync` (products.py), and several programs a multiprocessor: some are at
the tensor cores while others wait for tanh.

Batch invariance: no sum goes over rows of two captions; the block comes from the pair's own
lengths; and products of one launch have one shape, whatever fills it.
"""

import triton
import triton.language as tl

from ...core.triton.functions import dot_each, load_block, norm, positive_part, tanh, tanh_to_half
from .pooling import pool_tile
from .products import multiply_tile
from .schedule import UNALIGNED, VARYING, first_and_count, in_bands, listed_at, turns

# Columns of what a score vector is multiplied by: as few as tensor cores take.
LOGITS = tl.constexpr(8)


@triton.jit
def context_logits(context, score, logits):
    """logits (B·L, 8) + tanh(context) score, for context (B, L, h) and score (h, 8), whose first column is the vector w.

    tanh leaves as float16 and is summed by the tensor cores: widening and multiplying each by itself would cost three
    instructions.
    """
    flat = tl.reshape(context, (context.shape[0] * context.shape[1], context.shape[2]))
    return tl.dot(tanh_to_half(flat), score, logits)


@triton.jit
def score_block(score, h, h_exists):
    """Numbers of a score vector, (h, LOGITS): in the first column, zeros in the others."""
    column = tl.arange(0, LOGITS)
    return load_block(score + h[:, None] + column[None, :], h_exists, column == 0)


@triton.jit
def tile_at(
    number,
    region_order,
    region_starts,
    word_order,
    word_starts,
    pairs,
    list_order,
    list_starts,
    first_bucket,
    end_bucket,
    word_bucket,
    score_row,
    LISTED: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """Image and captions, (TOGETHER,), of the tile with this number, the places of their scores, and which of them exist."""
    each = tl.arange(0, TOGETHER)
    if LISTED:
        first, count = first_and_count(list_starts, word_bucket, word_bucket + 1)
        image, _, _ = listed_at(first + number, True, pairs, list_order)
        present = number + each < count
        its_image, caption, place = listed_at(first + number + each, present, pairs, list_order)
        return image, caption, place, present & (its_image == image)
    else:
        first_image, images = first_and_count(region_starts, first_bucket, end_bucket)
        first_caption, captions = first_and_count(word_starts, word_bucket, word_bucket + 1)
        image_place, group = in_bands(number, images, tl.cdiv(captions, TOGETHER))
        image = tl.load(region_order + first_image + image_place)
        present = group * TOGETHER + each < captions
        caption = tl.load(word_order + first_caption + group * TOGETHER + each, mask=present, other=0)
        return image, caption, image * score_row + caption, present


@triton.jit
def region_rows_at(image, region_lengths, region_rows, REGIONS: tl.constexpr, TAIL: tl.constexpr):
    """Rows of an image's regions in two parts, each with which of them exist."""
    # Sizes of tensors are powers of two: regions of an image, 36 for instance, lie in two of them.
    m = tl.load(region_lengths + image).to(tl.int32)
    region = tl.arange(0, REGIONS)
    # Without a second part the first stands in its place, and nothing is made of it.
    tail = REGIONS + tl.arange(0, TAIL) if TAIL else region
    return image * region_rows + region, region < m, image * region_rows + tail, tail < m


@triton.jit
def word_rows_at(caption, present, word_lengths, word_rows, WORDS: tl.constexpr):
    """Rows of the words of captions, (TOGETHER, WORDS), and which of them exist."""
    word = tl.arange(0, WORDS)
    exists = word[None, :] < tl.load(word_lengths + caption, mask=present, other=0)[:, None]
    return caption[:, None] * word_rows + word[None, :], exists


@triton.jit
def word_logits_of_tile(
    S,
    cells,
    region_products,
    region_row,
    region_exists,
    tail_row,
    tail_exists,
    word_products,
    word_row,
    word_exists,
    word_score,
    score_scales,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    TAIL: tl.constexpr,
    WORDS: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
):
    """Logits of words, (TOGETHER, WORDS): equations 7, 10, 11, 13 and 17. Leaves A₊ in place of S."""
    REGIONS: tl.constexpr = region_row.shape[0]
    ROWS: tl.constexpr = word_row.shape[0]
    TOGETHER: tl.constexpr = ROWS // WORDS
    dtype = region_products.dtype.element_ty
    own = S + cells + tl.arange(0, REGIONS)[None, :]
    P = positive_part(tanh(load_block(own, word_exists, region_exists)), word_exists[:, None] & region_exists[None, :])
    tl.store(own, P)
    P = tl.reshape(P, (TOGETHER, WORDS, REGIONS))
    Rt = tl.div_rn(P, norm(tl.sum(P * P, 1, keep_dims=True)))
    squares = tl.sum(Rt * Rt, 2, keep_dims=True)
    if TAIL:
        own = S + cells + REGIONS + tl.arange(0, TAIL)[None, :]
        P_tail = positive_part(tanh(load_block(own, word_exists, tail_exists)), word_exists[:, None] & tail_exists[None, :])
        tl.store(own, P_tail)
        P_tail = tl.reshape(P_tail, (TOGETHER, WORDS, TAIL))
        Rt_tail = tl.div_rn(P_tail, norm(tl.sum(P_tail * P_tail, 1, keep_dims=True)))
        squares += tl.sum(Rt_tail * Rt_tail, 2, keep_dims=True)
    # R̂ and the norm that leads back to Rᵀ.
    word_norm = norm(squares)
    Rt_unit = tl.div_rn(Rt, word_norm).to(dtype)
    if TAIL:
        Rt_unit_tail = tl.div_rn(Rt_tail, word_norm).to(dtype)
    if INTRA:
        # Few captions are longer than the detour by association.
        Hu = dot_each(Rt_unit, tl.permute(Rt_unit, (0, 2, 1)), tl.zeros((TOGETHER, WORDS, WORDS), tl.float32), TOGETHER)
        if TAIL:
            Hu = dot_each(Rt_unit_tail, tl.permute(Rt_unit_tail, (0, 2, 1)), Hu, TOGETHER)
        Hu = Hu.to(dtype)
    Rt_unit = tl.reshape(Rt_unit, (ROWS, REGIONS))
    if TAIL:
        Rt_unit_tail = tl.reshape(Rt_unit_tail, (ROWS, TAIL))

    logits = tl.zeros((ROWS, LOGITS), tl.float32)
    for h0 in tl.range(0, HIDDEN, HIDDEN_BLOCK):
        h = h0 + tl.arange(0, HIDDEN_BLOCK)
        h_exists = h < HIDDEN
        context = tl.zeros((ROWS, HIDDEN_BLOCK), tl.float32)
        if INTER:
            VQ4 = load_block(region_products + region_row[:, None] * (2 * HIDDEN) + HIDDEN + h[None, :], region_exists, h_exists)
            context = tl.dot(Rt_unit, VQ4, context)
            if TAIL:
                VQ4 = load_block(region_products + tail_row[:, None] * (2 * HIDDEN) + HIDDEN + h[None, :], tail_exists, h_exists)
                context = tl.dot(Rt_unit_tail, VQ4, context)
        context = tl.reshape(context, (TOGETHER, WORDS, HIDDEN_BLOCK)) * word_norm
        if INTRA:
            of_words = word_products + word_row[:, None] * (WIDTH + 2 * HIDDEN) + WIDTH + HIDDEN + h[None, :]
            UQ3 = load_block(of_words, word_exists, h_exists)
            context = dot_each(Hu, tl.reshape(UQ3, (TOGETHER, WORDS, HIDDEN_BLOCK)), context, TOGETHER)
        logits = context_logits(context, score_block(word_score, h, h_exists), logits)
    return tl.reshape(tl.sum(logits, 1), (TOGETHER, WORDS)) * tl.load(score_scales + 1)


@triton.jit
def region_logits_of_tile(
    P,
    cells,
    region_products,
    region_row,
    region_exists,
    tail_row,
    tail_exists,
    word_products,
    word_row,
    word_exists,
    region_score,
    score_scales,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    TAIL: tl.constexpr,
    WORDS: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
):
    """Logits of regions, (TOGETHER, REGIONS), and of their tail: equations 8, 9, 12 and 16."""
    REGIONS: tl.constexpr = region_row.shape[0]
    ROWS: tl.constexpr = word_row.shape[0]
    TOGETHER: tl.constexpr = ROWS // WORDS
    dtype = region_products.dtype.element_ty
    own = P + cells + tl.arange(0, REGIONS)[None, :]
    Ct = tl.reshape(tl.load(own), (TOGETHER, WORDS, REGIONS))
    squares = tl.sum(Ct * Ct, 2, keep_dims=True)
    if TAIL:
        own = P + cells + REGIONS + tl.arange(0, TAIL)[None, :]
        Ct_tail = tl.reshape(tl.load(own), (TOGETHER, WORDS, TAIL))
        squares += tl.sum(Ct_tail * Ct_tail, 2, keep_dims=True)
    column_norm = norm(squares)
    # Ĉᵀ, as a factor and transposed, and the norm that leads back to C.
    Ct = tl.div_rn(Ct, column_norm)
    region_norm = norm(tl.sum(Ct * Ct, 1, keep_dims=True))
    Ct_unit = tl.div_rn(Ct, region_norm).to(dtype)
    C_unit = tl.permute(Ct_unit, (0, 2, 1))
    region_norm = tl.permute(region_norm, (0, 2, 1))
    Ct_unit = tl.reshape(Ct_unit, (ROWS, REGIONS))
    if TAIL:
        Ct_tail = tl.div_rn(Ct_tail, column_norm)
        tail_norm = norm(tl.sum(Ct_tail * Ct_tail, 1, keep_dims=True))
        Ct_unit_tail = tl.div_rn(Ct_tail, tail_norm).to(dtype)
        C_unit_tail = tl.permute(Ct_unit_tail, (0, 2, 1))
        tail_norm = tl.permute(tail_norm, (0, 2, 1))
        Ct_unit_tail = tl.reshape(Ct_unit_tail, (ROWS, TAIL))

    logits = tl.zeros((TOGETHER * REGIONS, LOGITS), tl.float32)
    tail_logits = tl.zeros((TOGETHER * tail_row.shape[0], LOGITS), tl.float32)
    for h0 in tl.range(0, HIDDEN, HIDDEN_BLOCK):
        h = h0 + tl.arange(0, HIDDEN_BLOCK)
        h_exists = h < HIDDEN
        wv = score_block(region_score, h, h_exists)
        if INTER:
            of_words = word_products + word_row[:, None] * (WIDTH + 2 * HIDDEN) + WIDTH + h[None, :]
            UQ2 = tl.reshape(load_block(of_words, word_exists, h_exists), (TOGETHER, WORDS, HIDDEN_BLOCK))
        if INTRA:
            # Hᵛ (V Q1) = Ĉ (Ĉᵀ (V Q1)): no (m, m) matrix.
            VQ1 = load_block(region_products + region_row[:, None] * (2 * HIDDEN) + h[None, :], region_exists, h_exists)
            gathered = tl.dot(Ct_unit, VQ1)
            if TAIL:
                VQ1 = load_block(region_products + tail_row[:, None] * (2 * HIDDEN) + h[None, :], tail_exists, h_exists)
                gathered = tl.dot(Ct_unit_tail, VQ1, gathered)
            gathered = tl.reshape(gathered.to(dtype), (TOGETHER, WORDS, HIDDEN_BLOCK))
        context = tl.zeros((TOGETHER, REGIONS, HIDDEN_BLOCK), tl.float32)
        if INTER:
            context = dot_each(C_unit, UQ2, context, TOGETHER) * region_norm
        if INTRA:
            context = dot_each(C_unit, gathered, context, TOGETHER)
        logits = context_logits(context, wv, logits)
        if TAIL:
            tail_context = tl.zeros((TOGETHER, TAIL, HIDDEN_BLOCK), tl.float32)
            if INTER:
                tail_context = dot_each(C_unit_tail, UQ2, tail_context, TOGETHER) * tail_norm
            if INTRA:
                tail_context = dot_each(C_unit_tail, gathered, tail_context, TOGETHER)
            tail_logits = context_logits(tail_context, wv, tail_logits)
    scale = tl.load(score_scales)
    logits = tl.reshape(tl.sum(logits, 1), (TOGETHER, REGIONS)) * scale
    return logits, tl.reshape(tl.sum(tail_logits, 1), (TOGETHER, tail_row.shape[0])) * scale


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def tile_kernel(
    regions,
    region_products,
    words,
    word_products,
    region_score,
    word_score,
    score_scales,
    region_lengths,
    word_lengths,
    region_order,
    region_starts,
    word_order,
    word_starts,
    pairs,
    list_order,
    list_starts,
    list_ranks,
    workspace,
    scores,
    first_bucket,
    end_bucket,
    word_bucket,
    launch,
    launch_size,
    score_row,
    region_rows,
    word_rows,
    LISTED: tl.constexpr,
    COSINE: tl.constexpr,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    TAIL: tl.constexpr,
    WORDS: tl.constexpr,
    TOGETHER: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
    DEPTH_BLOCK: tl.constexpr,
    DEPTH_STAGES: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
):
    ROWS: tl.constexpr = TOGETHER * WORDS
    CELLS: tl.constexpr = ROWS * (REGIONS + TAIL)
    if LISTED:
        listed_first, count = first_and_count(list_starts, word_bucket, word_bucket + 1)
    else:
        images = first_and_count(region_starts, first_bucket, end_bucket)[1]
        captions = first_and_count(word_starts, word_bucket, word_bucket + 1)[1]
        count = images * tl.cdiv(captions, TOGETHER)
    # What follows from the thread alone would take registers for the whole loop.
    for turn in tl.range(tl.program_id(0), turns(launch, launch_size, count), tl.num_programs(0), disable_licm=True):
        number = launch.to(tl.int64) * launch_size + turn
        wanted = True
        if LISTED:
            # A tile is a piece of a run of pairs of one image: the number of its first pair stands for all.
            wanted = tl.load(list_ranks + listed_first + number) % TOGETHER == 0
        if wanted:
            image, caption, place, present = tile_at(
                number, region_order, region_starts, word_order, word_starts, pairs, list_order, list_starts,
                first_bucket, end_bucket, word_bucket, score_row, LISTED, TOGETHER,
            )  # fmt: skip
            region_row, region_exists, tail_row, tail_exists = region_rows_at(image, region_lengths, region_rows, REGIONS, TAIL)
            word_row, real = word_rows_at(caption, present, word_lengths, word_rows, WORDS)
            word_row = tl.reshape(word_row, (ROWS,))
            word_exists = tl.reshape(real, (ROWS,))
            # The program's own part of the workspace: S, and X behind it.
            cells = tl.arange(0, ROWS)[:, None] * (REGIONS + TAIL)
            S = workspace + tl.program_id(0) * (2 * CELLS)
            X = S + CELLS
            multiply_tile(
                S, X, cells, regions, region_row, region_exists, tail_row, tail_exists, words, word_products, word_row, word_exists,
                WIDTH, HIDDEN, TAIL, DEPTH_BLOCK, DEPTH_STAGES,
            )  # fmt: skip
            # Other threads than those that wrote it read it, here and below.
            tl.debug_barrier()
            # Without contexts all logits are 0.
            region_logits = tl.zeros((TOGETHER, REGIONS), tl.float32)
            tail_logits = tl.zeros((TOGETHER, TAIL if TAIL else REGIONS), tl.float32)
            word_logits = tl.zeros((TOGETHER, WORDS), tl.float32)
            if INTER or INTRA:
                word_logits = word_logits_of_tile(
                    S, cells, region_products, region_row, region_exists, tail_row, tail_exists, word_products, word_row,
                    word_exists, word_score, score_scales, INTER, INTRA, WIDTH, HIDDEN, TAIL, WORDS, HIDDEN_BLOCK,
                )  # fmt: skip
                tl.debug_barrier()
                region_logits, tail_logits = region_logits_of_tile(
                    S, cells, region_products, region_row, region_exists, tail_row, tail_exists, word_products, word_row,
                    word_exists, region_score, score_scales, INTER, INTRA, WIDTH, HIDDEN, TAIL, WORDS, HIDDEN_BLOCK,
                )  # fmt: skip
            score = pool_tile(
                X, cells, region_logits, tail_logits, word_logits, regions, region_row, region_exists, tail_row, tail_exists,
                words, word_row, real, COSINE, WIDTH, TAIL, WIDTH_BLOCK,
            )  # fmt: skip
            tl.store(scores + place, score, mask=present)
            # The next tile takes the same part.
            tl.debug_barrier()
