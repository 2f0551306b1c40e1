#include "context_attention/cpu/plan.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>
#include <tuple>

namespace caan::context_attention {
namespace {

// Cuts positions [0, count) into runs whose sizes add up to at most limit, each run holding one position at the least.
template <class Size>
std::vector<std::pair<int64_t, int64_t>> cut(int64_t begin, int64_t end, int64_t limit, Size size) {
  std::vector<std::pair<int64_t, int64_t>> runs;
  int64_t start = begin, total = 0;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t s = size(i);
    if (i > start && total + s > limit) {
      runs.emplace_back(start, i);
      start = i;
      total = 0;
    }
    total += s;
  }
  if (end > start) runs.emplace_back(start, end);
  return runs;
}

Plan plan_all_pairs(const Problem& problem, BlockLimits limits) {
  Plan plan{.all_pairs = true, .images = {}, .captions = {}, .entries = {}, .tiles = {}};
  int64_t regions = 0, words = 0;
  for (int64_t i = 0; i < problem.images; ++i)
    if (problem.region_count(i) > 0) plan.images.push_back(i), regions += problem.region_count(i);
  for (int64_t t = 0; t < problem.captions; ++t)
    if (problem.word_count(t) > 0) plan.captions.push_back(t), words += problem.word_count(t);

  const auto image_blocks =
      cut(0, int64_t(plan.images.size()), limits.regions, [&](int64_t i) { return problem.region_count(plan.images[i]); });
  const auto caption_blocks =
      cut(0, int64_t(plan.captions.size()), limits.words, [&](int64_t t) { return problem.word_count(plan.captions[t]); });
  // The inner side of the two loops is prepared anew for every block of the outer one, so the cheaper total goes inside.
  const double region_flops = double(regions) * 2 * problem.hidden;
  const double word_flops = double(words) * (problem.width + 2 * problem.hidden);
  const bool images_outside = (double(image_blocks.size()) - 1) * word_flops <= (double(caption_blocks.size()) - 1) * region_flops;
  const auto add = [&](std::pair<int64_t, int64_t> i, std::pair<int64_t, int64_t> t) {
    plan.tiles.push_back({i.first, i.second, t.first, t.second, 0, 0});
  };
  if (images_outside) {
    for (auto i : image_blocks)
      for (auto t : caption_blocks) add(i, t);
  } else {
    for (auto t : caption_blocks)
      for (auto i : image_blocks) add(i, t);
  }
  return plan;
}

Plan plan_pair_list(const Problem& problem, BlockLimits limits, int64_t pair_begin, int64_t pair_end) {
  Plan plan{.all_pairs = false, .images = {}, .captions = {}, .entries = {}, .tiles = {}};
  auto& entries = plan.entries;
  entries.reserve(pair_end - pair_begin);
  for (int64_t p = pair_begin; p < pair_end; ++p) {
    const int64_t image = problem.pairs[2 * p], caption = problem.pairs[2 * p + 1];
    if (problem.region_count(image) > 0 && problem.word_count(caption) > 0) entries.push_back({image, caption, p});
  }
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.image < b.image; });
  for (auto& entry : entries) {
    if (plan.images.empty() || plan.images.back() != entry.image) plan.images.push_back(entry.image);
    entry.image = int64_t(plan.images.size()) - 1;
  }
  const auto image_blocks =
      cut(0, int64_t(plan.images.size()), limits.regions, [&](int64_t i) { return problem.region_count(plan.images[i]); });
  int64_t begin = 0;
  for (auto [image_begin, image_end] : image_blocks) {
    int64_t end = begin;
    while (end < int64_t(entries.size()) && entries[end].image < image_end) ++end;
    std::sort(entries.begin() + begin, entries.begin() + end, [](const Entry& a, const Entry& b) { return a.caption < b.caption; });
    const int64_t first_caption = int64_t(plan.captions.size());
    for (int64_t e = begin; e < end; ++e) {
      const bool first = int64_t(plan.captions.size()) == first_caption;
      if (first || plan.captions.back() != entries[e].caption) plan.captions.push_back(entries[e].caption);
      entries[e].caption = int64_t(plan.captions.size()) - 1;
    }
    const auto caption_blocks = cut(first_caption, int64_t(plan.captions.size()), limits.words, [&](int64_t t) {
      const int64_t words = problem.word_count(plan.captions[t]);
      return (words + limits.multiple - 1) / limits.multiple * limits.multiple;
    });
    for (auto [caption_begin, caption_end] : caption_blocks) {
      int64_t tile_end = begin;
      while (tile_end < end && entries[tile_end].caption < caption_end) ++tile_end;
      std::sort(entries.begin() + begin, entries.begin() + tile_end, [](const Entry& a, const Entry& b) {
        return std::tie(a.image, a.caption, a.out) < std::tie(b.image, b.caption, b.out);
      });
      plan.tiles.push_back({image_begin, image_end, caption_begin, caption_end, begin, tile_end});
      begin = tile_end;
    }
  }
  return plan;
}

} // namespace

