// Scores of many pairs a block, float16 and bfloat16: a warp has one image and 32 rows of words, two captions of up to 16 or one of
// up to 32.
//
// Four passes walk the width (0, 3) and the hidden width (1, 2), 64 columns at a time. Each brings as many rows of regions and
// of words into shared memory, for all warps of the block, by asynchronous copies, a piece ahead:
//
//   0  S = V (U affinityT)T, then A, C, R, C_unit, R_unit       in registers, the last four as factors of the next passes' products
//   1  tanh((R_unitT R_unit) U Q3 + RT V Q4) w_u                16 hidden columns at a time; what leaves a product as sums is
//   2  tanh(C_unit (C_unitT V Q1) + C U Q2) w_v                 the next one's factor; only logits live on
//   3  v = f V, u = g U, of which v.u, |v|^2 and |u|^2 are kept
//
// C_unit is C with unit rows, R_unit is R with unit columns.
//
// All products are transposed, hidden columns or the width by words or regions: those are many, and regions and words need
// to be padded only to multiples of 8 where they are columns, of 16 where they are summed over. Nothing is written but the score.
//
// For a pair of m regions and n words, widths D and H: 2mnD + (8mn + 2n^2)H + 2(m + n)D multiply-add flops, (m + n)H tanh, and from
// the L2 cache 2m(2D + 2H) / captions of the block + 2n(2D + 2H) / images of the block bytes. docs/cuda.md has the estimate.
//
// Why scores have the same bits in any company: a caption's words begin at a multiple of 16, a step of a tensor core's sum, so
// that what else lies in the tile adds exact zeros; and pairs of one bucket have one shape, whatever fills it.
#include "context_attention/cuda/kernels.h"
#include "core/cuda/device.h"

