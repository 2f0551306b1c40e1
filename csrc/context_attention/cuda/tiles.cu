// Scores of many pairs a block: a warp has one or two pairs of up to 64 regions and 32 words, in float32 one of up to 40 and 16.
//
//   products   S = V (U affinityT)T and X = V UT             all images of the block by all its captions, words packed where that
//                                                            saves a warp, by half the warps where registers allow it
//   weights    A, C, R, C_unit, R_unit from S                in registers, as factors of what follows (attention.h)
//   contexts   tanh((R_unitT R_unit) U Q3 + RT V Q4) w_u     16 hidden columns at a time; what leaves a product as sums is the
//              tanh(C_unit (C_unitT V Q1) + C U Q2) w_v      next one's factor; only logits live on
//   score      fT X g, which is v.u                          for the cosine: v = f V, u = g U, v.u, |v|^2, |u|^2
//
// Each brings 64 columns at a time of the rows of the block's items into shared memory, a piece ahead. Contexts are transposed,
// hidden columns by words or regions: those are many, and regions and words are padded to multiples of 8 where they are columns,
// of 16 where they are summed over. Nothing is written but the score.
//
// For a pair of m regions and n words, widths D and H: (4mnD + (8mn + 2n^2)H) flops, (m + n)H tanh, and from the L2 cache
// 2m(D + 2H) / captions of the block + 4n(D + H) / images of the block bytes. docs/cuda.md has the estimate.
//
// Batch invariance: S and X of a pair are sums over the width in one order, wherever a word's row lies; a caption's words begin at
// a multiple of 16 where they are summed over, and what else lies in the tile adds exact zeros; pairs of one bucket have one shape,
// and whether the last 8 words of two strips are left out is a matter of the caption's own length.
#include "context_attention/cuda/float_products.h"
#include "context_attention/cuda/tile_contexts.h"
#include "context_attention/cuda/tile_products.h"

namespace caan::context_attention {

namespace {

// The scores of the warp's pairs, in lane 0.
template <typename S, typename T>
CAAN_DEVICE void find_scores(const Tile<S, T>& tile, float (&scores)[S::PAIRS]) {
  Cells<S> A = {}, X = {};
  if constexpr (S::AT_ONCE > 1) {
    multiply_at_once(tile, A);
  } else {
    if constexpr (sizeof(T) == 4)
      multiply_parts_of_rows(tile, A, X);
    else
      multiply_rows(tile, &A, &X);
    if (tile.items.packs()) {
      hand_over(tile, A);
      if (!tile.o.cosine) hand_over(tile, X);
    }
  }
  block_barrier();
  if (!tile.o.cosine) each_parked(tile, X, [](float4& to, const float (&x)[4]) { to = {x[0], x[1], x[2], x[3]}; });
  float region_logits[S::PAIRS][S::TILES][2] = {}, word_logits[S::PAIRS][2 * S::STRIPS][2] = {};
  if (tile.o.inter || tile.o.intra) {
    if constexpr (sizeof(T) == 4) {
      add_logits(tile, A[0], region_logits[0], word_logits[0]);
    } else {
      const ContextRows<S> rows{BlockRows<S, S::REGION_ROWS>(tile.items.regions), BlockRows<S, S::WORD_ROWS>(tile.items.words)};
      begin_piece(tile, rows, 0);
      add_logits(tile, rows, A, region_logits, word_logits);
    }
  }
#pragma unroll
  for (int p = 0; p < S::PAIRS; ++p) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
#pragma unroll
      for (int t = 0; t < S::TILES; ++t) region_logits[p][t][e] = sum_over_rows(region_logits[p][t][e]);
#pragma unroll
      for (int j = 0; j < 2 * S::STRIPS; ++j) word_logits[p][j][e] = sum_over_rows(word_logits[p][j][e]);
    }
    softmax_of_tiles(region_logits[p], tile.m());
    softmax_of_tiles(word_logits[p], tile.n(p));
  }
  if constexpr (sizeof(T) == 2)
    if (tile.o.cosine) return cosines(tile, region_logits, word_logits, scores);
  if constexpr (S::AT_ONCE > 1)
    take_sums(tile, sums_of(tile, true, tile.image()), X);
  else
    each_parked(tile, X, [](const float4& from, float (&x)[4]) { x[0] = from.x, x[1] = from.y, x[2] = from.z, x[3] = from.w; });
  auto& g = tile.items.g[tile.warp()];
  if (tile.row == 0)
#pragma unroll
    for (int p = 0; p < S::PAIRS; ++p)
#pragma unroll
      for (int j = 0; j < 2 * S::STRIPS; ++j)
        g[p][8 * j + tile.column] = word_logits[p][j][0], g[p][8 * j + tile.column + 1] = word_logits[p][j][1];
  warp_barrier();
#pragma unroll
  for (int p = 0; p < S::PAIRS; ++p) scores[p] = inner_product(tile, p, X[p], region_logits[p], g[p]);
}