Plan plan_tiles(const Problem& problem, BlockLimits limits, int64_t pair_begin, int64_t pair_end) {
  return problem.pairs ? plan_pair_list(problem, limits, pair_begin, pair_end) : plan_all_pairs(problem, limits);
}

std::vector<Unit> split_tile(const Plan& plan, const Tile& tile, int64_t images, int64_t threads) {
  std::vector<Unit> units;
  if (plan.all_pairs) {
    for (int64_t i = tile.image_begin; i < tile.image_end; i += images)
      units.push_back({i, std::min(tile.image_end, i + images), tile.caption_begin, tile.caption_end});
  } else {
    for (int64_t e = tile.entry_begin; e < tile.entry_end; ++e) {
      const int64_t image = plan.entries[e].image;
      if (units.empty() || units.back().image_begin != image) units.push_back({image, image + 1, e, e});
      units.back().end = e + 1;
    }
  }
  // Every unit packs its images anew, which costs about as much as scoring one caption: below 16 captions it would show.
  const int64_t wanted = 8 * threads;
  if (threads == 1 || int64_t(units.size()) >= wanted) return units;
  std::vector<Unit> parts;
  for (const Unit& unit : units) {
    const int64_t captions = unit.end - unit.begin;
    const int64_t pieces =
        std::max<int64_t>(1, std::min(captions / 16, (wanted + int64_t(units.size()) - 1) / int64_t(units.size())));
    for (int64_t p = 0; p < pieces; ++p)
      parts.push_back(
          {unit.image_begin, unit.image_end, unit.begin + captions * p / pieces, unit.begin + captions * (p + 1) / pieces});
  }
  return parts;
}

// By bits, not by value: a NaN gradient must not upset the sort.
static int64_t bits(double value) {
  int64_t result;
  std::memcpy(&result, &value, sizeof result);
  return result;
}

std::vector<int64_t> order_by_level(std::vector<GradientEntry>& entries, int64_t images, int64_t captions) {
  std::sort(entries.begin(), entries.end(), [](const GradientEntry& a, const GradientEntry& b) {
    return std::make_tuple(a.image, a.caption, bits(a.gradient)) < std::make_tuple(b.image, b.caption, bits(b.gradient));
  });
  // Which levels an item has taken, one bit each.
  std::vector<std::vector<uint64_t>> of_image(images), of_caption(captions);
  std::vector<int64_t> level(entries.size());
  int64_t levels = 0;
  for (size_t e = 0; e < entries.size(); ++e) {
    auto& image = of_image[entries[e].image];
    auto& caption = of_caption[entries[e].caption];
    size_t word = 0;
    const auto taken = [&] { return (word < image.size() ? image[word] : 0) | (word < caption.size() ? caption[word] : 0); };
    while (taken() == ~uint64_t(0)) ++word;
    const int bit = std::countr_one(taken());
    for (auto* item : {&image, &caption}) {
      if (item->size() <= word) item->resize(word + 1, 0);
      (*item)[word] |= uint64_t(1) << bit;
    }
    level[e] = int64_t(word) * 64 + bit;
    levels = std::max(levels, level[e] + 1);
  }
  std::vector<int64_t> bounds(levels + 1, 0);
  for (int64_t l : level) ++bounds[l + 1];
  std::partial_sum(bounds.begin(), bounds.end(), bounds.begin());
  std::vector<int64_t> next(bounds.begin(), bounds.end() - 1);
  std::vector<GradientEntry> ordered(entries.size());
  for (size_t e = 0; e < entries.size(); ++e) ordered[next[level[e]]++] = entries[e];
  entries = std::move(ordered);
  return bounds;
}

} // namespace caan::context_attention