namespace caan::context_attention {

namespace {

constexpr int WORD_ROWS = 32;
// Blocks that follow each other share an image's rows, and those of so many images share a caption's, in the L2 cache.
constexpr int BAND = 32;

template <int TILES_, int TOGETHER_, bool LISTED_, bool BOTH_>
struct Shape {
  // TILES of 8 regions; DEPTHS of 16 of them.
  static constexpr int TILES = TILES_, DEPTHS = (TILES + 1) / 2, REGION_ROWS = 16 * DEPTHS;
  static constexpr int TOGETHER = TOGETHER_, WORDS = WORD_ROWS / TOGETHER;
  // BOTH terms of the contexts, as the paper has it: known beforehand, they cost the inner loops no branch.
  static constexpr bool LISTED = LISTED_, BOTH = BOTH_;
  // Warps are images by columns of captions; in a list every warp has words of its own. With eight warps or fewer a thread may
  // have 255 registers.
  static constexpr int IMAGES = LISTED ? 4 : 2, COLUMNS = LISTED ? 1 : 4, GROUPS = LISTED ? IMAGES : COLUMNS;
  static constexpr int WARPS = IMAGES * COLUMNS, THREADS = WARPS * WARP, CAPTIONS = GROUPS * TOGETHER;
  static constexpr int ROWS = IMAGES * REGION_ROWS + GROUPS * WORD_ROWS;
  // One piece is worked on, which takes thousands of cycles, while the next is on its way.
  static constexpr int STAGES = 2, STAGE_BYTES = ROWS * PIECE_BYTES;
};

// What a block works on; nothing where a length is 0.
template <typename S>
struct Items {
  int64_t image[S::IMAGES], caption[S::CAPTIONS], place[S::CAPTIONS];
  int m[S::IMAGES], n[S::CAPTIONS];
  // Row of the call's regions or words that each row of a piece is; NO_ROW where there is none.
  uint32_t rows[S::ROWS];
};
constexpr uint32_t NO_ROW = 0xffffffff;

// False if there is no work for this block, in every thread alike.
template <typename S, typename T>
CAAN_DEVICE bool find_items(Items<S>& items, const Sides<T>& s, const Tiles& tiles) {
  const int t = int(threadIdx.x);
  if constexpr (S::LISTED) {
    const int64_t first = int64_t(blockIdx.x) * S::IMAGES;
    // A tile is a piece of a run of one key; the warp of its first pair takes it.
    const auto begins = [&](int64_t p) {
      if (p >= tiles.listed || tiles.ranks[p] % S::TOGETHER) return false;
      const int64_t bucket = tiles.keys[p] / s.images;
      return bucket < tiles.buckets && bucket % tiles.word_buckets == tiles.bucket &&
             s.region_lengths[tiles.keys[p] % s.images] <= 8 * S::TILES;
    };
    bool any = false;
    for (int row = 0; row < S::IMAGES; ++row) any = any || begins(first + row);
    if (!any) return false;
    if (t < S::IMAGES) {
      const int64_t p = first + t;
      const bool real = begins(p);
      items.image[t] = real ? tiles.keys[p] % s.images : 0;
      items.m[t] = real ? int(s.region_lengths[items.image[t]]) : 0;
#pragma unroll
      for (int k = 0; k < S::TOGETHER; ++k) {
        const bool member = real && p + k < tiles.listed && tiles.keys[p + k] == tiles.keys[p];
        const int slot = t * S::TOGETHER + k;
        items.place[slot] = member ? tiles.order[p + k] : 0;
        items.caption[slot] = member ? tiles.pairs[2 * items.place[slot] + 1] : 0;
        items.n[slot] = member ? int(s.word_lengths[items.caption[slot]]) : 0;
      }
    }
  } else {
    const int64_t groups = (s.captions + S::CAPTIONS - 1) / S::CAPTIONS, in_band = (BAND + S::IMAGES - 1) / S::IMAGES;
    const int64_t band = blockIdx.x / (in_band * groups), within = blockIdx.x % (in_band * groups);
    const int64_t image0 = (band * in_band + within % in_band) * S::IMAGES;
    const int64_t first = tiles.word_starts[tiles.bucket] + within / in_band * S::CAPTIONS;
    const int64_t last = tiles.word_starts[tiles.bucket + 1];
    if (first >= last || image0 >= s.images) return false;
    if (t < S::IMAGES) {
      const bool real = image0 + t < s.images && s.region_lengths[image0 + t] <= 8 * S::TILES;
      items.image[t] = real ? image0 + t : 0;
      items.m[t] = real ? int(s.region_lengths[image0 + t]) : 0;
    }
    if (t < S::CAPTIONS) {
      const bool real = first + t < last;
      items.caption[t] = real ? tiles.word_order[first + t] : 0;
      items.n[t] = real ? int(s.word_lengths[items.caption[t]]) : 0;
    }
  }
  return true;
}

// Rows of regions and of words, and their columns, of the next piece.
template <typename T>
struct Source {
  const T *regions, *words;
  uint32_t region_row, word_row;
  int column, width, pass;
};

constexpr int PASSES = 4;
template <typename T>
CAAN_DEVICE Source<T> source_of(const Sides<T>& s, int pass) {
  const uint32_t D = uint32_t(s.D), H = uint32_t(s.H);
  if (pass == 0) return {s.regions, s.word_products, D, D + 2 * H, 0, s.D, 0};
  if (pass == 1) return {s.region_products + s.H, s.word_products + s.D + s.H, 2 * H, D + 2 * H, 0, s.H, 1};
  if (pass == 2) return {s.region_products, s.word_products + s.D, 2 * H, D + 2 * H, 0, s.H, 2};
  return {s.regions, s.words, D, D, 0, s.D, 3};
}

template <typename S, typename T>
CAAN_DEVICE void find_rows(Items<S>& items, const Sides<T>& s) {
  for (int row = int(threadIdx.x); row < S::ROWS; row += S::THREADS) {
    const int word_row = row - S::IMAGES * S::REGION_ROWS;
    const int item = word_row < 0 ? row / S::REGION_ROWS : word_row / S::WORDS;
    const int within = word_row < 0 ? row % S::REGION_ROWS : word_row % S::WORDS;
    const bool exists = within < (word_row < 0 ? items.m[item] : items.n[item]);
    const int64_t found = word_row < 0 ? items.image[item] * s.M + within : items.caption[item] * s.N + within;
    items.rows[row] = exists ? uint32_t(found) : NO_ROW;
  }
}

// A thread copies 8 columns of every STEP-th row.
template <typename S, typename T>
CAAN_DEVICE void fetch(char* stage, const Items<S>& items, const Source<T>& from) {
  constexpr int STEP = S::THREADS / 8, REGION_ROWS = S::IMAGES * S::REGION_ROWS;
  static_assert(REGION_ROWS % STEP == 0 && STEP % 8 == 0);
  const int first = int(threadIdx.x) / 8, unit = int(threadIdx.x) % 8, column = from.column + 8 * unit;
  const bool in_width = column < from.width;
  char* to = stage + unit_offset(first, unit);
#pragma unroll
  for (int begin = 0; begin < S::ROWS; begin += STEP) {
    if (begin + STEP > S::ROWS && begin + first >= S::ROWS) break;
    const uint32_t row = items.rows[begin + first];
    const T* base = begin < REGION_ROWS ? from.regions : from.words;
    const uint32_t stride = begin < REGION_ROWS ? from.region_row : from.word_row;
    const bool exists = in_width && row != NO_ROW;
    copy_16_bytes(to + begin * PIECE_BYTES, base + (exists ? uint64_t(row) * stride + column : 0), exists);
  }
}

// tanh within 2^-20 of the result, more than a half-precision factor keeps: from 2^-6 on 1 - 2 / (1 + e^2x), below two terms of its
// series.
CAAN_DEVICE float quick_tanh(float x) {
  const float large = fmaf(-2.0f, quick_inverse(1.0f + quick_exp(2.0f * x)), 1.0f);
  return fabsf(x) < 0.015625f ? fmaf(x * x * x, -1.0f / 3.0f, x) : large;
}

CAAN_DEVICE float sum_over_rows(float x) {
  for (int mask = 4; mask < WARP; mask *= 2) x += shuffle_xor(x, mask);
  return x;
}
CAAN_DEVICE float highest_of_rows(float x) {
  for (int mask = 4; mask < WARP; mask *= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}
CAAN_DEVICE float sum_over_columns(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}
CAAN_DEVICE float highest_of_columns(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}

// Softmax of what TILES tiles of 8 columns hold, two neighbours a lane, rows alike; 0 from `count` on.
template <int TILES>
CAAN_DEVICE void softmax_of_tiles(float (&x)[TILES][2], int count) {
  const int column = 2 * (int(threadIdx.x) % 4);
  float highest = -INFINITY, sum = 0;
#pragma unroll
  for (int t = 0; t < TILES; ++t)
#pragma unroll
    for (int e = 0; e < 2; ++e)
      if (8 * t + column + e < count) highest = fmaxf(highest, x[t][e]);
  highest = highest_of_columns(highest);
#pragma unroll
  for (int t = 0; t < TILES; ++t)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      x[t][e] = 8 * t + column + e < count ? expf(x[t][e] - highest) : 0.0f;
      sum += x[t][e];
    }
  const float scale = 1.0f / sum_over_columns(sum);
#pragma unroll
  for (int t = 0; t < TILES; ++t)
#pragma unroll
    for (int e = 0; e < 2; ++e) x[t][e] *= scale;
}

CAAN_DEVICE float inverse_norm(float squares) { return quick_inverse_root(fmaxf(squares, EPSILON * EPSILON)); }

// number(w, t, e) is that of one caption where a product of STRIPS of 16 words (rows) by TILES of 8 regions (columns) leaves it in
// a lane: e / 2 is 1 for the word 8 rows on, e % 2 for the next region. scale[w][e / 2] = 1 / norm of a word's numbers.
template <int STRIPS, int TILES, typename Number>
CAAN_DEVICE void norms_of_words(float (&scale)[STRIPS][2], Number number) {
#pragma unroll
  for (int w = 0; w < STRIPS; ++w)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float squares = 0;
#pragma unroll
      for (int t = 0; t < TILES; ++t)
#pragma unroll
        for (int e = 2 * half; e < 2 * half + 2; ++e) squares = fmaf(number(w, t, e), number(w, t, e), squares);
      scale[w][half] = inverse_norm(sum_over_columns(squares));
    }
}

// scale[t][e % 2] = 1 / norm of a region's numbers.
template <int STRIPS, int TILES, typename Number>
CAAN_DEVICE void norms_of_regions(float (&scale)[TILES][2], Number number) {
#pragma unroll
  for (int t = 0; t < TILES; ++t)
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      float squares = 0;
#pragma unroll
      for (int w = 0; w < STRIPS; ++w)
#pragma unroll
        for (int e = side; e < 4; e += 2) squares = fmaf(number(w, t, e), number(w, t, e), squares);
      scale[t][side] = inverse_norm(sum_over_rows(squares));
    }
}

