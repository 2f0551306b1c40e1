"""Stage 2 for small pairs in float16 and bfloat16: from S to logits, one image with several captions a program.

A program works on one image and TOGETHER captions whose words are padded to WORDS, ROWS = TOGETHER · WORDS rows in all.
Its only loop walks the hidden width: Ĉ (Ĉᵀ V Q1) + C U Q2 and Hᵘ U Q3 + Rᵀ V Q4, tanh, and the product with the score vector;
of a panel only the logits outlive it. Ĉᵀ and R̂ stay in registers in the inputs' dtype, as factors of products. C is Ĉ with its
rows scaled, and Rᵀ is R̂ so: one factor serves both products of a side, and float32 scales one of them. `finish_kernel` of
pairs.py makes scores of the logits.

For a pair of m regions and n words, with H the hidden width:

    multiply-add flops   (8mn + 2n²)H, on padded sizes
    tanh                 (m + n)H: 50 k real at m = 36, n = 12.5, H = 1024, 66 k on blocks of 48 and 16 rows
    bytes from L2        4H (m / TOGETHER + n), and 4mn for S

Two warps a program, so that products take `mma.sync` (products.py), and several programs a multiprocessor: some are at
the tensor cores while others wait for tanh.

Batch invariance: no sum goes over rows of two captions; the block comes from the pair's own
lengths; and products of one launch have one shape, whatever fills it.
"""

import triton
import triton.language as tl

from ...core.triton.functions import dot_each, load_block, norm, positive_part, tanh, tanh_to_half
from .products import UNALIGNED, VARYING, caption_at, image_at, listed_at


@triton.jit
def context_logits(context, score, logits):
    """logits (B·L, 16) + tanh(context) score, for context (B, L, h) and score (h, 16), whose first column is the vector w.

    tanh leaves as float16 and is summed by the tensor cores: widening and multiplying each by itself would cost three
    instructions.
    """
    flat = tl.reshape(context, (context.shape[0] * context.shape[1], context.shape[2]))
    return tl.dot(tanh_to_half(flat), score, logits)


