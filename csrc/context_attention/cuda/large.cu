// Scores of pairs too large for a tile, float16 and bfloat16: a block has one pair, of up to 128 words and any number of regions.
//
//   products   S = V (U affinityT)T and X = V UT             64 regions by all words at a time, the width 64 columns at a time
//   weights    C, C_unit, RT and their like                  from S, in blocks of 16 regions by 16 words
//   sweeps     128 hidden columns at a time, 16 a warp:
//              Z = C_unitT V Q1, tanh((R_unitT R_unit) U Q3 + RT V Q4) w_u      summed over all regions, 16 or 32 rows at a time
//              tanh(C_unit Z + C U Q2) w_v                                      16 regions a warp at a time
//   score      fT X g, which is v.u                          for the cosine v = f V and u = g U
//
// What is (m, n) lies in the block's slot of scratch memory, which the L2 cache holds, as the tensor cores take it: a lane reads
// its part of a factor as 16 bytes. Nothing of size (m, H) or (m, m) exists.
//
// For a pair of m regions and n words, widths D and H: (4mnD + (8mn + 2n^2)H) flops, (m + n)H tanh, and from the L2 cache
// 2mD + 4n(D + H) + 4mH bytes of features, and for each sweep 8 mn of weights for all warps and as much again for one.
#include "context_attention/cuda/attention.h"
#include "context_attention/cuda/block.h"

namespace caan::context_attention {

namespace {

constexpr int LARGE_WARPS = 8, LARGE_THREADS = LARGE_WARPS * WARP, SWEEP = 16 * LARGE_WARPS, HALVES = SWEEP / PIECE;

template <int STRIPS_>
struct Large {
  static constexpr int STRIPS = STRIPS_, WORDS = 16 * STRIPS;
  static constexpr int REGIONS = 64, PRODUCT_STAGE = (REGIONS + 2 * WORDS) * PIECE_BYTES;
  // Rows of a sweep that come at once, of two matrices, and what of a sweep lies in shared memory as a whole.
  static constexpr int DEPTH = STRIPS == 8 ? 16 : 32, SIDE_BYTES = HALVES * DEPTH * PIECE_BYTES, SWEEP_STAGE = 2 * SIDE_BYTES;
  static constexpr int KEPT_BYTES = HALVES * WORDS * PIECE_BYTES;
  // Warps share the sum over regions in R_unitT R_unit.
  static constexpr int PARTS = LARGE_WARPS / STRIPS, AFFINITY_BYTES = PARTS * WORDS * WORDS * int(sizeof(float));
  static constexpr int SWEEP_BYTES = 2 * SWEEP_STAGE + 2 * KEPT_BYTES;
  static constexpr int MOST = 2 * PRODUCT_STAGE > SWEEP_BYTES ? 2 * PRODUCT_STAGE : SWEEP_BYTES;
  static constexpr int MEMORY = MOST > AFFINITY_BYTES ? MOST : AFFINITY_BYTES;
  static constexpr int BLOCKS = STRIPS < 4 ? 2 : 1;
};

// Of words, in shared memory.
template <typename S>
struct Vectors {
  float of_word[S::WORDS], of_R[S::WORDS], g[S::WORDS];
  float by_warp[2][LARGE_WARPS][S::WORDS];
  float w_v[SWEEP], w_u[SWEEP];
  bool marks[LARGE_THREADS];
  // The pair at work, read where it is needed: in between it would take registers.
  Found pair;
};

struct Part {
  uint32_t of[4];
};

// A pair's part of scratch memory. Blocks are 16 words by 16 regions, a region strip's follow each other. P and X are eight numbers
// a lane, as products leave them: two tiles of 8 regions. Rt and C_unit_t are left factors, words by regions; C and C_unit, regions
// by words, come where P was. affinity is R_unitT R_unit, words by words.
template <typename S>
struct LargeSlot {
  float* const base;
  const int M;

