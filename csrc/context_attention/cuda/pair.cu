// Scores of one pair a block in float32 arithmetic: every dtype and length, where no tensor cores are; and attention maps.
#include "context_attention/cuda/block.h"
#include "context_attention/cuda/pair.h"

namespace caan::context_attention {

namespace {

// Whether another kernel scores such a pair on tensor cores.
template <typename T>
CAAN_DEVICE bool taken(int m, int n, const Options& o) {
  return fits_tile<T>(m, n, o) || large_strips<T>(m, n, o) != 0;
}

CAAN_KERNEL void CAAN_BOUNDS(THREADS, 4)
    score_kernel(Sides<AnyType> s, Pairs pairs, Options o, float* scores, int64_t score_row, bool rest, float* scratch) {
  CAAN_SHARED;
  float* const slot = scratch + blockIdx.x * SlotShape{s.M, s.N, s.D, false}.size();
  const auto wanted = [&](int m, int n) {
    return !rest || !(s.regions.type == AnyNumbers::FLOAT32 ? taken<float>(m, n, o) : taken<bfloat16>(m, n, o));
  };
  for_each_pair<THREADS>(s, pairs, reinterpret_cast<bool*>(shared_memory), wanted, [&](int64_t place, const Found& pair) {
    const OnPanels on(s, o, pair.image, pair.caption, slot, false, shared_memory + THREADS);
    // A pointer: nvcc takes what is captured by reference for a local variable.
    const float found = work_on<false>([made = &on]() -> const OnPanels& { return *made; }, on.panels.P0, [] { return 0.0f; });
    if (threadIdx.x == 0) scores[score_place(pairs, place, pair, score_row)] = found;
  });
}

} // namespace

void score_pairs(const Sides<AnyType>& s, const Pairs& all, const Options& o, float* scores, int64_t score_row, bool rest,
                 float* scratch, int64_t slots, int64_t launch_pairs, Stream stream) {
  const int64_t last = all.first + all.count;
  for (Pairs pairs = all; pairs.first < last; pairs.first += launch_pairs) {
    pairs.count = last - pairs.first < launch_pairs ? last - pairs.first : launch_pairs;
    launch<score_kernel>(pairs.count < slots ? pairs.count : slots, THREADS, THREADS + panel_bytes(s.M, s.N), stream, s, pairs, o,
                         scores, score_row, rest, scratch);
  }
}

} // namespace caan::context_attention