@triton.jit(do_not_specialize=VARYING, do_not_specialize_on_alignment=UNALIGNED)
def tile_kernel(
    region_products,
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
    S,
    logits,
    first_bucket,
    end_bucket,
    word_bucket,
    first_image,
    first_caption,
    captions,
    region_rows,
    word_rows,
    region_stride,
    word_stride,
    LISTED: tl.constexpr,
    INTER: tl.constexpr,
    INTRA: tl.constexpr,
    WIDTH: tl.constexpr,
    HIDDEN: tl.constexpr,
    REGIONS: tl.constexpr,
    TAIL: tl.constexpr,
    WORDS: tl.constexpr,
    TOGETHER: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
):
    ROWS: tl.constexpr = TOGETHER * WORDS
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    dtype = region_products.dtype.element_ty

    row = tl.arange(0, ROWS)
    if LISTED:
        # A tile is a piece of a run of pairs of one image; its first pair's program does the work of all.
        first = tl.program_id(0)
        image, _, _, exists = listed_at(first, pairs, list_order, list_starts, word_bucket, first_caption)
        rank = tl.load(list_ranks + tl.load(list_starts + word_bucket) + first_caption + first, mask=exists, other=1)
        # A round may begin within a run.
        if (exists == 0) | (tl.minimum(rank, first) % TOGETHER != 0):
            return
        slot = first
        its_image, caption, _, row_present = listed_at(
            first + row // WORDS, pairs, list_order, list_starts, word_bucket, first_caption
        )
        row_present &= (first + row // WORDS < captions) & (its_image == image)
    else:
        groups = tl.cdiv(captions, TOGETHER)
        first = tl.program_id(0) % groups * TOGETHER
        slot = tl.program_id(0) // groups * captions + first
        image, exists = image_at(tl.program_id(0) // groups, region_order, region_starts, first_bucket, end_bucket, first_image)
        _, first_exists = caption_at(first, word_order, word_starts, word_bucket, first_caption)
        if (exists == 0) | (first_exists == 0):
            return
        caption, row_present = caption_at(first + row // WORDS, word_order, word_starts, word_bucket, first_caption)
        row_present &= first + row // WORDS < captions

    # Sizes of tensors are powers of two: regions of an image, 36 for instance, lie in two of them.
    m = tl.load(region_lengths + image).to(tl.int32)
    region = tl.arange(0, REGIONS)
    region_exists = region < m
    region_row = image * region_rows + region
    if TAIL:
        tail = REGIONS + tl.arange(0, TAIL)
        tail_exists = tail < m
        tail_row = image * region_rows + tail
    word_exists = (row % WORDS < tl.load(word_lengths + caption, mask=row_present, other=0)) & row_present
    word_row = caption * word_rows + row % WORDS

    # Equations 7, 12 and 13 for each caption of the tile: (TOGETHER, WORDS, REGIONS). The words of one caption lie in one warp.
    cells = (slot * word_stride + row // WORDS * word_stride + row % WORDS)[:, None] * region_stride
    at = cells + region[None, :]
    exists = tl.reshape(word_exists, (TOGETHER, WORDS, 1)) & tl.reshape(region_exists, (1, 1, REGIONS))
    alignment = tl.reshape(load_block(S + at, word_exists, region_exists), (TOGETHER, WORDS, REGIONS))
    P = positive_part(tanh(alignment), exists)
    if TAIL:
        tail_at = cells + tail[None, :]
        both_exist = tl.reshape(word_exists, (TOGETHER, WORDS, 1)) & tl.reshape(tail_exists, (1, 1, TAIL))
        tail_alignment = tl.reshape(load_block(S + tail_at, word_exists, tail_exists), (TOGETHER, WORDS, TAIL))
        P_tail = positive_part(tanh(tail_alignment), both_exist)

    # R̂ and Ĉᵀ one after the other, since registers do not hold both in float32, and the norms that lead back to Rᵀ and C.
    Rt = tl.div_rn(P, norm(tl.sum(P * P, 1, keep_dims=True)))
    squares = tl.sum(Rt * Rt, 2, keep_dims=True)
    if TAIL:
        Rt_tail = tl.div_rn(P_tail, norm(tl.sum(P_tail * P_tail, 1, keep_dims=True)))
        squares += tl.sum(Rt_tail * Rt_tail, 2, keep_dims=True)
    word_norm = norm(squares)
    Rt_unit = tl.div_rn(Rt, word_norm).to(dtype)
    if TAIL:
        Rt_unit_tail = tl.div_rn(Rt_tail, word_norm).to(dtype)
    if INTRA:
        # Equation 17: few captions are longer than the detour by association.
        Hu = dot_each(Rt_unit, tl.permute(Rt_unit, (0, 2, 1)), tl.zeros((TOGETHER, WORDS, WORDS), tl.float32), TOGETHER)
        if TAIL:
            Hu = dot_each(Rt_unit_tail, tl.permute(Rt_unit_tail, (0, 2, 1)), Hu, TOGETHER)
        Hu = Hu.to(dtype)

    squares = tl.sum(P * P, 2, keep_dims=True)
    if TAIL:
        squares += tl.sum(P_tail * P_tail, 2, keep_dims=True)
    column_norm = norm(squares)
    Ct = tl.div_rn(P, column_norm)
    region_norm = norm(tl.sum(Ct * Ct, 1, keep_dims=True))
    Ct_unit = tl.div_rn(Ct, region_norm).to(dtype)
    C_unit = tl.permute(Ct_unit, (0, 2, 1))
    region_norm = tl.permute(region_norm, (0, 2, 1))
    Ct_unit = tl.reshape(Ct_unit, (ROWS, REGIONS))
    Rt_unit = tl.reshape(Rt_unit, (ROWS, REGIONS))
    if TAIL:
        Ct_tail = tl.div_rn(P_tail, column_norm)
        tail_norm = norm(tl.sum(Ct_tail * Ct_tail, 1, keep_dims=True))
        Ct_unit_tail = tl.div_rn(Ct_tail, tail_norm).to(dtype)
        C_unit_tail = tl.permute(Ct_unit_tail, (0, 2, 1))
        tail_norm = tl.permute(tail_norm, (0, 2, 1))
        Ct_unit_tail = tl.reshape(Ct_unit_tail, (ROWS, TAIL))
        Rt_unit_tail = tl.reshape(Rt_unit_tail, (ROWS, TAIL))

    # Equations 8 to 11, a panel of the hidden width at a time.
    # Only the first column is not 0. Eight would do, but Hopper's products of eight columns read past their tile.
    LOGITS: tl.constexpr = 8
    region_logits = tl.zeros((TOGETHER * REGIONS, LOGITS), tl.float32)
    word_logits = tl.zeros((ROWS, LOGITS), tl.float32)
    if TAIL:
        tail_logits = tl.zeros((TOGETHER * TAIL, LOGITS), tl.float32)
    if INTER or INTRA:
        for h0 in tl.range(0, HIDDEN, HIDDEN_BLOCK):
            h = h0 + tl.arange(0, HIDDEN_BLOCK)
            h_exists = h < HIDDEN
            of_regions = region_products + region_row[:, None] * (2 * HIDDEN) + h[None, :]
            of_words = word_products + word_row[:, None] * PRODUCTS + WIDTH + h[None, :]
            if TAIL:
                of_tail = region_products + tail_row[:, None] * (2 * HIDDEN) + h[None, :]
            column = tl.arange(0, LOGITS)
            wv = load_block(region_score + h[:, None] + column[None, :], h_exists, column == 0)
            wu = load_block(word_score + h[:, None] + column[None, :], h_exists, column == 0)

            context = tl.zeros((ROWS, HIDDEN_BLOCK), tl.float32)
            if INTER:
                context = tl.dot(Rt_unit, load_block(of_regions + HIDDEN, region_exists, h_exists), context)
                if TAIL:
                    context = tl.dot(Rt_unit_tail, load_block(of_tail + HIDDEN, tail_exists, h_exists), context)
            context = tl.reshape(context, (TOGETHER, WORDS, HIDDEN_BLOCK)) * word_norm
            if INTRA:
                UQ3 = load_block(of_words + HIDDEN, word_exists, h_exists)
                context = dot_each(Hu, tl.reshape(UQ3, (TOGETHER, WORDS, HIDDEN_BLOCK)), context, TOGETHER)
            word_logits = context_logits(context, wu, word_logits)

            if INTER:
                UQ2 = tl.reshape(load_block(of_words, word_exists, h_exists), (TOGETHER, WORDS, HIDDEN_BLOCK))
            if INTRA:
                # Hᵛ (V Q1) = Ĉ (Ĉᵀ (V Q1)): no (m, m) matrix.
                gathered = tl.zeros((ROWS, HIDDEN_BLOCK), tl.float32)
                gathered = tl.dot(Ct_unit, load_block(of_regions, region_exists, h_exists), gathered)
                if TAIL:
                    gathered = tl.dot(Ct_unit_tail, load_block(of_tail, tail_exists, h_exists), gathered)
                gathered = tl.reshape(gathered.to(dtype), (TOGETHER, WORDS, HIDDEN_BLOCK))
            context = tl.zeros((TOGETHER, REGIONS, HIDDEN_BLOCK), tl.float32)
            if INTER:
                context = dot_each(C_unit, UQ2, context, TOGETHER) * region_norm
            if INTRA:
                context = dot_each(C_unit, gathered, context, TOGETHER)
            region_logits = context_logits(context, wv, region_logits)
            if TAIL:
                context = tl.zeros((TOGETHER, TAIL, HIDDEN_BLOCK), tl.float32)
                if INTER:
                    context = dot_each(C_unit_tail, UQ2, context, TOGETHER) * tail_norm
                if INTRA:
                    context = dot_each(C_unit_tail, gathered, context, TOGETHER)
                tail_logits = context_logits(context, wv, tail_logits)

    # One panel holds them all.
    pair_row = region_stride + word_stride
    place = (slot + tl.arange(0, TOGETHER)) * pair_row
    present = first + tl.arange(0, TOGETHER) < captions
    region_logits = tl.reshape(tl.sum(region_logits, 1), (TOGETHER, REGIONS)) * tl.load(score_scales)
    mask = present[:, None] & region_exists[None, :]
    tl.store(logits + place[:, None] + region[None, :], region_logits, mask=mask)
    if TAIL:
        tail_logits = tl.reshape(tl.sum(tail_logits, 1), (TOGETHER, TAIL)) * tl.load(score_scales)
        mask = present[:, None] & tail_exists[None, :]
        tl.store(logits + place[:, None] + tail[None, :], tail_logits, mask=mask)
    word_logits = tl.sum(word_logits, 1) * tl.load(score_scales + 1)
    tl.store(logits + (slot + row // WORDS) * pair_row + region_stride + row % WORDS, word_logits, mask=word_exists)
