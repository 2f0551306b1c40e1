// What operators on the CPU give: scores, and gradients that may not be wanted.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <vector>

#include "core/arguments.h"

namespace caan {

using torch::headeronly::ScalarType;

// Of the scores of such features.
inline ScalarType score_type(const Tensor& like) {
  return like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// (I, T), or (P,) with pairs.
inline std::vector<int64_t> score_shape(const OptionalTensor& pairs, int64_t images, int64_t captions) {
  return pairs ? std::vector<int64_t>{pairs->size(0)} : std::vector<int64_t>{images, captions};
}

// Where a tensor's gradient goes, and its address; one that is not needed is an empty tensor, and null.
struct GradientOf {
  GradientOf(const Tensor& like, bool needed)
      : tensor(needed ? torch::stable::empty_like(like) : torch::stable::new_empty(like, {0}, like.scalar_type())),
        data(needed ? tensor.mutable_data_ptr() : nullptr) {}
  Tensor tensor;
  void* data;
};

} // namespace caan
