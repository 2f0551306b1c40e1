// caan_kernels._host: the plans of the CPU kernels as Python lists, for tests. It needs no torch.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "context_attention/cpu/plan.h"

namespace py = pybind11;

namespace {

using Pair = std::pair<int64_t, int64_t>;
// A unit's pairs: (image, caption, position of its score).
using UnitPairs = std::vector<std::tuple<int64_t, int64_t, int64_t>>;

std::vector<std::vector<UnitPairs>> plan_pairs(const std::vector<int64_t>& region_lengths, const std::vector<int64_t>& word_lengths,
                                               const std::optional<std::vector<Pair>>& pairs, int64_t width, int64_t hidden,
                                               int64_t block_regions, int64_t block_words, int64_t word_multiple,
                                               int64_t images_together, int64_t threads) {
  using namespace caan::context_attention;
  std::vector<int64_t> flat;
  if (pairs)
    for (auto [image, caption] : *pairs) flat.insert(flat.end(), {image, caption});
  flat.push_back(0); // so that an empty list has an address: null means all pairs
  Problem problem{};
  problem.images = int64_t(region_lengths.size());
  problem.captions = int64_t(word_lengths.size());
  problem.region_lengths = region_lengths.data();
  problem.word_lengths = word_lengths.data();
  problem.width = width;
  problem.hidden = hidden;
  problem.pairs = pairs ? flat.data() : nullptr;
  problem.pair_count = pairs ? int64_t(pairs->size()) : 0;
  const Plan plan = plan_tiles(problem, {block_regions, block_words, word_multiple, images_together}, 0, problem.pair_count);
  std::vector<std::vector<UnitPairs>> tiles;
  for (const Tile& tile : plan.tiles) {
    auto& units = tiles.emplace_back();
    for (const Unit& unit : split_tile(plan, tile, images_together, threads)) {
      UnitPairs& listed = units.emplace_back();
      for (int64_t i = unit.image_begin; i < unit.image_end; ++i)
        for (int64_t e = unit.begin; e < unit.end; ++e) {
          const int64_t image = plan.images[i], caption = plan.captions[plan.all_pairs ? e : plan.entries[e].caption];
          listed.emplace_back(image, caption, plan.all_pairs ? image * problem.captions + caption : plan.entries[e].out);
        }
    }
  }
  return tiles;
}

using Gradient = std::tuple<int64_t, int64_t, double>;

std::vector<std::vector<Gradient>> gradient_levels(const std::vector<Gradient>& gradients, int64_t images, int64_t captions) {
  std::vector<caan::context_attention::GradientEntry> entries;
  for (auto [image, caption, gradient] : gradients) entries.push_back({image, caption, gradient});
  const auto bounds = caan::context_attention::order_by_level(entries, images, captions);
  std::vector<std::vector<Gradient>> levels;
  for (size_t level = 0; level + 1 < bounds.size(); ++level) {
    levels.emplace_back();
    for (int64_t e = bounds[level]; e < bounds[level + 1]; ++e)
      levels.back().emplace_back(entries[e].image, entries[e].caption, entries[e].gradient);
  }
  return levels;
}

} // namespace

PYBIND11_MODULE(_host, module) {
  module.def("plan_pairs", &plan_pairs, py::arg("region_lengths"), py::arg("word_lengths"), py::arg("pairs"), py::arg("width"),
             py::arg("hidden"), py::arg("block_regions"), py::arg("block_words"), py::arg("word_multiple"),
             py::arg("images_together"), py::arg("threads"),
             "The CPU kernels' work: for every tile its units, for every unit its (image, caption, position of the score).");
  module.def("gradient_levels", &gradient_levels, py::arg("gradients"), py::arg("images"), py::arg("captions"),
             "The order in which backward adds pairs: (image, caption, gradient) level by level.");
}
