// Whether a kernel can be started on a device, found out without a trace of the question. Plain C++ beside CUDA's runtime.
#pragma once

#include <cuda_runtime.h>

#include <thread>

namespace caan::cuda {

// The cudaError_t that a kernel would meet on a device; 0 is none. A library without code for the device, or a driver that is too
// old for it, shows here as well as at a launch.
//
// A thread of its own asks. The current device and the last error are the thread's, and end with it. The caller's device could not
// be put back: a thread without one is told that it is 0, and cudaSetDevice(0) makes a context on GPU 0, hundreds of MiB.
template <typename... Parameters>
int error_on(int device, void (*kernel)(Parameters...)) {
  cudaError_t error = cudaSuccess;
  std::thread([&] {
    cudaFuncAttributes attributes;
    error = cudaSetDevice(device);
    if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  }).join();
  return int(error);
}

} // namespace caan::cuda