// Factors of products: [depth][words / 8][half] holds 16 regions by 8 words.
template <typename S>
struct Attention {
  uint32_t C[S::DEPTHS][4][2], R[S::DEPTHS][4][2], C_unit[S::DEPTHS][4][2], R_unit[S::DEPTHS][4][2];
};

// Attention of one caption from S[w][t], as a product leaves it; the caption's words begin at strip `first`.
template <typename S, typename T>
CAAN_DEVICE void attend(float (&A)[2][S::TILES][4], int first, int m, int n, Attention<S>& found) {
  constexpr int STRIPS = 2 / S::TOGETHER;
  const int lane = int(threadIdx.x) % WARP, row = lane / 4, column = 2 * (lane % 4);
  const auto exists = [&](int w, int t, int e) { return 16 * w + 8 * (e / 2) + row < n && 8 * t + column + e % 2 < m; };
#pragma unroll
  for (int w = 0; w < STRIPS; ++w)
#pragma unroll
    for (int t = 0; t < S::TILES; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        float& a = A[first + w][t][e];
        a = exists(w, t, e) ? fmaxf(quick_tanh(a), 0.0f) : 0.0f;
      }
  float of_word[STRIPS][2], of_region[S::TILES][2], of_C[S::TILES][2], of_R[STRIPS][2];
  const auto P = [&](int w, int t, int e) { return A[first + w][t][e]; };
  const auto C = [&](int w, int t, int e) { return P(w, t, e) * of_word[w][e / 2]; };
  const auto R = [&](int w, int t, int e) { return P(w, t, e) * of_region[t][e % 2]; };
  norms_of_words<STRIPS, S::TILES>(of_word, P);
  norms_of_regions<STRIPS, S::TILES>(of_region, P);
  norms_of_regions<STRIPS, S::TILES>(of_C, C);
  norms_of_words<STRIPS, S::TILES>(of_R, R);
#pragma unroll
  for (int w = 0; w < STRIPS; ++w)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int words = 2 * (first + w) + half, e = 2 * half;
#pragma unroll
      for (int t = 0; t < S::TILES; ++t) {
        const float C0 = C(w, t, e), C1 = C(w, t, e + 1), R0 = R(w, t, e), R1 = R(w, t, e + 1);
        found.C[t / 2][words][t % 2] = pack(C0, C1, T{});
        found.R[t / 2][words][t % 2] = pack(R0, R1, T{});
        found.C_unit[t / 2][words][t % 2] = pack(C0 * of_C[t][0], C1 * of_C[t][1], T{});
        found.R_unit[t / 2][words][t % 2] = pack(R0 * of_R[w][half], R1 * of_R[w][half], T{});
      }
      if (S::TILES % 2) {
        constexpr int LAST = S::TILES / 2;
        found.C[LAST][words][1] = found.R[LAST][words][1] = found.C_unit[LAST][words][1] = found.R_unit[LAST][words][1] = 0;
      }
    }
}

