// The CPU kernels as torch ops, through torch's stable ABI. Schemas, shapes for tracing and derivatives are Python's
// (caan_kernels/context_attention/operators.py); here arguments are checked once more, since a compiled graph skips Python's
// checks.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "context_attention/cpu/kernels.h"
#include "core/cpu/float_state.h"
#include "core/cpu/instruction_set.h"

namespace {

using caan::context_attention::Gradients;
using caan::context_attention::Kernels;
using caan::context_attention::kernels_for;
using caan::context_attention::Maps;
using caan::context_attention::Options;
using caan::context_attention::Problem;
using caan::cpu::DefaultFloatState;
using caan::cpu::Executor;
using caan::cpu::Projection;
using caan::cpu::Storage;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

using OptionalTensor = std::optional<Tensor>;

Storage storage_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Storage::float32;
    case ScalarType::Double:
      return Storage::float64;
    case ScalarType::BFloat16:
      return Storage::bfloat16;
    case ScalarType::Half:
      return Storage::float16;
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, float64, bfloat16 or float16");
  }
}

ScalarType score_type(const Tensor& like) {
  return like.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

std::string shape_text(const Tensor& tensor) {
  std::string text = "(";
  for (int64_t d = 0; d < tensor.dim(); ++d) text += (d ? ", " : "") + std::to_string(tensor.size(d));
  return text + ")";
}

void check(const Tensor& tensor, const char* name, const std::vector<int64_t>& shape, ScalarType type) {
  bool fits = tensor.dim() == int64_t(shape.size());
  for (size_t d = 0; fits && d < shape.size(); ++d) fits = tensor.size(int64_t(d)) == shape[d];
  if (!fits) {
    std::string wanted = "(";
    for (size_t d = 0; d < shape.size(); ++d) wanted += (d ? ", " : "") + std::to_string(shape[d]);
    STD_TORCH_CHECK(false, name, ": expected shape ", wanted, "), got ", shape_text(tensor));
  }
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": expected the dtype of the other tensors, or int64 for lengths and pairs");
  STD_TORCH_CHECK(tensor.is_contiguous(), name, ": expected a contiguous tensor");
  STD_TORCH_CHECK(tensor.is_cpu(), name, ": expected a CPU tensor");
}

void check_rank(const Tensor& tensor, const char* name, int64_t rank) {
  STD_TORCH_CHECK(tensor.dim() == rank, name, ": expected ", rank, " dimensions, got shape ", shape_text(tensor));
}

const int64_t* lengths_of(const OptionalTensor& lengths, const char* name, int64_t count, int64_t longest) {
  if (!lengths) return nullptr;
  check(*lengths, name, {count}, ScalarType::Long);
  const auto* values = static_cast<const int64_t*>(lengths->const_data_ptr());
  for (int64_t i = 0; i < count; ++i)
    STD_TORCH_CHECK(values[i] >= 0 && values[i] <= longest, name, ": expected lengths from 0 to ", longest, ", got ", values[i],
                    " at position ", i);
  return values;
}

const void* data(const Tensor& tensor) { return tensor.const_data_ptr(); }

void run_on_torch_threads(int64_t workers, Executor::Body body, void* context) {
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    const DefaultFloatState state;
    for (int64_t worker = begin; worker < end; ++worker) body(context, worker);
  });
}

// Torch's threads; while it lives, the calling thread has the default state, too.
struct TorchThreads : Executor {
  TorchThreads() : Executor{int64_t(torch::stable::get_num_threads()), run_on_torch_threads} {}
  const DefaultFloatState state{};
};

