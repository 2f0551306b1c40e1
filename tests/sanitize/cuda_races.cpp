// The CUDA kernels with every thread a thread of the system, for ThreadSanitizer: accesses to shared memory, scratch and results
// that no barrier orders are reported, as compute-sanitizer's racecheck would on a GPU.
//
// tests/test_emulated.py compiles and runs it.
#include <algorithm>
#include <cstdio>
#include <numeric>
#include <random>
#include <type_traits>
#include <vector>

#include "context_attention/cuda/kernels.h"
#include "core/cuda/device.h"
#include "core/cuda/product.h"
#include "max_similarity/cuda/kernels.h"

namespace {

using namespace caan::context_attention;

template <typename T>
T half_of(float x) {
  if constexpr (std::is_same_v<T, float>)
    return x;
  else
    return from_float<T>(x);
}

// A ragged call, two images and three captions, and everything that the kernels want to know of it.
template <typename T>
struct Call {
  int M, N, D, H;
  int64_t images = 2, captions = 3;
  std::vector<T> V, VQ, U, UQ, w_v, w_u;
  std::vector<int64_t> m, n, order{0, 1, 2}, starts{0, 3}, pairs, keys, places, image_starts, by_caption, caption_starts;
  std::vector<int64_t> count{0};

  Call(int M_, int N_, int D_, int H_) : M(M_), N(N_), D(D_), H(H_), m{M_, M_ / 2}, n{N_, 1, N_ / 2 + 1} {
    std::mt19937 random(0);
    const auto draw = [&](size_t size) {
      std::normal_distribution<float> normal(0, 0.3f);
      std::vector<T> numbers(size);
      for (T& x : numbers) x = half_of<T>(normal(random));
      return numbers;
    };
    V = draw(images * M * D), VQ = draw(images * M * 2 * H), U = draw(captions * N * D), UQ = draw(captions * N * (D + 2 * H));
    w_v = draw(H), w_u = draw(H);
    for (int64_t pair = 0; pair < images * captions; ++pair) {
      pairs.insert(pairs.end(), {pair / captions, pair % captions});
      keys.push_back(pair);
      places.push_back(pair);
      by_caption.push_back(pair % images * captions + pair / images);
    }
    image_starts = {0, captions, 2 * captions};
    caption_starts = {0, images, 2 * images, 3 * images};
    count[0] = images * captions;
  }

