// The CUDA kernels as torch ops, through torch's stable ABI. caan_kernels/max_similarity/cuda.py has the records of their
// arguments; caan_kernels/max_similarity/gpu/launch.py has checked what they are given.
#include "core/cuda/bindings.h"

#include <cstdint>

#include "max_similarity/cuda/kernels.h"

namespace {

using namespace caan;
using namespace caan::max_similarity;

struct RowTensors {
  Tensor features, lengths;
  OptionalTensor starts;
};
struct SearchTensors {
  RowTensors queries, documents;
  OptionalTensor pairs;
  bool over_regions;
};

// Braces take the arguments from left to right.
RowTensors next_rows(Arguments& in) { return {in.next<Tensor>(), in.next<Tensor>(), in.next<OptionalTensor>()}; }
SearchTensors next_search(Arguments& in) { return {next_rows(in), next_rows(in), in.next<OptionalTensor>(), in.next<bool>()}; }

template <typename T>
Rows<T> rows_of(const RowTensors& of) {
  const Tensor& features = of.features;
  // Copies of 16 bytes need rows that begin at multiples of them.
  STD_TORCH_CHECK(features.size(2) % 8 || reinterpret_cast<uintptr_t>(features.const_data_ptr()) % 16 == 0,
                  "expected features that begin at a multiple of 16 bytes");
  return {data<T>(features), data<int64_t>(of.lengths), indices(of.starts), features.size(0), int(features.size(1))};
}

template <typename T>
Search<T> search_of(const SearchTensors& of) {
  return {rows_of<T>(of.queries), rows_of<T>(of.documents),         int(of.queries.features.size(2)),
          indices(of.pairs),      of.pairs ? of.pairs->size(0) : 0, of.over_regions ? 1 : 0};
}

// Calls with the search in the features' type.
template <typename Body>
void with_search(const SearchTensors& of, Body body) {
  with_type(of.queries.features, [&](auto type) { body(search_of<decltype(type)>(of)); });
}

void find_largest_(Arguments& in) {
  const SearchTensors search = next_search(in);
  const Tensor largest = in.next<Tensor>();
  const int64_t together = in.next<int64_t>();
  const Stream stream = next_stream(in);
  with_search(search, [&](const auto& s) { find_largest(s, mutable_data<float>(largest), largest.size(1), together, stream); });
}

void add_largest_(Arguments& in) {
  const SearchTensors search = next_search(in);
  const Tensor largest = in.next<Tensor>(), scores = in.next<Tensor>();
  const bool mean = in.next<bool>();
  const Stream stream = next_stream(in);
  const bool all = !search.pairs;
  const Scores to{mutable_data<float>(scores), all ? scores.stride(0) : 0, all ? scores.stride(1) : 0, mean};
  with_search(search, [&](const auto& s) { add_largest(s, data<float>(largest), largest.size(1), to, stream); });
}

void find_places_(Arguments& in) {
  const SearchTensors search = next_search(in);
  const Tensor places = in.next<Tensor>();
  const Stream stream = next_stream(in);
  with_search(search, [&](const auto& s) { find_places(s, mutable_data<int32_t>(places), stream); });
}

// Calls with the search and what its pairs give.
template <typename Body>
void with_terms(Arguments& in, Body body) {
  const SearchTensors search = next_search(in);
  const Tensor coefficients = in.next<Tensor>(), places = in.next<Tensor>(), starts = in.next<Tensor>();
  const OptionalTensor order = in.next<OptionalTensor>();
  const int64_t first = in.next<int64_t>();
  const Tensor sums = in.next<Tensor>();
  const Stream stream = next_stream(in);
  const Terms terms{data<float>(coefficients), data<int32_t>(places), data<int64_t>(starts), indices(order), first,
                    mutable_data<float>(sums)};
  with_search(search, [&](const auto& s) { body(s, terms, stream); });
}
void sum_query_gradients_(Arguments& in) {
  with_terms(in, [](const auto& s, const Terms& terms, Stream stream) { sum_query_gradients(s, terms, stream); });
}
void sum_document_gradients_(Arguments& in) {
  with_terms(in, [](const auto& s, const Terms& terms, Stream stream) { sum_document_gradients(s, terms, stream); });
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(caan_kernels, CAAN_DEVICE_KEY, m) {
  m.impl("cuda_find_largest", &boxed<find_largest_>);
  m.impl("cuda_add_largest", &boxed<add_largest_>);
  m.impl("cuda_find_places", &boxed<find_places_>);
  m.impl("cuda_sum_query_gradients", &boxed<sum_query_gradients_>);
  m.impl("cuda_sum_document_gradients", &boxed<sum_document_gradients_>);
}
