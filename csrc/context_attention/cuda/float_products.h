// What a block of tiles.cu multiplies in float32: S and X, and the contexts (float_tiles.h).
#pragma once

#include "context_attention/cuda/float_tiles.h"
#include "context_attention/cuda/tile_products.h"

namespace caan::context_attention {

// A stage's rows from `first` on, of `rows` in all.
CAAN_DEVICE Section section(char* stage, int rows, int first) {
  return {stage + first * PIECE_BYTES, stage + (2 * rows + first) * (PIECE_BYTES / 2)};
}

template <typename S>
using ComingRegions = ComingRows<S::REGION_ROWS, S::THREADS, S::AHEAD>;
template <typename S>
using ComingWords = ComingRows<S::WORD_ROWS, S::THREADS, S::AHEAD>;

// S and X, as `multiply_rows`. The sums of 16 columns stand alone and are added in float32 arithmetic, since the tensor cores cut
// theirs off.
template <typename S>
CAAN_DEVICE void multiply_parts_of_rows(const Tile<S, float>& tile, Cells<S>& alignment, Cells<S>& similarity) {
  const Sides<float>& s = tile.s;
  const uint32_t *const regions = tile.items.regions, *const words = S::LISTED ? tile.items.words : tile.items.packed;
  constexpr int AT_UK = S::REGION_ROWS, AT_U = AT_UK + S::WORD_ROWS;
  ComingRegions<S> V{regions, s.regions, uint32_t(s.D), s.D};
  ComingWords<S> UK{words, s.word_products, uint32_t(s.D + 2 * s.H), s.D}, U{words, s.words, uint32_t(s.D), s.D};
  const auto announce = [&](int column) { V.announce(column), UK.announce(column), U.announce(column); };
  const int first = tile.caption(0) * S::WORDS;
  const bool any = !tile.items.packs() || first < tile.items.all_words();
  announce(0);
#pragma unroll 1
  for (int column = 0; column < s.D; column += S::COLUMNS) {
    char* const stage = tile.stages + column / S::COLUMNS % S::STAGES * S::PRODUCT_BYTES;
    const auto rows_from = [&](int first) { return section(stage, S::PRODUCT_ROWS, first); };
    if (S::STAGES == 1) block_barrier();
    V.store(column, rows_from(0));
    UK.store(column, rows_from(AT_UK));
    U.store(column, rows_from(AT_U));
    block_barrier();
    announce(column + S::COLUMNS);
    if (!any) continue;
#pragma unroll 1
    for (int k = 0; k < S::COLUMNS / 16; ++k) {
      FactorParts left[2 * S::STRIPS], right;
#pragma unroll
      for (int i = 0; i < 2 * S::STRIPS; ++i) left_parts(left[i], rows_from((i % 2 ? AT_U : AT_UK) + first), i / 2, k);
#pragma unroll
      for (int depth = 0; depth < S::DEPTHS; ++depth) {
        right_parts(right, rows_from(tile.image() * S::REGIONS), depth, k);
        float sums[4 * S::STRIPS][4] = {};
        each_product<4 * S::STRIPS>([&](int term, int l, int r) {
          const int half = term % 2;
          if (2 * depth + half < S::TILES)
            multiply_add(sums[term], left[term / 2][l], right[r][2 * half], right[r][2 * half + 1], bfloat16{});
        });
#pragma unroll
        for (int term = 0; term < 4 * S::STRIPS; ++term) {
          const int t = 2 * depth + term % 2;
          if (t >= S::TILES) continue;
          auto& to = (term / 2 % 2 ? similarity : alignment)[0][term / 4][t];
#pragma unroll
          for (int e = 0; e < 4; ++e) to[e] += sums[term][e];
        }
      }
    }
  }
}

// What a warp finds of a step of 16 hidden columns: its image's rows and its caption's, columns 16 k of the piece, and what a
// lane's two rows of it weigh.
struct Step {
  Section regions, words;
  int k;
  float at_row, on;
};

// body(Step) for all hidden columns, of the words' contexts or of the regions'. A term that is not asked for has rows of 0.
template <typename S, typename Body>
CAAN_DEVICE void each_step(const Tile<S, float>& tile, bool of_words, Body body) {
  const Sides<float>& s = tile.s;
  const bool with_regions = of_words ? tile.o.inter : tile.o.intra, with_words = of_words ? tile.o.intra : tile.o.inter;
  const int side = of_words ? s.H : 0;
  const float* const vector = of_words ? s.word_score : s.region_score;
  ComingRegions<S> V{tile.items.regions, s.region_products + side, uint32_t(2 * s.H), with_regions ? s.H : 0};
  ComingWords<S> U{tile.items.words, s.word_products + s.D + side, uint32_t(s.D + 2 * s.H), with_words ? s.H : 0};
  const auto announce = [&](int column) { V.announce(column), U.announce(column); };
  announce(0);
  // With two stages once: what lay there is read no more.
  if (S::STAGES == 2) block_barrier();
#pragma unroll 1
  for (int column = 0; column < s.H; column += S::COLUMNS) {
    if (S::STAGES == 1) block_barrier();
    char* const stage = tile.stages + column / S::COLUMNS % S::STAGES * S::CONTEXT_BYTES;
    const auto rows_from = [&](int first) { return section(stage, S::CONTEXT_ROWS, first); };
    float* const weights = reinterpret_cast<float*>(stage + S::WEIGHTS_AT);
    V.store(column, rows_from(0));
    U.store(column, rows_from(S::REGION_ROWS));
    const int c = int(tile.thread);
    if (c < S::COLUMNS) weights[c] = column + c < s.H ? vector[column + c] : 0.0f;
    block_barrier();
    announce(column + S::COLUMNS);
#pragma unroll 1
    for (int k = 0; k < S::COLUMNS / 16; ++k)
      body(Step{rows_from(tile.image() * S::REGIONS), rows_from(S::REGION_ROWS + tile.caption(0) * S::WORDS), k,
                weights[16 * k + tile.row], weights[16 * k + 8 + tile.row]});
  }
}

// Right factors of 16 by 8 numbers: [half of the depth][part].
using RightParts = uint32_t[2][3];
template <int DEPTHS, int TILES>
using PartedFactors = RightParts[DEPTHS][TILES];

// A sum of products, of those of small parts apart.
struct Apart {
  float big[4] = {}, small[4] = {};

  CAAN_DEVICE void add(const FactorParts& left, int l, const RightParts& right, int r) {
    multiply_add(l + r ? small : big, left[l], right[0][r], right[1][r], bfloat16{});
  }
  CAAN_DEVICE float operator[](int e) const { return big[e] + small[e]; }
};

// number(w, t, e), words by regions, as a factor that sums over regions.
template <int STRIPS, int TILES, typename Number>
CAAN_DEVICE void split_factors(PartedFactors<(TILES + 1) / 2, 2 * STRIPS>& factors, Number number) {
#pragma unroll
  for (int words = 0; words < 2 * STRIPS; ++words)
#pragma unroll
    for (int t = 0; t < TILES + TILES % 2; ++t) {
      const int w = words / 2, e = words % 2 * 2;
      if (t < TILES)
        split(factors[t / 2][words][t % 2], number(w, t, e), number(w, t, e + 1));
      else
        factors[t / 2][words][1][0] = factors[t / 2][words][1][1] = factors[t / 2][words][1][2] = 0;
    }
}

// Such a number again.
template <int DEPTHS, int WORD_TILES>
CAAN_DEVICE float number_of(const PartedFactors<DEPTHS, WORD_TILES>& factors, int w, int t, int e) {
  const auto& parts = factors[t / 2][2 * w + e / 2][t % 2];
  float sum = 0;
#pragma unroll
  for (int i = 2; i >= 0; --i) sum += e % 2 ? second_of<bfloat16>(parts[i]) : first_of<bfloat16>(parts[i]);
  return sum;
}

// The same as a factor that sums over words.
template <int STRIPS, int TILES>
CAAN_DEVICE void turn(PartedFactors<STRIPS, TILES>& turned, const PartedFactors<(TILES + 1) / 2, 2 * STRIPS>& factors) {
#pragma unroll
  for (int w = 0; w < STRIPS; ++w)
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
      for (int half = 0; half < 2; ++half)
#pragma unroll
        for (int part = 0; part < 3; ++part) turned[w][t][half][part] = transpose_matrix(factors[t / 2][2 * w + half][t % 2][part]);
}

// R_unitT R_unit, words by words.
template <int STRIPS, int TILES>
CAAN_DEVICE void word_affinity(PartedFactors<STRIPS, 2 * STRIPS>& H, const PartedFactors<(TILES + 1) / 2, 2 * STRIPS>& R_unit) {
#pragma unroll
  for (int w = 0; w < STRIPS; ++w)
#pragma unroll
    for (int j = 0; j < 2 * STRIPS; ++j) {
      Apart h;
#pragma unroll
      for (int depth = 0; depth < (TILES + 1) / 2; ++depth) {
        const auto& R = R_unit[depth];
        FactorParts left;
#pragma unroll
        for (int part = 0; part < 3; ++part)
#pragma unroll
          for (int i = 0; i < 4; ++i) left[part][i] = R[2 * w + i % 2][i / 2][part];
        each_product<1>([&](int, int l, int r) { h.add(left, l, R[j], r); });
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) split(H[j / 2][2 * w + half][j % 2], h[2 * half], h[2 * half + 1]);
    }
}

template <typename S>
CAAN_DEVICE void add_word_logits(const Tile<S, float>& tile, const PartedFactors<S::DEPTHS, 2 * S::STRIPS>& R,
                                 const PartedFactors<S::STRIPS, 2 * S::STRIPS>& H, float (&logits)[2 * S::STRIPS][2]) {
  each_step(tile, true, [&](const Step& step) {
    Apart X[2 * S::STRIPS];
    FactorParts left;
#pragma unroll
    for (int depth = 0; depth < S::DEPTHS; ++depth) {
      turned_parts(left, step.regions, depth, step.k);
      each_product<2 * S::STRIPS>([&](int j, int l, int r) { X[j].add(left, l, R[depth][j], r); });
    }
#pragma unroll
    for (int w = 0; w < S::STRIPS; ++w) {
      turned_parts(left, step.words, w, step.k);
      each_product<2 * S::STRIPS>([&](int j, int l, int r) { X[j].add(left, l, H[w][j], r); });
    }
#pragma unroll
    for (int j = 0; j < 2 * S::STRIPS; ++j)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        logits[j][e] = fmaf(summed_tanh(X[j][2 + e]), step.on, fmaf(summed_tanh(X[j][e]), step.at_row, logits[j][e]));
  });
}

// C_unit sums over regions, and turned over words: C is norm times it.
template <typename S>
CAAN_DEVICE void add_region_logits(const Tile<S, float>& tile, const PartedFactors<S::DEPTHS, 2 * S::STRIPS>& C_unit,
                                   const PartedFactors<S::STRIPS, S::TILES>& turned, const float (&norm)[S::TILES][2],
                                   float (&logits)[S::TILES][2]) {
  each_step(tile, false, [&](const Step& step) {
    Apart z[2 * S::STRIPS];
#pragma unroll
    for (int depth = 0; depth < S::DEPTHS; ++depth) {
      FactorParts left;
      turned_parts(left, step.regions, depth, step.k);
      each_product<2 * S::STRIPS>([&](int j, int l, int r) { z[j].add(left, l, C_unit[depth][j], r); });
    }
    FactorParts Z[S::STRIPS], UQ2[S::STRIPS];
#pragma unroll
    for (int w = 0; w < S::STRIPS; ++w) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const Apart& of = z[2 * w + i / 2];
        uint32_t parts[3];
        split(parts, of[2 * (i % 2)], of[2 * (i % 2) + 1]);
#pragma unroll
        for (int part = 0; part < 3; ++part) Z[w][part][i] = parts[part];
      }
      turned_parts(UQ2[w], step.words, w, step.k);
    }
#pragma unroll
    for (int t = 0; t < S::TILES; ++t) {
      Apart Y[2];
#pragma unroll
      for (int w = 0; w < S::STRIPS; ++w)
        each_product<2>([&](int term, int l, int r) { Y[term].add((term ? UQ2 : Z)[w], l, turned[w][t], r); });
      const auto y = [&](int e) { return summed_tanh(fmaf(norm[t][e % 2], Y[1][e], Y[0][e])); };
#pragma unroll
      for (int e = 0; e < 2; ++e) logits[t][e] = fmaf(y(2 + e), step.on, fmaf(y(e), step.at_row, logits[t][e]));
    }
  });
}

// From S the logits of the warp's words and regions. What a side needs of the weights is made late, for the sake of registers, and
// C of R: P = max(A, 0) is R over what made it that.
template <typename S>
CAAN_DEVICE void add_logits(const Tile<S, float>& tile, float (&A)[S::STRIPS][S::TILES][4], float (&of_regions)[S::TILES][2],
                            float (&of_words)[2 * S::STRIPS][2]) {
  constexpr int STRIPS = S::STRIPS, TILES = S::TILES;
  const auto scales = attend<float, STRIPS, TILES>(A, tile.m(), tile.n(0));
  const auto R = [&](int w, int t, int e) { return A[w][t][e] * scales.of_region[t][e % 2]; };
  PartedFactors<S::DEPTHS, 2 * STRIPS> factors;
  PartedFactors<STRIPS, 2 * STRIPS> H;
  split_factors<STRIPS, TILES>(factors, [&](int w, int t, int e) { return R(w, t, e) * scales.of_R[w][e / 2]; });
  word_affinity<STRIPS, TILES>(H, factors);
  split_factors<STRIPS, TILES>(factors, R);
  add_word_logits(tile, factors, H, of_words);
  float norm[TILES][2];
  PartedFactors<S::DEPTHS, 2 * STRIPS> C_unit;
  PartedFactors<STRIPS, TILES> turned;
#pragma unroll
  for (int t = 0; t < TILES; ++t)
#pragma unroll
    for (int e = 0; e < 2; ++e) norm[t][e] = quick_inverse(scales.of_C[t][e]);
  split_factors<STRIPS, TILES>(C_unit, [&](int w, int t, int e) {
    const float P = number_of(factors, w, t, e) * quick_inverse(scales.of_region[t][e % 2]);
    return P * scales.of_word[w][e / 2] * scales.of_C[t][e % 2];
  });
  turn<STRIPS, TILES>(turned, C_unit);
  add_region_logits(tile, C_unit, turned, norm, of_regions);
}

} // namespace caan::context_attention
