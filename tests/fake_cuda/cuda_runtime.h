// CUDA's runtime as far as csrc/core/cuda/error_on.h needs it, with the rules of CUDA 12 and later that matter there: a thread that
// has chosen no device is told that it is on 0, and choosing one makes a context on it. Two GPUs; device 1 has no code.
#pragma once

#include <set>

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidDevice = 101, cudaErrorNoKernelImageForDevice = 209 };

struct cudaFuncAttributes {};

inline std::set<int> contexts;
inline thread_local int current = -1;
inline thread_local cudaError_t last = cudaSuccess;

inline cudaError_t told(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = current < 0 ? 0 : current;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device > 1) return told(cudaErrorInvalidDevice);
  current = device;
  contexts.insert(device);
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, Kernel) {
  int device;
  cudaGetDevice(&device);
  contexts.insert(device);
  return told(device == 1 ? cudaErrorNoKernelImageForDevice : cudaSuccess);
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}
