// The CPU kernels as torch ops, through torch's stable ABI. Schemas, shapes for tracing and derivatives are Python's
// (caan_kernels/max_similarity/operators.py); here arguments are checked once more, since a compiled graph skips Python's checks.
#include <string>
#include <vector>

#include "core/arguments.h"
#include "core/checks.h"
#include "core/cpu/threads.h"
#include "core/results.h"
#include "max_similarity/cpu/kernels.h"

namespace {

using namespace caan;
using namespace caan::max_similarity;
using cpu::TorchThreads;

// Fields and order are those of the records in caan_kernels/max_similarity/call.py.
struct Side {
  Tensor features;
  OptionalTensor lengths;
};
struct Call {
  Side regions, words;
  OptionalTensor pairs;
  Options options;
  std::string backend;
};

// Braces take the arguments from left to right.
Side next_side(Arguments& in) { return {in.next<Tensor>(), in.next<OptionalTensor>()}; }
Call next_call(Arguments& in) {
  return {next_side(in), next_side(in), in.next<OptionalTensor>(), {in.next<bool>(), in.next<bool>()}, in.next<std::string>()};
}

Items items_of(const Side& side, const char* name, const char* lengths_name, int64_t width, ScalarType type) {
  const Tensor& features = side.features;
  check_rank(features, name, 3);
  const int64_t count = features.size(0), rows = features.size(1);
  check(features, name, {count, rows, width}, type);
  STD_TORCH_CHECK(rows < int64_t(1) << 31, name, ": expected fewer than 2^31 rows of an item, got ", rows);
  return {features.const_data_ptr(), count, rows, lengths_of(side.lengths, lengths_name, count, rows)};
}

// What the kernels take; its pointers are those of the call's tensors.
Problem problem_of(const Call& call) {
  const Tensor& regions = call.regions.features;
  check_rank(regions, "regions", 3);
  const ScalarType type = regions.scalar_type();
  Problem p{};
  p.width = regions.size(2);
  STD_TORCH_CHECK(p.width > 0, "regions: expected a width of at least 1, got shape ", text_of(shape_of(regions)));
  p.regions = items_of(call.regions, "regions", "region_lengths", p.width, type);
  p.words = items_of(call.words, "words", "word_lengths", p.width, type);
  p.pairs = pairs_of(call.pairs, p.regions.count, p.words.count);
  p.pair_count = call.pairs ? call.pairs->size(0) : 0;
  p.options = call.options;
  return p;
}

const Kernels& kernels_of(const Call& call) { return kernels_for(storage_of(call.regions.features, "regions")); }

Tensor scores(Arguments& in) {
  const Call call = next_call(in);
  const Problem p = problem_of(call);
  Tensor out = torch::stable::new_empty(call.regions.features, score_shape(call.pairs, p.regions.count, p.words.count),
                                        score_type(call.regions.features));
  kernels_of(call).scores(p, out.mutable_data_ptr(), TorchThreads());
  return out;
}

std::vector<Tensor> scores_backward(Arguments& in) {
  const Tensor grad = in.next<Tensor>();
  const Call call = next_call(in);
  const bool need_regions = in.next<bool>(), need_words = in.next<bool>();
  const Problem p = problem_of(call);
  check(grad, "grad", score_shape(call.pairs, p.regions.count, p.words.count), score_type(call.regions.features));
  const GradientOf regions(call.regions.features, need_regions), words(call.words.features, need_words);
  kernels_of(call).scores_backward(p, grad.const_data_ptr(), {regions.data, words.data}, TorchThreads());
  return {regions.tensor, words.tensor};
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(caan_kernels, CPU, m) {
  m.impl("max_similarity", &boxed<scores>);
  m.impl("max_similarity_backward", &boxed<scores_backward>);
}