  Sides<T> sides() const {
    return {V.data(), VQ.data(), U.data(), UQ.data(), w_v.data(), w_u.data(), m.data(), n.data(), images, captions, M, N, D, H};
  }
};

// In four slots, by either function, which takes `sides` of the call.
template <typename T, typename SidesOfCall, typename Differentiate>
void run_gradients(const Call<T>& call, const SidesOfCall& sides, const Options& options, const std::vector<float>& scores,
                   std::vector<float>& scratch, Differentiate run) {
  std::vector<float> dV(call.V.size()), dVQ(call.VQ.size()), dU(call.U.size()), dUQ(call.UQ.size()), dw_v(2 * call.H),
      dw_u(2 * call.H);
  const Schedule schedule{call.keys.data(),         call.places.data(),     call.count.data(),
                          call.image_starts.data(), call.by_caption.data(), call.caption_starts.data()};
  const Sums sums{dV.data(), dVQ.data(), dU.data(), dUQ.data(), dw_v.data(), dw_u.data()};
  int64_t turns[2] = {};
  run(sides, schedule, 0, 6, options, scores.data(), scratch.data(), 4, sums, turns, nullptr);
}

template <typename T>
void run_pairs(const Options& options) {
  const Call<T> call(9, 5, 40, 36);
  std::vector<float> scores(6, 1.0f);
  // Three pairs a block, one after the other.
  std::vector<float> scratch(2 * SlotShape{call.M, call.N, call.D, false}.size());
  score_pairs(any_type(call.sides()), Pairs{nullptr, 0, 6}, options, scores.data(), 3, false, scratch.data(), 2, 6, nullptr);

  // Two rounds, of which the second leaves a slot empty.
  scratch.resize(4 * SlotShape{call.M, call.N, call.D, true}.size());
  run_gradients(call, any_type(call.sides()), options, scores, scratch, differentiate);
}

// On tensor cores.
template <typename T>
void run_gradient_tiles(const Options& options, int M, int N, int width) {
  const Call<T> call(M, N, width, width);
  std::vector<float> scores(6, 1.0f), scratch(4 * TiledShape<T>{M, N, call.D}.size());
  run_gradients(call, call.sides(), options, scores, scratch, differentiate_tiled<T>);
}

template <typename T>
void run_tiles(const Options& options, int M, int N) {
  const Call<T> call(M, N, 136, 72);
  std::vector<float> scores(6);
  Tiles tiles{call.order.data(), call.starts.data(), nullptr, nullptr, nullptr, 0, 3, 1, 2, 0, N > 16 ? 2 : 1};
  score_tiles(call.sides(), tiles, options, scores.data(), nullptr);
  tiles.pairs = call.pairs.data(), tiles.order = call.places.data(), tiles.listed = 6;
  std::vector<int64_t> keys;
  for (int64_t key : call.keys) keys.push_back(key / call.captions);
  tiles.keys = keys.data();
  score_tiles(call.sides(), tiles, options, scores.data(), nullptr);
}

// Two pairs a block, one after the other, of several sweeps.
template <typename T>
void run_large(const Options& options, int M, int N) {
  const Call<T> call(M, N, 72, 136);
  std::vector<float> scores(6), scratch(1 << 20);
  score_large(call.sides(), Pairs{nullptr, 0, 6}, options, scores.data(), 3, scratch.data(), int64_t(scratch.size()), 1, 6,
              nullptr);
}

// Of 2 x 9 rows.
template <typename T>
void run_products() {
  const int64_t rows = 18, width = 136, columns = 144, lengths[] = {9, 4};
  const std::vector<T> items(rows * width), weight(width * columns);
  std::vector<T> product(rows * columns);
  multiply(Product<T>{items.data(), weight.data(), product.data(), lengths, rows, columns, width, 9, width, 1, columns, 1},
           nullptr);
}

// max_similarity of three documents of 40, 7 and 70 rows with two queries of 20 and 9, all of them and one pair as a list,
// and its gradients. A tile begins in one document and ends in another, and the next is under way meanwhile.
template <typename T>
void run_largest(int width) {
  namespace mx = caan::max_similarity;
  const int M = 70, N = 20;
  const std::vector<T> queries(2 * N * width, half_of<T>(0.5f)), documents(3 * M * width, half_of<T>(0.25f));
  const std::vector<int64_t> n{N, 9}, m{40, 7, M}, query_starts{0, N, N + 9}, document_starts{0, 40, 47, 47 + M};
  const std::vector<int64_t> pairs{2, 1}, starts_of_documents{0, 0, 0, 1}, starts_of_queries{0, 0, 1}, by_query{0};
  mx::Search<T> search{{queries.data(), n.data(), query_starts.data(), 2, N},
                       {documents.data(), m.data(), document_starts.data(), 3, M},
                       width,
                       nullptr,
                       0,
                       0};
  std::vector<float> largest(3 * 2 * N), scores(6);
  mx::find_largest(search, largest.data(), 2 * N, 3, nullptr);
  mx::add_largest(search, largest.data(), 2 * N, {scores.data(), 2, 1, true}, nullptr);
  search.pairs = pairs.data(), search.listed = 1;
  mx::find_largest(search, largest.data(), N, 1, nullptr);
  mx::add_largest(search, largest.data(), N, {scores.data(), 0, 0, false}, nullptr);
  std::vector<int32_t> places(N);
  std::vector<float> of_queries(queries.size()), of_documents(documents.size());
  mx::find_places(search, places.data(), nullptr);
  const std::vector<float> coefficients(1, 1.0f);
  mx::sum_query_gradients(
      search, {coefficients.data(), places.data(), starts_of_queries.data(), by_query.data(), 0, of_queries.data()}, nullptr);
  mx::sum_document_gradients(
      search, {coefficients.data(), places.data(), starts_of_documents.data(), nullptr, 0, of_documents.data()}, nullptr);
}

} // namespace

int main() {
  // Every kernel, size of tile and set of terms; which goes with which makes no difference to what barriers order.
  const Options paper{true, true, true}, one_term{false, true, false};
  run_pairs<float>(paper);
  run_pairs<float>(one_term);
  run_pairs<bfloat16>(one_term);
  // More regions than lie in shared memory at once, and two pieces of the widths.
  run_gradient_tiles<bfloat16>(paper, 65, 9, 16);
  run_gradient_tiles<float16>(paper, 9, 5, 72);
  run_gradient_tiles<float>(paper, 9, 5, 72);
  run_tiles<bfloat16>(paper, 36, 14);
  run_tiles<float16>(paper, 64, 30);
  run_tiles<bfloat16>(one_term, 64, 14);
  run_large<float16>(paper, 70, 40);
  run_large<float>(paper, 20, 9);
  run_products<float>();
  run_products<bfloat16>();
  run_largest<float>(20);
  for (int width : {16, 136}) run_largest<bfloat16>(width);
  std::puts("no race");
}
