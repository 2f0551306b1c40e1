// What kernels with one pair a block share: which pairs a block takes, softmax and sums over its threads.
#pragma once

#include "context_attention/cuda/kernels.h"
#include "core/cuda/device.h"

namespace caan::context_attention {

CAAN_DEVICE float AnyNumbers::operator[](int64_t i) const {
  if (type == FLOAT32) return static_cast<const float*>(at)[i];
  const uint16_t bits = static_cast<const uint16_t*>(at)[i];
  return type == BFLOAT16 ? to_float(bfloat16{bits}) : to_float(float16{bits});
}

CAAN_DEVICE int lane_of_thread() { return int(threadIdx.x) % WARP; }
CAAN_DEVICE int warp_of_thread() { return int(threadIdx.x) / WARP; }

// In place, by one warp.
CAAN_DEVICE void softmax_of(float* logits, int count) {
  const int lane = lane_of_thread();
  float highest = -INFINITY, sum = 0;
  for (int i = lane; i < count; i += WARP) highest = fmaxf(highest, logits[i]);
  highest = highest_of_warp(highest);
  for (int i = lane; i < count; i += WARP) {
    const float e = expf(logits[i] - highest);
    logits[i] = e;
    sum += e;
  }
  const float scale = 1.0f / sum_over_warp(sum);
  for (int i = lane; i < count; i += WARP) logits[i] *= scale;
}

// The sum over all threads of a block of WARPS warps; by_warp has room for as many numbers.
template <int WARPS>
CAAN_DEVICE float sum_over_block(float x, float* by_warp) {
  x = sum_over_warp(x);
  if (lane_of_thread() == 0) by_warp[warp_of_thread()] = x;
  block_barrier();
  x = by_warp[0];
  for (int w = 1; w < WARPS; ++w) x += by_warp[w];
  block_barrier();
  return x;
}

// Inner product and squared norms of v = f V and u = g U.
struct Pooled {
  float product, v_squares, u_squares;
};
// each(d, v[d], u[d]) on the way.
template <int WARPS, typename Rows, typename Each>
CAAN_DEVICE Pooled pool(Rows V, Rows U, const float* f, const float* g, int m, int n, int D, float* by_warp, Each each) {
  Pooled found{};
  for (int d = int(threadIdx.x); d < D; d += WARPS * WARP) {
    float v = 0, u = 0;
    for (int r = 0; r < m; ++r) v = fmaf(f[r], to_float(V[int64_t(r) * D + d]), v);
    for (int j = 0; j < n; ++j) u = fmaf(g[j], to_float(U[int64_t(j) * D + d]), u);
    found.product = fmaf(v, u, found.product);
    found.v_squares = fmaf(v, v, found.v_squares);
    found.u_squares = fmaf(u, u, found.u_squares);
    each(d, v, u);
  }
  found.product = sum_over_block<WARPS>(found.product, by_warp);
  found.v_squares = sum_over_block<WARPS>(found.v_squares, by_warp);
  found.u_squares = sum_over_block<WARPS>(found.u_squares, by_warp);
  return found;
}

struct Found {
  int64_t image = 0, caption = 0;
  int m = 0, n = 0;
};

// The pair at a place of the call; one without regions or words where there is none.
template <typename T>
CAAN_DEVICE Found find_pair(const Sides<T>& s, const Pairs& pairs, int64_t place) {
  Found found;
  if (place >= pairs.count) return found;
  place += pairs.first;
  const int64_t image = pairs.pairs ? pairs.pairs[2 * place] : place / s.captions;
  const int64_t caption = pairs.pairs ? pairs.pairs[2 * place + 1] : place % s.captions;
  if (image < 0 || image >= s.images || caption < 0 || caption >= s.captions) return found;
  return {image, caption, int(s.region_lengths[image]), int(s.word_lengths[caption])};
}

// work(place, pair) for every gridDim-th place whose pair is wanted(m, n). Where few are, as many at once as the block has threads
// are looked at; `marks` has room for as many. KNOWN: how many those are, where that should take no register.
template <int KNOWN = 0, typename T, typename Wanted, typename Work>
CAAN_DEVICE void for_each_pair(const Sides<T>& s, const Pairs& pairs, bool* marks, Wanted wanted, Work work) {
  const unsigned threads = KNOWN ? KNOWN : blockDim.x;
  for (int64_t first = blockIdx.x; first < pairs.count; first += int64_t(threads) * gridDim.x) {
    const Found mine = find_pair(s, pairs, first + int64_t(threadIdx.x) * gridDim.x);
    marks[threadIdx.x] = mine.m > 0 && mine.n > 0 && wanted(mine.m, mine.n);
    block_barrier();
    for (unsigned t = 0; t < threads; ++t) {
      if (!marks[t]) continue;
      const int64_t place = first + int64_t(t) * gridDim.x;
      work(place, find_pair(s, pairs, place));
      // The next pair is worked on in the same memory.
      block_barrier();
    }
    block_barrier();
  }
}

// Where the score of a pair goes.
CAAN_DEVICE int64_t score_place(const Pairs& pairs, int64_t place, const Found& pair, int64_t score_row) {
  return pairs.pairs ? pairs.first + place : pair.image * score_row + pair.caption;
}

} // namespace caan::context_attention
