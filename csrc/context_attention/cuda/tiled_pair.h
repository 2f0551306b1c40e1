// What pair.h does for a pair, with its products on tensor cores: matrices and pieces of rows come in parts (parts.h).
//
// A warp has 16 of a piece's 64 columns, and both contexts and their gradients there to itself: what it brings and makes in shared
// memory waits for no other warp. Only sums over all columns, S and the gradients of C, R, C_unit and R_unit, are shared out,
// 16 regions by 16 words at a time, between barriers of the block. Regions come a chunk at a time where not all have room; sums
// of words then wait in shared memory for the next chunk.
//
// Weights lie in the pair's slot as left factors, a lane's part of 16 by 16 in 16 bytes, and turned over likewise.
#pragma once

#include "context_attention/cuda/attention.h"
#include "context_attention/cuda/pair.h"
#include "context_attention/cuda/parts.h"

namespace caan::context_attention {

// Factors of a slot; those with _T are words by regions.
enum Factor { OF_C, OF_C_T, OF_C_UNIT, OF_C_UNIT_T, OF_R, OF_R_T, OF_R_UNIT, OF_R_UNIT_T, OF_DS, OF_DS_T };

// Shared memory of a block: strips of regions that it has at once, and how much that is.
template <typename T>
struct TiledMemory {
  static constexpr int PARTS = Parts<T>::OF_FEATURES + Parts<T>::OF_MADE, STRIP_BYTES = PARTS * STRIP * PIECE_BYTES;
  static constexpr int SUM_BYTES = WARPS * WARP * int(sizeof(Cells));
  // Of what every GPU since compute capability 8.0 has for a block; more strips would leave room for fewer blocks.
  static constexpr int MOST = 98 * 1024, MOST_CHUNK = 4;
  int chunk, bytes;

  CAAN_BOTH TiledMemory(int M, int N) {
    const int of_words = strips_of(N), left = (MOST - of_words * (STRIP_BYTES + SUM_BYTES)) / STRIP_BYTES;
    const bool whole = strips_of(M) <= MOST_CHUNK && (strips_of(M) + of_words) * STRIP_BYTES <= MOST;
    chunk = whole ? strips_of(M) : left < MOST_CHUNK ? left : MOST_CHUNK;
    bytes = (chunk + of_words) * STRIP_BYTES + (whole ? 0 : of_words * SUM_BYTES);
  }
};

// Sizes of a call in shared memory. Read there anew, they keep what follows from them out of registers in between.
struct Sizes {
  int M, N, D, H;

  template <typename T>
  CAAN_DEVICE Sides<T> of(Sides<T> s) const {
    s.M = M, s.N = N, s.D = D, s.H = H;
    return s;
  }
};

template <typename T>
struct OnTiles {
  static constexpr int ROWS = STRIP, FEATURES = Parts<T>::OF_FEATURES, MADE = Parts<T>::OF_MADE;
  const Sides<T> s;
  const Options& o;
  const Pair<T> p;
  // Of the pair, of which so many regions come at once; in the slot, so many strips of words.
  const int regions, words, chunk, stride;
  uint4* const factors;
  const int64_t units;
  // Features of a chunk's regions and what is made of them, and of all words.
  const Piece<FEATURES> V;
  const Piece<MADE> of_V;
  const Piece<FEATURES> U;
  const Piece<MADE> of_U;
  float4* const open;
  const int lane = lane_of_thread(), warp = warp_of_thread();

  CAAN_DEVICE OnTiles(const Sides<T>& s, const Options& o, int64_t image, int64_t caption, float* scratch, char* shared)
      : s(s),
        o(o),
        p(s, image, caption, scratch, TiledShape<T>{s.M, s.N, s.D}.slot()),
        regions(strips_of(p.m)),
        words(strips_of(p.n)),
        chunk(TiledMemory<T>(s.M, s.N).chunk),
        stride(strips_of(s.N)),
        factors(reinterpret_cast<uint4*>(scratch + TiledShape<T>{s.M, s.N, s.D}.slot().size())),
        units(TiledShape<T>{s.M, s.N, s.D}.units()),
        V(shared, chunk),
        of_V(V.part(FEATURES), chunk),
        U(of_V.part(MADE), stride),
        of_U(U.part(FEATURES), stride),
        open(reinterpret_cast<float4*>(of_U.part(MADE))) {}

  CAAN_DEVICE bool has_contexts() const { return o.inter || o.intra; }

  // each(first strip, strips) of every chunk.
  template <typename Each>
  CAAN_DEVICE void for_chunks(Each each) const {
#pragma unroll 1
    for (int first = 0; first < regions; first += chunk) each(first, chunk < regions - first ? chunk : regions - first);
  }
  CAAN_DEVICE bool one_chunk() const { return regions <= chunk; }

