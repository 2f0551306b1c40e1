// Vectors of float or double as wide as the instruction set of this translation unit, and loads from every storage type.
// All that depends on the instruction set lies in a namespace of its own, so that no function of one set can be linked into
// another.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/cpu/target.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

template <class F>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(CAAN_VECTOR_BYTES)));
  typedef int32_t mask __attribute__((vector_size(CAAN_VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(CAAN_VECTOR_BYTES)));
  typedef int64_t mask __attribute__((vector_size(CAAN_VECTOR_BYTES)));
};
template <class F>
using Vec = typename VectorOf<F>::type;

#define CAAN_INLINE inline __attribute__((always_inline))

template <class F>
inline constexpr int lanes = CAAN_VECTOR_BYTES / sizeof(F);

// Micro-tiles are up to tile_rows x 3 vectors: as many accumulators as the register file holds beside three columns and one
// broadcast. Three vectors wide and four high needs fewer loads for a multiply-add than two wide and six high: 92 us a pair against
// 103 on AVX2.
inline constexpr int tile_vectors = 3;
inline constexpr int tile_rows = CAAN_REGISTERS >= 32 ? 8 : 4;
// Columns of a micro-tile: the width of every packed panel.
template <class F>
inline constexpr int64_t panel_width = tile_vectors * lanes<F>;

template <class F>
CAAN_INLINE Vec<F> splat(F value) {
  Vec<F> v;
  for (int l = 0; l < lanes<F>; ++l) v[l] = value;
  return v;
}

