// The CUDA kernels as torch ops, through torch's stable ABI. caan_kernels/context_attention/cuda.py has the records of their
// arguments, plans the launches and has checked what they are given.
#include "core/cuda/bindings.h"

#include <cstdint>
#include <vector>

#include "context_attention/cuda/kernels.h"

namespace {

using namespace caan;
using namespace caan::context_attention;

struct SideTensors {
  Tensor regions, region_products, words, word_products, region_score, word_score, region_lengths, word_lengths;
};

// Braces take the arguments from left to right.
SideTensors next_sides(Arguments& in) {
  return {in.next<Tensor>(), in.next<Tensor>(), in.next<Tensor>(), in.next<Tensor>(),
          in.next<Tensor>(), in.next<Tensor>(), in.next<Tensor>(), in.next<Tensor>()};
}

template <typename T>
Sides<T> sides_of(const SideTensors& of) {
  return {data<T>(of.regions),
          data<T>(of.region_products),
          data<T>(of.words),
          data<T>(of.word_products),
          data<T>(of.region_score),
          data<T>(of.word_score),
          data<int64_t>(of.region_lengths),
          data<int64_t>(of.word_lengths),
          of.regions.size(0),
          of.words.size(0),
          int(of.regions.size(1)),
          int(of.words.size(1)),
          int(of.regions.size(2)),
          int(of.region_score.size(0))};
}

void check_scratch(const Tensor& scratch, int64_t size) {
  STD_TORCH_CHECK(scratch.size(0) >= 1 && scratch.size(1) == size, "scratch: expected slots of ", size, " numbers, got ",
                  scratch.size(0), " of ", scratch.size(1));
}

void score_pairs_(Arguments& in) {
  const SideTensors tensors = next_sides(in);
  const Tensor scores = in.next<Tensor>(), scratch = in.next<Tensor>();
  const OptionalTensor pairs = in.next<OptionalTensor>();
  const int64_t first = in.next<int64_t>(), count = in.next<int64_t>(), score_row = in.next<int64_t>(),
                launch_pairs = in.next<int64_t>();
  const bool rest = in.next<bool>();
  const Options options = Options::from(in);
  const Stream stream = next_stream(in);
  with_type(tensors.regions, [&](auto type) {
    const auto sides = sides_of<decltype(type)>(tensors);
    check_scratch(scratch, SlotShape{sides.M, sides.N, sides.D, false}.size());
    score_pairs(any_type(sides), Pairs{indices(pairs), first, count}, options, mutable_data<float>(scores), score_row, rest,
                mutable_data<float>(scratch), scratch.size(0), launch_pairs, stream);
  });
}

// Copies of 16 bytes need addresses and rows that are multiples of them.
void check_copied(const SideTensors& sides) {
  for (const Tensor* tensor : {&sides.regions, &sides.region_products, &sides.words, &sides.word_products})
    STD_TORCH_CHECK(
        reinterpret_cast<uintptr_t>(tensor->const_data_ptr()) % 16 == 0 && tensor->size(2) * tensor->element_size() % 16 == 0,
        "expected tensors that begin, and rows that end, at a multiple of 16 bytes");
}

void score_large_(Arguments& in) {
  const SideTensors tensors = next_sides(in);
  const Tensor scores = in.next<Tensor>(), scratch = in.next<Tensor>();
  const OptionalTensor pairs = in.next<OptionalTensor>();
  const int64_t score_row = in.next<int64_t>(), blocks = in.next<int64_t>(), launch_pairs = in.next<int64_t>();
  const Options options = Options::from(in);
  const Stream stream = next_stream(in);
  check_copied(tensors);
  const Pairs all{indices(pairs), 0, scores.numel()};
  with_type(tensors.regions, [&](auto type) {
    score_large(sides_of<decltype(type)>(tensors), all, options, mutable_data<float>(scores), score_row,
                mutable_data<float>(scratch), scratch.numel(), blocks, launch_pairs, stream);
  });
}

void score_tiles_(Arguments& in) {
  const SideTensors tensors = next_sides(in);
  const Tensor scores = in.next<Tensor>(), word_order = in.next<Tensor>(), word_starts = in.next<Tensor>();
  const OptionalTensor pairs = in.next<OptionalTensor>(), order = in.next<OptionalTensor>(), keys = in.next<OptionalTensor>();
  const int64_t score_row = in.next<int64_t>(), blocks = in.next<int64_t>(), launch_images = in.next<int64_t>();
  const int bucket = int(in.next<int64_t>()), strips = int(in.next<int64_t>());
  const Options options = Options::from(in);
  const Stream stream = next_stream(in);
  check_copied(tensors);
  const Tiles tiles{data<int64_t>(word_order),
                    data<int64_t>(word_starts),
                    indices(pairs),
                    indices(order),
                    indices(keys),
                    keys ? keys->size(0) : 0,
                    score_row,
                    blocks,
                    launch_images,
                    bucket,
                    strips};
  with_type(tensors.regions, [&](auto type) {
    score_tiles(sides_of<decltype(type)>(tensors), tiles, options, mutable_data<float>(scores), stream);
  });
}

void differentiate_(Arguments& in) {
  const SideTensors tensors = next_sides(in);
  const Tensor score_gradients = in.next<Tensor>(), scratch = in.next<Tensor>(), turns = in.next<Tensor>();
  std::vector<Tensor> places, of;
  while (places.size() < 6) places.push_back(in.next<Tensor>());
  while (of.size() < 6) of.push_back(in.next<Tensor>());
  const auto place = [&](int i) { return data<int64_t>(places[i]); };
  const auto sum = [&](int i) { return mutable_data<float>(of[i]); };
  const Schedule schedule{place(0), place(1), place(2), place(3), place(4), place(5)};
  const Sums sums{sum(0), sum(1), sum(2), sum(3), sum(4), sum(5)};
  const int64_t first = in.next<int64_t>(), most = in.next<int64_t>();
  const bool tiled = in.next<bool>();
  const Options options = Options::from(in);
  const Stream stream = next_stream(in);
  const auto run = [&](auto start, const auto& sides) {
    start(sides, schedule, first, most, options, data<float>(score_gradients), mutable_data<float>(scratch), scratch.size(0), sums,
          mutable_data<int64_t>(turns), stream);
  };
  with_type(tensors.regions, [&](auto type) {
    using T = decltype(type);
    const auto sides = sides_of<T>(tensors);
    if (!tiled) {
      check_scratch(scratch, SlotShape{sides.M, sides.N, sides.D, true}.size());
      return run(differentiate, any_type(sides));
    }
    STD_TORCH_CHECK(sides.N <= MOST_GRADIENT_WORDS<T>, "tiled: expected at most ", MOST_GRADIENT_WORDS<T>, " words, got ", sides.N);
    check_scratch(scratch, TiledShape<T>{sides.M, sides.N, sides.D}.size());
    run(differentiate_tiled<T>, sides);
  });
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(caan_kernels, CAAN_DEVICE_KEY, m) {
  m.impl("cuda_score_pairs", &boxed<score_pairs_>);
  m.impl("cuda_score_large", &boxed<score_large_>);
  m.impl("cuda_score_tiles", &boxed<score_tiles_>);
  m.impl("cuda_differentiate", &boxed<differentiate_>);
}
