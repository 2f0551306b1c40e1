// The products of a block of tiles.cu, and what comes of them: S and X, and the score.
#pragma once

#include "context_attention/cuda/tiles.h"

namespace caan::context_attention {

// S and, but for the cosine, X, for AT_ONCE images. Of the warp's pairs; where words are packed, of strips of them.
template <typename S, typename T>
CAAN_DEVICE void multiply_rows(const Tile<S, T>& tile, Cells<S>* alignment, Cells<S>* similarity) {
  const Sides<T>& s = tile.s;
  const bool both = !tile.o.cosine;
  constexpr int AT_UK = S::REGION_ROWS * PIECE_BYTES, AT_U = AT_UK + S::WORD_ROWS * PIECE_BYTES;
  const BlockRows<S, S::REGION_ROWS> regions(tile.items.regions);
  const BlockRows<S, S::WORD_ROWS> words(S::LISTED ? tile.items.words : tile.items.packed);
  const auto begin = [&](int piece) {
    if (piece < tile.pieces_of_width()) {
      char* const to = tile.product_stage(piece);
      fetch_rows<S::REGION_ROWS, S::THREADS>(to, regions, s.regions, s.D, piece * PIECE, s.D);
      fetch_rows<S::WORD_ROWS, S::THREADS>(to + AT_UK, words, s.word_products, s.D + 2 * s.H, piece * PIECE, s.D);
      if (both) fetch_rows<S::WORD_ROWS, S::THREADS>(to + AT_U, words, s.words, s.D, piece * PIECE, s.D);
    }
    close_copies();
  };
  const int first = tile.caption(0) * S::WORDS;
  const bool any = (!tile.items.packs() || first < tile.items.all_words()) && (S::AT_ONCE == 1 || tile.image() == 0);
  begin(0);
#pragma unroll 1
  for (int piece = 0; piece < tile.pieces_of_width(); ++piece) {
    wait_for_copies<0>();
    block_barrier();
    begin(piece + 1);
    if (!any) continue;
    const char* const stage = tile.product_stage(piece);
    const char *const UK_rows = stage + AT_UK + first * PIECE_BYTES, *const U_rows = UK_rows + S::WORD_ROWS * PIECE_BYTES;
#pragma unroll S::UNROLLED
    for (int k = 0; k < PIECE / 16; ++k) {
      uint32_t UK[S::HELD][4], U[S::HELD][4] = {};
#pragma unroll
      for (int w = 0; w < S::HELD; ++w) {
        left_rows(UK[w], UK_rows, w, k);
        if (both) left_rows(U[w], U_rows, w, k);
      }
#pragma unroll
      for (int i = 0; i < S::AT_ONCE; ++i) {
        const char* const V_rows = stage + (S::AT_ONCE > 1 ? i : tile.image()) * S::REGIONS * PIECE_BYTES;
        const auto multiply = [&](int t, uint32_t V0, uint32_t V1) {
#pragma unroll
          for (int w = 0; w < S::HELD; ++w) {
            const int p = w / S::STRIPS, strip = w % S::STRIPS;
            multiply_add(alignment[i][p][strip][t], UK[w], V0, V1, T{});
            if (both) multiply_add(similarity[i][p][strip][t], U[w], V0, V1, T{});
          }
        };
#pragma unroll
        for (int depth = 0; depth < S::TILES / 2; ++depth) {
          uint32_t V[4];
          right_rows(V, V_rows, depth, k);
          multiply(2 * depth, V[0], V[1]);
          multiply(2 * depth + 1, V[2], V[3]);
        }
        if constexpr (S::TILES % 2) {
          uint32_t V[2];
          right_rows(V, V_rows, S::TILES / 2, k);
          multiply(S::TILES - 1, V[0], V[1]);
        }
      }
    }
  }
}

// Sums of packed words with an image's regions, in shared memory: those of S first, those of X behind the stages of contexts.
template <typename S, typename T>
CAAN_DEVICE float* sums_of(const Tile<S, T>& tile, bool of_X, int image) {
  char* const begin = tile.stages + (of_X ? 2 * S::AFTER_BYTES : 0);
  return reinterpret_cast<float*>(begin) + image * S::WORD_ROWS * S::SUMS_ROW + tile.column;
}

// What the warp multiplied.
template <typename S, typename T>
CAAN_DEVICE void put_sums(const Tile<S, T>& tile, float* sums, const Cells<S>& cells) {
  float* const packed = sums + (tile.caption(0) * S::WORDS + tile.row) * S::SUMS_ROW;
  each_cell<S>([&](int p, int w, int t, int half) {
    const int word = 16 * (p * S::STRIPS + w) + 8 * half;
    *reinterpret_cast<float2*>(packed + word * S::SUMS_ROW + 8 * t) = {cells[p][w][t][2 * half], cells[p][w][t][2 * half + 1]};
  });
}

// Those of the words of the warp's captions; what their tiles have beyond is 0.
template <typename S, typename T>
CAAN_DEVICE void take_sums(const Tile<S, T>& tile, const float* sums, Cells<S>& cells) {
#pragma unroll
  for (int p = 0; p < S::PAIRS; ++p) {
    const float* const own = sums + (tile.items.begin[tile.caption(p)] + tile.row) * S::SUMS_ROW;
#pragma unroll
    for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int word = 16 * w + 8 * half;
        const bool exists = word + tile.row < tile.n(p);
#pragma unroll
        for (int t = 0; t < S::TILES; ++t) {
          float2 found = {0, 0};
          if (exists) found = *reinterpret_cast<const float2*>(own + word * S::SUMS_ROW + 8 * t);
          cells[p][w][t][2 * half] = found.x, cells[p][w][t][2 * half + 1] = found.y;
        }
      }
  }
}