  static CAAN_BOTH int strips(int M) { return (M + 15) / 16; }
  static CAAN_BOTH int64_t cells(int M) { return int64_t(strips(M)) * S::STRIPS * 256; }
  static CAAN_BOTH int64_t floats(int M) { return 3 * cells(M) + strips(M) * 32 + S::STRIPS * S::STRIPS * 128; }

  CAAN_DEVICE float* P() const { return base; }
  CAAN_DEVICE float* X() const { return base + cells(M); }
  CAAN_DEVICE Part* Rt() const { return reinterpret_cast<Part*>(base + 2 * cells(M)); }
  CAAN_DEVICE Part* C_unit_t() const { return Rt() + cells(M) / 8; }
  CAAN_DEVICE Part* affinity() const { return C_unit_t() + cells(M) / 8; }
  CAAN_DEVICE float* of_region() const { return reinterpret_cast<float*>(affinity() + S::STRIPS * S::STRIPS * WARP); }
  CAAN_DEVICE float* f() const { return of_region() + 16 * strips(M); }
  CAAN_DEVICE Part* C(int block) const { return reinterpret_cast<Part*>(base) + block * 2 * WARP; }
  CAAN_DEVICE Part* C_unit(int block) const { return C(block) + WARP; }
};

// A block at work on a pair.
template <typename S, typename T>
struct Work {
  const Sides<T>& s;
  const Options& o;
  const LargeSlot<S> slot;
  char* const shared;
  Vectors<S>& v;
  const Found& pair;
  const int lane = lane_of_thread(), warp = warp_of_thread(), row = lane / 4, column = 2 * (lane % 4);

  CAAN_DEVICE int strips() const { return (pair.m + 15) / 16; }
  CAAN_DEVICE uint32_t first_region() const { return uint32_t(pair.image * s.M); }
  CAAN_DEVICE Consecutive regions(int first) const { return {first_region() + uint32_t(first), pair.m - first}; }
  CAAN_DEVICE Consecutive words(int first) const { return {uint32_t(pair.caption * s.N + first), pair.n - first}; }
};

// What a lane holds of 16 regions: STRIPS of 16 words by two tiles of 8 regions.
template <typename S>
using Strip = float[S::STRIPS][2][4];

template <typename S>
CAAN_DEVICE void load_strip(Strip<S>& cells, const float* from, int strip) {
  const auto* numbers = reinterpret_cast<const float4*>(from) + (int64_t(strip) * S::STRIPS * WARP + lane_of_thread()) * 2;
#pragma unroll
  for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const float4 x = numbers[w * 2 * WARP + t];
      cells[w][t][0] = x.x, cells[w][t][1] = x.y, cells[w][t][2] = x.z, cells[w][t][3] = x.w;
    }
}

// P = max(A, 0) and, but for the cosine, X: half of the warps each.
template <typename S, typename T>
CAAN_DEVICE void multiply_rows(const Work<S, T>& k) {
  const Sides<T>& s = k.s;
  const int pieces = (s.D + PIECE - 1) / PIECE, mine = k.warp % 4;
  const bool of_X = k.warp >= 4, idle = of_X && k.o.cosine;
  constexpr int AT_UK = S::REGIONS * PIECE_BYTES, AT_U = AT_UK + S::WORDS * PIECE_BYTES;
  for (int first = 0; first < k.pair.m; first += S::REGIONS) {
    const auto begin = [&](int piece) {
      if (piece < pieces) {
        char* const to = k.shared + piece % 2 * S::PRODUCT_STAGE;
        fetch_rows<S::REGIONS, LARGE_THREADS>(to, k.regions(first), s.regions, s.D, piece * PIECE, s.D);
        fetch_rows<S::WORDS, LARGE_THREADS>(to + AT_UK, k.words(0), s.word_products, s.D + 2 * s.H, piece * PIECE, s.D);
        if (!k.o.cosine) fetch_rows<S::WORDS, LARGE_THREADS>(to + AT_U, k.words(0), s.words, s.D, piece * PIECE, s.D);
      }
      close_copies();
    };
    Strip<S> sums = {};
    block_barrier();
    begin(0);
    for (int piece = 0; piece < pieces; ++piece) {
      wait_for_copies<0>();
      block_barrier();
      begin(piece + 1);
      const char *const regions = k.shared + piece % 2 * S::PRODUCT_STAGE, *const words = regions + (of_X ? AT_U : AT_UK);
      if (idle) continue;
#pragma unroll 1
      for (int step = 0; step < PIECE / 16; ++step) {
        uint32_t V[4], left[4];
        right_rows(V, regions, mine, step);
#pragma unroll
        for (int w = 0; w < S::STRIPS; ++w) {
          left_rows(left, words, w, step);
          multiply_add(sums[w][0], left, V[0], V[1], T{});
          multiply_add(sums[w][1], left, V[2], V[3], T{});
        }
      }
    }
    const int strip = first / 16 + mine;
    if (strip >= k.strips() || idle) continue;
    float4* const to = reinterpret_cast<float4*>(of_X ? k.slot.X() : k.slot.P()) + (int64_t(strip) * S::STRIPS * WARP + k.lane) * 2;
#pragma unroll
    for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const auto of = [&](int e) {
          const bool exists = 16 * w + 8 * (e / 2) + k.row < k.pair.n && 16 * strip + 8 * t + k.column + e % 2 < k.pair.m;
          return !exists ? 0.0f : of_X ? sums[w][t][e] : fmaxf(quick_tanh(sums[w][t][e]), 0.0f);
        };
        to[w * 2 * WARP + t] = {of(0), of(1), of(2), of(3)};
      }
  }
  block_barrier();
}