template <typename S, typename T>
CAAN_KERNEL void CAAN_BOUNDS(S::THREADS, 1) tile_kernel(Sides<T> s, Tiles tiles, Options o, float* scores) {
  CAAN_SHARED;
  if (S::BOTH) o.inter = o.intra = true;
  auto& items = *reinterpret_cast<Items<S>*>(shared_memory + S::STAGES * S::STAGE_BYTES);
  if (!find_items<S>(items, s, tiles)) return;
  block_barrier();
  find_rows(items, s);
  block_barrier();
  const int warp = int(threadIdx.x) / WARP, lane = int(threadIdx.x) % WARP, row = lane / 4, column = 2 * (lane % 4);
  const int image = warp / S::COLUMNS, group = S::LISTED ? image : warp % S::COLUMNS;
  // Read where they are needed: in between they would take registers.
  const auto m = [&] { return items.m[image]; };
  const auto n = [&](int k) { return items.n[group * S::TOGETHER + k]; };

  const bool contexts = o.inter || o.intra;
  const int width_pieces = (s.D + PIECE - 1) / PIECE, hidden_pieces = contexts ? (s.H + PIECE - 1) / PIECE : 0;
  Source<T> from = source_of(s, 0);
  int begun = 0, piece = 0;
  const auto begin = [&] {
    if (from.pass < PASSES) {
      fetch(shared_memory + begun % S::STAGES * S::STAGE_BYTES, items, from);
      from.column += PIECE;
      if (from.column >= from.width) {
        const int next = from.pass == 0 && !contexts ? PASSES - 1 : from.pass + 1;
        from = source_of(s, next);
        from.pass = next;
      }
    }
    ++begun;
    close_copies();
  };
#pragma unroll
  for (int stage = 0; stage < S::STAGES - 1; ++stage) begin();
  const char *regions, *words;
  // Both sides' rows of the next piece.
  const auto advance = [&] {
    wait_for_copies<S::STAGES - 2>();
    block_barrier();
    begin();
    const char* stage = shared_memory + piece % S::STAGES * S::STAGE_BYTES;
    regions = stage + image * S::REGION_ROWS * PIECE_BYTES;
    words = stage + (S::IMAGES * S::REGION_ROWS + group * WORD_ROWS) * PIECE_BYTES;
    ++piece;
  };
  // Factors of 16 x 16: rows of a piece by its columns, and columns by rows; right factors come in two of 8 columns.
  const int first8 = lane % 8 + lane / 8 % 2 * 8, second8 = lane % 8 + lane / 16 * 8;
  const auto rows_by_columns = [&](uint32_t (&parts)[4], const char* from, int r, int unit) {
    load_matrices<false>(parts, from + unit_offset(16 * r + first8, 2 * unit + lane / 16));
  };
  const auto right_rows = [&](uint32_t (&parts)[4], const char* from, int r, int unit) {
    load_matrices<false>(parts, from + unit_offset(16 * r + second8, 2 * unit + lane / 8 % 2));
  };
  const auto columns_by_rows = [&](uint32_t (&parts)[4], const char* from, int r, int unit) {
    load_matrices<true>(parts, from + unit_offset(16 * r + second8, 2 * unit + lane / 8 % 2));
  };

  float sums[2][S::TILES][4] = {};
  for (int i = 0; i < width_pieces; ++i) {
    advance();
#pragma unroll 1
    for (int k = 0; k < PIECE / 16; ++k) {
      uint32_t UK[2][4], V[4];
#pragma unroll
      for (int w = 0; w < 2; ++w) rows_by_columns(UK[w], words, w, k);
#pragma unroll
      for (int depth = 0; depth < S::DEPTHS; ++depth) {
        right_rows(V, regions, depth, k);
#pragma unroll
        for (int half = 0; half < 2; ++half)
#pragma unroll
          for (int w = 0; w < 2; ++w)
            if (2 * depth + half < S::TILES) multiply_add(sums[w][2 * depth + half], UK[w], V[2 * half], V[2 * half + 1], T{});
      }
    }
  }
  Attention<S> of;
#pragma unroll
  for (int k = 0; k < S::TOGETHER; ++k) attend<S, T>(sums, k, m(), n(k), of);

  float region_logits[S::TOGETHER][S::TILES][2] = {}, word_logits[S::TOGETHER][4 / S::TOGETHER][2] = {};
  if (hidden_pieces) {
    // R_unitT R_unit as a factor; it is its own transpose.
    uint32_t H[2][4 / S::TOGETHER][2];
#pragma unroll
    for (int w = 0; w < 2; ++w)
#pragma unroll
      for (int j = 0; j < 4 / S::TOGETHER; ++j) {
        const int of_words = S::TOGETHER == 1 ? j : 2 * w + j;
        float h[4] = {};
#pragma unroll
        for (int depth = 0; depth < S::DEPTHS; ++depth) {
          const auto& R = of.R_unit[depth];
          const uint32_t left[4] = {R[2 * w][0], R[2 * w + 1][0], R[2 * w][1], R[2 * w + 1][1]};
          multiply_add(h, left, R[of_words][0], R[of_words][1], T{});
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t both = pack(h[2 * half], h[2 * half + 1], T{});
          if (S::TOGETHER == 1)
            H[j / 2][(2 * w + half) % (4 / S::TOGETHER)][j % 2] = both;
          else
            H[w][half][j] = both;
        }
      }
    for (int i = 0; i < hidden_pieces; ++i) {
      advance();
#pragma unroll 1
      for (int k = 0; k < PIECE / 16; ++k) {
        const int h = i * PIECE + 16 * k + row;
        const float w0 = h < s.H ? to_float(s.word_score[h]) : 0.0f, w8 = h + 8 < s.H ? to_float(s.word_score[h + 8]) : 0.0f;
        float Y[4][4] = {};
        if (o.inter)
#pragma unroll
          for (int depth = 0; depth < S::DEPTHS; ++depth) {
            uint32_t VQ4[4];
            columns_by_rows(VQ4, regions, depth, k);
#pragma unroll
            for (int j = 0; j < 4; ++j) multiply_add(Y[j], VQ4, of.R[depth][j][0], of.R[depth][j][1], T{});
          }
        if (o.intra)
#pragma unroll
          for (int w = 0; w < 2; ++w) {
            uint32_t UQ3[4];
            columns_by_rows(UQ3, words, w, k);
#pragma unroll
            for (int j = 0; j < 4 / S::TOGETHER; ++j)
              multiply_add(Y[S::TOGETHER == 1 ? j : 2 * w + j], UQ3, H[w][j][0], H[w][j][1], T{});
          }
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& logit = word_logits[S::TOGETHER == 1 ? 0 : j / 2][j % (4 / S::TOGETHER)][e];
            logit = fmaf(rough_tanh(Y[j][2 + e]), w8, fmaf(rough_tanh(Y[j][e]), w0, logit));
          }
      }
    }
    // Transposes, words by regions.
    uint32_t C_turned[2][S::TILES][2], unit_turned[2][S::TILES][2];
#pragma unroll
    for (int w = 0; w < 2; ++w)
#pragma unroll
      for (int t = 0; t < S::TILES; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          C_turned[w][t][half] = transpose_matrix(of.C[t / 2][2 * w + half][t % 2]);
          unit_turned[w][t][half] = transpose_matrix(of.C_unit[t / 2][2 * w + half][t % 2]);
        }
    for (int i = 0; i < hidden_pieces; ++i) {
      advance();
#pragma unroll 1
      for (int k = 0; k < PIECE / 16; ++k) {
        uint32_t Z[2][4], UQ2[2][4];
        if (o.intra) {
          float z[2][2][4] = {};
#pragma unroll
          for (int depth = 0; depth < S::DEPTHS; ++depth) {
            uint32_t VQ1[4];
            columns_by_rows(VQ1, regions, depth, k);
#pragma unroll
            for (int w = 0; w < 2; ++w)
#pragma unroll
              for (int half = 0; half < 2; ++half)
                multiply_add(z[w][half], VQ1, of.C_unit[depth][2 * w + half][0], of.C_unit[depth][2 * w + half][1], T{});
          }
#pragma unroll
          for (int w = 0; w < 2; ++w)
#pragma unroll
            for (int half = 0; half < 2; ++half)
#pragma unroll
              for (int e = 0; e < 2; ++e) Z[w][2 * half + e] = pack(z[w][half][2 * e], z[w][half][2 * e + 1], T{});
        }
        if (o.inter)
#pragma unroll
          for (int w = 0; w < 2; ++w) columns_by_rows(UQ2[w], words, w, k);
        const int h = i * PIECE + 16 * k + row;
        const float w0 = h < s.H ? to_float(s.region_score[h]) : 0.0f, w8 = h + 8 < s.H ? to_float(s.region_score[h + 8]) : 0.0f;
#pragma unroll
        for (int c = 0; c < S::TOGETHER; ++c)
#pragma unroll
          for (int t = 0; t < S::TILES; ++t) {
            float Y[4] = {};
#pragma unroll
            for (int w = 0; w < 2; ++w) {
              if (S::TOGETHER == 2 && w != c) continue;
              if (o.intra) multiply_add(Y, Z[w], unit_turned[w][t][0], unit_turned[w][t][1], T{});
              if (o.inter) multiply_add(Y, UQ2[w], C_turned[w][t][0], C_turned[w][t][1], T{});
            }
#pragma unroll
            for (int e = 0; e < 2; ++e)
              region_logits[c][t][e] = fmaf(rough_tanh(Y[2 + e]), w8, fmaf(rough_tanh(Y[e]), w0, region_logits[c][t][e]));
          }
      }
    }
  }

  // f and g as right factors: columns 2k and 2k + 1 are caption k's, rounded and what rounding left.
  uint32_t f[S::DEPTHS][2] = {}, g[2][2] = {};