template <typename S, typename T>
CAAN_KERNEL void CAAN_BOUNDS(S::THREADS, 1) tile_kernel(Sides<T> s, Tiles tiles, Options o, float* scores) {
  CAAN_SHARED;
  if (S::BOTH) o.inter = o.intra = true;
  auto& items = *reinterpret_cast<Items<S>*>(shared_memory + S::ITEMS_AT);
  const int64_t all = count_work<S>(s, tiles);
  for (int64_t work = blockIdx.x; work < all; work += gridDim.x) {
    // What the last work's warps read there.
    block_barrier();
    if (!find_items<S>(items, s, tiles, work)) continue;
    block_barrier();
    find_rows(items, s, work);
    block_barrier();
    const Tile<S, T> tile{s, o, items, shared_memory, thread_at(work)};
    float found[S::PAIRS];
    find_scores(tile, found);
    if (tile.lane != 0 || tile.m() == 0) continue;
#pragma unroll
    for (int p = 0; p < S::PAIRS; ++p) {
      const int caption = tile.caption(p);
      if (tile.n(p) == 0) continue;
      scores[S::LISTED ? items.place[caption] : items.image[tile.image()] * tiles.score_row + items.caption[caption]] = found[p];
    }
  }
}

template <typename S, typename T>
void launch_tiles(Sides<T> s, const Tiles& tiles, const Options& o, float* scores, Stream stream) {
  constexpr size_t shared = S::ITEMS_AT + sizeof(Items<S>);
  static_assert(shared <= 99 * 1024);
  const auto start = [&](int64_t work) {
    const int64_t most = tiles.blocks * S::BLOCKS, blocks = work < most ? work : most;
    launch<tile_kernel<S, T>>(blocks, S::THREADS, shared, stream, s, tiles, o, scores);
  };
  if (S::LISTED) return start((tiles.listed + S::IMAGES - 1) / S::IMAGES);
  const int64_t images = s.images;
  int64_t step = tiles.launch_images / BAND * BAND;
  if (step < BAND) step = BAND;
  for (int64_t image = 0; image < images; image += step) {
    s.images = images - image < step ? images - image : step;
    start((s.images + BAND - 1) / BAND * (BAND / S::IMAGES) * ((s.captions + S::CAPTIONS - 1) / S::CAPTIONS));
    s.regions += step * s.M * s.D;
    s.region_products += step * s.M * (2 * s.H);
    s.region_lengths += step;
    scores += step * tiles.score_row;
  }
}

template <int TILES, int STRIPS, typename T>
void launch_terms(const Sides<T>& s, const Tiles& tiles, const Options& o, float* scores, Stream stream) {
  if (tiles.pairs)
    launch_tiles<Shape<TILES, STRIPS, true, false>>(s, tiles, o, scores, stream);
  else if (o.inter && o.intra)
    launch_tiles<Shape<TILES, STRIPS, false, true>>(s, tiles, o, scores, stream);
  else
    launch_tiles<Shape<TILES, STRIPS, false, false>>(s, tiles, o, scores, stream);
}

} // namespace

template <typename T>
void score_tiles(const Sides<T>& s, const Tiles& tiles, const Options& o, float* scores, Stream stream) {
  if constexpr (sizeof(T) == 4)
    tiles.pairs ? launch_tiles<FloatShape<true>>(s, tiles, o, scores, stream)
                : launch_tiles<FloatShape<false>>(s, tiles, o, scores, stream);
  else if (s.M <= 40)
    tiles.strips == 1 ? launch_terms<5, 1>(s, tiles, o, scores, stream) : launch_terms<5, 2>(s, tiles, o, scores, stream);
  else
    tiles.strips == 1 ? launch_terms<8, 1>(s, tiles, o, scores, stream) : launch_terms<8, 2>(s, tiles, o, scores, stream);
}

template void score_tiles(const Sides<float>&, const Tiles&, const Options&, float*, Stream);

template void score_tiles(const Sides<bfloat16>&, const Tiles&, const Options&, float*, Stream);
template void score_tiles(const Sides<float16>&, const Tiles&, const Options&, float*, Stream);

} // namespace caan::context_attention