// Scales of words, and of regions for R.
template <typename S, typename T>
CAAN_DEVICE void find_scales(const Work<S, T>& k) {
  float squares[2][S::STRIPS][2] = {};
#pragma unroll 1
  for (int strip = k.warp; strip < k.strips(); strip += LARGE_WARPS) {
    Strip<S> P;
    load_strip<S>(P, k.slot.P(), strip);
    float of_region[2][2];
    norms_of_regions<S::STRIPS, 2>(of_region, [&](int w, int t, int e) { return P[w][t][e]; });
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (k.row == 0 && e < 2) k.slot.of_region()[16 * strip + 8 * t + k.column + e] = of_region[t][e];
#pragma unroll
        for (int w = 0; w < S::STRIPS; ++w) {
          const float x = P[w][t][e], R = x * of_region[t][e % 2];
          squares[0][w][e / 2] = fmaf(x, x, squares[0][w][e / 2]);
          squares[1][w][e / 2] = fmaf(R, R, squares[1][w][e / 2]);
        }
      }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float sum = sum_over_columns(squares[i][w][half]);
        if (k.column == 0) k.v.by_warp[i][k.warp][16 * w + 8 * half + k.row] = sum;
      }
  block_barrier();
  for (int i = int(threadIdx.x); i < 2 * S::WORDS; i += LARGE_THREADS) {
    float sum = 0;
    for (int w = 0; w < LARGE_WARPS; ++w) sum += k.v.by_warp[i / S::WORDS][w][i % S::WORDS];
    (i < S::WORDS ? k.v.of_word : k.v.of_R)[i % S::WORDS] = inverse_norm(sum);
  }
  block_barrier();
}