template <class F>
CAAN_INLINE Vec<F> load(const F* p) {
  Vec<F> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class F>
CAAN_INLINE void store(F* p, Vec<F> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// Asks for vectors that will be read soon, locality 3, or later, 2; the addresses need not exist.
template <int locality = 3, class T>
CAAN_INLINE void prefetch(const T* p, int64_t vectors) {
  for (int64_t v = 0; v < vectors; ++v) __builtin_prefetch(p + v * int64_t(CAAN_VECTOR_BYTES / sizeof(T)), 0, locality);
}

template <class F>
CAAN_INLINE F sum(Vec<F> v) {
  // A fixed tree: the order is part of the result.
  F s[lanes<F>];
  __builtin_memcpy(s, &v, sizeof v);
  for (int half = lanes<F> / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) s[l] += s[l + half];
  return s[0];
}

// Comparisons are written so that a NaN in v comes out as NaN.
template <class F>
CAAN_INLINE Vec<F> at_most(Vec<F> v, F limit) {
  const Vec<F> bound = splat(limit);
  return bound < v ? bound : v;
}
template <class F>
CAAN_INLINE Vec<F> at_least(Vec<F> v, F limit) {
  const Vec<F> bound = splat(limit);
  return bound > v ? bound : v;
}
#if defined(__AVX512F__) && CAAN_VECTOR_BYTES == 64
template <>
CAAN_INLINE Vec<float> at_most<float>(Vec<float> v, float limit) {
  return _mm512_min_ps(_mm512_set1_ps(limit), v);
}
template <>
CAAN_INLINE Vec<float> at_least<float>(Vec<float> v, float limit) {
  return _mm512_max_ps(_mm512_set1_ps(limit), v);
}
#elif defined(__AVX2__) && CAAN_VECTOR_BYTES == 32
template <>
CAAN_INLINE Vec<float> at_most<float>(Vec<float> v, float limit) {
  return _mm256_min_ps(_mm256_set1_ps(limit), v);
}
template <>
CAAN_INLINE Vec<float> at_least<float>(Vec<float> v, float limit) {
  return _mm256_max_ps(_mm256_set1_ps(limit), v);
}
#endif

template <class F>
CAAN_INLINE F at_least_scalar(F v, F limit) {
  return limit > v ? limit : v;
}

// bfloat16 and float16 are storage only: bits that become float on the way in and are rounded to nearest even on the way out.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
struct Arithmetic {
  using type = float;
};
template <>
struct Arithmetic<double> {
  using type = double;
};
template <class T>
using Real = typename Arithmetic<T>::type;

CAAN_INLINE float bits_to_float(uint32_t bits) {
  float f;
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
}
CAAN_INLINE uint32_t float_to_bits(float f) {
  uint32_t bits;
  __builtin_memcpy(&bits, &f, sizeof bits);
  return bits;
}

CAAN_INLINE float widen(float v) { return v; }
CAAN_INLINE double widen(double v) { return v; }
CAAN_INLINE float widen(BFloat16 v) { return bits_to_float(uint32_t(v.bits) << 16); }
CAAN_INLINE float widen(Float16 v) {
#if defined(__F16C__)
  return _cvtsh_ss(v.bits);
#else
  const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16;
  const uint32_t magnitude = v.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // 2^112 rescales the exponent and normalises subnormals in one exact multiplication.
  return bits_to_float(sign | float_to_bits(bits_to_float(magnitude << 13) * 0x1p112f));
#endif
}

template <class T>
CAAN_INLINE T narrow(Real<T> v) {
  return v;
}
template <>
CAAN_INLINE BFloat16 narrow<BFloat16>(float v) {
  const uint32_t bits = float_to_bits(v);
  if (v != v) return {uint16_t(bits >> 16 | 0x40u)};
  return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}
template <>
CAAN_INLINE Float16 narrow<Float16>(float v) {
#if defined(__F16C__)
  return {uint16_t(_cvtss_sh(v, 0))};
#else
  const uint32_t bits = float_to_bits(v);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {uint16_t(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};
  if (magnitude < 0x38800000u) {
    // Adding 1/2 lines the subnormal's last bit up with the float's, so the addition itself rounds to nearest even.
    return {uint16_t(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u))};
  }
  return {uint16_t(sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13)};
#endif
}

template <class T>
CAAN_INLINE Vec<Real<T>> load_wide(const T* p) {
  using F = Real<T>;
  Vec<F> v;
  for (int l = 0; l < lanes<F>; ++l) v[l] = widen(p[l]);
  return v;
}
template <>
CAAN_INLINE Vec<float> load_wide<float>(const float* p) {
  return load(p);
}
template <>
CAAN_INLINE Vec<double> load_wide<double>(const double* p) {
  return load(p);
}

// The first count (< lanes) numbers, 0 in the lanes behind them.
template <class T>
CAAN_INLINE Vec<Real<T>> load_head(const T* p, int64_t count) {
  using F = Real<T>;
  F head[lanes<F>] = {};
  for (int64_t l = 0; l < count; ++l) head[l] = widen(p[l]);
  return load(head);
}

// With t = tanh(x/2) = n / q, n = x P(x²), q = Q(x²): tanh(x) = 2t / (1 + t²) = 2nq / (q² + n²). Going through the half angle
// squashes the rounding errors of n and q where tanh saturates, which x P(x²) / Q(x²) itself would pass on, and needs five
// coefficients less one. Minimax fit of the relative error on [0, 9.1]: 0.13 ulp, under 3 ulp with the rounding.
CAAN_INLINE Vec<float> tanh(Vec<float> x) {
  x = at_least<float>(at_most<float>(x, 9.1f), -9.1f);
  const Vec<float> y = x * x;
  const Vec<float> p = (0x1.ba4ed4p-14f * y + 0x1.c306dap-6f) * y + 0x1.d992acp-1f;
  const Vec<float> q = ((0x1.2fed32p-19f * y + 0x1.24428ap-9f) * y + 0x1.ac78c8p-3f) * y + 0x1.d992acp+0f;
  const Vec<float> n = x * p;
  return (n + n) * q / (n * n + q * q);
}
// exp of numbers that are not positive, as a softmax needs it: 2^k times a degree-6 polynomial, under 2 ulp down to the smallest
// normal.
CAAN_INLINE Vec<float> exp_nonpositive(Vec<float> x) {
  x = at_least<float>(x, -87.0f);
  const Vec<float> shifted = x * 0x1.715476p+0f + 0x1.8p23f; // the low bits now hold round(x / ln 2)
  const Vec<float> k = shifted - 0x1.8p23f;
  const Vec<float> r = (x - k * 0x1.62e4p-1f) - k * 0x1.7f7d1cp-20f;
  const Vec<float> e =
      (((((0x1.6c16c2p-10f * r + 0x1.111112p-7f) * r + 0x1.555556p-5f) * r + 0x1.555556p-3f) * r + 0.5f) * r + 1.0f) * r + 1.0f;
  VectorOf<float>::mask bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 127) << 23;
  Vec<float> scale;
  __builtin_memcpy(&scale, &bits, sizeof scale);
  return e * scale;
}

// exp(x) = 2^k (1 + p), k = round(x / ln 2): p = exp(r) - 1 is the Taylor series to r^13 of |r| <= ln 2 / 2, whose rest is below
// 2^-57.
struct ExpParts {
  Vec<double> scale, p;
};
CAAN_INLINE ExpParts exp_parts(Vec<double> x) {
  const Vec<double> shifted = x * 0x1.71547652b82fep+0 + 0x1.8p52;
  const Vec<double> k = shifted - 0x1.8p52;
  const Vec<double> r = (x - k * 0x1.62e42fefap-1) - k * 0x1.cf79abc9e3b39p-40;
  Vec<double> p = r * (1.0 / 6227020800.0) + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = p * (r * r) + r;
  VectorOf<double>::mask bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 1023) << 52;
  ExpParts parts{{}, p};
  __builtin_memcpy(&parts.scale, &bits, sizeof bits);
  return parts;
}
CAAN_INLINE Vec<double> exp_nonpositive(Vec<double> x) {
  const ExpParts e = exp_parts(at_least<double>(x, -708.0));
  return e.scale + e.scale * e.p;
}

// tanh(x) = (exp(2x) - 1) / (exp(2x) + 1) by exp(2x) - 1 itself, which keeps its precision near 0.
CAAN_INLINE Vec<double> tanh(Vec<double> x) {
  x = at_least<double>(at_most<double>(x, 20.0), -20.0);
  const ExpParts e = exp_parts(x + x);
  const Vec<double> less_one = e.scale * e.p + (e.scale - 1.0);
  return less_one / (less_one + 2.0);
}

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE
