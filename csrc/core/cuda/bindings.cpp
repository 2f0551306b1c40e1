// What the CUDA backend has for every operator, as torch ops (caan_kernels/core/cuda.py).
#include "core/cuda/bindings.h"

#include "core/cuda/product.h"

namespace {

using namespace caan;
using namespace caan::cuda;

void multiply_(Arguments& in) {
  const Tensor left = in.next<Tensor>(), right = in.next<Tensor>(), product = in.next<Tensor>(), lengths = in.next<Tensor>();
  const int64_t item_rows = in.next<int64_t>();
  const Stream stream = next_stream(in);
  with_type(left, [&](auto type) {
    using T = decltype(type);
    multiply(Product<T>{data<T>(left), data<T>(right), mutable_data<T>(product), data<int64_t>(lengths), left.size(0),
                        right.size(1), left.size(1), item_rows, left.stride(0), left.stride(1), right.stride(0), right.stride(1)},
             stream);
  });
}

int64_t device_error_(Arguments& in) { return device_error(int(in.next<int64_t>())); }

} // namespace

STABLE_TORCH_LIBRARY_IMPL(caan_kernels, CompositeExplicitAutograd, m) { m.impl("cuda_device_error", &boxed<device_error_>); }

STABLE_TORCH_LIBRARY_IMPL(caan_kernels, CAAN_DEVICE_KEY, m) { m.impl("cuda_multiply", &boxed<multiply_>); }
