// What the kernels are written in: CUDA where nvcc compiles them, one thread after another on the CPU elsewhere (emulator.h),
// for tests. Only this file knows the difference.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/cuda/types.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "core/cuda/error_on.h"
#define CAAN_KERNEL __global__
#define CAAN_SHARED extern __shared__ __align__(128) char shared_memory[]
#define CAAN_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#else
#include "core/cuda/emulator.h"
#define CAAN_KERNEL static
#define CAAN_SHARED char* const shared_memory = emulated_shared_memory()
#define CAAN_BOUNDS(threads, blocks)
#endif

namespace caan::cuda {

constexpr int WARP = 32;

#ifdef __CUDACC__

// Shared memory that a block may have on every GPU since compute capability 8.0.
constexpr int MOST_SHARED = 99 * 1024;

inline void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// Starts a kernel on the current device; a launch that the driver refuses is an exception.
template <auto KERNEL, typename... Arguments>
void launch(int64_t blocks, int threads, size_t shared, Stream stream, Arguments... arguments) {
  if (blocks == 0) return;
  // The same for every call: another thread's launch may lie between this and ours.
  if (shared > 48 * 1024) check(cudaFuncSetAttribute(KERNEL, cudaFuncAttributeMaxDynamicSharedMemorySize, MOST_SHARED));
  KERNEL<<<dim3(unsigned(blocks)), threads, shared, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError());
}

CAAN_DEVICE void block_barrier() { __syncthreads(); }
CAAN_DEVICE void warp_barrier() { __syncwarp(); }

// Turns that the blocks of a grid take from a counter, and how many have ended. Of each block one thread calls these; a block
// barrier before `end_turn`, and one after `wait_for_turns`, makes what the other threads wrote and read part of it.
CAAN_DEVICE int64_t take_turn(int64_t* taken) { return int64_t(atomicAdd(reinterpret_cast<unsigned long long*>(taken), 1ull)); }
CAAN_DEVICE void end_turn(int64_t* ended) {
  __threadfence();
  asm volatile("red.release.gpu.global.add.u64 [%0], 1;" ::"l"(ended) : "memory");
}
CAAN_DEVICE void wait_for_turns(const int64_t* ended, int64_t count) {
  for (;;) {
    int64_t found;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(found) : "l"(ended) : "memory");
    if (found >= count) return;
    __nanosleep(200);
  }
}

CAAN_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

CAAN_DEVICE uint32_t shared_address(const void* pointer) { return uint32_t(__cvta_generic_to_shared(pointer)); }

// 16 bytes from global to shared memory without passing a register; zeros where nothing exists, and nothing is read.
CAAN_DEVICE void copy_16_bytes(void* shared, const void* global, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(exists ? 16 : 0)
               : "memory");
}
CAAN_DEVICE void close_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int OPEN>
CAAN_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(OPEN) : "memory");
}

// Four 8 x 8 matrices of 16-bit numbers, or two; lane l gives the address of row l % 8 of matrix l / 8 and gets two numbers of
// each. Of two matrices the first 16 lanes give the addresses.
template <bool TRANSPOSED>
CAAN_DEVICE void load_matrices(uint32_t (&parts)[4], const void* row) {
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(parts[0]), "=r"(parts[1]), "=r"(parts[2]), "=r"(parts[3])
                 : "r"(shared_address(row))
                 : "memory");
}

template <bool TRANSPOSED>
CAAN_DEVICE void load_matrices(uint32_t (&parts)[2], const void* row) {
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(parts[0]), "=r"(parts[1])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(parts[0]), "=r"(parts[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// An 8 x 8 matrix of 16-bit numbers turned over: lane l has numbers 2 (l % 4) and the next of row l / 4, before and after.
CAAN_DEVICE uint32_t transpose_matrix(uint32_t part) {
  uint32_t turned;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(part));
  return turned;
}

// sums (16, 8) += left (16, 16) right (16, 8) by the tensor cores. All lanes take part, so no compiler may move it into a branch.
CAAN_DEVICE void multiply_add(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1, bfloat16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}
CAAN_DEVICE void multiply_add(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1, float16) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

// sums (16, 8) += left (16, 8) right (8, 8).
CAAN_DEVICE void multiply_add(float (&sums)[4], const uint32_t (&left)[2], uint32_t right, bfloat16) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(left[0]), "r"(left[1]), "r"(right));
}
CAAN_DEVICE void multiply_add(float (&sums)[4], const uint32_t (&left)[2], uint32_t right, float16) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(left[0]), "r"(left[1]), "r"(right));
}

