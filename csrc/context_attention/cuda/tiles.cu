// Scores of many pairs a block, float16 and bfloat16: a warp has one pair, of up to 64 regions and 32 words.
//
//   products   S = V (U affinityT)T and X = V UT             all images of the block by all its captions, words packed row by row
//   weights    A, C, R, C_unit, R_unit from S                in registers, as factors of what follows (attention.h)
//   contexts   tanh((R_unitT R_unit) U Q3 + RT V Q4) w_u     16 hidden columns at a time; what leaves a product as sums is the
//              tanh(C_unit (C_unitT V Q1) + C U Q2) w_v      next one's factor; only logits live on
//   score      fT X g, which is v.u                          of two strips, and for the cosine: v = f V, u = g U, v.u, |v|^2, |u|^2
//
// Each brings 64 columns at a time of the rows of the block's items into shared memory, a piece ahead. Contexts are transposed,
// hidden columns by words or regions: those are many, and regions and words are padded to multiples of 8 where they are columns,
// of 16 where they are summed over. Nothing is written but the score.
//
// For a pair of m regions and n words, widths D and H: (4mnD + (8mn + 2n^2)H) flops, (m + n)H tanh, and from the L2 cache
// 2m(D + 2H) / captions of the block + 4n(D + H) / images of the block bytes. docs/cuda.md has the estimate.
//
// Batch invariance: S and X of a pair are sums over the width in one order, wherever a word's row lies; a caption's words begin at
// a multiple of 16 where they are summed over, and what else lies in the tile adds exact zeros; pairs of one bucket have one shape.
#include "context_attention/cuda/attention.h"
#include "context_attention/cuda/kernels.h"

