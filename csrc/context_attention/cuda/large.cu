// Scores of pairs on tensor cores that are too large for a tile, and of the cosine in float32: a block has one pair, of up to 128
// words and any number of regions.
//
//   products   S = V (U affinityT)T and X = V UT             64 regions by all words at a time, a piece of the width at a time
//   weights    C, C_unit, RT and their like                  from S, in blocks of 16 regions by 16 words
//   sweeps     64 or 128 hidden columns at a time, 16 or 32 a warp:
//              Z = C_unitT V Q1, tanh((R_unitT R_unit) U Q3 + RT V Q4) w_u      summed over all regions, 16 or 32 rows at a time
//              tanh(C_unit Z + C U Q2) w_v                                      16 regions a warp at a time
//   score      fT X g, which is v.u                          for the cosine v = f V and u = g U
//
// What is (m, n) lies in the block's slot of scratch memory, which the L2 cache holds, as the tensor cores take it: a lane reads
// its part of a factor 16 bytes at a time. Nothing of size (m, H) or (m, m) exists.
//
// For a pair of m regions and n words, widths D and H: (4mnD + (8mn + 2n^2)H) flops, (m + n)H tanh, and from the L2 cache
// 2mD + 4n(D + H) + 4mH bytes of features, and for each sweep 8 mn of weights for all warps and as much again for one. float32 has
// twice the bytes, and three products for each.
#include "context_attention/cuda/large.h"

#include <stdexcept>
#include <type_traits>

