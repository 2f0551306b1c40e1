// The CPU kernels as torch ops, through torch's stable ABI. Schemas, shapes for tracing and derivatives are Python's
// (caan_kernels/context_attention/operators.py); here arguments are checked once more, since a compiled graph skips Python's
// checks.
#include <string>
#include <vector>

#include "context_attention/cpu/kernels.h"
#include "core/arguments.h"
#include "core/checks.h"
#include "core/cpu/threads.h"
#include "core/results.h"

namespace {

using namespace caan;
using namespace caan::context_attention;
using cpu::TorchThreads;

// Fields and order are those of the records in caan_kernels/context_attention/call.py.
struct Side {
  Tensor features;
  OptionalTensor products, lengths;
};
struct Call {
  Side regions, words;
  Tensor region_score, word_score;
  OptionalTensor affinity, region_intra, region_inter, word_intra, word_inter, pairs;
  Options options;
  std::string backend;
};

Side next_side(Arguments& in) { return {in.next<Tensor>(), in.next<OptionalTensor>(), in.next<OptionalTensor>()}; }

// Braces take the arguments from left to right.
Call next_call(Arguments& in) {
  return {next_side(in),
          next_side(in),
          in.next<Tensor>(),
          in.next<Tensor>(),
          in.next<OptionalTensor>(),
          in.next<OptionalTensor>(),
          in.next<OptionalTensor>(),
          in.next<OptionalTensor>(),
          in.next<OptionalTensor>(),
          in.next<OptionalTensor>(),
          Options::from(in),
          in.next<std::string>()};
}

// The products of no item have no memory, but null means "project": any address will do, nothing is read.
const void* products(const Tensor& tensor) {
  static const char none = 0;
  return tensor.numel() ? tensor.const_data_ptr() : &none;
}

void check_products(const Call& call) {
  STD_TORCH_CHECK(call.regions.products.has_value(), "region_products: expected a tensor, got None");
  STD_TORCH_CHECK(call.words.products.has_value(), "word_products: expected a tensor, got None");
}

const void* weight(const OptionalTensor& tensor, const char* name, int64_t rows, int64_t columns, ScalarType type) {
  STD_TORCH_CHECK(tensor.has_value(), name, ": expected a tensor, since its side is not projected, got None");
  check(*tensor, name, {rows, columns}, type);
  return tensor->const_data_ptr();
}

// What the kernels take; its pointers are those of the call's tensors.
Problem problem_of(const Call& call) {
  const Tensor &regions = call.regions.features, &words = call.words.features;
  check_rank(regions, "regions", 3);
  check_rank(words, "words", 3);
  check_rank(call.region_score, "region_score", 1);
  const ScalarType type = regions.scalar_type();
  Problem p{};
  p.images = regions.size(0), p.regions_per_image = regions.size(1);
  p.captions = words.size(0), p.words_per_caption = words.size(1);
  const int64_t D = p.width = regions.size(2), H = p.hidden = call.region_score.size(0);
  STD_TORCH_CHECK(D > 0 && H > 0, "regions, region_score: expected a width of at least 1, got shapes ", text_of(shape_of(regions)),
                  " and ", text_of(shape_of(call.region_score)));
  check(regions, "regions", {p.images, p.regions_per_image, D}, type);
  check(words, "words", {p.captions, p.words_per_caption, D}, type);
  check(call.region_score, "region_score", {H}, type);
  check(call.word_score, "word_score", {H}, type);
  p.regions = regions.const_data_ptr();
  p.words = words.const_data_ptr();
  p.region_score = call.region_score.const_data_ptr();
  p.word_score = call.word_score.const_data_ptr();
  if (call.regions.products) {
    check(*call.regions.products, "region_products", {p.images, p.regions_per_image, 2 * H}, type);
    p.region_products = products(*call.regions.products);
  } else {
    p.region_intra = weight(call.region_intra, "region_intra", D, H, type);
    p.word_inter = weight(call.word_inter, "word_inter", D, H, type);
  }
  if (call.words.products) {
    check(*call.words.products, "word_products", {p.captions, p.words_per_caption, D + 2 * H}, type);
    p.word_products = products(*call.words.products);
  } else {
    p.affinity = weight(call.affinity, "affinity", D, D, type);
    p.region_inter = weight(call.region_inter, "region_inter", D, H, type);
    p.word_intra = weight(call.word_intra, "word_intra", D, H, type);
  }
  p.region_lengths = lengths_of(call.regions.lengths, "region_lengths", p.images, p.regions_per_image);
  p.word_lengths = lengths_of(call.words.lengths, "word_lengths", p.captions, p.words_per_caption);
  p.pairs = pairs_of(call.pairs, p.images, p.captions);
  p.pair_count = call.pairs ? call.pairs->size(0) : 0;
  p.options = call.options;
  return p;
}

const Kernels& kernels_of(const Call& call) { return kernels_for(storage_of(call.regions.features, "regions")); }

Tensor empty(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

struct ProjectionCall {
  Tensor items, weight;
  OptionalTensor lengths;
  std::string backend;
};

ProjectionCall next_projection(Arguments& in) {
  return {in.next<Tensor>(), in.next<Tensor>(), in.next<OptionalTensor>(), in.next<std::string>()};
}

Projection projection_of(const ProjectionCall& call) {
  check_rank(call.items, "items", 3);
  check_rank(call.weight, "weight", 2);
  Projection p{};
  p.batch = call.items.size(0), p.length = call.items.size(1), p.width = call.items.size(2), p.columns = call.weight.size(1);
  check(call.items, "items", {p.batch, p.length, p.width}, call.items.scalar_type());
  check(call.weight, "weight", {p.width, p.columns}, call.items.scalar_type());
  p.items = call.items.const_data_ptr();
  p.weight = call.weight.const_data_ptr();
  p.lengths = lengths_of(call.lengths, "lengths", p.batch, p.length);
  return p;
}

Tensor project(Arguments& in) {
  const ProjectionCall call = next_projection(in);
  const Projection p = projection_of(call);
  Tensor out = empty(call.items, {p.batch, p.length, p.columns}, call.items.scalar_type());
  kernels_for(storage_of(call.items, "items")).project(p, out.mutable_data_ptr(), TorchThreads());
  return out;
}

std::vector<Tensor> project_backward(Arguments& in) {
  const Tensor grad = in.next<Tensor>();
  const ProjectionCall call = next_projection(in);
  const bool need_items = in.next<bool>(), need_weight = in.next<bool>();
  const Projection p = projection_of(call);
  check(grad, "grad", {p.batch, p.length, p.columns}, call.items.scalar_type());
  const GradientOf items(call.items, need_items), weight(call.weight, need_weight);
  kernels_for(storage_of(call.items, "items")).project_backward(p, grad.const_data_ptr(), items.data, weight.data, TorchThreads());
  return {items.tensor, weight.tensor};
}

Tensor pair_scores(Arguments& in) {
  const Call call = next_call(in);
  const Problem p = problem_of(call);
  Tensor scores = empty(call.regions.features, score_shape(call.pairs, p.images, p.captions), score_type(call.regions.features));
  kernels_of(call).scores(p, scores.mutable_data_ptr(), nullptr, TorchThreads());
  return scores;
}

std::vector<Tensor> pair_scores_backward(Arguments& in) {
  const Tensor grad = in.next<Tensor>();
  const Call call = next_call(in);
  check_products(call);
  const Problem p = problem_of(call);
  check(grad, "grad", score_shape(call.pairs, p.images, p.captions), score_type(call.regions.features));
  std::vector<Tensor> gradients;
  for (const Tensor& tensor : {call.regions.features, *call.regions.products, call.words.features, *call.words.products,
                               call.region_score, call.word_score})
    gradients.push_back(torch::stable::empty_like(tensor));
  const auto data = [&](int place) { return gradients[place].mutable_data_ptr(); };
  kernels_of(call).scores_backward(p, grad.const_data_ptr(), {data(0), data(1), data(2), data(3), data(4), data(5)},
                                   TorchThreads());
  return gradients;
}

std::vector<Tensor> pair_maps(Arguments& in) {
  const Call call = next_call(in);
  STD_TORCH_CHECK(call.pairs.has_value(), "pairs: expected a (P, 2) tensor, got None");
  check_products(call);
  const Problem p = problem_of(call);
  const int64_t P = p.pair_count, M = p.regions_per_image, N = p.words_per_caption;
  const ScalarType type = score_type(call.regions.features);
  std::vector<Tensor> found{empty(call.regions.features, {P}, type)};
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{{P, M}, {P, N}, {P, M, N}, {P, M, N}, {P, N, M}}) {
    found.push_back(empty(call.regions.features, shape, type));
    torch::stable::zero_(found.back());
  }
  const auto data = [&](int place) { return found[place].mutable_data_ptr(); };
  const Maps maps{data(1), data(2), data(3), data(4), data(5)};
  kernels_of(call).scores(p, data(0), &maps, TorchThreads());
  return found;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(caan_kernels, CPU, m) {
  m.impl("project", &boxed<project>);
  m.impl("project_backward", &boxed<project_backward>);
  m.impl("pair_scores", &boxed<pair_scores>);
  m.impl("pair_scores_backward", &boxed<pair_scores_backward>);
  m.impl("pair_maps", &boxed<pair_maps>);
}