  // 64 columns from `column` of a chunk's rows of a matrix of regions that has `columns`, and of words.
  CAAN_DEVICE void load_regions(const T* from, int64_t row, int first, int count, int column, int columns) const {
    const int left = p.m - STRIP * first, most = STRIP * count;
    load_features(V, from + STRIP * first * row, row, left < most ? left : most, column, columns);
  }
  CAAN_DEVICE void load_words(const T* from, int column, int columns) const {
    load_features(U, from, s.D + 2 * s.H, p.n, column, columns);
  }

  // cells += a factor's `count` blocks, `step` apart from `block`, times strips of a piece: the warp's columns.
  template <int PARTS>
  CAAN_DEVICE void multiply(Cells& cells, Factor factor, int block, int step, int count, const Piece<PARTS>& piece) const {
    const uint4* from = factors + factor * units + int64_t(block) * MADE * WARP + lane;
#pragma unroll 1
    for (int k = 0; k < count; ++k, from += step * MADE * WARP) {
      uint32_t left[MADE][4], right[PARTS][4];
#pragma unroll
      for (int part = 0; part < MADE; ++part) {
        const uint4 x = from[part * WARP];
        left[part][0] = x.x, left[part][1] = x.y, left[part][2] = x.z, left[part][3] = x.w;
      }
#pragma unroll
      for (int part = 0; part < PARTS; ++part) right_columns(right[part], piece.part(part), k, warp);
      multiply_parts(cells, left, right);
    }
  }
  // A row of blocks times all words, and a column of a chunk's blocks times its regions.
  template <int PARTS>
  CAAN_DEVICE void times_words(Cells& cells, Factor factor, int i, const Piece<PARTS>& piece) const {
    multiply(cells, factor, i * stride, 1, words, piece);
  }
  template <int PARTS>
  CAAN_DEVICE void times_regions(Cells& cells, Factor factor, int j, int first, int count, const Piece<PARTS>& piece) const {
    multiply(cells, factor, first * stride + j, stride, count, piece);
  }

  // Sums over all regions, a chunk at a time: add(j, cells) for each strip of words, and finish(j, cells) after the last chunk.
  template <typename Add, typename Finish>
  CAAN_DEVICE void sum_over_regions(int first, int count, Add add, Finish finish) const {
#pragma unroll 1
    for (int j = 0; j < words; ++j) {
      float4* const mine = open + (j * WARPS + warp) * 2 * WARP + lane;
      Cells cells = {};
      add(j, cells);
      // Tensor cores cut their sums off: a chunk's stands alone, and is added to the others in float32 arithmetic.
      if (first > 0)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float4 x = mine[half * WARP];
          cells[half][0] += x.x, cells[half][1] += x.y, cells[half][2] += x.z, cells[half][3] += x.w;
        }
      if (first + count < regions) {
#pragma unroll
        for (int half = 0; half < 2; ++half) mine[half * WARP] = {cells[half][0], cells[half][1], cells[half][2], cells[half][3]};
      } else {
        finish(j, cells);
      }
    }
  }