// The weights as factors.
template <typename S, typename T>
CAAN_DEVICE void find_weights(const Work<S, T>& k) {
#pragma unroll 1
  for (int strip = k.warp; strip < k.strips(); strip += LARGE_WARPS) {
    Strip<S> P;
    load_strip<S>(P, k.slot.P(), strip);
    float of_C[2][2], of_region[2][2];
    const auto C = [&](int w, int t, int e) { return P[w][t][e] * k.v.of_word[16 * w + 8 * (e / 2) + k.row]; };
    norms_of_regions<S::STRIPS, 2>(of_C, C);
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
      for (int e = 0; e < 2; ++e) of_region[t][e] = k.slot.of_region()[16 * strip + 8 * t + k.column + e];
    // C comes where P was.
    warp_barrier();
#pragma unroll
    for (int w = 0; w < S::STRIPS; ++w) {
      Part Rt, C_unit_t, turned, unit_turned;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int t = i / 2, e = i % 2 * 2, from = i % 2 * 2 + i / 2;
        const float C0 = C(w, t, e), C1 = C(w, t, e + 1);
        Rt.of[i] = pack(P[w][t][e] * of_region[t][0], P[w][t][e + 1] * of_region[t][1], T{});
        C_unit_t.of[i] = pack(C0 * of_C[t][0], C1 * of_C[t][1], T{});
        turned.of[from] = transpose_matrix(pack(C0, C1, T{}));
        unit_turned.of[from] = transpose_matrix(C_unit_t.of[i]);
      }
      const int block = strip * S::STRIPS + w;
      k.slot.Rt()[block * WARP + k.lane] = Rt;
      k.slot.C_unit_t()[block * WARP + k.lane] = C_unit_t;
      k.slot.C(block)[k.lane] = turned;
      k.slot.C_unit(block)[k.lane] = unit_turned;
    }
  }
  block_barrier();
}

// R_unitT R_unit, from RT R and the words' scales.
template <typename S, typename T>
CAAN_DEVICE void word_affinity(const Work<S, T>& k) {
  float* const sums = reinterpret_cast<float*>(k.shared);
  const int own = k.warp % S::STRIPS, part = k.warp / S::STRIPS;
  float of[2 * S::STRIPS][4] = {};
#pragma unroll 1
  for (int strip = part; strip < k.strips(); strip += S::PARTS) {
    const Part* const Rt = k.slot.Rt() + int64_t(strip) * S::STRIPS * WARP + k.lane;
    const Part left = Rt[own * WARP];
#pragma unroll
    for (int w = 0; w < S::STRIPS; ++w) {
      const Part right = Rt[w * WARP];
#pragma unroll
      for (int half = 0; half < 2; ++half) multiply_add(of[2 * w + half], left.of, right.of[half], right.of[2 + half], T{});
    }
  }
#pragma unroll
  for (int j = 0; j < 2 * S::STRIPS; ++j)
#pragma unroll
    for (int e = 0; e < 4; ++e)
      sums[(part * S::WORDS + 16 * own + 8 * (e / 2) + k.row) * S::WORDS + 8 * j + k.column + e % 2] = of[j][e];
  block_barrier();
  for (int block = k.warp; block < S::STRIPS * S::STRIPS; block += LARGE_WARPS) {
    Part found;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int word = 16 * (block / S::STRIPS) + i % 2 * 8 + k.row, with = 16 * (block % S::STRIPS) + i / 2 * 8 + k.column;
      float x[2] = {};
      for (int p = 0; p < S::PARTS; ++p)
        for (int e = 0; e < 2; ++e) x[e] += sums[(p * S::WORDS + word) * S::WORDS + with + e];
      for (int e = 0; e < 2; ++e) x[e] *= k.v.of_R[word] * k.v.of_R[with + e];
      found.of[i] = pack(x[0], x[1], T{});
    }
    k.slot.affinity()[block * WARP + k.lane] = found;
  }
  block_barrier();
}

// 128 hidden columns from `hidden` of V Q1 and V Q4 of DEPTH regions, or of U Q3 of DEPTH words.
template <typename S, typename T>
CAAN_DEVICE void begin_step(const Work<S, T>& k, int step, int region_steps, int hidden) {
  const Sides<T>& s = k.s;
  char* const to = k.shared + step % 2 * S::SWEEP_STAGE;
#pragma unroll 1
  for (int half = 0; half < HALVES; ++half) {
    const int column = hidden + half * PIECE;
    char *const of_Q1 = to + half * S::DEPTH * PIECE_BYTES, *const other = of_Q1 + S::SIDE_BYTES;
    if (step < region_steps) {
      const Consecutive rows = k.regions(step * S::DEPTH);
      if (k.o.intra) fetch_rows<S::DEPTH, LARGE_THREADS>(of_Q1, rows, s.region_products, 2 * s.H, column, s.H);
      if (k.o.inter) fetch_rows<S::DEPTH, LARGE_THREADS>(other, rows, s.region_products + s.H, 2 * s.H, column, s.H);
    } else {
      const Consecutive rows = k.words((step - region_steps) * S::DEPTH);
      fetch_rows<S::DEPTH, LARGE_THREADS>(other, rows, s.word_products + s.D + s.H, s.D + 2 * s.H, column, s.H);
    }
  }
}

