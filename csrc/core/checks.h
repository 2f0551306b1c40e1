// Checks of what the CPU kernels are given: a compiled graph skips Python's (caan_kernels/core/checks.py).
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/arguments.h"
#include "core/cpu/types.h"

namespace caan {

using torch::headeronly::ScalarType;

inline std::string text_of(const std::vector<int64_t>& shape) {
  std::string text = "(";
  for (size_t d = 0; d < shape.size(); ++d) text += (d ? ", " : "") + std::to_string(shape[d]);
  return text + ")";
}
inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  std::vector<int64_t> shape;
  for (int64_t d = 0; d < tensor.dim(); ++d) shape.push_back(tensor.size(d));
  return shape;
}

// As Python writes the dtypes that calls are made of, and likely mistakes; others as C++ does.
inline std::string text_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "torch.float32";
    case ScalarType::Double:
      return "torch.float64";
    case ScalarType::BFloat16:
      return "torch.bfloat16";
    case ScalarType::Half:
      return "torch.float16";
    case ScalarType::Long:
      return "torch.int64";
    case ScalarType::Int:
      return "torch.int32";
    default:
      return torch::headeronly::toString(type);
  }
}

inline void check_contiguous(const Tensor& tensor, const char* name) {
  const auto strides = tensor.strides();
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor, got strides ",
                  text_of({strides.begin(), strides.end()}));
}

// A contiguous tensor of this shape and type. It is a CPU tensor: torch takes a call with any other to that one's device.
inline void check(const Tensor& tensor, const char* name, const std::vector<int64_t>& shape, ScalarType type) {
  STD_TORCH_CHECK(shape_of(tensor) == shape, name, ": expected shape ", text_of(shape), ", got ", text_of(shape_of(tensor)));
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": expected dtype ", text_of(type), ", got ", text_of(tensor.scalar_type()));
  check_contiguous(tensor, name);
}

inline void check_rank(const Tensor& tensor, const char* name, int64_t rank) {
  STD_TORCH_CHECK(tensor.dim() == rank, name, ": expected ", rank, " dimensions, got shape ", text_of(shape_of(tensor)));
}

// Lengths of `count` items of up to `longest` rows; null where there are none.
inline const int64_t* lengths_of(const OptionalTensor& lengths, const char* name, int64_t count, int64_t longest) {
  if (!lengths) return nullptr;
  check(*lengths, name, {count}, ScalarType::Long);
  const auto* values = static_cast<const int64_t*>(lengths->const_data_ptr());
  for (int64_t i = 0; i < count; ++i)
    STD_TORCH_CHECK(values[i] >= 0 && values[i] <= longest, name, ": expected lengths from 0 to ", longest, ", got ", values[i],
                    " at position ", i);
  return values;
}

// (P, 2) of (image, caption); null where all pairs are meant, and never for a list, be it empty.
inline const int64_t* pairs_of(const OptionalTensor& pairs, int64_t images, int64_t captions) {
  if (!pairs) return nullptr;
  check_rank(*pairs, "pairs", 2);
  const int64_t count = pairs->size(0);
  check(*pairs, "pairs", {count, 2}, ScalarType::Long);
  static const int64_t no_pair = 0;
  const auto* values = count ? static_cast<const int64_t*>(pairs->const_data_ptr()) : &no_pair;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t image = values[2 * i], caption = values[2 * i + 1];
    STD_TORCH_CHECK(image >= 0 && image < images && caption >= 0 && caption < captions, "pairs: expected (image, caption) below (",
                    images, ", ", captions, "), got (", image, ", ", caption, ") at position ", i);
  }
  return values;
}

inline cpu::Storage storage_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return cpu::Storage::float32;
    case ScalarType::Double:
      return cpu::Storage::float64;
    case ScalarType::BFloat16:
      return cpu::Storage::bfloat16;
    case ScalarType::Half:
      return cpu::Storage::float16;
    default:
      STD_TORCH_CHECK(false, name, ": expected dtype float32, float64, bfloat16 or float16, got ", text_of(tensor.scalar_type()));
  }
}

} // namespace caan
