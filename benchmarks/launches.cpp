// What each kernel is launched with, for cuda_report.py: a line a launch, with a name that holds the kernel's, the threads of a
// block and its bytes of shared memory. No kernel runs.
#include <cstdio>
#include <initializer_list>

#include "context_attention/cuda/kernels.h"
#include "core/cuda/device.h"
#include "core/cuda/plan.h"
#include "core/cuda/product.h"
#include "max_similarity/cuda/kernels.h"

namespace {

using namespace caan::context_attention;

// Widths that copies of 16 bytes take, and that they do not; few rows and many, all pairs and a list.
template <typename T>
void launch_max_similarity() {
  using namespace caan::max_similarity;
  const int64_t one = 1;
  for (int width : {1024, 1025})
    for (int rows : {16, 1024})
      for (const int64_t* listed : {static_cast<const int64_t*>(nullptr), &one}) {
        const Rows<T> side{nullptr, nullptr, nullptr, 1, rows};
        const Search<T> search{side, side, width, listed, 1, 1};
        find_largest(search, static_cast<float*>(nullptr), int64_t(1), int64_t(1), nullptr);
        find_places(search, nullptr, nullptr);
        add_largest(search, nullptr, 1, caan::max_similarity::Scores{nullptr, 1, 1, false}, nullptr);
        sum_query_gradients(search, Terms{}, nullptr);
        sum_document_gradients(search, Terms{}, nullptr);
      }
}

template <typename T>
void launch_all(int regions) {
  const int64_t one = 1;
  const Options paper{false, true, true}, ablated{false, true, false};
  const int D = 1024, H = 1024, words = 32;
  const Sides<T> sides{nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, &one, &one, 1, 1, regions, words, D, H};
  Pairs pairs{};
  pairs.count = 1;
  score_pairs(any_type(sides), pairs, paper, nullptr, 1, false, nullptr, 1, 1, nullptr);
  differentiate_tiled(sides, Schedule{}, 0, 1, paper, nullptr, nullptr, 1, Sums{}, nullptr, nullptr);
  differentiate(any_type(sides), Schedule{}, 0, 1, paper, nullptr, nullptr, 1, Sums{}, nullptr, nullptr);
  // Widths that are no multiple of 8 go by no tile.
  for (int64_t d : {D, D + 1})
    multiply(Product<T>{nullptr, nullptr, nullptr, nullptr, regions, H, d, regions, d, 1, H, 1}, nullptr);
  Sides<T> large = sides;
  large.M = 576, large.N = 128;
  score_large(large, pairs, paper, nullptr, 1, nullptr, int64_t(1) << 30, 1, 1, nullptr);
  for (const Options& options : {paper, ablated})
    for (int strips : {1, 2})
      for (const int64_t* listed : {static_cast<const int64_t*>(nullptr), &one})
        score_tiles(sides, Tiles{nullptr, nullptr, listed, nullptr, nullptr, 1, 1, 1, 1, 0, strips}, options, nullptr, nullptr);
}

} // namespace

int main() {
  on_launch = [](const Launch& launch) { std::printf("%s\t%d\t%d\n", launch.name, int(launch.threads), int(launch.shared)); };
  caan::cuda::plan({}, {}, {}, nullptr);
  caan::cuda::plan_schedule({nullptr, nullptr, nullptr, 1, 1}, nullptr);
  launch_max_similarity<float>();
  launch_max_similarity<caan::cuda::bfloat16>();
  launch_max_similarity<caan::cuda::float16>();
  for (int regions : {36, 64}) {
    launch_all<float>(regions);
    launch_all<bfloat16>(regions);
    launch_all<float16>(regions);
  }
}