  // matrix += left right^T of a chunk's strips and all words', shared out among warps.
  template <int L, int R>
  CAAN_DEVICE void update(float* matrix, int first, int count, const Piece<L>& left, const Piece<R>& right) const {
#pragma unroll 1
    for (int unit = warp; unit < count * words; unit += WARPS) {
      const int i = unit / words, j = unit % words;
      Cells cells = {};
      add_row_products(cells, left, i, right, j);
      float* const to = matrix + int64_t(STRIP * (first + i) + lane / 4) * p.row + STRIP * j + 2 * (lane % 4);
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int below = 0; below < 2; ++below) {
          float2& x = *reinterpret_cast<float2*>(to + 8 * below * p.row + 8 * half);
          x = {x.x + cells[half][2 * below], x.y + cells[half][2 * below + 1]};
        }
    }
  }

  // A matrix of the slot as two factors.
  CAAN_DEVICE void make_factors(const float* matrix, Factor factor) const {
#pragma unroll 1
    for (int unit = warp; unit < regions * words; unit += WARPS) {
      const int i = unit / words, j = unit % words;
      const float* const from = matrix + int64_t(STRIP * i) * p.row + STRIP * j;
      uint32_t plain[4][MADE], turned[4][MADE];
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const int r = q % 2 * 8 + lane / 4, c = q / 2 * 8 + 2 * (lane % 4);
        split(plain[q], from[r * p.row + c], from[r * p.row + c + 1]);
        split(turned[q], from[c * p.row + r], from[(c + 1) * p.row + r]);
      }
      uint4* const to = factors + factor * units + int64_t(i * stride + j) * MADE * WARP + lane;
#pragma unroll
      for (int part = 0; part < MADE; ++part) {
        to[part * WARP] = {plain[0][part], plain[1][part], plain[2][part], plain[3][part]};
        to[units + part * WARP] = {turned[0][part], turned[1][part], turned[2][part], turned[3][part]};
      }
    }
  }

  CAAN_DEVICE void make_gradient_factors() const { make_factors(p.slot.dS, OF_DS); }

  CAAN_DEVICE void align() const {
    for_chunks([&](int first, int count) {
#pragma unroll 1
      for (int d = 0; d < s.D; d += PIECE) {
        load_regions(p.V, s.D, first, count, d, s.D);
        load_words(p.UQ, d, s.D);
        block_barrier();
        update(p.slot.A, first, count, V, U);
        block_barrier();
      }
    });
  }

  // Z = C_unitT V Q1 of 64 hidden columns from `h`, in of_U, and U Q2 in U: what `region_context` takes. V Q1 of the last chunk is
  // left in V.
  CAAN_DEVICE void begin_regions(int h) const {
    if (o.inter) load_words(p.UQ + s.D, h, s.H);
    if (o.intra)
      for_chunks([&](int first, int count) {
        load_regions(p.VQ, 2 * s.H, first, count, h, s.H);
        warp_barrier();
        gather(first, count, V);
        warp_barrier();
      });
    warp_barrier();
  }
  // Strip i of Y = C_unit Z + C (U Q2).
  CAAN_DEVICE void region_context(Cells& cells, int i) const {
    if (o.inter) times_words(cells, OF_C, i, U);
    if (o.intra) times_words(cells, OF_C_UNIT, i, of_U);
  }

  // C_unitT times what a chunk's regions have in a piece, to of_U; of all regions after the last chunk.
  template <int PARTS>
  CAAN_DEVICE void gather(int first, int count, const Piece<PARTS>& piece) const {
    sum_over_regions(
        first, count, [&](int j, Cells& cells) { times_regions(cells, OF_C_UNIT_T, j, first, count, piece); },
        [&](int j, const Cells& cells) { store_cells(of_U, j, cells); });
  }

  // R_unit times what words have in a piece, of a chunk, to of_V.
  template <int PARTS>
  CAAN_DEVICE void spread(int first, int count, const Piece<PARTS>& piece) const {
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      Cells cells = {};
      times_words(cells, OF_R_UNIT, first + i, piece);
      store_cells(of_V, i, cells);
    }
    warp_barrier();
  }
  // V Q4 of a chunk in V, and R_unit U Q3 in of_V.
  CAAN_DEVICE void bring_words_factors(int h, int first, int count) const {
    if (o.inter) load_regions(p.VQ + s.H, 2 * s.H, first, count, h, s.H);
    warp_barrier();
    if (o.intra) spread(first, count, U);
  }
  // finish(j, cells) of strip j of X = R_unitT (R_unit U Q3) + RT (V Q4); U Q3 is left in U.
  template <typename Finish>
  CAAN_DEVICE void word_contexts(int h, Finish finish) const {
    if (o.intra) load_words(p.UQ + s.D + s.H, h, s.H);
    for_chunks([&](int first, int count) {
      bring_words_factors(h, first, count);
      sum_over_regions(
          first, count,
          [&](int j, Cells& cells) {
            if (o.inter) times_regions(cells, OF_R_T, j, first, count, V);
            if (o.intra) times_regions(cells, OF_R_UNIT_T, j, first, count, of_V);
          },
          finish);
      warp_barrier();
    });
  }

  // What a lane has of a score vector from `h`: numbers [half][next].
  CAAN_DEVICE void load_score(float (&w)[2][2], const T* vector, int h) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = h + STRIP * warp + i / 2 * 8 + 2 * (lane % 4) + i % 2;
      w[i / 2][i % 2] = column < s.H ? to_float(vector[column]) : 0.0f;
    }
  }
  // What the warp's columns give to the logits of a strip's rows; the warps' sums lie one after another.
  CAAN_DEVICE void add_logits_of(const Cells& cells, const float (&w)[2][2], bool begin, float* logits) const {
    float sums[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i / 2] = fmaf(tanh_for<T>(cells[half][i]), w[half][i % 2], sums[i / 2]);
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      const float sum = sum_over_columns(sums[below]);
      float& to = logits[8 * below + lane / 4];
      if (lane % 4 == 0) to = begin ? sum : to + sum;
    }
  }

  CAAN_DEVICE void add_logits() const {
    make_factors(p.slot.C, OF_C);
    make_factors(p.slot.C_unit, OF_C_UNIT);
    make_factors(p.slot.R, OF_R);
    make_factors(p.slot.R_unit, OF_R_UNIT);
    block_barrier();
    if (!has_contexts()) return;
    const int of_regions = STRIP * regions, of_words = STRIP * words;
    float *const f = p.slot.dC, *const g = p.slot.dR;
#pragma unroll 1
    for (int h = 0; h < s.H; h += PIECE) {
      float w_v[2][2], w_u[2][2];
      load_score(w_v, s.region_score, h);
      load_score(w_u, s.word_score, h);
      begin_regions(h);
#pragma unroll 1
      for (int i = 0; i < regions; ++i) {
        Cells cells = {};
        region_context(cells, i);
        add_logits_of(cells, w_v, h == 0, f + warp * of_regions + STRIP * i);
      }
      warp_barrier();
      word_contexts(h, [&](int j, const Cells& cells) { add_logits_of(cells, w_u, h == 0, g + warp * of_words + STRIP * j); });
    }
    block_barrier();
    for (int i = int(threadIdx.x); i < p.m + p.n; i += THREADS) {
      const bool of_f = i < p.m;
      const float* const by_warp = of_f ? f + i : g + i - p.m;
      const int step = of_f ? of_regions : of_words;
      (of_f ? p.slot.f[i] : p.slot.g[i - p.m]) = ((by_warp[0] + by_warp[step]) + by_warp[2 * step]) + by_warp[3 * step];
    }
    block_barrier();
  }

  // From a strip of contexts to their gradients, those of the logits of `count` rows given; each(column [half][next], row, tanh).
  template <typename Each>
  CAAN_DEVICE void context_gradients(Cells& cells, const float* of_logits, int count, const float (&w)[2][2], Each each) const {
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      const int row = 8 * below + lane / 4;
      const float of_logit = row < count ? of_logits[row] : 0.0f;
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = cells[half][2 * below + i];
          const float t = tanh_for<T>(x);
          each(half, i, of_logit, t);
          x = row < count ? of_logit * w[half][i] * (1.0f - t * t) : 0.0f;
        }
    }
  }
  // dY of a chunk to of_V, after `begin_regions`.
  template <typename Each>
  CAAN_DEVICE void region_gradients(int first, int count, const float (&w_v)[2][2], Each each) const {
#pragma unroll 1
    for (int i = 0; i < count; ++i) {
      Cells cells = {};
      region_context(cells, first + i);
      const int begin = STRIP * (first + i);
      context_gradients(cells, p.slot.df + begin, p.m - begin, w_v, each);
      store_cells(of_V, i, cells);
    }
    warp_barrier();
  }
  // dX to of_U.
  template <typename Each>
  CAAN_DEVICE void word_gradients(int h, const float (&w_u)[2][2], Each each) const {
    word_contexts(h, [&](int j, Cells& cells) {
      context_gradients(cells, p.slot.dg + STRIP * j, p.n - STRIP * j, w_u, each);
      store_cells(of_U, j, cells);
    });
  }

  CAAN_DEVICE void differentiate_regions(int h) const {
    float w_v[2][2];
    load_score(w_v, s.region_score, h);
    begin_regions(h);
    for_chunks([&](int first, int count) {
      region_gradients(first, count, w_v, ignore_tanh);
      block_barrier();
      if (o.inter) update(p.slot.dC, first, count, of_V, U);
      if (o.intra) update(p.slot.dC_unit, first, count, of_V, of_U);
      block_barrier();
      // dZ comes where Z was.
      if (o.intra) gather(first, count, of_V);
      warp_barrier();
    });
    if (!o.intra) return;
    for_chunks([&](int first, int count) {
      if (!one_chunk()) load_regions(p.VQ, 2 * s.H, first, count, h, s.H);
      block_barrier();
      update(p.slot.dC_unit, first, count, V, of_U);
      block_barrier();
    });
  }

  CAAN_DEVICE void differentiate_words(int h) const {
    float w_u[2][2];
    load_score(w_u, s.word_score, h);
    word_gradients(h, w_u, ignore_tanh);
    for_chunks([&](int first, int count) {
      if (!one_chunk()) bring_words_factors(h, first, count);
      block_barrier();
      if (o.inter) update(p.slot.dR, first, count, V, of_U);
      if (o.intra) update(p.slot.dR_unit, first, count, of_V, of_U);
      block_barrier();
      if (!o.intra) return;
      spread(first, count, of_U);
      block_barrier();
      update(p.slot.dR_unit, first, count, of_V, U);
      block_barrier();
    });
  }

  CAAN_DEVICE void differentiate() const {
#pragma unroll 1
    for (int h = 0; has_contexts() && h < s.H; h += PIECE) {
      differentiate_regions(h);
      differentiate_words(h);
    }
  }

  static CAAN_DEVICE void ignore_tanh(int, int, float, float) {}
};

} // namespace caan::context_attention