namespace caan::context_attention {

namespace {

// Blocks that follow each other share an image's rows, and those of so many images share a caption's, in the L2 cache.
constexpr int BAND = 32;

template <int TILES_, int STRIPS_, bool LISTED_, bool BOTH_>
struct Shape {
  // TILES of 8 regions; DEPTHS of 16 of them.
  static constexpr int TILES = TILES_, DEPTHS = (TILES + 1) / 2, REGIONS = 16 * DEPTHS;
  static constexpr int STRIPS = STRIPS_, WORDS = 16 * STRIPS;
  // BOTH: inter and intra terms are known at compile time, which saves branches in the inner loops. Lists do without it: memory
  // limits them.
  static constexpr bool LISTED = LISTED_, BOTH = BOTH_;
  // Pooled vectors take the place of X, whose numbers of two strips have no room in registers.
  static constexpr bool POOLED = STRIPS == 2;
  // Warps are images by captions; in a list every warp has an image and a caption of its own. A thread has 128 registers with 16
  // warps, 168 with 12, 255 with eight. Two stages fit the 99 KB of shared memory that every GPU has.
  static constexpr int IMAGES = LISTED ? 4 : 2, BESIDE = LISTED ? 1 : STRIPS == 2 ? 4 : TILES == 5 && BOTH ? 8 : 6;
  static constexpr int WARPS = IMAGES * BESIDE, THREADS = WARPS * WARP, CAPTIONS = LISTED ? IMAGES : BESIDE;
  static constexpr int REGION_ROWS = IMAGES * REGIONS, WORD_ROWS = CAPTIONS * WORDS;
  static constexpr int STAGE_BYTES = (REGION_ROWS + (POOLED ? 1 : 2) * WORD_ROWS) * PIECE_BYTES;
  // Numbers from a word's sums with an image's regions to the next word's: four rows then lie in different banks.
  static constexpr int SUMS_ROW = 8 * TILES % 32 ? 8 * TILES : 8 * TILES + 8;
  static_assert(TILES == 5 || TILES == 8);
  static constexpr int SUMS_BYTES = LISTED ? 0 : IMAGES * WORD_ROWS * SUMS_ROW * int(sizeof(float));
  static constexpr int ITEMS_AT = SUMS_BYTES > 2 * STAGE_BYTES ? SUMS_BYTES : 2 * STAGE_BYTES;
};

// What a block works on; nothing where a length is 0. `packed` words begin where those of the caption before end, `words` at
// multiples of a tile's.
template <typename S>
struct Items {
  int64_t image[S::IMAGES], caption[S::CAPTIONS], place[S::CAPTIONS];
  int m[S::IMAGES], n[S::CAPTIONS], begin[S::CAPTIONS + 1];
  // Rows of the call's regions or words.
  uint32_t regions[S::REGION_ROWS], words[S::WORD_ROWS], packed[S::WORD_ROWS];
  float g[S::WARPS][S::WORDS];
  // Of the score vector of a piece in either stage: column c of 64 at place 8 (c % 8) + c / 8.
  alignas(16) uint16_t weights[2][PIECE];
};

// Blocks' worth of work, as `find_items` numbers it.
template <typename S, typename T>
CAAN_DEVICE int64_t count_work(const Sides<T>& s, const Tiles& tiles) {
  if (S::LISTED) return (tiles.listed + S::IMAGES - 1) / S::IMAGES;
  const int64_t captions = tiles.word_starts[tiles.bucket + 1] - tiles.word_starts[tiles.bucket];
  return (s.images + BAND - 1) / BAND * (BAND / S::IMAGES) * ((captions + S::CAPTIONS - 1) / S::CAPTIONS);
}

// False if there is no work at this number, in every thread alike.
template <typename S, typename T>
CAAN_DEVICE bool find_items(Items<S>& items, const Sides<T>& s, const Tiles& tiles, int64_t work) {
  const int t = int(threadIdx.x);
  if constexpr (S::LISTED) {
    const int64_t first = work * S::IMAGES;
    const auto wanted = [&](int64_t p) {
      if (p >= tiles.listed) return false;
      const int64_t bucket = tiles.keys[p] / s.images;
      return bucket < tiles.buckets && bucket % tiles.word_buckets == tiles.bucket &&
             s.region_lengths[tiles.keys[p] % s.images] <= 8 * S::TILES;
    };
    bool any = false;
    for (int i = 0; i < S::IMAGES; ++i) any = any || wanted(first + i);
    if (!any) return false;
    if (t < S::IMAGES) {
      const bool real = wanted(first + t);
      items.image[t] = real ? tiles.keys[first + t] % s.images : 0;
      items.m[t] = real ? int(s.region_lengths[items.image[t]]) : 0;
      items.place[t] = real ? tiles.order[first + t] : 0;
      items.caption[t] = real ? tiles.pairs[2 * items.place[t] + 1] : 0;
      items.n[t] = real ? int(s.word_lengths[items.caption[t]]) : 0;
    }
  } else {
    const int64_t begin = tiles.word_starts[tiles.bucket], end = tiles.word_starts[tiles.bucket + 1];
    const int64_t groups = (end - begin + S::CAPTIONS - 1) / S::CAPTIONS, in_band = BAND / S::IMAGES;
    const int64_t within = work % (in_band * groups), image0 = (work / (in_band * groups) * in_band + within % in_band) * S::IMAGES;
    const int64_t first = begin + within / in_band * S::CAPTIONS;
    if (image0 >= s.images) return false;
    if (t < S::IMAGES) {
      const bool real = image0 + t < s.images && s.region_lengths[image0 + t] <= 8 * S::TILES;
      items.image[t] = real ? image0 + t : 0;
      items.m[t] = real ? int(s.region_lengths[image0 + t]) : 0;
    }
    if (t < S::CAPTIONS) {
      const bool real = first + t < end;
      items.caption[t] = real ? tiles.word_order[first + t] : 0;
      items.n[t] = real ? int(s.word_lengths[items.caption[t]]) : 0;
    }
  }
  return true;
}

template <typename S, typename T>
CAAN_DEVICE void find_rows(Items<S>& items, const Sides<T>& s) {
  const auto row_of = [](int64_t item, int rows, int within, int length) {
    return within < length ? uint32_t(item * rows + within) : NO_ROW;
  };
  for (int r = int(threadIdx.x); r < S::REGION_ROWS; r += S::THREADS) {
    const int i = r / S::REGIONS;
    items.regions[r] = row_of(items.image[i], s.M, r % S::REGIONS, items.m[i]);
  }
  for (int r = int(threadIdx.x); r < S::WORD_ROWS; r += S::THREADS) {
    const int own = r / S::WORDS;
    items.words[r] = row_of(items.caption[own], s.N, r % S::WORDS, items.n[own]);
    if (S::LISTED) continue;
    uint32_t packed = NO_ROW;
    for (int c = 0, begin = 0; c < S::CAPTIONS; begin += items.n[c++]) {
      if (r >= begin && r < begin + items.n[c]) packed = uint32_t(items.caption[c] * s.N + (r - begin));
      if (r == 0) items.begin[c] = begin, items.begin[c + 1] = begin + items.n[c];
    }
    items.packed[r] = packed;
  }
}

// A warp at work on its pair.
template <typename S, typename T>
struct Tile {
  const Sides<T>& s;
  const Options& o;
  Items<S>& items;
  char* const stages;
  const int lane = int(threadIdx.x) % WARP, row = lane / 4, column = 2 * (lane % 4);

