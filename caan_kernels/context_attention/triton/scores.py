"""Scores of every image with every caption, or of a list of pairs, in one kernel: float16 and bfloat16.

A program scores one image against TOGETHER captions whose words are padded to WORDS, ROWS = TOGETHER · WORDS rows in all.
Its three loops walk the width, the hidden width and the width again, and are the only ones that read memory:

    1  alignment, ROWS x regions, in registers; then Ĉᵀ and R̂ in the inputs' dtype, in registers as factors of products
    2  a panel of the hidden width at a time: Ĉ (Ĉᵀ V Q1) + C U Q2 and Hᵘ U Q3 + Rᵀ V Q4, tanh, and the product with the
       score vector; of all this only the logits outlive the panel
    3  v̂ and û, a block of the width at a time, of which v̂·û, |v̂|² and |û|² are kept

C is Ĉ with its rows scaled, and Rᵀ is R̂ so: one factor serves both products of a side, and float32 scales one of them.

Nothing but the score is written. Rows of V, V Q1, V Q4, U Kᵀ, U, U Q2 and U Q3 pass through shared memory, on their way
from the L2 cache; Hᵘ (n, n), one per caption, stays in registers; nothing of size (m, H) or (m, m) exists anywhere.

For a pair of m regions and n words, with D and H the widths:

    multiply-add flops   2mnD + (8mn + 2n²)H, on padded sizes
    tanh                 (m + n)H: 50 k real at m = 36, n = 12.5, H = 1024, 66 k on blocks of 48 and 16 rows
    bytes from L2        2 (m (2D + 2H) / TOGETHER + n (2D + 2H)): 176 kB with 4 captions together, 139 kB with 8

Batch invariance: no sum goes over rows of two captions; the block comes from the pair's own
lengths; and products of one launch have one shape, whatever fills it.
"""

import triton
import triton.language as tl

from ...core.triton.functions import dot_each, load_block, norm, positive_part, softmax_of_both, softmax_where, tanh, tanh_to_half


@triton.jit
def context_logits(context, score, logits):
    """logits (B·L, 16) + tanh(context) score, for context (B, L, h) and score (h, 16), whose first column is the vector w.

    tanh leaves as float16 and is summed by the tensor cores: widening and multiplying each by itself would cost three
    instructions.
    """
    flat = tl.reshape(context, (context.shape[0] * context.shape[1], context.shape[2]))
    return tl.dot(tanh_to_half(flat), score, logits)


# Nothing that changes from batch to batch may make a kernel of its own.
_VARYING = ["images", "captions", "score_row", "region_rows", "word_rows", "first_image"]
_VARYING += ["region_bucket", "word_bucket", "pair_bucket"]
_UNALIGNED = ["scores", "region_lengths", "word_lengths", "region_order", "region_starts", "word_order", "word_starts"]
_UNALIGNED += ["pairs", "pair_order", "pair_keys", "pair_ranks"]


