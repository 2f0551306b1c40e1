// Types that the host and the kernels of every operator have in common; nothing of CUDA's headers.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define CAAN_DEVICE __device__ __forceinline__
#define CAAN_BOTH __host__ __device__ __forceinline__
#else
#define CAAN_DEVICE inline
#define CAAN_BOTH inline
#endif

namespace caan::cuda {

// float is the third type that features come in.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

// A cudaStream_t.
using Stream = void*;

} // namespace caan::cuda