#pragma unroll
  for (int k = 0; k < S::TOGETHER; ++k) {
#pragma unroll
    for (int t = 0; t < S::TILES; ++t)
#pragma unroll
      for (int e = 0; e < 2; ++e) region_logits[k][t][e] = sum_over_rows(region_logits[k][t][e]);
#pragma unroll
    for (int j = 0; j < 4 / S::TOGETHER; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e) word_logits[k][j][e] = sum_over_rows(word_logits[k][j][e]);
    softmax_of_tiles(region_logits[k], m());
    softmax_of_tiles(word_logits[k], n(k));
    const auto part = [&](const float (&x)[2]) {
      const uint32_t rounded = pack(x[0], x[1], T{});
      return row % 2 ? pack(x[0] - first_of<T>(rounded), x[1] - second_of<T>(rounded), T{}) : rounded;
    };
    const bool mine = row / 2 == k;
#pragma unroll
    for (int t = 0; t < S::TILES; ++t) {
      const uint32_t both = part(region_logits[k][t]);
      f[t / 2][t % 2] = mine ? both : f[t / 2][t % 2];
    }
#pragma unroll
    for (int w = 0; w < 2; ++w)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        if (S::TOGETHER == 2 && w != k) continue;
        const uint32_t both = part(word_logits[k][S::TOGETHER == 1 ? 2 * w + half : half]);
        g[w][half] = mine ? both : 0;
      }
  }
  float product = 0, v_squares = 0, u_squares = 0;
  for (int i = 0; i < width_pieces; ++i) {
    advance();
#pragma unroll 1
    for (int k = 0; k < PIECE / 16; ++k) {
      float v[4] = {}, u[4] = {}, of_u[2] = {};
      const auto sum_of = [](const float (&x)[4], int half) { return x[2 * half] + x[2 * half + 1]; };
      uint32_t factor[4];
#pragma unroll
      for (int depth = 0; depth < S::DEPTHS; ++depth) {
        columns_by_rows(factor, regions, depth, k);
        multiply_add(v, factor, f[depth][0], f[depth][1], T{});
      }
#pragma unroll
      for (int w = 0; w < 2; ++w) {
        columns_by_rows(factor, words, w, k);
        multiply_add(u, factor, g[w][0], g[w][1], T{});
        // Each caption's u by itself: what one has, infinite perhaps, times the other's zeros need not be nothing.
        if (S::TOGETHER == 1 && w == 0) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (S::TOGETHER == 1 || column / 2 == w) of_u[half] = sum_of(u, half);
#pragma unroll
        for (float& x : u) x = 0;
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float of_v = sum_of(v, half);
        product = fmaf(of_v, of_u[half], product);
        v_squares = fmaf(of_v, of_v, v_squares);
        u_squares = fmaf(of_u[half], of_u[half], u_squares);
      }
    }
  }
  product = sum_over_rows(product);
  v_squares = sum_over_rows(v_squares);
  u_squares = sum_over_rows(u_squares);
  const int k = column / 2, slot = group * S::TOGETHER + k;
  if (row == 0 && k < S::TOGETHER && m() > 0 && items.n[slot] > 0) {
    const float score = o.cosine ? product / (norm_of(v_squares) * norm_of(u_squares)) : product;
    scores[S::LISTED ? items.place[slot] : items.image[image] * tiles.score_row + items.caption[slot]] = score;
  }
}

