// An operator's arguments and results on torch's stack, through torch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

namespace caan {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The arguments in the order of the operator's schema, which is that of its record in Python (caan_kernels/core/records.py).
class Arguments {
 public:
  Arguments(StableIValue* stack, uint64_t count) : next_(stack), end_(stack + count) {}

  template <class T>
  T next() {
    STD_TORCH_CHECK(next_ < end_, "an operator reads more arguments than its schema has");
    if constexpr (std::is_same_v<T, std::string>) {
      // torch's own conversion gives a copy and loses the string that it was made of.
      const auto handle = torch::stable::detail::to<StringHandle>(*next_++);
      const char* text = nullptr;
      size_t length = 0;
      STABLE_TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &text));
      STABLE_TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
      const std::string copy(text, length);
      STABLE_TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
      return copy;
    } else {
      return torch::stable::detail::to<T>(*next_++);
    }
  }
  bool empty() const { return next_ == end_; }

 private:
  StableIValue* next_;
  StableIValue* end_;
};

// `function`, which takes Arguments and gives nothing, one result, or a vector of tensors, as torch calls an operator.
template <auto function>
void boxed(StableIValue* stack, uint64_t arguments, uint64_t results) {
  using torch::stable::detail::from;
  Arguments in(stack, arguments);
  const auto check = [&](uint64_t given) {
    STD_TORCH_CHECK(in.empty() && given == results, "an operator's arguments or results are not those of its schema");
  };
  using Result = decltype(function(in));
  if constexpr (std::is_void_v<Result>) {
    function(in);
    check(0);
  } else if constexpr (std::is_same_v<Result, std::vector<Tensor>>) {
    std::vector<Tensor> tensors = function(in);
    check(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) stack[i] = from(tensors[i]);
  } else {
    const Result result = function(in);
    check(1);
    stack[0] = from(result);
  }
}

} // namespace caan