// One factor of 16 of the depth times 16 hidden columns of the warp, added to sums of words.
template <typename S, typename T>
CAAN_DEVICE void add_depth(Strip<S>& sums, const Part* left, int stride, const char* piece, int depth, int warp) {
  uint32_t right[4];
  right_columns(right, piece, depth, warp % 4);
#pragma unroll
  for (int w = 0; w < S::STRIPS; ++w) {
    const Part words = left[w * stride];
    multiply_add(sums[w][0], words.of, right[0], right[1], T{});
    multiply_add(sums[w][1], words.of, right[2], right[3], T{});
  }
}

// The part of a sweep that sums over regions: Z goes to shared memory, and the words' logits of the warp's columns to `logits`.
template <typename S, typename T>
CAAN_DEVICE void sum_over_regions(const Work<S, T>& k, int hidden, float (&logits)[S::STRIPS][2]) {
  const Options& o = k.o;
  const int region_steps = (k.pair.m + S::DEPTH - 1) / S::DEPTH, word_steps = (k.pair.n + S::DEPTH - 1) / S::DEPTH;
  const int steps = region_steps + (o.intra ? word_steps : 0), half = k.warp / 4;
  char *const Z_rows = k.shared + 2 * S::SWEEP_STAGE, *const UQ2 = Z_rows + S::KEPT_BYTES;
  if (o.inter)
    for (int i = 0; i < HALVES; ++i)
      fetch_rows<S::WORDS, LARGE_THREADS>(UQ2 + i * S::WORDS * PIECE_BYTES, k.words(0), k.s.word_products + k.s.D,
                                          k.s.D + 2 * k.s.H, hidden + i * PIECE, k.s.H);
  begin_step(k, 0, region_steps, hidden);
  close_copies();
  for (int i = int(threadIdx.x); i < SWEEP; i += LARGE_THREADS) {
    const bool exists = hidden + i < k.s.H;
    k.v.w_v[i] = exists ? to_float(k.s.region_score[hidden + i]) : 0.0f;
    k.v.w_u[i] = exists ? to_float(k.s.word_score[hidden + i]) : 0.0f;
  }
  Strip<S> Z = {}, X = {};
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<0>();
    block_barrier();
    if (step + 1 < steps) begin_step(k, step + 1, region_steps, hidden);
    close_copies();
    const char *const of_Q1 = k.shared + step % 2 * S::SWEEP_STAGE + half * S::DEPTH * PIECE_BYTES, *const other =
                                                                                                        of_Q1 + S::SIDE_BYTES;
#pragma unroll 1
    for (int depth = 0; depth < S::DEPTH / 16; ++depth) {
      const int strip = (step < region_steps ? step : step - region_steps) * (S::DEPTH / 16) + depth;
      if (step < region_steps) {
        if (strip >= k.strips()) break;
        const int64_t at = int64_t(strip) * S::STRIPS * WARP + k.lane;
        if (o.intra) add_depth<S, T>(Z, k.slot.C_unit_t() + at, WARP, of_Q1, depth, k.warp);
        if (o.inter) add_depth<S, T>(X, k.slot.Rt() + at, WARP, other, depth, k.warp);
      } else if (strip < S::STRIPS) {
        add_depth<S, T>(X, k.slot.affinity() + strip * WARP + k.lane, S::STRIPS * WARP, other, depth, k.warp);
      }
    }
  }
#pragma unroll
  for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        logits[w][e / 2] = fmaf(rough_tanh(X[w][t][e]), k.v.w_u[16 * k.warp + 8 * t + k.column + e % 2], logits[w][e / 2]);
  if (o.intra)