// sums (16, 8) += left (16, 8) right (8, 8) of TF32, the upper 19 bits of float32; the others are not read.
CAAN_DEVICE void multiply_add(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1, float) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

// NaN where either is NaN: fmaxf would give the other.
CAAN_DEVICE float larger(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

CAAN_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
CAAN_DEVICE float from_bits(uint32_t bits) { return __uint_as_float(bits); }

// tanh by the special-function unit, within 2^-11 of the result.
CAAN_DEVICE float rough_tanh(float x) {
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// By the special-function unit, within some units in the last place; numbers too small for all their bits are 0.
CAAN_DEVICE float quick_power_of_two(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
CAAN_DEVICE float quick_inverse(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
CAAN_DEVICE float quick_inverse_root(float x) {
  float y;
  asm("rsqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

CAAN_DEVICE float to_float(bfloat16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
CAAN_DEVICE float to_float(float16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}

// Two numbers in one register, the first in its lower half.
CAAN_DEVICE uint32_t pack(float first, float second, bfloat16) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}
CAAN_DEVICE uint32_t pack(float first, float second, float16) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
}

#endif

CAAN_DEVICE float to_float(float x) { return x; }

template <typename T>
CAAN_DEVICE float first_of(uint32_t both) {
  return to_float(T{uint16_t(both)});
}
template <typename T>
CAAN_DEVICE float second_of(uint32_t both) {
  return to_float(T{uint16_t(both >> 16)});
}

template <typename T>
CAAN_DEVICE T from_float(float x) {
  return T{uint16_t(pack(x, 0.0f, T{}))};
}
template <>
CAAN_DEVICE float from_float<float>(float x) {
  return x;
}

// Rows of 64 16-bit columns, or 32 of float32, in shared memory: where a unit of 16 bytes lies, turned by the row, so that eight
// rows' units lie in different banks.
constexpr int PIECE = 64, PIECE_BYTES = 2 * PIECE;
CAAN_DEVICE int unit_offset(int row, int unit) { return row * PIECE_BYTES + ((unit ^ (row % 8)) << 4); }

template <typename T>
constexpr int UNIT_COLUMNS = 16 / int(sizeof(T));

CAAN_DEVICE float sum_over_warp(float x) {
  for (int mask = WARP / 2; mask; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}
CAAN_DEVICE float highest_of_warp(float x) {
  for (int mask = WARP / 2; mask; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
  return x;
}

constexpr float BITS_OF_E = 1.44269504f;
CAAN_DEVICE float quick_exp(float x) { return quick_power_of_two(x * BITS_OF_E); }

// A norm at EPSILON is held there and passes no gradient.
constexpr float EPSILON = 1e-8f;
CAAN_DEVICE float norm_of(float squares) { return larger(sqrtf(squares), EPSILON); }

CAAN_DEVICE float positive_part(float x) { return larger(0.0f, x); }

// tanh below 0.55: an odd polynomial, minimax in relative error (9e-10).
CAAN_DEVICE float small_tanh(float x) {
  const float square = x * x;
  float small = -0.0062355645932257175f;
  small = fmaf(small, square, 0.021039679646492004f);
  small = fmaf(small, square, -0.053842708468437195f);
  small = fmaf(small, square, 0.13332460820674896f);
  small = fmaf(small, square, -0.3333331048488617f);
  return fmaf(x * square, small, x);
}

// tanh within 4 units in the last place. From 0.55 on (1 - e^-2|x|) / (1 + e^-2|x|), which loses nothing there and would cancel
// nearer to 0.
CAAN_DEVICE float exact_tanh(float x) {
  const float e = expf(-2.0f * fabsf(x));
  const float large = copysignf((1.0f - e) / (1.0f + e), x);
  return fabsf(x) < 0.55f ? small_tanh(x) : large;
}

// The same within 2^-22 of 1, for what is summed.
CAAN_DEVICE float summed_tanh(float x) {
  return fmaf(-2.0f, quick_inverse(1.0f + quick_power_of_two(x * (2.0f * BITS_OF_E))), 1.0f);
}

// The same by the special-function unit, within 5 units in the last place.
CAAN_DEVICE float close_tanh(float x) {
  const float e = quick_exp(-2.0f * fabsf(x));
  const float large = copysignf((1.0f - e) * quick_inverse(1.0f + e), x);
  return fabsf(x) < 0.55f ? small_tanh(x) : large;
}

} // namespace caan::cuda
