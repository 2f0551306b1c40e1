// What the bindings of CUDA kernels share: tensors become pointers. Python plans the launches and has checked what they are given,
// and gives torch's current stream as a number: the stable ABI has no name for it that every torch answers to.
#pragma once

#include <torch/headeronly/core/ScalarType.h>

#include "core/arguments.h"
#include "core/cuda/types.h"

#ifdef CAAN_EMULATED
#define CAAN_DEVICE_KEY CPU
#else
#define CAAN_DEVICE_KEY CUDA
#endif

namespace caan::cuda {

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
inline const int64_t* indices(const OptionalTensor& tensor) { return tensor ? data<int64_t>(*tensor) : nullptr; }

inline Stream next_stream(Arguments& in) { return reinterpret_cast<Stream>(in.next<int64_t>()); }

// Calls with a value of the C++ type of a tensor's numbers.
template <typename Body>
void with_type(const Tensor& tensor, Body body) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(float{});
    case ScalarType::BFloat16:
      return body(bfloat16{});
    case ScalarType::Half:
      return body(float16{});
    default:
      STD_TORCH_CHECK(false, "expected float32, bfloat16 or float16");
  }
}

} // namespace caan::cuda
