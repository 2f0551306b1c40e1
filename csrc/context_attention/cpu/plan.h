// Which pairs are scored together: host-side planning, independent of instruction set and of the arithmetic.
#pragma once

#include <cstdint>
#include <vector>

#include "context_attention/cpu/kernels.h"

namespace caan::context_attention {

// A pair of a pair list: positions in Plan::images and Plan::captions, and where its score goes.
struct Entry {
  int64_t image;
  int64_t caption;
  int64_t out;
};

// A block of images against a block of captions: positions in Plan::images, Plan::captions and Plan::entries.
struct Tile {
  int64_t image_begin, image_end;
  int64_t caption_begin, caption_end;
  int64_t entry_begin, entry_end;
};

// Some images with some of a tile's captions: [begin, end) of Plan::entries, which belong to one image, or of Plan::captions where
// all pairs are scored.
struct Unit {
  int64_t image_begin, image_end;
  int64_t begin, end;
};

struct Plan {
  bool all_pairs;
  std::vector<int64_t> images;   // indices of the images that take part; none is empty
  std::vector<int64_t> captions; // likewise; in a pair list a caption may stand once for every image block
  std::vector<Entry> entries;    // pair lists only
  std::vector<Tile> tiles;
};

struct BlockLimits {
  int64_t regions;  // at most so many regions in an image block (one image at the least)
  int64_t words;    // at most so many words in a caption block (one caption at the least)
  int64_t multiple; // what a caption of a pair list counts as: a multiple of so many words
  int64_t images;   // at most so many images in a unit, where all pairs are scored
};

// pair_begin..pair_end: the part of problem.pairs to plan; ignored when all pairs are scored.
Plan plan_tiles(const Problem& problem, BlockLimits limits, int64_t pair_begin, int64_t pair_end);

// Splits a tile so that every thread finds work, into units of up to `images` images where all pairs are scored. Scores do not
// depend on the split.
std::vector<Unit> split_tile(const Plan& plan, const Tile& tile, int64_t images, int64_t threads);

// A pair with a gradient, in the order in which gradients are added up.
struct GradientEntry {
  int64_t image;
  int64_t caption;
  double gradient;
};

// Sorts entries by image, caption and gradient, then gives each the lowest level that neither its image nor its caption has taken.
// Running level after level, each level's pairs in any order or at once, adds into every row in one order, which depends on the set
// of entries alone. Returns the levels' bounds in the reordered entries.
std::vector<int64_t> order_by_level(std::vector<GradientEntry>& entries, int64_t images, int64_t captions);

} // namespace caan::context_attention