template <typename S, typename T>
void launch_tiles(Sides<T> s, const Tiles& tiles, const Options& o, float* scores, Stream stream) {
  const size_t shared = S::STAGES * S::STAGE_BYTES + sizeof(Items<S>);
  if (S::LISTED) {
    launch<tile_kernel<S, T>>((tiles.listed + S::IMAGES - 1) / S::IMAGES, S::THREADS, shared, stream, s, tiles, o, scores);
    return;
  }
  const int64_t groups = (s.captions + S::CAPTIONS - 1) / S::CAPTIONS, in_band = (BAND + S::IMAGES - 1) / S::IMAGES;
  const int64_t images = s.images, of_band = in_band * S::IMAGES;
  // CUDA counts blocks in 31 bits.
  const int64_t most_bands = ((int64_t(1) << 31) - 1) / (in_band * groups), step = (most_bands > 1 ? most_bands : 1) * of_band;
  for (int64_t image = 0; image < images; image += step) {
    s.images = images - image < step ? images - image : step;
    const int64_t bands = (s.images + of_band - 1) / of_band;
    launch<tile_kernel<S, T>>(bands * in_band * groups, S::THREADS, shared, stream, s, tiles, o, scores);
    s.regions += step * s.M * s.D;
    s.region_products += step * s.M * (2 * s.H);
    s.region_lengths += step;
    scores += step * tiles.score_row;
  }
}

