// Which items and pairs launches take, found on the device, as the host calls it (caan_kernels/core/gpu/plan.py).
#pragma once

#include "core/cuda/types.h"

namespace caan::cuda {

// One side of a call: `count` items of up to `rows` rows. Given lengths, or null where every item has all rows, may hold anything;
// one out of range is 0 here. Buckets of items are by size: 16, 32, 64 and so on, with `halfway` what lies between two powers of
// two, too; without given lengths there is one. In a bucket items of up to three quarters of its size come first. Items without a
// row come behind the `buckets`.
struct PlannedSide {
  const int64_t* given;
  int64_t count, rows;
  bool halfway;
  int buckets;
  // (count), (count) items by bucket, and (buckets + 1) where each bucket begins among those.
  int64_t *lengths, *order, *starts;
};

// Scores before a kernel writes them, and what pairs of a list are sorted by: bucket of words * images + image, with a bucket
// beyond all others for what has an empty side or does not exist.
struct PlannedPairs {
  // (listed, 2), or null for all pairs.
  const int64_t* pairs;
  int64_t listed;
  // scores[image * score_row + caption] or scores[place]; null where there are none.
  float* scores;
  int64_t score_row;
  int64_t* keys;
};

// Sorts both sides; gives scores 0, the score of a pair with an empty side, and NaN where a length or an index is out of range.
void plan(const PlannedSide& regions, const PlannedSide& words, const PlannedPairs& pairs, Stream stream);

// The pairs with a gradient other than 0, of (images, captions) gradients, in the order in which it is summed. keys, order and
// by_caption have a place for every pair: keys image * captions + caption in rising order, images * captions where there are no
// more; their places in the gradients; and places in keys by caption, as many as there are keys. image_starts (images + 1) and
// caption_starts (captions + 1) are where each item's begin. `counts` (images + captions) and `ranks` (images, captions) are
// scratch memory.
struct PlannedSchedule {
  const float* gradients;
  const int64_t *region_lengths, *word_lengths;
  int64_t images, captions;
  int64_t *keys, *order, *image_starts, *by_caption, *caption_starts, *counts, *ranks;
};
void plan_schedule(const PlannedSchedule& schedule, Stream stream);

} // namespace caan::cuda
