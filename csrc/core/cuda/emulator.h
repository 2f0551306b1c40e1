// CUDA's threads on the CPU, one after another, so that tests run the kernels where there is no GPU. Not fast.
//
// A thread runs until it meets a barrier, a shuffle or a tensor-core product, and waits there for the others. Every other block,
// and of a block every other time, runs its threads backwards, shared memory starts as NaN, and an asynchronous copy arrives only
// when it is waited for: what a missing barrier or wait would break on a GPU shows here as a wrong result, too. Blocks come one
// after another; one that waits for a later one ends the process. With CAAN_EMULATED_THREADS every CUDA thread is one of the
// system's, and two blocks run at once, so that ThreadSanitizer sees what no barrier orders (tests/sanitize/cuda_races.cpp).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "core/cuda/types.h"

namespace caan::cuda {

struct Index {
  unsigned x;
};
inline thread_local Index threadIdx{}, blockIdx{}, blockDim{}, gridDim{};

struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct uint4 {
  uint32_t x, y, z, w;
};

// Runs a kernel's body for every thread of every block.
void emulate(int64_t blocks, int threads, size_t shared, const std::function<void()>& body);

// A launch as it was asked for. The name has the kernel's in it, template arguments and all; arguments are where they lie.
struct Launch {
  const char* name;
  int64_t blocks, threads, shared, count;
  const void* const* arguments;
  const size_t* sizes;
};

// Where it is set, it takes every launch, and no kernel runs.
inline void (*on_launch)(const Launch& launch) = nullptr;

template <auto KERNEL, typename... Arguments>
void launch(int64_t blocks, int threads, size_t shared, Stream, Arguments... arguments) {
  if (!on_launch) return emulate(blocks, threads, shared, [&] { KERNEL(arguments...); });
  const void* const places[] = {&arguments...};
  const size_t sizes[] = {sizeof(arguments)...};
  on_launch({__PRETTY_FUNCTION__, blocks, threads, int64_t(shared), sizeof...(arguments), places, sizes});
}

template <typename... Parameters>
int error_on(int, void (*)(Parameters...)) {
  return 0;
}

char* emulated_shared_memory();
void block_barrier();
void warp_barrier();
// What every lane of the warp gave, in the order of lanes, each item `size` bytes; valid until the warp's next exchange.
const void* exchange(const void* mine, size_t size);

int64_t take_turn(int64_t* taken);
void end_turn(int64_t* ended);
void wait_for_turns(const int64_t* ended, int64_t count);

float shuffle_xor(float x, int mask);
void copy_16_bytes(void* shared, const void* global, bool exists);
void close_copies();
void wait_until_open(int groups);
template <int OPEN>
void wait_for_copies() {
  wait_until_open(OPEN);
}

void load_matrices(uint32_t* parts, int count, const void* row, bool transposed);
template <bool TRANSPOSED, int COUNT>
void load_matrices(uint32_t (&parts)[COUNT], const void* row) {
  load_matrices(parts, COUNT, row, TRANSPOSED);
}

uint32_t transpose_matrix(uint32_t part);
void multiply_add(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1, bfloat16);
void multiply_add(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1, float16);
void multiply_add(float (&sums)[4], const uint32_t (&left)[2], uint32_t right, bfloat16);
void multiply_add(float (&sums)[4], const uint32_t (&left)[2], uint32_t right, float16);
void multiply_add(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1, float);

inline uint32_t bits_of(float x) { return std::bit_cast<uint32_t>(x); }
inline float from_bits(uint32_t bits) { return std::bit_cast<float>(bits); }

inline float larger(float x, float y) { return std::isnan(x) || x >= y ? x : y; }

// The special-function unit with the largest error that PTX allows: of tanh.approx.f32 2^-11, of ex2 2^-22, of rcp a unit in the
// last place, of rsqrt 2^-22.9. The bits of x decide the error's sign. NaN, 0 and infinite results are exact.
float rough_tanh(float x);
float quick_power_of_two(float x);
float quick_inverse(float x);
float quick_inverse_root(float x);

float to_float(bfloat16 x);
float to_float(float16 x);
uint32_t pack(float first, float second, bfloat16);
uint32_t pack(float first, float second, float16);

} // namespace caan::cuda