template <int TILES, int TOGETHER, bool LISTED, typename T>
void launch_terms(const Sides<T>& s, const Tiles& tiles, const Options& o, float* scores, Stream stream) {
  o.inter&& o.intra ? launch_tiles<Shape<TILES, TOGETHER, LISTED, true>>(s, tiles, o, scores, stream)
                    : launch_tiles<Shape<TILES, TOGETHER, LISTED, false>>(s, tiles, o, scores, stream);
}

template <int TILES, typename T>
void launch_sizes(const Sides<T>& s, const Tiles& tiles, const Options& o, float* scores, Stream stream) {
  if (tiles.pairs)
    tiles.together == 2 ? launch_terms<TILES, 2, true>(s, tiles, o, scores, stream)
                        : launch_terms<TILES, 1, true>(s, tiles, o, scores, stream);
  else
    tiles.together == 2 ? launch_terms<TILES, 2, false>(s, tiles, o, scores, stream)
                        : launch_terms<TILES, 1, false>(s, tiles, o, scores, stream);
}

} // namespace

template <typename T>
void score_tiles(const Sides<T>& s, const Tiles& tiles, const Options& o, float* scores, Stream stream) {
  if (s.M <= 40)
    launch_sizes<5>(s, tiles, o, scores, stream);
  else
    launch_sizes<8>(s, tiles, o, scores, stream);
}

template void score_tiles(const Sides<bfloat16>&, const Tiles&, const Options&, float*, Stream);
template void score_tiles(const Sides<float16>&, const Tiles&, const Options&, float*, Stream);

} // namespace caan::context_attention