namespace caan::context_attention {

namespace {

// P from S, or X as it is.
template <typename S, typename T>
CAAN_DEVICE void keep_products(const Work<S, T>& k, const Strip<S>& sums, int strip, bool of_X) {
  float4* const to = reinterpret_cast<float4*>(of_X ? k.slot.X() : k.slot.P()) + (int64_t(strip) * S::STRIPS * WARP + k.lane) * 2;
#pragma unroll
  for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const auto of = [&](int e) {
        const bool exists = 16 * w + 8 * (e / 2) + k.row < k.pair.n && 16 * strip + 8 * t + k.column + e % 2 < k.pair.m;
        return !exists ? 0.0f : of_X ? sums[w][t][e] : positive_part(tanh_for<T>(sums[w][t][e]));
      };
      to[w * 2 * WARP + t] = {of(0), of(1), of(2), of(3)};
    }
}

// P = max(A, 0) and, but for the cosine, X.
template <typename S, typename T>
CAAN_DEVICE void multiply_rows(const Work<S, T>& k) {
  const Sides<T>& s = k.s;
  const int pieces = (s.D + S::COLUMNS - 1) / S::COLUMNS, mine = k.warp % 4;
  constexpr int AT_UK = S::REGIONS * PIECE_BYTES, AT_U = AT_UK + S::WORDS * PIECE_BYTES;
  // Of a warp's products: S is 0, X is 1.
  const auto number = [&](int p) { return k.warp / 4 + p; };
  for (int first = 0; first < k.pair.m; first += S::REGIONS) {
    const auto begin = [&](int piece) {
      if (piece < pieces) {
        char* const to = k.shared + piece % 2 * S::PRODUCT_STAGE;
        const int column = piece * S::COLUMNS;
        fetch_rows<S::REGIONS, S::THREADS>(to, k.regions(first), s.regions, s.D, column, s.D);
        fetch_rows<S::WORDS, S::THREADS>(to + AT_UK, k.words(0), s.word_products, s.D + 2 * s.H, column, s.D);
        if (!k.o.cosine) fetch_rows<S::WORDS, S::THREADS>(to + AT_U, k.words(0), s.words, s.D, column, s.D);
      }
      close_copies();
    };
    const int strip = first / 16 + mine;
    const auto idle = [&](int p) { return strip >= k.strips() || (number(p) && k.o.cosine); };
    Strip<S> sums[S::PRODUCTS] = {};
    block_barrier();
    begin(0);
    for (int piece = 0; piece < pieces; ++piece) {
      wait_for_copies<0>();
      block_barrier();
      begin(piece + 1);
      if (idle(0)) continue;
      const char* const regions = k.shared + piece % 2 * S::PRODUCT_STAGE;
#pragma unroll 1
      for (int step = 0; step < S::COLUMNS / 16; ++step) {
        const Right<T> V = right_rows<T>(regions, mine, step);
#pragma unroll
        for (int p = 0; p < S::PRODUCTS; ++p) {
          if (idle(p)) continue;
          const char* const words = regions + (number(p) ? AT_U : AT_UK);
#pragma unroll
          for (int w = 0; w < S::STRIPS; ++w) multiply_add(sums[p][w], left_rows<T>(words, w, step), V);
        }
      }
    }
#pragma unroll
    for (int p = 0; p < S::PRODUCTS; ++p)
      if (!idle(p)) keep_products(k, sums[p], strip, number(p));
  }
  block_barrier();
}

// Scales of words, and of regions for R.
template <typename S, typename T>
CAAN_DEVICE void find_scales(const Work<S, T>& k) {
  float squares[2][S::STRIPS][2] = {};
#pragma unroll 1
  for (int strip = k.warp; strip < k.strips(); strip += S::WARPS) {
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
  // Unrolled, it keeps addresses from pair to pair, which spills on sm_80.
#pragma unroll 1
  for (int i = int(threadIdx.x); i < 2 * S::WORDS; i += S::THREADS) {
    float sum = 0;
    for (int w = 0; w < S::WARPS; ++w) sum += k.v.by_warp[i / S::WORDS][w][i % S::WORDS];
    (i < S::WORDS ? k.v.of_word : k.v.of_R)[i % S::WORDS] = inverse_norm(sum);
  }
  block_barrier();
}

// The weights as factors.
template <typename S, typename T>
CAAN_DEVICE void find_weights(const Work<S, T>& k) {
#pragma unroll 1
  for (int strip = k.warp; strip < k.strips(); strip += S::WARPS) {
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
      const auto plain = [&](int t, int e) { return C(w, t, e); };
      const auto unit = [&](int t, int e) { return C(w, t, e) * of_C[t][e % 2]; };
      const int block = strip * S::STRIPS + w;
      k.slot.Rt()[block * WARP + k.lane] = left_of<T>([&](int t, int e) { return P[w][t][e] * of_region[t][e % 2]; });
      k.slot.C_unit_t()[block * WARP + k.lane] = left_of<T>(unit);
      store_transposed<T>(k.slot.C(block), plain);
      store_transposed<T>(k.slot.C_unit(block), unit);
    }
  }
  block_barrier();
}

// R_unitT R_unit, from RT R and the words' scales.
template <typename S, typename T>
CAAN_DEVICE void word_affinity(const Work<S, T>& k) {
  float* const sums = reinterpret_cast<float*>(k.shared);
  const int own = k.warp % S::STRIPS, part = k.warp / S::STRIPS;
  Strip<S> of = {};
#pragma unroll 1
  for (int strip = part; strip < k.strips(); strip += S::PARTS) {
    const Left<T>* const Rt = k.slot.Rt() + int64_t(strip) * S::STRIPS * WARP + k.lane;
    const Left<T> left = Rt[own * WARP];
#pragma unroll
    for (int w = 0; w < S::STRIPS; ++w) {
      const Left<T> other = Rt[w * WARP];
      multiply_add(of[w], left, right_of(other));
    }
  }
#pragma unroll
  for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        sums[(part * S::WORDS + 16 * own + 8 * (e / 2) + k.row) * S::WORDS + 16 * w + 8 * t + k.column + e % 2] = of[w][t][e];
  block_barrier();
  for (int block = k.warp; block < S::STRIPS * S::STRIPS; block += S::WARPS)
    k.slot.affinity()[block * WARP + k.lane] = left_of<T>([&](int t, int e) {
      const int word = 16 * (block / S::STRIPS) + e / 2 * 8 + k.row, with = 16 * (block % S::STRIPS) + t * 8 + k.column + e % 2;
      float x = 0;
      for (int p = 0; p < S::PARTS; ++p) x += sums[(p * S::WORDS + word) * S::WORDS + with];
      return x * (k.v.of_R[word] * k.v.of_R[with]);
    });
  block_barrier();
}

// A sweep's hidden columns from `hidden` of V Q1 and V Q4 of DEPTH regions, or of U Q3 of DEPTH words.
template <typename S, typename T>
CAAN_DEVICE void begin_step(const Work<S, T>& k, int step, int region_steps, int hidden) {
  const Sides<T>& s = k.s;
  char* const to = k.shared + step % 2 * S::SWEEP_STAGE;
#pragma unroll 1
  for (int piece = 0; piece < S::PIECES; ++piece) {
    const int column = hidden + piece * S::COLUMNS;
    char *const of_Q1 = to + piece * S::DEPTH * PIECE_BYTES, *const other = of_Q1 + S::SIDE_BYTES;
    if (step < region_steps) {
      const Consecutive rows = k.regions(step * S::DEPTH);
      if (k.o.intra) fetch_rows<S::DEPTH, S::THREADS>(of_Q1, rows, s.region_products, 2 * s.H, column, s.H);
      if (k.o.inter) fetch_rows<S::DEPTH, S::THREADS>(other, rows, s.region_products + s.H, 2 * s.H, column, s.H);
    } else {
      const Consecutive rows = k.words((step - region_steps) * S::DEPTH);
      fetch_rows<S::DEPTH, S::THREADS>(other, rows, s.word_products + s.D + s.H, s.D + 2 * s.H, column, s.H);
    }
  }
}

// One factor of 16 of the depth times the warp's hidden columns, added to sums of words.
template <typename S, typename T>
CAAN_DEVICE void add_depth(Strip<S> (&sums)[S::WIDE], const Left<T>* left, int stride, const char* side, int depth, int warp) {
  Right<T> right[S::WIDE];
#pragma unroll
  for (int c = 0; c < S::WIDE; ++c) {
    const int column = 16 * (warp * S::WIDE + c);
    right[c] = right_columns<T>(side + column / S::COLUMNS * S::DEPTH * PIECE_BYTES, depth, column % S::COLUMNS / 16);
  }
#pragma unroll
  for (int w = 0; w < S::STRIPS; ++w) {
    const Left<T> words = left[w * stride];
#pragma unroll
    for (int c = 0; c < S::WIDE; ++c) multiply_add(sums[c][w], words, right[c]);
  }
}

// The part of a sweep that sums over regions: Z goes to shared memory, and the words' logits of the warp's columns to `logits`.
template <typename S, typename T>
CAAN_DEVICE void sum_over_regions(const Work<S, T>& k, int hidden, float (&logits)[S::STRIPS][2]) {
  const Options& o = k.o;
  const int region_steps = (k.pair.m + S::DEPTH - 1) / S::DEPTH, word_steps = (k.pair.n + S::DEPTH - 1) / S::DEPTH;
  const int steps = region_steps + (o.intra ? word_steps : 0);
  char *const Z_rows = k.shared + 2 * S::SWEEP_STAGE, *const UQ2 = Z_rows + S::KEPT_BYTES;
  if (o.inter)
    for (int i = 0; i < S::PIECES; ++i)
      fetch_rows<S::WORDS, S::THREADS>(UQ2 + i * S::WORDS * PIECE_BYTES, k.words(0), k.s.word_products + k.s.D, k.s.D + 2 * k.s.H,
                                       hidden + i * S::COLUMNS, k.s.H);
  begin_step(k, 0, region_steps, hidden);
  close_copies();
  for (int i = int(threadIdx.x); i < S::SWEEP; i += S::THREADS) {
    const bool exists = hidden + i < k.s.H;
    k.v.w_v[i] = exists ? to_float(k.s.region_score[hidden + i]) : 0.0f;
    k.v.w_u[i] = exists ? to_float(k.s.word_score[hidden + i]) : 0.0f;
  }
  Strip<S> Z[S::WIDE] = {}, X[S::WIDE] = {};
  for (int step = 0; step < steps; ++step) {
    wait_for_copies<0>();
    block_barrier();
    if (step + 1 < steps) begin_step(k, step + 1, region_steps, hidden);
    close_copies();
    const char *const of_Q1 = k.shared + step % 2 * S::SWEEP_STAGE, *const other = of_Q1 + S::SIDE_BYTES;
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
  for (int c = 0; c < S::WIDE; ++c) {
    const int first = 16 * (k.warp * S::WIDE + c);
    char* const to = Z_rows + first / S::COLUMNS * S::WORDS * PIECE_BYTES;
#pragma unroll
    for (int w = 0; w < S::STRIPS; ++w) {
#pragma unroll
      for (int t = 0; t < 2; ++t)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          logits[w][e / 2] = fmaf(tanh_of_context<T>(X[c][w][t][e]), k.v.w_u[first + column_of<T>(t, e)], logits[w][e / 2]);
      if (o.intra)
        for (int half = 0; half < 2; ++half) store_sums<T>(to, w, first % S::COLUMNS / 16, half, Z[c][w]);
    }
  }
  block_barrier();
}

// The part of a sweep that a region has for itself: its logit grows by what the sweep's columns give. In half precision a warp
// holds its regions' factors of all words for 16 columns at a time; those of float32 are split once for 64 columns instead.
template <typename S, typename T>
CAAN_DEVICE void add_region_logits(const Work<S, T>& k) {
  constexpr bool HELD = sizeof(T) == 2;
  constexpr int CHUNKS = HELD ? 1 : 4, UNROLLED = HELD ? S::STRIPS : 1;
  const char *const Z_rows = k.shared + 2 * S::SWEEP_STAGE, *const UQ2 = Z_rows + S::KEPT_BYTES;
#pragma unroll 1
  for (int strip = k.warp; strip < k.strips(); strip += S::WARPS) {
    Left<T> C[UNROLLED], C_unit[UNROLLED];
    const auto load = [&](int to, int w) {
      C[to] = k.slot.C(strip * S::STRIPS + w)[k.lane];
      C_unit[to] = k.slot.C_unit(strip * S::STRIPS + w)[k.lane];
    };
    if constexpr (HELD)
#pragma unroll
      for (int w = 0; w < S::STRIPS; ++w) load(w, w);
    float logits[2] = {};
#pragma unroll 1
    for (int first = 0; first < S::SWEEP; first += 16 * CHUNKS) {
      float Y[CHUNKS][2][4] = {};
#pragma unroll UNROLLED
      for (int w = 0; w < S::STRIPS; ++w) {
        if constexpr (!HELD) load(0, w);
#pragma unroll
        for (int chunk = 0; chunk < CHUNKS; ++chunk) {
          const uint32_t column = uint32_t(first + 16 * chunk), at = column / S::COLUMNS * S::WORDS * PIECE_BYTES;
          const auto right = [&](const char* rows) { return right_columns<T>(rows + at, w, int(column % S::COLUMNS / 16)); };
          if (k.o.intra) multiply_add(Y[chunk], C_unit[HELD ? w : 0], right(Z_rows));
          if (k.o.inter) multiply_add(Y[chunk], C[HELD ? w : 0], right(UQ2));
        }
      }
#pragma unroll
      for (int chunk = 0; chunk < CHUNKS; ++chunk)
#pragma unroll
        for (int t = 0; t < 2; ++t)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const float w_v = k.v.w_v[first + 16 * chunk + column_of<T>(t, e)];
            logits[e / 2] = fmaf(tanh_of_context<T>(Y[chunk][t][e]), w_v, logits[e / 2]);
          }
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
  for (int r = int(threadIdx.x); r < 16 * k.strips(); r += S::THREADS) k.slot.f()[r] = 0;
  multiply_rows(k);
  float of_words[S::STRIPS][2] = {};
  if (k.o.inter || k.o.intra) {
    find_scales(k);
    find_weights(k);
    if (k.o.intra) word_affinity(k);
    for (int hidden = 0; hidden < k.s.H; hidden += S::SWEEP) {
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
  for (int j = int(threadIdx.x); j < S::WORDS; j += S::THREADS) {
    k.v.g[j] = 0;
    for (int w = 0; w < S::WARPS; ++w) k.v.g[j] += k.v.by_warp[0][w][j];
  }
  block_barrier();
  if (k.warp == 0) softmax_of(k.slot.f(), m);
  if (k.warp == 1) softmax_of(k.v.g, n);
  block_barrier();
  float* const by_warp = &k.v.by_warp[0][0][0];
  if (k.o.cosine) {
    const Pooled of = pool<S::WARPS>(k.s.V(k.pair.image), k.s.U(k.pair.caption), k.slot.f(), k.v.g, m, n, k.s.D, by_warp,
                                     [](int, float, float) {});
    return of.product / (norm_of(of.v_squares) * norm_of(of.u_squares));
  }
  float product = 0;
#pragma unroll 1
  for (int strip = k.warp; strip < k.strips(); strip += S::WARPS) {
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
  return sum_over_block<S::WARPS>(product, by_warp);
}

template <typename S, typename T>
CAAN_KERNEL void CAAN_BOUNDS(S::THREADS, S::BLOCKS)
    large_kernel(Sides<T> s, Pairs pairs, Options o, float* scores, int64_t score_row, float* scratch) {
  CAAN_SHARED;
  auto& vectors = *reinterpret_cast<Vectors<S>*>(shared_memory + S::MEMORY);
  const LargeSlot<S, T> slot{scratch + blockIdx.x * LargeSlot<S, T>::floats(s.M), s.M};
  const auto wanted = [&](int m, int n) { return large_strips<T>(m, n, o) == S::STRIPS; };
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
using ShapeOf = std::conditional_t<sizeof(T) == 4, Single<STRIPS>, Large<STRIPS>>;

template <int STRIPS, typename T>
void launch_large(const Sides<T>& s, const Pairs& pairs, const Options& o, const Target& to, Stream stream) {
  using S = ShapeOf<STRIPS, T>;
  const int64_t slots = to.floats / LargeSlot<S, T>::floats(s.M), resident = to.blocks * S::BLOCKS;
  if (slots < 1) throw std::runtime_error("scratch: expected numbers for a pair of the call's sizes, got too few");
  const int64_t most = slots < resident ? slots : resident, blocks = pairs.count < most ? pairs.count : most;
  constexpr size_t shared = S::MEMORY + sizeof(Vectors<S>);
  static_assert(shared <= 99 * 1024);
  launch<large_kernel<S, T>>(blocks, S::THREADS, shared, stream, s, pairs, o, to.scores, to.score_row, to.scratch);
}

} // namespace

template <typename T>
void score_large(const Sides<T>& s, const Pairs& all, const Options& o, float* scores, int64_t score_row, float* scratch,
                 int64_t floats, int64_t blocks, int64_t launch_pairs, Stream stream) {
  const Target to{scores, score_row, scratch, floats, blocks};
  const int64_t last = all.first + all.count;
  for (Pairs pairs = all; pairs.first < last; pairs.first += launch_pairs) {
    pairs.count = last - pairs.first < launch_pairs ? last - pairs.first : launch_pairs;
    const bool beyond_tiles = !fits_tile<T>(s.M, 1, o);
    if (beyond_tiles) launch_large<1>(s, pairs, o, to, stream);
    if ((beyond_tiles || MOST_WORDS<T> <= 16) && s.N > 16) launch_large<2>(s, pairs, o, to, stream);
    if (s.N > 32) launch_large<4>(s, pairs, o, to, stream);
    // In float32 its numbers would not fit in registers.
    if constexpr (sizeof(T) == 2)
      if (s.N > 64) launch_large<8>(s, pairs, o, to, stream);
  }
}

template void score_large(const Sides<float>&, const Pairs&, const Options&, float*, int64_t, float*, int64_t, int64_t, int64_t,
                          Stream);
template void score_large(const Sides<bfloat16>&, const Pairs&, const Options&, float*, int64_t, float*, int64_t, int64_t, int64_t,
                          Stream);
template void score_large(const Sides<float16>&, const Pairs&, const Options&, float*, int64_t, float*, int64_t, int64_t, int64_t,
                          Stream);

} // namespace caan::context_attention