@triton.jit(do_not_specialize=_VARYING, do_not_specialize_on_alignment=_UNALIGNED)
def scores_kernel(
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
    pair_order,
    pair_keys,
    pair_ranks,
    scores,
    images,
    captions,
    score_row,
    region_rows,
    word_rows,
    first_image,
    region_bucket,
    word_bucket,
    pair_bucket,
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
    WIDTH_BLOCK: tl.constexpr,
    HIDDEN_BLOCK: tl.constexpr,
    POOL_BLOCK: tl.constexpr,
    IMAGE_GROUP: tl.constexpr,
):
    ROWS: tl.constexpr = TOGETHER * WORDS
    PRODUCTS: tl.constexpr = WIDTH + 2 * HIDDEN
    dtype = regions.dtype.element_ty

    member = tl.arange(0, TOGETHER)
    row = tl.arange(0, ROWS)
    if LISTED:
        # A tile is a piece of a run of pairs of one image and one bucket; its first pair's program does the work of all.
        first = tl.program_id(0).to(tl.int64)
        key = tl.load(pair_keys + first)
        if (key // images != pair_bucket) | (tl.load(pair_ranks + first) % TOGETHER != 0):
            return
        image = key % images
        listed = tl.num_programs(0)
        # One run may end where the next begins: a later pair belongs to this tile only if its key is the same.
        present = (first + member < listed) & (tl.load(pair_keys + first + member, mask=first + member < listed, other=-1) == key)
        place = tl.load(pair_order + first + member, mask=present, other=0)
        row_member = first + row // WORDS
        row_present = (row_member < listed) & (tl.load(pair_keys + row_member, mask=row_member < listed, other=-1) == key)
        row_place = tl.load(pair_order + row_member, mask=row_present, other=0)
        caption = tl.load(pairs + 2 * row_place + 1, mask=row_present, other=0)
    else:
        # Images of a group follow each other under the same captions, so that both stay in the L2 cache.
        groups = tl.cdiv(captions, TOGETHER)
        program = tl.program_id(0)
        band = program // (IMAGE_GROUP * groups)
        within = program % (IMAGE_GROUP * groups)
        slot = first_image + band * IMAGE_GROUP + within % IMAGE_GROUP + tl.load(region_starts + region_bucket)
        first = (within // IMAGE_GROUP) * TOGETHER + tl.load(word_starts + word_bucket)
        last = tl.load(word_starts + word_bucket + 1)
        if (slot >= tl.load(region_starts + region_bucket + 1)) | (first >= last):
            return
        image = tl.load(region_order + slot)
        present = first + member < last
        place = image * score_row + tl.load(word_order + first + member, mask=present, other=0)
        row_member = first + row // WORDS
        row_present = row_member < last
        caption = tl.load(word_order + row_member, mask=row_present, other=0)

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

    # Equation 7, transposed: the words of one caption lie in one warp's rows.
    alignment = tl.zeros((ROWS, REGIONS), tl.float32)
    if TAIL:
        tail_alignment = tl.zeros((ROWS, TAIL), tl.float32)
    for d0 in tl.range(0, WIDTH, WIDTH_BLOCK):
        d = d0 + tl.arange(0, WIDTH_BLOCK)
        V = load_block(regions + region_row[None, :] * WIDTH + d[:, None], d < WIDTH, region_exists)
        UK = load_block(word_products + word_row[:, None] * PRODUCTS + d[None, :], word_exists, d < WIDTH)
        alignment = tl.dot(UK, V, alignment)
        if TAIL:
            V_tail = load_block(regions + tail_row[None, :] * WIDTH + d[:, None], d < WIDTH, tail_exists)
            tail_alignment = tl.dot(UK, V_tail, tail_alignment)

    # Equations 12 and 13 for each caption of the tile: (TOGETHER, WORDS, REGIONS).
    exists = tl.reshape(word_exists, (TOGETHER, WORDS, 1)) & tl.reshape(region_exists, (1, 1, REGIONS))
    P = positive_part(tl.reshape(tanh(alignment), (TOGETHER, WORDS, REGIONS)), exists)
    squares = tl.sum(P * P, 2, keep_dims=True)
    if TAIL:
        both_exist = tl.reshape(word_exists, (TOGETHER, WORDS, 1)) & tl.reshape(tail_exists, (1, 1, TAIL))
        P_tail = positive_part(tl.reshape(tanh(tail_alignment), (TOGETHER, WORDS, TAIL)), both_exist)
        squares += tl.sum(P_tail * P_tail, 2, keep_dims=True)
    column_norm = norm(squares)
    Ct = tl.div_rn(P, column_norm)
    Rt = tl.div_rn(P, norm(tl.sum(P * P, 1, keep_dims=True)))
    squares = tl.sum(Rt * Rt, 2, keep_dims=True)
    if TAIL:
        Ct_tail = tl.div_rn(P_tail, column_norm)
        Rt_tail = tl.div_rn(P_tail, norm(tl.sum(P_tail * P_tail, 1, keep_dims=True)))
        squares += tl.sum(Rt_tail * Rt_tail, 2, keep_dims=True)

    # Ĉᵀ and R̂, and the norms that lead back to C and Rᵀ; equation 17, since few captions are longer than the detour by
    # association.
    region_norm = norm(tl.sum(Ct * Ct, 1, keep_dims=True))
    word_norm = norm(squares)
    Ct_unit = tl.div_rn(Ct, region_norm).to(dtype)
    Rt_unit = tl.div_rn(Rt, word_norm).to(dtype)
    C_unit = tl.permute(Ct_unit, (0, 2, 1))
    region_norm = tl.permute(region_norm, (0, 2, 1))
    if INTRA:
        Hu = dot_each(Rt_unit, tl.permute(Rt_unit, (0, 2, 1)), tl.zeros((TOGETHER, WORDS, WORDS), tl.float32), TOGETHER)
    Ct_unit = tl.reshape(Ct_unit, (ROWS, REGIONS))
    Rt_unit = tl.reshape(Rt_unit, (ROWS, REGIONS))
    if TAIL:
        tail_norm = norm(tl.sum(Ct_tail * Ct_tail, 1, keep_dims=True))
        Ct_unit_tail = tl.div_rn(Ct_tail, tail_norm).to(dtype)
        Rt_unit_tail = tl.div_rn(Rt_tail, word_norm).to(dtype)
        C_unit_tail = tl.permute(Ct_unit_tail, (0, 2, 1))
        tail_norm = tl.permute(tail_norm, (0, 2, 1))
        if INTRA:
            Hu = dot_each(Rt_unit_tail, tl.permute(Rt_unit_tail, (0, 2, 1)), Hu, TOGETHER)
        Ct_unit_tail = tl.reshape(Ct_unit_tail, (ROWS, TAIL))
        Rt_unit_tail = tl.reshape(Rt_unit_tail, (ROWS, TAIL))
    if INTRA:
        Hu = Hu.to(dtype)

    # Equations 8 to 11, a panel of the hidden width at a time.
    # Only the first column is not 0. Eight would do, but Hopper's products of eight columns read past their tile.
    LOGITS: tl.constexpr = 16
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

            context = tl.zeros((TOGETHER, REGIONS, HIDDEN_BLOCK), tl.float32)
            if TAIL:
                tail_context = tl.zeros((TOGETHER, TAIL, HIDDEN_BLOCK), tl.float32)
            if INTER:
                UQ2 = tl.reshape(load_block(of_words, word_exists, h_exists), (TOGETHER, WORDS, HIDDEN_BLOCK))
                context = dot_each(C_unit, UQ2, context, TOGETHER) * region_norm
                if TAIL:
                    tail_context = dot_each(C_unit_tail, UQ2, tail_context, TOGETHER) * tail_norm
            if INTRA:
                # Hᵛ (V Q1) = Ĉ (Ĉᵀ (V Q1)): no (m, m) matrix.
                gathered = tl.zeros((ROWS, HIDDEN_BLOCK), tl.float32)
                gathered = tl.dot(Ct_unit, load_block(of_regions, region_exists, h_exists), gathered)
                if TAIL:
                    gathered = tl.dot(Ct_unit_tail, load_block(of_tail, tail_exists, h_exists), gathered)
                gathered = tl.reshape(gathered.to(dtype), (TOGETHER, WORDS, HIDDEN_BLOCK))
                context = dot_each(C_unit, gathered, context, TOGETHER)
                if TAIL:
                    tail_context = dot_each(C_unit_tail, gathered, tail_context, TOGETHER)
            region_logits = context_logits(context, wv, region_logits)
            if TAIL:
                tail_logits = context_logits(tail_context, wv, tail_logits)

    region_logits = tl.reshape(tl.sum(region_logits, 1), (TOGETHER, REGIONS)) * tl.load(score_scales)
    word_logits = tl.reshape(tl.sum(word_logits, 1), (TOGETHER, WORDS)) * tl.load(score_scales + 1)
    if TAIL:
        tail_logits = tl.reshape(tl.sum(tail_logits, 1), (TOGETHER, TAIL)) * tl.load(score_scales)
        f, f_tail = softmax_of_both(region_logits, region_exists[None, :], tail_logits, tail_exists[None, :], 1)
        f_tail = f_tail.to(dtype)
    else:
        f = softmax_where(region_logits, region_exists[None, :], 1)
    g = softmax_where(word_logits, tl.reshape(word_exists, (TOGETHER, WORDS)), 1)

    # Equations 5, 6 and 18.
    f = f.to(dtype)
    g = tl.reshape(g.to(dtype), (TOGETHER, 1, WORDS))
    product = tl.zeros((TOGETHER, POOL_BLOCK), tl.float32)
    region_squares = tl.zeros((TOGETHER, POOL_BLOCK), tl.float32)
    word_squares = tl.zeros((TOGETHER, POOL_BLOCK), tl.float32)
    none = tl.zeros((TOGETHER, POOL_BLOCK), tl.float32)
    for d0 in tl.range(0, WIDTH, POOL_BLOCK):
        d = d0 + tl.arange(0, POOL_BLOCK)
        v = tl.dot(f, load_block(regions + region_row[:, None] * WIDTH + d[None, :], region_exists, d < WIDTH), none)
        if TAIL:
            v = tl.dot(f_tail, load_block(regions + tail_row[:, None] * WIDTH + d[None, :], tail_exists, d < WIDTH), v)
        # Each caption by itself: 0 times a word that is not finite is no 0.
        U = load_block(words + word_row[:, None] * WIDTH + d[None, :], word_exists, d < WIDTH)
        U = tl.reshape(U, (TOGETHER, WORDS, POOL_BLOCK))
        u = tl.reshape(dot_each(g, U, tl.reshape(none, (TOGETHER, 1, POOL_BLOCK)), TOGETHER), (TOGETHER, POOL_BLOCK))
        product += v * u
        region_squares += v * v
        word_squares += u * u
    score = tl.sum(product, 1)
    if COSINE:
        score = tl.div_rn(score, norm(tl.sum(region_squares, 1)) * norm(tl.sum(word_squares, 1)))
    tl.store(scores + place, score, mask=present)
