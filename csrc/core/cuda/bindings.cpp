// What the CUDA backend has for every operator, as torch ops (caan_kernels/core/cuda.py).
#include "core/cuda/bindings.h"

#include <utility>

#include "core/cuda/plan.h"
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

// The parts of a tensor of int64, one behind the other.
class Parts {
 public:
  explicit Parts(const Tensor& tensor) : next_(mutable_data<int64_t>(tensor)), left_(tensor.numel()) {}

  int64_t* next(int64_t count) {
    STD_TORCH_CHECK(count <= left_, "a plan has no room for its parts");
    left_ -= count;
    return std::exchange(next_, next_ + count);
  }

 private:
  int64_t* next_;
  int64_t left_;
};

PlannedSide next_side(Arguments& in) {
  const OptionalTensor given = in.next<OptionalTensor>();
  const int64_t count = in.next<int64_t>(), rows = in.next<int64_t>();
  const bool halfway = in.next<bool>();
  return {indices(given), count, rows, halfway, int(in.next<int64_t>()), nullptr, nullptr, nullptr};
}

void plan_(Arguments& in) {
  PlannedSide regions = next_side(in), words = next_side(in);
  const OptionalTensor pairs = in.next<OptionalTensor>();
  const Tensor scores = in.next<Tensor>();
  const int64_t score_row = in.next<int64_t>();
  Parts parts(in.next<Tensor>());
  const Stream stream = next_stream(in);
  for (PlannedSide* side : {&regions, &words}) {
    side->lengths = parts.next(side->count), side->order = parts.next(side->count);
    side->starts = parts.next(side->buckets + 1);
  }
  const int64_t listed = pairs ? pairs->size(0) : 0;
  plan(regions, words,
       {indices(pairs), listed, scores.numel() ? mutable_data<float>(scores) : nullptr, score_row, parts.next(listed)}, stream);
}

void plan_schedule_(Arguments& in) {
  const Tensor gradients = in.next<Tensor>(), region_lengths = in.next<Tensor>(), word_lengths = in.next<Tensor>();
  Parts parts(in.next<Tensor>());
  const Stream stream = next_stream(in);
  const int64_t images = gradients.size(0), captions = gradients.size(1), pairs = images * captions;
  plan_schedule({data<float>(gradients), data<int64_t>(region_lengths), data<int64_t>(word_lengths), images, captions,
                 parts.next(pairs), parts.next(pairs), parts.next(images + 1), parts.next(pairs), parts.next(captions + 1),
                 parts.next(images + captions), parts.next(pairs)},
                stream);
}

int64_t device_error_(Arguments& in) { return device_error(int(in.next<int64_t>())); }

} // namespace

STABLE_TORCH_LIBRARY_IMPL(caan_kernels, CompositeExplicitAutograd, m) { m.impl("cuda_device_error", &boxed<device_error_>); }

STABLE_TORCH_LIBRARY_IMPL(caan_kernels, CAAN_DEVICE_KEY, m) {
  m.impl("cuda_multiply", &boxed<multiply_>);
  m.impl("cuda_plan", &boxed<plan_>);
  m.impl("cuda_plan_schedule", &boxed<plan_schedule_>);
}