#pragma unroll
    for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
      for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int e = 0; e < 4; e += 2) {
          char* const to = Z_rows + half * S::WORDS * PIECE_BYTES + unit_offset(16 * w + 4 * e + k.row, k.warp % 4 * 2 + t);
          *reinterpret_cast<uint32_t*>(to + 2 * k.column) = pack(Z[w][t][e], Z[w][t][e + 1], T{});
        }
  block_barrier();
}

// The part of a sweep that a region has for itself: its logit grows by what the sweep's columns give.
template <typename S, typename T>
CAAN_DEVICE void add_region_logits(const Work<S, T>& k) {
  const char *const Z_rows = k.shared + 2 * S::SWEEP_STAGE, *const UQ2 = Z_rows + S::KEPT_BYTES;
#pragma unroll 1
  for (int strip = k.warp; strip < k.strips(); strip += LARGE_WARPS) {
    Part C[S::STRIPS], C_unit[S::STRIPS];
#pragma unroll
    for (int w = 0; w < S::STRIPS; ++w) {
      C[w] = k.slot.C(strip * S::STRIPS + w)[k.lane];
      C_unit[w] = k.slot.C_unit(strip * S::STRIPS + w)[k.lane];
    }
    float logits[2] = {};
#pragma unroll 1
    for (int chunk = 0; chunk < SWEEP / 16; ++chunk) {
      const int at = chunk / 4 * S::WORDS * PIECE_BYTES;
      float Y[2][4] = {};
      uint32_t right[4];
#pragma unroll
      for (int w = 0; w < S::STRIPS; ++w) {
        if (k.o.intra) {
          right_columns(right, Z_rows + at, w, chunk % 4);
          multiply_add(Y[0], C_unit[w].of, right[0], right[1], T{});
          multiply_add(Y[1], C_unit[w].of, right[2], right[3], T{});
        }
        if (k.o.inter) {
          right_columns(right, UQ2 + at, w, chunk % 4);
          multiply_add(Y[0], C[w].of, right[0], right[1], T{});
          multiply_add(Y[1], C[w].of, right[2], right[3], T{});
        }
      }
#pragma unroll
      for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          logits[e / 2] = fmaf(rough_tanh(Y[t][e]), k.v.w_v[16 * chunk + 8 * t + k.column + e % 2], logits[e / 2]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = sum_over_columns(logits[half]);
      if (k.column == 0) k.slot.f()[16 * strip + 8 * half + k.row] += sum;
    }
  }
  // The next sweep writes where this one reads.
  block_barrier();
}

template <typename S, typename T>
CAAN_DEVICE float score_of(const Work<S, T>& k) {
  const int m = k.pair.m, n = k.pair.n;
  for (int r = int(threadIdx.x); r < 16 * k.strips(); r += LARGE_THREADS) k.slot.f()[r] = 0;
  multiply_rows(k);
  float of_words[S::STRIPS][2] = {};
  if (k.o.inter || k.o.intra) {
    find_scales(k);
    find_weights(k);
    if (k.o.intra) word_affinity(k);
    for (int hidden = 0; hidden < k.s.H; hidden += SWEEP) {
      sum_over_regions(k, hidden, of_words);
      add_region_logits(k);
    }
  }
#pragma unroll
  for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = sum_over_columns(of_words[w][half]);
      if (k.column == 0) k.v.by_warp[0][k.warp][16 * w + 8 * half + k.row] = sum;
    }
  block_barrier();
  for (int j = int(threadIdx.x); j < S::WORDS; j += LARGE_THREADS) {
    k.v.g[j] = 0;
    for (int w = 0; w < LARGE_WARPS; ++w) k.v.g[j] += k.v.by_warp[0][w][j];
  }
  block_barrier();
  if (k.warp == 0) softmax_of(k.slot.f(), m);
  if (k.warp == 1) softmax_of(k.v.g, n);
  block_barrier();
  float* const by_warp = &k.v.by_warp[0][0][0];
  if (k.o.cosine) {
    const Pooled of = pool<LARGE_WARPS>(k.s.V(k.pair.image), k.s.U(k.pair.caption), k.slot.f(), k.v.g, m, n, k.s.D, by_warp,
                                        [](int, float, float) {});
    return of.product / (norm_of(of.v_squares) * norm_of(of.u_squares));
  }
  float product = 0;
#pragma unroll 1
  for (int strip = k.warp; strip < k.strips(); strip += LARGE_WARPS) {
    Strip<S> X;
    load_strip<S>(X, k.slot.X(), strip);
#pragma unroll
    for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float along = 0;
        for (int t = 0; t < 2; ++t)
          for (int e = 0; e < 2; ++e) {
            const int region = 16 * strip + 8 * t + k.column + e;
            if (region < m) along = fmaf(k.slot.f()[region], X[w][t][2 * half + e], along);
          }
        const int word = 16 * w + 8 * half + k.row;
        if (word < n) product = fmaf(k.v.g[word], along, product);
      }
  }
  return sum_over_block<LARGE_WARPS>(product, by_warp);
}