Tensor empty(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

Problem problem_of(const Tensor& regions, const Tensor& words, const Tensor& region_score, const Tensor& word_score,
                   const OptionalTensor& region_lengths, const OptionalTensor& word_lengths, const OptionalTensor& pairs,
                   const Options& options) {
  check_rank(regions, "regions", 3);
  check_rank(words, "words", 3);
  check_rank(region_score, "region_score", 1);
  const ScalarType type = regions.scalar_type();
  Problem p{};
  p.images = regions.size(0);
  p.regions_per_image = regions.size(1);
  p.width = regions.size(2);
  p.captions = words.size(0);
  p.words_per_caption = words.size(1);
  p.hidden = region_score.size(0);
  STD_TORCH_CHECK(p.width > 0 && p.hidden > 0, "regions, region_score: expected a width of at least 1, got shapes ",
                  shape_text(regions), " and ", shape_text(region_score));
  check(regions, "regions", {p.images, p.regions_per_image, p.width}, type);
  check(words, "words", {p.captions, p.words_per_caption, p.width}, type);
  check(region_score, "region_score", {p.hidden}, type);
  check(word_score, "word_score", {p.hidden}, type);
  p.regions = data(regions);
  p.words = data(words);
  p.region_score = data(region_score);
  p.word_score = data(word_score);
  p.region_lengths = lengths_of(region_lengths, "region_lengths", p.images, p.regions_per_image);
  p.word_lengths = lengths_of(word_lengths, "word_lengths", p.captions, p.words_per_caption);
  if (pairs) {
    check_rank(*pairs, "pairs", 2);
    p.pair_count = pairs->size(0);
    check(*pairs, "pairs", {p.pair_count, 2}, ScalarType::Long);
    p.pairs = static_cast<const int64_t*>(pairs->const_data_ptr());
    static const int64_t no_pair = 0;
    if (!p.pairs) p.pairs = &no_pair; // an empty list is still a list
    for (int64_t i = 0; i < p.pair_count; ++i)
      STD_TORCH_CHECK(
          p.pairs[2 * i] >= 0 && p.pairs[2 * i] < p.images && p.pairs[2 * i + 1] >= 0 && p.pairs[2 * i + 1] < p.captions,
          "pairs: expected (image, caption) below (", p.images, ", ", p.captions, "), got (", p.pairs[2 * i], ", ",
          p.pairs[2 * i + 1], ") at position ", i);
  }
  p.options = options;
  return p;
}

// Null means "project"; the products of no item have no memory, but are not to be projected: any address will do, nothing is read.
const void* products(const Tensor& tensor) {
  static const char none = 0;
  return tensor.numel() ? data(tensor) : &none;
}

void add_region_products(Problem& p, const Tensor& region_products, ScalarType type) {
  check(region_products, "region_products", {p.images, p.regions_per_image, 2 * p.hidden}, type);
  p.region_products = products(region_products);
}

void add_word_products(Problem& p, const Tensor& word_products, ScalarType type) {
  check(word_products, "word_products", {p.captions, p.words_per_caption, p.width + 2 * p.hidden}, type);
  p.word_products = products(word_products);
}

const void* weight(const OptionalTensor& tensor, const char* name, int64_t rows, int64_t columns, ScalarType type) {
  STD_TORCH_CHECK(tensor.has_value(), name, ": expected a tensor, since its side is not projected, got None");
  check(*tensor, name, {rows, columns}, type);
  return data(*tensor);
}

std::vector<int64_t> score_shape(const Problem& p) {
  return p.pairs ? std::vector<int64_t>{p.pair_count} : std::vector<int64_t>{p.images, p.captions};
}

Projection projection_of(const Tensor& items, const Tensor& weight, const OptionalTensor& lengths) {
  check_rank(items, "items", 3);
  check_rank(weight, "weight", 2);
  Projection p{};
  p.batch = items.size(0);
  p.length = items.size(1);
  p.width = items.size(2);
  p.columns = weight.size(1);
  check(items, "items", {p.batch, p.length, p.width}, items.scalar_type());
  check(weight, "weight", {p.width, p.columns}, items.scalar_type());
  p.items = data(items);
  p.weight = data(weight);
  p.lengths = lengths_of(lengths, "lengths", p.batch, p.length);
  return p;
}

Tensor project(const Tensor& items, const Tensor& weight, const OptionalTensor& lengths, const std::string& /*backend*/) {
  const Projection p = projection_of(items, weight, lengths);
  Tensor out = empty(items, {p.batch, p.length, p.columns}, items.scalar_type());
  kernels_for(storage_of(items, "items")).project(p, out.mutable_data_ptr(), TorchThreads());
  return out;
}

// A gradient that is not needed comes back as an empty tensor.
std::tuple<Tensor, Tensor> project_backward(const Tensor& grad, const Tensor& items, const Tensor& weight,
                                            const OptionalTensor& lengths, bool need_items, bool need_weight,
                                            const std::string& /*backend*/) {
  const Projection p = projection_of(items, weight, lengths);
  const ScalarType type = items.scalar_type();
  check(grad, "grad", {p.batch, p.length, p.columns}, type);
  Tensor grad_items = need_items ? torch::stable::empty_like(items) : empty(items, {0}, type);
  Tensor grad_weight = need_weight ? torch::stable::empty_like(weight) : empty(weight, {0}, type);
  kernels_for(storage_of(items, "items"))
      .project_backward(p, data(grad), need_items ? grad_items.mutable_data_ptr() : nullptr,
                        need_weight ? grad_weight.mutable_data_ptr() : nullptr, TorchThreads());
  return {grad_items, grad_weight};
}

Tensor pair_scores(const Tensor& regions, const Tensor& region_products, const Tensor& words, const Tensor& word_products,
                   const Tensor& region_score, const Tensor& word_score, const OptionalTensor& region_lengths,
                   const OptionalTensor& word_lengths, const OptionalTensor& pairs, bool cosine, bool inter, bool intra,
                   const std::string& /*backend*/) {
  Problem p = problem_of(regions, words, region_score, word_score, region_lengths, word_lengths, pairs, {cosine, inter, intra});
  add_region_products(p, region_products, regions.scalar_type());
  add_word_products(p, word_products, regions.scalar_type());
  Tensor out = empty(regions, score_shape(p), score_type(regions));
  kernels_for(storage_of(regions, "regions")).scores(p, out.mutable_data_ptr(), nullptr, TorchThreads());
  return out;
}

Tensor raw_scores(const Tensor& regions, const OptionalTensor& region_products, const Tensor& words,
                  const OptionalTensor& word_products, const OptionalTensor& affinity, const OptionalTensor& region_intra,
                  const OptionalTensor& region_inter, const OptionalTensor& word_intra, const OptionalTensor& word_inter,
                  const Tensor& region_score, const Tensor& word_score, const OptionalTensor& region_lengths,
                  const OptionalTensor& word_lengths, const OptionalTensor& pairs, bool cosine, bool inter, bool intra,
                  const std::string& /*backend*/) {
  Problem p = problem_of(regions, words, region_score, word_score, region_lengths, word_lengths, pairs, {cosine, inter, intra});
  const ScalarType type = regions.scalar_type();
  const int64_t D = p.width, H = p.hidden;
  if (region_products) {
    add_region_products(p, *region_products, type);
  } else {
    p.region_intra = weight(region_intra, "region_intra", D, H, type);
    p.word_inter = weight(word_inter, "word_inter", D, H, type);
  }
  if (word_products) {
    add_word_products(p, *word_products, type);
  } else {
    p.affinity = weight(affinity, "affinity", D, D, type);
    p.region_inter = weight(region_inter, "region_inter", D, H, type);
    p.word_intra = weight(word_intra, "word_intra", D, H, type);
  }
  Tensor out = empty(regions, score_shape(p), score_type(regions));
  kernels_for(storage_of(regions, "regions")).scores(p, out.mutable_data_ptr(), nullptr, TorchThreads());
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pair_scores_backward(
    const Tensor& grad, const Tensor& regions, const Tensor& region_products, const Tensor& words, const Tensor& word_products,
    const Tensor& region_score, const Tensor& word_score, const OptionalTensor& region_lengths, const OptionalTensor& word_lengths,
    const OptionalTensor& pairs, bool cosine, bool inter, bool intra, const std::string& /*backend*/) {
  Problem p = problem_of(regions, words, region_score, word_score, region_lengths, word_lengths, pairs, {cosine, inter, intra});
  add_region_products(p, region_products, regions.scalar_type());
  add_word_products(p, word_products, regions.scalar_type());
  check(grad, "grad", score_shape(p), score_type(regions));
  Tensor d_regions = torch::stable::empty_like(regions), d_region_products = torch::stable::empty_like(region_products);
  Tensor d_words = torch::stable::empty_like(words), d_word_products = torch::stable::empty_like(word_products);
  Tensor d_region_score = torch::stable::empty_like(region_score), d_word_score = torch::stable::empty_like(word_score);
  const Gradients gradients{d_regions.mutable_data_ptr(),      d_region_products.mutable_data_ptr(),
                            d_words.mutable_data_ptr(),        d_word_products.mutable_data_ptr(),
                            d_region_score.mutable_data_ptr(), d_word_score.mutable_data_ptr()};
  kernels_for(storage_of(regions, "regions")).scores_backward(p, data(grad), gradients, TorchThreads());
  return {d_regions, d_region_products, d_words, d_word_products, d_region_score, d_word_score};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> pair_maps(
    const Tensor& regions, const Tensor& region_products, const Tensor& words, const Tensor& word_products,
    const Tensor& region_score, const Tensor& word_score, const OptionalTensor& region_lengths, const OptionalTensor& word_lengths,
    const OptionalTensor& pairs, bool cosine, bool inter, bool intra, const std::string& /*backend*/) {
  STD_TORCH_CHECK(pairs.has_value(), "pairs: expected a (P, 2) tensor, got None");
  Problem p = problem_of(regions, words, region_score, word_score, region_lengths, word_lengths, pairs, {cosine, inter, intra});
  add_region_products(p, region_products, regions.scalar_type());
  add_word_products(p, word_products, regions.scalar_type());
  const int64_t P = p.pair_count, M = p.regions_per_image, N = p.words_per_caption;
  const auto zeros = [&](const std::vector<int64_t>& shape) {
    Tensor t = empty(regions, shape, score_type(regions));
    torch::stable::zero_(t);
    return t;
  };
  Tensor scores = empty(regions, {P}, score_type(regions));
  Tensor f = zeros({P, M}), g = zeros({P, N}), A = zeros({P, M, N}), C = zeros({P, M, N}), Rt = zeros({P, N, M});
  const Maps maps{f.mutable_data_ptr(), g.mutable_data_ptr(), A.mutable_data_ptr(), C.mutable_data_ptr(), Rt.mutable_data_ptr()};
  kernels_for(storage_of(regions, "regions")).scores(p, scores.mutable_data_ptr(), &maps, TorchThreads());
  return {scores, f, g, A, C, Rt};
}

void tanh_(const Tensor& values) {
  STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float || values.scalar_type() == ScalarType::Double,
                  "values: expected float32 or float64");
  STD_TORCH_CHECK(values.is_contiguous(), "values: expected a contiguous tensor");
  struct Slice {
    const Kernels& kernels;
    char* data;
    int64_t count, workers, size;
  } slice{kernels_for(storage_of(values, "values")), static_cast<char*>(values.mutable_data_ptr()), values.numel(),
          std::max<int64_t>(1, torch::stable::get_num_threads()), values.scalar_type() == ScalarType::Double ? 8 : 4};
  run_on_torch_threads(
      slice.workers,
      [](void* context, int64_t worker) {
        const Slice& s = *static_cast<Slice*>(context);
        const int64_t begin = s.count * worker / s.workers, end = s.count * (worker + 1) / s.workers;
        s.kernels.tanh(s.data + begin * s.size, end - begin);
      },
      &slice);
}

std::string cpu_isa() { return caan::cpu::instruction_set(); }

} // namespace

STABLE_TORCH_LIBRARY_IMPL(caan_kernels, CPU, m) {
  m.impl("project", TORCH_BOX(&project));
  m.impl("project_backward", TORCH_BOX(&project_backward));
  m.impl("pair_scores", TORCH_BOX(&pair_scores));
  m.impl("pair_scores_backward", TORCH_BOX(&pair_scores_backward));
  m.impl("raw_scores", TORCH_BOX(&raw_scores));
  m.impl("pair_maps", TORCH_BOX(&pair_maps));
  m.impl("tanh_", TORCH_BOX(&tanh_));
}

STABLE_TORCH_LIBRARY_IMPL(caan_kernels, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&cpu_isa)); }