// From strips of packed words to the words of the warp's captions.
template <typename S, typename T>
CAAN_DEVICE void hand_over(const Tile<S, T>& tile, Cells<S>& cells) {
  float* const sums = sums_of(tile, false, tile.image());
  block_barrier();
  put_sums(tile, sums, cells);
  block_barrier();
  take_sums(tile, sums, cells);
}

// S of the warp's pairs. X waits in shared memory.
template <typename S, typename T>
CAAN_DEVICE void multiply_at_once(const Tile<S, T>& tile, Cells<S>& alignment) {
  Cells<S> of_S[S::AT_ONCE] = {}, of_X[S::AT_ONCE] = {};
  multiply_rows(tile, of_S, of_X);
  block_barrier();
  if (tile.image() == 0)
#pragma unroll
    for (int i = 0; i < S::AT_ONCE; ++i) {
      put_sums(tile, sums_of(tile, false, i), of_S[i]);
      if (!tile.o.cosine) put_sums(tile, sums_of(tile, true, i), of_X[i]);
    }
  block_barrier();
  take_sums(tile, sums_of(tile, false, tile.image()), alignment);
}

// fT X g of a pair, in every lane.
template <typename S, typename T>
CAAN_DEVICE float inner_product(const Tile<S, T>& tile, int pair, const float (&X)[S::STRIPS][S::TILES][4],
                                const float (&f)[S::TILES][2], const float* g) {
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
      if (word < tile.n(pair)) product = fmaf(g[word], along, product);
    }
  return sum_over_warp(product);
}

// For the cosine, of every pair v.u over |v| |u|, in lanes of column 0. f and g are factors as what 16 bits hold plus what rounding
// left of them: two columns.
template <typename S, typename T>
CAAN_DEVICE void cosines(const Tile<S, T>& tile, const float (&of_f)[S::PAIRS][S::TILES][2],
                         const float (&of_g)[S::PAIRS][2 * S::STRIPS][2], float (&scores)[S::PAIRS]) {
  const Sides<T>& s = tile.s;
  const BlockRows<S, S::REGION_ROWS> regions(tile.items.regions);
  const BlockRows<S, S::WORD_ROWS> words(tile.items.words);
  constexpr int AT_WORDS = S::REGION_ROWS * PIECE_BYTES;
  const auto begin = [&](int piece) {
    if (piece < tile.pieces_of_width()) {
      fetch_rows<S::REGION_ROWS, S::THREADS>(tile.stage(piece), regions, s.regions, s.D, piece * PIECE, s.D);
      fetch_rows<S::WORD_ROWS, S::THREADS>(tile.stage(piece) + AT_WORDS, words, s.words, s.D, piece * PIECE, s.D);
    }
    close_copies();
  };
  begin(0);
  uint32_t f[S::PAIRS][S::DEPTHS][2] = {}, g[S::PAIRS][S::STRIPS][2] = {};
  const auto part = [&](const float (&x)[2]) {
    const uint32_t rounded = pack(x[0], x[1], T{});
    const uint32_t found = tile.row ? pack(x[0] - first_of<T>(rounded), x[1] - second_of<T>(rounded), T{}) : rounded;
    return tile.row < 2 ? found : 0;
  };
#pragma unroll
  for (int p = 0; p < S::PAIRS; ++p) {
#pragma unroll
    for (int t = 0; t < S::TILES; ++t) f[p][t / 2][t % 2] = part(of_f[p][t]);
#pragma unroll
    for (int j = 0; j < 2 * S::STRIPS; ++j) g[p][j / 2][j % 2] = part(of_g[p][j]);
  }
  float product[S::PAIRS] = {}, v_squares[S::PAIRS] = {}, u_squares[S::PAIRS] = {};
#pragma unroll 1
  for (int piece = 0; piece < tile.pieces_of_width(); ++piece) {
    wait_for_copies<0>();
    block_barrier();
    begin(piece + 1);
    const char* const region_rows = tile.stage(piece) + tile.image() * S::REGIONS * PIECE_BYTES;
    const char* const word_rows = tile.stage(piece) + AT_WORDS + tile.caption(0) * S::WORDS * PIECE_BYTES;
#pragma unroll S::UNROLLED
    for (int k = 0; k < PIECE / 16; ++k) {
      float v[S::PAIRS][4] = {}, u[S::PAIRS][4] = {};
      uint32_t left[4];
      each_depth(tile, region_rows, k, [&](int depth, const auto& of_regions) {
#pragma unroll
        for (int p = 0; p < S::PAIRS; ++p) add_product<T>(v[p], of_regions, f[p][depth]);
      });
#pragma unroll
      for (int p = 0; p < S::PAIRS; ++p) {
#pragma unroll
        for (int w = 0; w < S::STRIPS; ++w) {
          left_columns(left, word_rows, p * S::STRIPS + w, k);
          multiply_add(u[p], left, g[p][w][0], g[p][w][1], T{});
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float of_v = v[p][2 * half] + v[p][2 * half + 1], of_u = u[p][2 * half] + u[p][2 * half + 1];
          product[p] = fmaf(of_v, of_u, product[p]);
          v_squares[p] = fmaf(of_v, of_v, v_squares[p]);
          u_squares[p] = fmaf(of_u, of_u, u_squares[p]);
        }
      }
    }
  }
#pragma unroll
  for (int p = 0; p < S::PAIRS; ++p) {
    const float norms = norm_of(sum_over_rows(v_squares[p])) * norm_of(sum_over_rows(u_squares[p]));
    scores[p] = sum_over_rows(product[p]) / norms;
  }
}

} // namespace caan::context_attention
