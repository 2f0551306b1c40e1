// The CUDA kernels as torch ops, through torch's stable ABI. Python plans the launches (caan_kernels/context_attention/cuda.py)
// and has checked what they are given; here tensors become pointers. Python also gives the stream, torch's current one, as a
// number: the stable ABI has no name for it that every torch answers to.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "context_attention/cuda/kernels.h"
#include "core/cuda/product.h"

#ifdef CAAN_EMULATED
#define CAAN_DEVICE_KEY CPU
#else
#define CAAN_DEVICE_KEY CUDA
#endif

namespace {

using namespace caan::cuda;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <typename T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}
const int64_t* indices(const OptionalTensor& tensor) { return tensor ? data<int64_t>(*tensor) : nullptr; }

// Calls with a value of the C++ type of a tensor's numbers.
template <typename Body>
void with_type(const Tensor& tensor, Body body) {
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

void multiply_(const Tensor& left, const Tensor& right, const Tensor& product, const Tensor& lengths, int64_t item_rows,
               bool along_depth, int64_t stream) {
  with_type(left, [&](auto type) {
    using T = decltype(type);
    multiply(
        Product<T>{data<T>(left), data<T>(right), mutable_data<T>(product), data<int64_t>(lengths), left.size(0), right.size(1),
                   left.size(1), item_rows, left.stride(0), left.stride(1), right.stride(0), right.stride(1), along_depth},
        reinterpret_cast<Stream>(stream));
  });
}

template <typename T>
Sides<T> sides_of(const Tensor& regions, const Tensor& region_products, const Tensor& words, const Tensor& word_products,
                  const Tensor& region_score, const Tensor& word_score, const Tensor& region_lengths, const Tensor& word_lengths) {
  return {data<T>(regions),     data<T>(region_products), data<T>(words),        data<T>(word_products),   data<T>(region_score),
          data<T>(word_score),  indices(region_lengths),  indices(word_lengths), regions.size(0),          words.size(0),
          int(regions.size(1)), int(words.size(1)),       int(regions.size(2)),  int(region_score.size(0))};
}

void score_pairs_(const Tensor& regions, const Tensor& region_products, const Tensor& words, const Tensor& word_products,
                  const Tensor& region_score, const Tensor& word_score, const Tensor& region_lengths, const Tensor& word_lengths,
                  const Tensor& scores, const Tensor& scratch, const OptionalTensor& pairs, const OptionalTensor& keys,
                  const OptionalTensor& order, const OptionalTensor& walked, int64_t first, int64_t count, int64_t score_row,
                  bool skip_tiles, bool cosine, bool inter, bool intra, int64_t stream) {
  with_type(regions, [&](auto type) {
    using T = decltype(type);
    const auto sides =
        sides_of<T>(regions, region_products, words, word_products, region_score, word_score, region_lengths, word_lengths);
    const bool gradient = walked.has_value();
    const SlotShape shape{sides.M, sides.N, sides.D, gradient};
    STD_TORCH_CHECK(scratch.size(0) >= (gradient ? count : 1) && scratch.size(1) == shape.size(), "scratch: expected ",
                    gradient ? count : 1, " slots of ", shape.size(), " numbers");
    const Pairs chosen{indices(pairs), indices(keys), indices(order), indices(walked), first, count};
    const Options options{cosine, inter, intra};
    if (gradient)
      differentiate_pairs(sides, chosen, options, data<float>(scores), mutable_data<float>(scratch),
                          reinterpret_cast<Stream>(stream));
    else
      score_pairs(sides, chosen, options, mutable_data<float>(scores), score_row, skip_tiles, mutable_data<float>(scratch),
                  scratch.size(0), reinterpret_cast<Stream>(stream));
  });
}

void score_tiles_(const Tensor& regions, const Tensor& region_products, const Tensor& words, const Tensor& word_products,
                  const Tensor& region_score, const Tensor& word_score, const Tensor& region_lengths, const Tensor& word_lengths,
                  const Tensor& scores, const Tensor& word_order, const Tensor& word_starts, const OptionalTensor& pairs,
                  const OptionalTensor& order, const OptionalTensor& keys, const OptionalTensor& ranks, int64_t score_row,
                  int64_t bucket, int64_t word_buckets, int64_t buckets, int64_t together, bool cosine, bool inter, bool intra,
                  int64_t stream) {
  const auto score = [&](auto type) {
    using T = decltype(type);
    const Tiles tiles{indices(word_order),
                      indices(word_starts),
                      indices(pairs),
                      indices(order),
                      indices(keys),
                      indices(ranks),
                      pairs ? pairs->size(0) : 0,
                      score_row,
                      int(bucket),
                      int(word_buckets),
                      int(buckets),
                      int(together)};
    score_tiles(sides_of<T>(regions, region_products, words, word_products, region_score, word_score, region_lengths, word_lengths),
                tiles, Options{cosine, inter, intra}, mutable_data<float>(scores), reinterpret_cast<Stream>(stream));
  };
  // Copies of 16 bytes need addresses and rows that are multiples of them.
  for (const Tensor* tensor : {&regions, &region_products, &words, &word_products})
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor->const_data_ptr()) % 16 == 0 && tensor->size(2) % 8 == 0,
                    "expected tensors that begin, and rows that end, at a multiple of 16 bytes");
  regions.scalar_type() == ScalarType::BFloat16 ? score(bfloat16{}) : score(float16{});
}

void sum_gradients_(const Tensor& regions, const Tensor& region_products, const Tensor& words, const Tensor& word_products,
                    const Tensor& region_score, const Tensor& word_score, const Tensor& region_lengths, const Tensor& word_lengths,
                    const Tensor& scratch, const Tensor& keys, const Tensor& image_starts, const Tensor& by_caption,
                    const Tensor& caption_starts, const Tensor& walked, const Tensor& of_regions, const Tensor& of_region_products,
                    const Tensor& of_words, const Tensor& of_word_products, const Tensor& of_region_score,
                    const Tensor& of_word_score, int64_t first, int64_t slots, bool cosine, bool inter, bool intra,
                    int64_t stream) {
  with_type(regions, [&](auto type) {
    using T = decltype(type);
    const Sums sums{data<int64_t>(keys),
                    data<int64_t>(image_starts),
                    data<int64_t>(by_caption),
                    data<int64_t>(caption_starts),
                    data<int64_t>(walked),
                    first,
                    slots,
                    data<float>(scratch),
                    mutable_data<float>(of_regions),
                    mutable_data<float>(of_region_products),
                    mutable_data<float>(of_words),
                    mutable_data<float>(of_word_products),
                    mutable_data<float>(of_region_score),
                    mutable_data<float>(of_word_score)};
    sum_gradients(
        sides_of<T>(regions, region_products, words, word_products, region_score, word_score, region_lengths, word_lengths), sums,
        Options{cosine, inter, intra}, reinterpret_cast<Stream>(stream));
  });
}

int64_t device_error_(int64_t device) { return device_error(int(device)); }

} // namespace

STABLE_TORCH_LIBRARY_IMPL(caan_kernels, CompositeExplicitAutograd, m) { m.impl("cuda_device_error", TORCH_BOX(&device_error_)); }

STABLE_TORCH_LIBRARY_IMPL(caan_kernels, CAAN_DEVICE_KEY, m) {
  m.impl("cuda_multiply", TORCH_BOX(&multiply_));
  m.impl("cuda_score_pairs", TORCH_BOX(&score_pairs_));
  m.impl("cuda_score_tiles", TORCH_BOX(&score_tiles_));
  m.impl("cuda_sum_gradients", TORCH_BOX(&sum_gradients_));
}