  // Found where they are needed: in between they would take registers.
  CAAN_DEVICE int warp() const { return int(threadIdx.x) / WARP; }
  CAAN_DEVICE int image() const { return warp() / S::BESIDE; }
  CAAN_DEVICE int caption() const { return warp() % (S::LISTED ? S::WARPS : S::BESIDE); }
  CAAN_DEVICE int m() const { return items.m[image()]; }
  CAAN_DEVICE int n() const { return items.n[caption()]; }
  CAAN_DEVICE char* stage(int piece) const { return stages + piece % 2 * S::STAGE_BYTES; }
  CAAN_DEVICE int pieces_of_width() const { return (s.D + PIECE - 1) / PIECE; }
  CAAN_DEVICE int pieces_of_hidden() const { return o.inter || o.intra ? (s.H + PIECE - 1) / PIECE : 0; }
};

// What a warp holds of S or of X: STRIPS of 16 words by TILES of 8 regions.
template <typename S>
using Cells = float[S::STRIPS][S::TILES][4];

// S and, but for the cosine, X. In a list those of the warp's pair; else of strips of packed words with the warp's image.
template <typename S, typename T>
CAAN_DEVICE void multiply_rows(const Tile<S, T>& tile, Cells<S>& alignment, Cells<S>& similarity) {
  const Sides<T>& s = tile.s;
  const uint32_t* const words = S::LISTED ? tile.items.words : tile.items.packed;
  const bool both = !S::POOLED && !tile.o.cosine;
  constexpr int AT_UK = S::REGION_ROWS * PIECE_BYTES, AT_U = AT_UK + S::WORD_ROWS * PIECE_BYTES;
  const auto begin = [&](int piece) {
    if (piece < tile.pieces_of_width()) {
      char* const to = tile.stage(piece);
      fetch_rows<S::REGION_ROWS, S::THREADS>(to, tile.items.regions, s.regions, s.D, piece * PIECE, s.D);
      fetch_rows<S::WORD_ROWS, S::THREADS>(to + AT_UK, words, s.word_products, s.D + 2 * s.H, piece * PIECE, s.D);
      if (both) fetch_rows<S::WORD_ROWS, S::THREADS>(to + AT_U, words, s.words, s.D, piece * PIECE, s.D);
    }
    close_copies();
  };
  const int first = tile.caption() * S::WORDS;
  const bool any = S::LISTED || first < tile.items.begin[S::CAPTIONS];
  begin(0);
#pragma unroll 1
  for (int piece = 0; piece < tile.pieces_of_width(); ++piece) {
    wait_for_copies<0>();
    block_barrier();
    begin(piece + 1);
    if (!any) continue;
    const char* const V_rows = tile.stage(piece) + tile.image() * S::REGIONS * PIECE_BYTES;
    const char *const UK_rows = tile.stage(piece) + AT_UK + first * PIECE_BYTES, *const U_rows =
                                                                                     UK_rows + S::WORD_ROWS * PIECE_BYTES;
#pragma unroll 1
    for (int k = 0; k < PIECE / 16; ++k) {
      uint32_t UK[S::STRIPS][4], U[S::STRIPS][4] = {}, V[4];
#pragma unroll
      for (int w = 0; w < S::STRIPS; ++w) {
        left_rows(UK[w], UK_rows, w, k);
        if (both) left_rows(U[w], U_rows, w, k);
      }
#pragma unroll
      for (int depth = 0; depth < S::DEPTHS; ++depth) {
        right_rows(V, V_rows, depth, k);
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int w = 0; w < S::STRIPS; ++w) {
            if (2 * depth + half >= S::TILES) continue;
            multiply_add(alignment[w][2 * depth + half], UK[w], V[2 * half], V[2 * half + 1], T{});
            if (both) multiply_add(similarity[w][2 * depth + half], U[w], V[2 * half], V[2 * half + 1], T{});
          }
      }
    }
  }
}

// From strips of packed words to the words of the warp's caption, by way of shared memory; what its tile has beyond them is 0.
template <typename S, typename T>
CAAN_DEVICE void hand_over(const Tile<S, T>& tile, Cells<S>& cells) {
  float* const sums = reinterpret_cast<float*>(tile.stages) + tile.image() * S::WORD_ROWS * S::SUMS_ROW + tile.column;
  const auto each = [&](auto body) {
#pragma unroll
    for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
      for (int t = 0; t < S::TILES; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          body(16 * w + 8 * half + tile.row, 8 * t, cells[w][t][2 * half], cells[w][t][2 * half + 1]);
  };
  block_barrier();
  each([&](int word, int region, float& x, float& y) {
    *reinterpret_cast<float2*>(sums + (tile.caption() * S::WORDS + word) * S::SUMS_ROW + region) = {x, y};
  });
  block_barrier();
  const float* const own = sums + tile.items.begin[tile.caption()] * S::SUMS_ROW;
  each([&](int word, int region, float& x, float& y) {
    float2 found = {0, 0};
    if (word < tile.n()) found = *reinterpret_cast<const float2*>(own + word * S::SUMS_ROW + region);
    x = found.x, y = found.y;
  });
}

// Pieces after S and X: those of the words' contexts, of the regions' and, for the cosine, of the features.
template <typename S, typename T>
CAAN_DEVICE void begin_piece(const Tile<S, T>& tile, int piece) {
  const Sides<T>& s = tile.s;
  const int hidden = tile.pieces_of_hidden(), pass = piece < hidden ? 0 : piece < 2 * hidden ? 1 : 2;
  if (pass < 2 && threadIdx.x < PIECE) {
    const int c = int(threadIdx.x), h = (piece - pass * hidden) * PIECE + c;
    const T weight = h < s.H ? (pass ? s.region_score : s.word_score)[h] : T{};
    tile.items.weights[piece % 2][8 * (c % 8) + c / 8] = weight.bits;
  }
  if (piece < 2 * hidden + (S::POOLED || tile.o.cosine ? tile.pieces_of_width() : 0)) {
    const int column = (piece - pass * hidden) * PIECE, width = pass == 2 ? s.D : s.H;
    char* const to = tile.stage(piece);
    fetch_rows<S::REGION_ROWS, S::THREADS>(to, tile.items.regions, pass == 2 ? s.regions : s.region_products + (pass ? 0 : s.H),
                                           pass == 2 ? s.D : 2 * s.H, column, width);
    fetch_rows<S::WORD_ROWS, S::THREADS>(to + S::REGION_ROWS * PIECE_BYTES, tile.items.words,
                                         pass == 2 ? s.words : s.word_products + s.D + (pass ? 0 : s.H),
                                         pass == 2 ? s.D : s.D + 2 * s.H, column, width);
  }
  close_copies();
}

// The rows of a piece that are the warp's.
struct Rows {
  const char *regions, *words;
};
template <typename S, typename T>
CAAN_DEVICE Rows next_piece(const Tile<S, T>& tile, int piece) {
  wait_for_copies<0>();
  block_barrier();
  begin_piece(tile, piece + 1);
  const char* const stage = tile.stage(piece);
  return {stage + tile.image() * S::REGIONS * PIECE_BYTES, stage + (S::REGION_ROWS + tile.caption() * S::WORDS) * PIECE_BYTES};
}

// What a lane's rows weigh, of columns 16 k and following: the first half those of its row, the second those 8 rows on.
template <typename S, typename T>
CAAN_DEVICE uint32_t weights_of_rows(const Tile<S, T>& tile, int piece, int k) {
  return *reinterpret_cast<const uint32_t*>(tile.items.weights[piece % 2] + 8 * tile.row + 2 * k);
}

template <typename S, typename T>
CAAN_DEVICE void add_word_logits(const Tile<S, T>& tile, const Factors<S::STRIPS, S::TILES>& R,
                                 const uint32_t (&H)[S::STRIPS][2 * S::STRIPS][2], float (&logits)[2 * S::STRIPS][2]) {
#pragma unroll 1
  for (int piece = 0; piece < tile.pieces_of_hidden(); ++piece) {
    const Rows rows = next_piece(tile, piece);
#pragma unroll 1
    for (int k = 0; k < PIECE / 16; ++k) {
      const uint32_t weights = weights_of_rows(tile, piece, k);
      const float at_row = first_of<T>(weights), on = second_of<T>(weights);
      float X[2 * S::STRIPS][4] = {};
      uint32_t left[4];
      if (tile.o.inter)
#pragma unroll
        for (int depth = 0; depth < S::DEPTHS; ++depth) {
          left_columns(left, rows.regions, depth, k);
#pragma unroll
          for (int j = 0; j < 2 * S::STRIPS; ++j) multiply_add(X[j], left, R[depth][j][0], R[depth][j][1], T{});
        }
      if (tile.o.intra)
#pragma unroll
        for (int w = 0; w < S::STRIPS; ++w) {
          left_columns(left, rows.words, w, k);
#pragma unroll
          for (int j = 0; j < 2 * S::STRIPS; ++j) multiply_add(X[j], left, H[w][j][0], H[w][j][1], T{});
        }
#pragma unroll
      for (int j = 0; j < 2 * S::STRIPS; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          logits[j][e] = fmaf(rough_tanh(X[j][2 + e]), on, fmaf(rough_tanh(X[j][e]), at_row, logits[j][e]));
    }
  }
}

template <typename S, typename T>
CAAN_DEVICE void add_region_logits(const Tile<S, T>& tile, const Factors<S::STRIPS, S::TILES>& C,
                                   const Factors<S::STRIPS, S::TILES>& C_unit, float (&logits)[S::TILES][2]) {
  // Words by regions.
  uint32_t turned[S::STRIPS][S::TILES][2], unit_turned[S::STRIPS][S::TILES][2];
#pragma unroll
  for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
    for (int t = 0; t < S::TILES; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        turned[w][t][half] = transpose_matrix(C[t / 2][2 * w + half][t % 2]);
        unit_turned[w][t][half] = transpose_matrix(C_unit[t / 2][2 * w + half][t % 2]);
      }
#pragma unroll 1
  for (int piece = 0; piece < tile.pieces_of_hidden(); ++piece) {
    const Rows rows = next_piece(tile, tile.pieces_of_hidden() + piece);
#pragma unroll 1
    for (int k = 0; k < PIECE / 16; ++k) {
      const uint32_t weights = weights_of_rows(tile, tile.pieces_of_hidden() + piece, k);
      const float at_row = first_of<T>(weights), on = second_of<T>(weights);
      uint32_t Z[S::STRIPS][4] = {}, UQ2[S::STRIPS][4] = {};
      if (tile.o.intra) {
        float z[S::STRIPS][2][4] = {};
#pragma unroll
        for (int depth = 0; depth < S::DEPTHS; ++depth) {
          uint32_t left[4];
          left_columns(left, rows.regions, depth, k);
#pragma unroll
          for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              multiply_add(z[w][half], left, C_unit[depth][2 * w + half][0], C_unit[depth][2 * w + half][1], T{});
        }
#pragma unroll
        for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
          for (int i = 0; i < 4; ++i) Z[w][i] = pack(z[w][i / 2][2 * (i % 2)], z[w][i / 2][2 * (i % 2) + 1], T{});
      }
      if (tile.o.inter)
#pragma unroll
        for (int w = 0; w < S::STRIPS; ++w) left_columns(UQ2[w], rows.words, w, k);
#pragma unroll
      for (int t = 0; t < S::TILES; ++t) {
        float Y[4] = {};
#pragma unroll
        for (int w = 0; w < S::STRIPS; ++w) {
          if (tile.o.intra) multiply_add(Y, Z[w], unit_turned[w][t][0], unit_turned[w][t][1], T{});
          if (tile.o.inter) multiply_add(Y, UQ2[w], turned[w][t][0], turned[w][t][1], T{});
        }
#pragma unroll
        for (int e = 0; e < 2; ++e) logits[t][e] = fmaf(rough_tanh(Y[2 + e]), on, fmaf(rough_tanh(Y[e]), at_row, logits[t][e]));
      }
    }
  }
}

// From S the logits of the warp's words and regions. What a side needs of the weights is made late, for the sake of registers.
template <typename S, typename T>
CAAN_DEVICE void add_logits(const Tile<S, T>& tile, Cells<S>& A, float (&of_regions)[S::TILES][2],
                            float (&of_words)[2 * S::STRIPS][2]) {
  constexpr int STRIPS = S::STRIPS, TILES = S::TILES;
  const Scales<STRIPS, TILES> scales = attend<STRIPS, TILES>(A, tile.m(), tile.n());
  uint32_t H[STRIPS][2 * STRIPS][2];
  Factors<STRIPS, TILES> R, C, unit;
  make_factors<T, STRIPS, TILES>(
      R, unit, [&](int w, int t, int e) { return A[w][t][e] * scales.of_region[t][e % 2]; },
      [&](int w, int, int e) { return scales.of_R[w][e / 2]; });
  word_affinity<T, STRIPS, TILES>(H, unit);
  make_factors<T, STRIPS, TILES>(
      C, unit, [&](int w, int t, int e) { return A[w][t][e] * scales.of_word[w][e / 2]; },
      [&](int, int t, int e) { return scales.of_C[t][e % 2]; });
  add_word_logits(tile, R, H, of_words);
  add_region_logits(tile, C, unit, of_regions);
}

// fT X g in every lane.
template <typename S, typename T>
CAAN_DEVICE float inner_product(const Tile<S, T>& tile, const Cells<S>& X, const float (&f)[S::TILES][2], const float* g) {
  float product = 0;
#pragma unroll
  for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int word = 16 * w + 8 * half + tile.row;
      float along = 0;
#pragma unroll
      for (int t = 0; t < S::TILES; ++t)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          // A region that is not there has f = 0, and with an infinite word no product.
          if (8 * t + tile.column + e < tile.m()) along = fmaf(f[t][e], X[w][t][2 * half + e], along);
      if (word < tile.n()) product = fmaf(g[word], along, product);
    }
  return sum_over_warp(product);
}

// v.u, over |v| |u| for the cosine, in lanes of column 0. f and g are factors as what 16 bits hold plus what rounding left of them:
// two columns.
template <typename S, typename T>
CAAN_DEVICE float product_of_pooled(const Tile<S, T>& tile, const float (&of_f)[S::TILES][2],
                                    const float (&of_g)[2 * S::STRIPS][2]) {
  uint32_t f[S::DEPTHS][2] = {}, g[S::STRIPS][2] = {};
  const auto part = [&](const float (&x)[2]) {
    const uint32_t rounded = pack(x[0], x[1], T{});
    const uint32_t found = tile.row ? pack(x[0] - first_of<T>(rounded), x[1] - second_of<T>(rounded), T{}) : rounded;
    return tile.row < 2 ? found : 0;
  };
#pragma unroll
  for (int t = 0; t < S::TILES; ++t) f[t / 2][t % 2] = part(of_f[t]);
#pragma unroll
  for (int j = 0; j < 2 * S::STRIPS; ++j) g[j / 2][j % 2] = part(of_g[j]);
  float product = 0, v_squares = 0, u_squares = 0;
#pragma unroll 1
  for (int piece = 0; piece < tile.pieces_of_width(); ++piece) {
    const Rows rows = next_piece(tile, 2 * tile.pieces_of_hidden() + piece);
#pragma unroll 1
    for (int k = 0; k < PIECE / 16; ++k) {
      float v[4] = {}, u[4] = {};
      uint32_t left[4];
#pragma unroll
      for (int depth = 0; depth < S::DEPTHS; ++depth) {
        left_columns(left, rows.regions, depth, k);
        multiply_add(v, left, f[depth][0], f[depth][1], T{});
      }
#pragma unroll
      for (int w = 0; w < S::STRIPS; ++w) {
        left_columns(left, rows.words, w, k);
        multiply_add(u, left, g[w][0], g[w][1], T{});
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float of_v = v[2 * half] + v[2 * half + 1], of_u = u[2 * half] + u[2 * half + 1];
        product = fmaf(of_v, of_u, product);
        v_squares = fmaf(of_v, of_v, v_squares);
        u_squares = fmaf(of_u, of_u, u_squares);
      }
    }
  }
  product = sum_over_rows(product);
  v_squares = sum_over_rows(v_squares);
  u_squares = sum_over_rows(u_squares);
  return tile.o.cosine ? product / (norm_of(v_squares) * norm_of(u_squares)) : product;
}

// The score of the warp's pair, in lane 0.
template <typename S, typename T>
CAAN_DEVICE float score_of(const Tile<S, T>& tile, float (&g)[S::WORDS]) {
  Cells<S> A = {}, X = {};
  multiply_rows(tile, A, X);
  if (!S::LISTED) {
    hand_over(tile, A);
    if (!S::POOLED && !tile.o.cosine) hand_over(tile, X);
  }
  block_barrier();
  begin_piece(tile, 0);
  float region_logits[S::TILES][2] = {}, word_logits[2 * S::STRIPS][2] = {};
  if (tile.o.inter || tile.o.intra) add_logits(tile, A, region_logits, word_logits);
#pragma unroll
  for (int t = 0; t < S::TILES; ++t)
#pragma unroll
    for (int e = 0; e < 2; ++e) region_logits[t][e] = sum_over_rows(region_logits[t][e]);
#pragma unroll
  for (int j = 0; j < 2 * S::STRIPS; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) word_logits[j][e] = sum_over_rows(word_logits[j][e]);
  softmax_of_tiles(region_logits, tile.m());
  softmax_of_tiles(word_logits, tile.n());
  if (S::POOLED || tile.o.cosine) return product_of_pooled(tile, region_logits, word_logits);
  if (tile.row == 0)
    for (int j = 0; j < 2 * S::STRIPS; ++j)
      g[8 * j + tile.column] = word_logits[j][0], g[8 * j + tile.column + 1] = word_logits[j][1];
  warp_barrier();
  return inner_product(tile, X, region_logits, g);
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
    find_rows(items, s);
    block_barrier();
    const Tile<S, T> tile{s, o, items, shared_memory};
    const float score = score_of(tile, items.g[tile.warp()]);
    if (tile.lane == 0 && tile.m() > 0 && tile.n() > 0) {
      const int64_t place =
          S::LISTED ? items.place[tile.caption()] : items.image[tile.image()] * tiles.score_row + items.caption[tile.caption()];
      scores[place] = score;
    }
  }
}

template <typename S, typename T>
void launch_tiles(Sides<T> s, const Tiles& tiles, const Options& o, float* scores, Stream stream) {
  constexpr size_t shared = S::ITEMS_AT + sizeof(Items<S>);
  static_assert(shared <= 99 * 1024);
  const auto start = [&](int64_t work) {
    const int64_t blocks = work < tiles.blocks ? work : tiles.blocks;
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
  if (s.M <= 40)
    tiles.strips == 1 ? launch_terms<5, 1>(s, tiles, o, scores, stream) : launch_terms<5, 2>(s, tiles, o, scores, stream);
  else
    tiles.strips == 1 ? launch_terms<8, 1>(s, tiles, o, scores, stream) : launch_terms<8, 2>(s, tiles, o, scores, stream);
}

template void score_tiles(const Sides<bfloat16>&, const Tiles&, const Options&, float*, Stream);
template void score_tiles(const Sides<float16>&, const Tiles&, const Options&, float*, Stream);

} // namespace caan::context_attention