template <typename S, typename T>
CAAN_KERNEL void CAAN_BOUNDS(LARGE_THREADS, S::BLOCKS)
    large_kernel(Sides<T> s, Pairs pairs, Options o, float* scores, int64_t score_row, float* scratch) {
  CAAN_SHARED;
  auto& vectors = *reinterpret_cast<Vectors<S>*>(shared_memory + S::MEMORY);
  const LargeSlot<S> slot{scratch + blockIdx.x * LargeSlot<S>::floats(s.M), s.M};
  const auto wanted = [](int m, int n) { return large_strips(m, n) == S::STRIPS; };
  for_each_pair(s, pairs, vectors.marks, wanted, [&](int64_t place, const Found& pair) {
    if (threadIdx.x == 0) vectors.pair = pair;
    block_barrier();
    const float score = score_of(Work<S, T>{s, o, slot, shared_memory, vectors, vectors.pair});
    if (threadIdx.x == 0) scores[score_place(pairs, place, vectors.pair, score_row)] = score;
  });
}

struct Target {
  float* scores;
  int64_t score_row;
  float* scratch;
  int64_t floats, blocks;
};

template <int STRIPS, typename T>
void launch_large(const Sides<T>& s, const Pairs& pairs, const Options& o, const Target& to, Stream stream) {
  using S = Large<STRIPS>;
  const int64_t slots = to.floats / LargeSlot<S>::floats(s.M), resident = to.blocks * S::BLOCKS;
  const int64_t most = slots < resident ? slots : resident, blocks = pairs.count < most ? pairs.count : most;
  constexpr size_t shared = S::MEMORY + sizeof(Vectors<S>);
  static_assert(shared <= 99 * 1024);
  launch<large_kernel<S, T>>(blocks, LARGE_THREADS, shared, stream, s, pairs, o, to.scores, to.score_row, to.scratch);
}

} // namespace

template <typename T>
void score_large(const Sides<T>& s, const Pairs& all, const Options& o, float* scores, int64_t score_row, float* scratch,
                 int64_t floats, int64_t blocks, int64_t launch_pairs, Stream stream) {
  const Target to{scores, score_row, scratch, floats, blocks};
  const int64_t last = all.first + all.count;
  for (Pairs pairs = all; pairs.first < last; pairs.first += launch_pairs) {
    pairs.count = last - pairs.first < launch_pairs ? last - pairs.first : launch_pairs;
    if (s.M > MOST_REGIONS) launch_large<1>(s, pairs, o, to, stream);
    if (s.M > MOST_REGIONS && s.N > 16) launch_large<2>(s, pairs, o, to, stream);
    if (s.N > 32) launch_large<4>(s, pairs, o, to, stream);
    if (s.N > 64) launch_large<8>(s, pairs, o, to, stream);
  }
}

template void score_large(const Sides<bfloat16>&, const Pairs&, const Options&, float*, int64_t, float*, int64_t, int64_t, int64_t,
                          Stream);
template void score_large(const Sides<float16>&, const Pairs&, const Options&, float*, int64_t, float*, int64_t, int64_t, int64_t,
                          Stream);

} // namespace caan::context_attention
