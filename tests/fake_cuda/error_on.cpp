// What csrc/core/cuda/error_on.h leaves behind, on the runtime beside this file; tests/test_error_on.py compiles and runs it.
#include "core/cuda/error_on.h"

#include <cstdio>

namespace {

void kernel(int) {}

bool failed = false;
void expect(bool right, const char* what) {
  if (!right) std::printf("%s\n", what);
  failed |= !right;
}

} // namespace

int main() {
  using caan::cuda::error_on;
  expect(error_on(1, kernel) == cudaErrorNoKernelImageForDevice, "device 1 has no code, and no error says so");
  expect(contexts == std::set<int>{1}, "a context on a device that nobody asked about");
  expect(current == -1, "the caller was on no device, and now is on one");
  expect(error_on(7, kernel) == cudaErrorInvalidDevice, "there is no device 7, and no error says so");
  cudaSetDevice(1);
  expect(error_on(0, kernel) == cudaSuccess, "an error on device 0");
  expect(current == 1, "the caller is on another device than before");
  expect(cudaGetLastError() == cudaSuccess, "the caller's next launch would be told of our error");
  last = cudaErrorInvalidDevice;
  error_on(0, kernel);
  expect(cudaGetLastError() == cudaErrorInvalidDevice, "the caller's own error is lost");
  return failed;
}
