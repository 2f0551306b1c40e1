// Attention weights of a pair in registers, as tensor cores take them: from S = V (U affinityT)T come A, C, R, C_unit and R_unit.
// C_unit is C with unit rows, R_unit is R with unit columns (kernels.h, Slot).
#pragma once

#include "core/cuda/pieces.h"

namespace caan::context_attention {

using namespace cuda;

// tanh within 2^-20 of the result, more than a half-precision factor keeps: from 2^-6 on 1 - 2 / (1 + e^2x), below two terms of its
// series.
CAAN_DEVICE float quick_tanh(float x) {
  const float large = fmaf(-2.0f, quick_inverse(1.0f + quick_exp(2.0f * x)), 1.0f);
  return fabsf(x) < 0.015625f ? fmaf(x * x * x, -1.0f / 3.0f, x) : large;
}

// tanh as close as what is made of features of type T needs it.
template <typename T>
CAAN_DEVICE float tanh_for(float x) {
  return sizeof(T) == 4 ? close_tanh(x) : quick_tanh(x);
}

CAAN_DEVICE float inverse_norm(float squares) { return quick_inverse_root(larger(squares, EPSILON * EPSILON)); }

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

// number(w, t, e) is what a product of STRIPS of 16 words (rows) by TILES of 8 regions (columns) leaves in a lane: e / 2 is 1 for
// the word 8 rows on, e % 2 for the next region. scale[w][e / 2] = 1 / norm of a word's numbers.
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

// What turns P = max(A, 0) into weights: C = P of_word, C_unit = C of_C, R = P of_region, R_unit = R of_R.
template <int STRIPS, int TILES>
struct Scales {
  float of_word[STRIPS][2], of_region[TILES][2], of_C[TILES][2], of_R[STRIPS][2];
};

// S[w][t] becomes P, 0 where there is no word or region.
template <typename T, int STRIPS, int TILES>
CAAN_DEVICE Scales<STRIPS, TILES> attend(float (&P)[STRIPS][TILES][4], int m, int n) {
  const int lane = int(threadIdx.x) % WARP, row = lane / 4, column = 2 * (lane % 4);
#pragma unroll
  for (int w = 0; w < STRIPS; ++w)
#pragma unroll
    for (int t = 0; t < TILES; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const bool exists = 16 * w + 8 * (e / 2) + row < n && 8 * t + column + e % 2 < m;
        P[w][t][e] = exists ? positive_part(tanh_for<T>(P[w][t][e])) : 0.0f;
      }
  Scales<STRIPS, TILES> found;
  norms_of_words<STRIPS, TILES>(found.of_word, [&](int w, int t, int e) { return P[w][t][e]; });
  norms_of_regions<STRIPS, TILES>(found.of_region, [&](int w, int t, int e) { return P[w][t][e]; });
  norms_of_regions<STRIPS, TILES>(found.of_C, [&](int w, int t, int e) { return P[w][t][e] * found.of_word[w][e / 2]; });
  norms_of_words<STRIPS, TILES>(found.of_R, [&](int w, int t, int e) { return P[w][t][e] * found.of_region[t][e % 2]; });
  return found;
}

// Right factors: [depth][words / 8] holds 16 regions by 8 words.
template <int STRIPS, int TILES>
using Factors = uint32_t[(TILES + 1) / 2][2 * STRIPS][2];

// `plain` of the numbers, `unit` of scale(w, t, e) times them.
template <typename T, int STRIPS, int TILES, typename Number, typename Scale>
CAAN_DEVICE void make_factors(Factors<STRIPS, TILES>& plain, Factors<STRIPS, TILES>& unit, Number number, Scale scale) {
#pragma unroll
  for (int words = 0; words < 2 * STRIPS; ++words) {
    const int w = words / 2, e = words % 2 * 2;
#pragma unroll
    for (int t = 0; t < TILES; ++t) {
      const float first = number(w, t, e), second = number(w, t, e + 1);
      plain[t / 2][words][t % 2] = pack(first, second, T{});
      unit[t / 2][words][t % 2] = pack(first * scale(w, t, e), second * scale(w, t, e + 1), T{});
    }
    if (TILES % 2) plain[TILES / 2][words][1] = unit[TILES / 2][words][1] = 0;
  }
}

// R_unitT R_unit, words by words, as right factors [depth of 16 words][words / 8]; it is its own transpose.
template <typename T, int STRIPS, int TILES>
CAAN_DEVICE void word_affinity(uint32_t (&H)[STRIPS][2 * STRIPS][2], const Factors<STRIPS, TILES>& R_unit) {
#pragma unroll
  for (int w = 0; w < STRIPS; ++w)
#pragma unroll
    for (int j = 0; j < 2 * STRIPS; ++j) {
      float h[4] = {};
#pragma unroll
      for (int depth = 0; depth < (TILES + 1) / 2; ++depth) {
        const auto& R = R_unit[depth];
        const uint32_t left[4] = {R[2 * w][0], R[2 * w + 1][0], R[2 * w][1], R[2 * w + 1][1]};
        multiply_add(h, left, R[j][0], R[j][1], T{});
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) H[j / 2][2 * w + half][j % 2] = pack(h[2 * half], h[2 * half + 1], T{});
    }
}

} // namespace caan::context_attention
