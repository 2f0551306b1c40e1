// What finding the place of the largest number needs beside device.h.
#pragma once

#include "core/cuda/device.h"

namespace caan::cuda {

#ifdef __CUDACC__

CAAN_DEVICE int shuffle_xor(int x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
// A bit for each lane of the warp.
CAAN_DEVICE uint32_t ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
CAAN_DEVICE int lowest_bit(uint32_t bits) { return __ffs(int(bits)) - 1; }

#else

inline int shuffle_xor(int x, int mask) {
  return static_cast<const int*>(exchange(&x, sizeof(x)))[(threadIdx.x % WARP) ^ unsigned(mask)];
}
inline uint32_t ballot(bool x) {
  const auto* all = static_cast<const bool*>(exchange(&x, sizeof(x)));
  uint32_t bits = 0;
  for (int lane = 0; lane < WARP; ++lane) bits |= uint32_t(all[lane]) << lane;
  return bits;
}
inline int lowest_bit(uint32_t bits) { return std::countr_zero(bits); }

#endif

// Whether a number at a place comes before another: the larger of the two, of equals the one at the lower place. NaN is larger than
// all numbers, and NaNs are equal.
CAAN_DEVICE bool comes_first(float x, int place, float other, int other_place) {
  const bool nan = x != x, other_nan = other != other;
  return x > other || (nan && !other_nan) || ((x == other || (nan && other_nan)) && place < other_place);
}

} // namespace caan::cuda
