// What a block has that scores a pair on tensor cores by itself (large.cu): its shape, its shared memory, its slot of scratch
// memory.
#pragma once

#include "context_attention/cuda/attention.h"
#include "context_attention/cuda/block.h"
#include "core/cuda/factors.h"

namespace caan::context_attention {

// STRIPS of 16 words; a sweep has WIDE times 16 hidden columns for each of WARPS, whose numbers have so many COLUMNS in a piece.
template <int STRIPS_, int WARPS_, int WIDE_, int BLOCKS_, int COLUMNS_>
struct LargeShape {
  static constexpr int STRIPS = STRIPS_, WORDS = 16 * STRIPS, WARPS = WARPS_, THREADS = WARPS * WARP, BLOCKS = BLOCKS_;
  static constexpr int WIDE = WIDE_, SWEEP = 16 * WIDE * WARPS, COLUMNS = COLUMNS_, PIECES = SWEEP / COLUMNS;
  // Of the products S and X a warp makes one, or both where there are few warps.
  static constexpr int REGIONS = 64, PRODUCTS = 8 / WARPS, PRODUCT_STAGE = (REGIONS + 2 * WORDS) * PIECE_BYTES;
  // Rows of a sweep that come at once, of two matrices, and what of a sweep lies in shared memory as a whole.
  static constexpr int DEPTH = STRIPS == 8 || WIDE == 2 ? 16 : 32, SIDE_BYTES = PIECES * DEPTH * PIECE_BYTES;
  static constexpr int SWEEP_STAGE = 2 * SIDE_BYTES, KEPT_BYTES = PIECES * WORDS * PIECE_BYTES;
  // Warps share the sum over regions in R_unitT R_unit.
  static constexpr int PARTS = WARPS / STRIPS, AFFINITY_BYTES = PARTS * WORDS * WORDS * int(sizeof(float));
  static constexpr int SWEEP_BYTES = 2 * SWEEP_STAGE + 2 * KEPT_BYTES;
  static constexpr int MOST = 2 * PRODUCT_STAGE > SWEEP_BYTES ? 2 * PRODUCT_STAGE : SWEEP_BYTES;
  static constexpr int MEMORY = MOST > AFFINITY_BYTES ? MOST : AFFINITY_BYTES;
};
// Of half precision, and of float32.
template <int STRIPS>
struct Large : LargeShape<STRIPS, 8, 1, (STRIPS < 4 ? 2 : 1), 64> {};
template <int STRIPS>
struct Single : LargeShape<STRIPS, 4, (STRIPS < 4 ? 2 : 1), (STRIPS == 1 ? 3 : 2), 32> {};

// Of words, in shared memory.
template <typename S>
struct Vectors {
  float of_word[S::WORDS], of_R[S::WORDS], g[S::WORDS];
  float by_warp[2][S::WARPS][S::WORDS];
  float w_v[S::SWEEP], w_u[S::SWEEP];
  bool marks[S::THREADS];
  // The pair at work, read where it is needed: in between it would take registers.
  Found pair;
};

// A pair's part of scratch memory. Blocks are 16 words by 16 regions, a region strip's follow each other. P and X are eight numbers
// a lane, as products leave them: two tiles of 8 regions. Rt and C_unit_t are left factors, words by regions; C and C_unit, regions
// by words, come where P was, as far as there is room. affinity is R_unitT R_unit, words by words.
template <typename S, typename T>
struct LargeSlot {
  // Floats of a block as a factor.
  static constexpr int FACTOR = 256 * int(sizeof(T)) / int(sizeof(float));
  static constexpr bool APART = 2 * FACTOR > 256;
  float* const base;
  const int M;

  static CAAN_BOTH int64_t blocks(int M) { return int64_t(strips_of(M)) * S::STRIPS; }
  static CAAN_BOTH int64_t floats(int M) {
    return blocks(M) * (2 * 256 + (APART ? 3 : 2) * FACTOR) + strips_of(M) * 32 + S::STRIPS * S::STRIPS * FACTOR;
  }

  CAAN_DEVICE float* P() const { return base; }
  CAAN_DEVICE float* X() const { return base + 256 * blocks(M); }
  CAAN_DEVICE Left<T>* Rt() const { return reinterpret_cast<Left<T>*>(base + 2 * 256 * blocks(M)); }
  CAAN_DEVICE Left<T>* C_unit_t() const { return Rt() + WARP * blocks(M); }
  CAAN_DEVICE Left<T>* affinity() const { return C_unit_t() + (APART ? 2 : 1) * WARP * blocks(M); }
  CAAN_DEVICE float* of_region() const { return reinterpret_cast<float*>(affinity() + S::STRIPS * S::STRIPS * WARP); }
  CAAN_DEVICE float* f() const { return of_region() + STRIP * strips_of(M); }
  CAAN_DEVICE Left<T>* C(int block) const { return reinterpret_cast<Left<T>*>(base + 256 * int64_t(block)); }
  CAAN_DEVICE Left<T>* C_unit(int block) const { return APART ? C_unit_t() + WARP * (blocks(M) + block) : C(block) + WARP; }
};

// A block at work on a pair.
template <typename S, typename T>
struct Work {
  const Sides<T>& s;
  const Options& o;
  const LargeSlot<S, T> slot;
  char* const shared;
  Vectors<S>& v;
  const Found& pair;
  const int lane = lane_of_thread(), warp = warp_of_thread(), row = lane / 4, column = 2 * (lane % 4);

  CAAN_DEVICE int strips() const { return strips_of(pair.m); }
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

// Half precision needs less than the features hold; float32 needs what they hold.
template <typename T>
CAAN_DEVICE float tanh_of_context(float x) {
  return sizeof(T) == 4 ? close_tanh(x) : rough_tanh(x);
}

} // namespace caan::context_attention
