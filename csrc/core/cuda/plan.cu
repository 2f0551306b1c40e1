// Plans of a call. A block sorts what belongs to half a bucket, one image or one caption, each thread a run of its own: one order,
// and no atomics.
#include "core/cuda/plan.h"

#include "core/cuda/device.h"

namespace caan::cuda {

namespace {

constexpr int THREADS = 128, SMALLEST = 16;
// Pairs of a block that fills scores, and most blocks that do.
constexpr int FILLED = 8 * THREADS, MOST_FILLING = 4096;

CAAN_DEVICE bool in_range(const PlannedSide& side, int64_t item) {
  return !side.given || (side.given[item] >= 0 && side.given[item] <= side.rows);
}

CAAN_DEVICE int64_t length_of(const PlannedSide& side, int64_t item) {
  if (!side.given) return side.rows;
  return in_range(side, item) ? side.given[item] : 0;
}

// Twice the bucket, and one more beyond three quarters of its size.
CAAN_DEVICE int half_bucket_of(const PlannedSide& side, int64_t length) {
  if (length == 0) return 2 * side.buckets;
  int bucket = 0;
  int64_t size = SMALLEST;
  for (; size < length && bucket + 1 < side.buckets; ++bucket) {
    const bool power = (size & (size - 1)) == 0;
    size = !power ? size / 3 * 4 : side.halfway && size > SMALLEST ? size / 2 * 3 : 2 * size;
  }
  return 2 * bucket + (4 * length > 3 * size);
}

// How many a thread has of two kinds.
struct Found {
  int64_t first, second;
};

// The first kind in threads before this one, and the second in all threads of the block.
CAAN_DEVICE Found sum_before(const Found& own, Found* shared) {
  Found* const warps = shared + THREADS;
  const int t = int(threadIdx.x);
  shared[t] = own;
  block_barrier();
  if (t < THREADS / WARP) {
    Found sum = {};
    for (int i = t * WARP; i < (t + 1) * WARP; ++i) sum.first += shared[i].first, sum.second += shared[i].second;
    warps[t] = sum;
  }
  block_barrier();
  Found sum = {};
  for (int w = 0; w < THREADS / WARP; ++w) {
    if (w < t / WARP) sum.first += warps[w].first;
    sum.second += warps[w].second;
  }
  for (int i = t / WARP * WARP; i < t; ++i) sum.first += shared[i].first;
  return sum;
}

// A thread's part of what a block goes through.
struct Run {
  int64_t begin, end;
};
CAAN_DEVICE Run run_of(int64_t count) {
  const int64_t each = (count + THREADS - 1) / THREADS, begin = each * threadIdx.x;
  return {begin < count ? begin : count, begin + each < count ? begin + each : count};
}

CAAN_BOTH int half_buckets(const PlannedSide& side) { return 2 * side.buckets + 1; }

CAAN_DEVICE void sort_half_bucket(const PlannedSide& side, int half, Found* shared) {
  const Run run = run_of(side.count);
  Found own = {};
  for (int64_t item = run.begin; item < run.end; ++item) {
    const int found = half_bucket_of(side, length_of(side, item));
    own.first += found == half, own.second += found < half;
  }
  const Found before = sum_before(own, shared);
  int64_t place = before.first + before.second;
  if (threadIdx.x == 0 && half % 2 == 0) side.starts[half / 2] = place;
  for (int64_t item = run.begin; item < run.end; ++item) {
    const int64_t length = length_of(side, item);
    if (half_bucket_of(side, length) != half) continue;
    side.lengths[item] = length;
    side.order[place++] = item;
  }
}

CAAN_DEVICE void fill_pair(const PlannedSide& regions, const PlannedSide& words, const PlannedPairs& p, int64_t place) {
  const int64_t image = p.pairs ? p.pairs[2 * place] : place / words.count;
  const int64_t caption = p.pairs ? p.pairs[2 * place + 1] : place % words.count;
  const bool exists = image >= 0 && image < regions.count && caption >= 0 && caption < words.count;
  const bool real = exists && in_range(regions, image) && in_range(words, caption);
  if (p.scores) p.scores[p.pairs ? place : image * p.score_row + caption] = real ? 0.0f : NAN;
  if (!p.pairs) return;
  const bool scored = real && length_of(regions, image) > 0 && length_of(words, caption) > 0;
  const int bucket = scored ? half_bucket_of(words, length_of(words, caption)) / 2 : words.buckets;
  p.keys[place] = bucket * regions.count + (exists ? image : 0);
}

CAAN_KERNEL void CAAN_BOUNDS(THREADS, 1) plan_kernel(PlannedSide regions, PlannedSide words, PlannedPairs pairs, int64_t count) {
  CAAN_SHARED;
  auto* shared = reinterpret_cast<Found*>(shared_memory);
  int64_t block = blockIdx.x;
  if (block < half_buckets(regions)) return sort_half_bucket(regions, int(block), shared);
  block -= half_buckets(regions);
  if (block < half_buckets(words)) return sort_half_bucket(words, int(block), shared);
  block -= half_buckets(words);
  const int64_t threads = (int64_t(gridDim.x) - half_buckets(regions) - half_buckets(words)) * THREADS;
  for (int64_t place = block * THREADS + threadIdx.x; place < count; place += threads) fill_pair(regions, words, pairs, place);
}

CAAN_DEVICE bool has_gradient(const PlannedSchedule& w, int64_t image, int64_t caption) {
  return w.gradients[image * w.captions + caption] != 0 && w.region_lengths[image] > 0 && w.word_lengths[caption] > 0;
}

// A block an image, and then a block a caption: how many pairs with a gradient it has. Images also say how many of theirs come
// before each pair.
CAAN_KERNEL void CAAN_BOUNDS(THREADS, 1) count_schedule_kernel(PlannedSchedule w) {
  CAAN_SHARED;
  auto* shared = reinterpret_cast<Found*>(shared_memory);
  const int64_t item = blockIdx.x;
  const bool of_image = item < w.images;
  const auto has = [&](int64_t other) { return of_image ? has_gradient(w, item, other) : has_gradient(w, other, item - w.images); };
  const Run run = run_of(of_image ? w.captions : w.images);
  Found own = {};
  for (int64_t other = run.begin; other < run.end; ++other) own.first += has(other);
  own.second = own.first;
  const Found before = sum_before(own, shared);
  if (threadIdx.x == 0) w.counts[item] = before.second;
  int64_t rank = before.first;
  for (int64_t other = run.begin; of_image && other < run.end; ++other) {
    w.ranks[item * w.captions + other] = rank;
    rank += has(other);
  }
}

// A block for images and one for captions: where each item's pairs begin.
CAAN_KERNEL void CAAN_BOUNDS(THREADS, 1) start_schedule_kernel(PlannedSchedule w) {
  CAAN_SHARED;
  auto* shared = reinterpret_cast<Found*>(shared_memory);
  const bool of_images = blockIdx.x == 0;
  const int64_t* const counts = of_images ? w.counts : w.counts + w.images;
  int64_t* const starts = of_images ? w.image_starts : w.caption_starts;
  const int64_t items = of_images ? w.images : w.captions;
  const Run run = run_of(items);
  Found own = {};
  for (int64_t item = run.begin; item < run.end; ++item) own.first += counts[item];
  own.second = own.first;
  const Found before = sum_before(own, shared);
  int64_t place = before.first;
  for (int64_t item = run.begin; item < run.end; ++item) {
    starts[item] = place;
    place += counts[item];
  }
  if (threadIdx.x == 0) starts[items] = before.second;
}

// A block an image, and then a block a caption: their pairs at their places.
CAAN_KERNEL void CAAN_BOUNDS(THREADS, 1) place_schedule_kernel(PlannedSchedule w) {
  CAAN_SHARED;
  auto* shared = reinterpret_cast<Found*>(shared_memory);
  const int64_t item = blockIdx.x;
  if (item < w.images) {
    const int64_t all = w.image_starts[w.images], none = w.images * w.captions;
    for (int64_t caption = threadIdx.x; caption < w.captions; caption += THREADS) {
      const int64_t pair = item * w.captions + caption, before = w.image_starts[item] + w.ranks[pair];
      const bool has = has_gradient(w, item, caption);
      // What has none comes behind all that have one.
      const int64_t place = has ? before : all + pair - before;
      w.keys[place] = has ? pair : none;
      w.order[place] = pair;
    }
    return;
  }
  const int64_t caption = item - w.images;
  const Run run = run_of(w.images);
  Found own = {};
  for (int64_t image = run.begin; image < run.end; ++image) own.first += has_gradient(w, image, caption);
  int64_t place = w.caption_starts[caption] + sum_before(own, shared).first;
  for (int64_t image = run.begin; image < run.end; ++image)
    if (has_gradient(w, image, caption)) w.by_caption[place++] = w.image_starts[image] + w.ranks[image * w.captions + caption];
}

constexpr size_t SHARED = (THREADS + THREADS / WARP) * sizeof(Found);

} // namespace

void plan(const PlannedSide& regions, const PlannedSide& words, const PlannedPairs& pairs, Stream stream) {
  const int64_t count = pairs.pairs ? pairs.listed : pairs.scores ? regions.count * words.count : 0;
  const int64_t filling = (count + FILLED - 1) / FILLED;
  const int64_t blocks = half_buckets(regions) + half_buckets(words) + (filling < MOST_FILLING ? filling : MOST_FILLING);
  launch<plan_kernel>(blocks, THREADS, SHARED, stream, regions, words, pairs, count);
}

void plan_schedule(const PlannedSchedule& schedule, Stream stream) {
  launch<count_schedule_kernel>(schedule.images + schedule.captions, THREADS, SHARED, stream, schedule);
  launch<start_schedule_kernel>(2, THREADS, SHARED, stream, schedule);
  launch<place_schedule_kernel>(schedule.images + schedule.captions, THREADS, SHARED, stream, schedule);
}

} // namespace caan::cuda
