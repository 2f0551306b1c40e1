// The derivatives of a schedule's pairs. A launch has the pairs at some places of the schedule that follow each other, no more than
// the time of a launch allows (caan_kernels/context_attention/gpu/limits.py), and works on them in rounds.
//
// A round fills the slots of scratch memory with pairs, a block a pair, and then adds up what they give, a block an item and some
// columns: on tensor cores 64 (tiled_pair.h, tiled_sums.h), in float32 arithmetic 32 (pair.h, sums.h). Blocks take their turns from
// a counter. A turn waits until all turns of the steps before are done, and those have been taken before: by blocks that are
// running. So no block waits for one that has not begun, and the grid may be of any size. Whichever block takes a turn, its sums
// have the same order and bits.
#include "context_attention/cuda/kernels.h"
#include "context_attention/cuda/pair.h"
#include "context_attention/cuda/sums.h"
#include "context_attention/cuda/tiled_pair.h"
#include "context_attention/cuda/tiled_sums.h"
#include "core/cuda/device.h"

namespace caan::context_attention {

namespace {

// More than any GPU runs of them at once; those that begin late find no turn left.
constexpr int64_t MOST_BLOCKS = 1024;
// In shared memory, before the panels.
struct Turn {
  int64_t turn;
  Sizes sizes;
};
constexpr int TURN_BYTES = 32;
static_assert(sizeof(Turn) <= TURN_BYTES);

// Turns of a step of a round: each an item and so many of its columns.
struct Tasks {
  int64_t hidden_panels, width_panels, of_images, of_captions;

  template <typename T>
  CAAN_DEVICE Tasks(const Sides<T>& s, const Options& o, int columns)
      : hidden_panels(o.inter || o.intra ? (s.H + columns - 1) / columns : 0),
        width_panels((s.D + columns - 1) / columns),
        of_images(s.images),
        of_captions(s.captions) {}
  CAAN_DEVICE int64_t count() const { return (hidden_panels + width_panels) * (of_images + of_captions); }
};

// How a block works on a pair in a slot of `size` floats, and on a task, whose columns are COLUMNS. What takes longest comes first.
struct InPanels {
  static constexpr int COLUMNS = PANEL;
  const Sides<AnyType>& s;
  const Options& o;
  char* const shared;

  CAAN_DEVICE InPanels(const Sides<AnyType>& s, const Options& o, const Sizes&, char* shared) : s(s), o(o), shared(shared) {}
  CAAN_DEVICE int64_t size() const { return SlotShape{s.M, s.N, s.D, true}.size(); }
  static size_t shared_bytes(const Sides<AnyType>& s) { return panel_bytes(s.M, s.N) + THREADS * sizeof(float); }

  template <typename ScoreGradient>
  CAAN_DEVICE void work(int64_t image, int64_t caption, float* slot, ScoreGradient score_gradient) const {
    const OnPanels on(s, o, image, caption, slot, true, shared);
    work_on<true>([made = &on]() -> const OnPanels& { return *made; }, on.panels.P0, score_gradient);
  }

  CAAN_DEVICE void sum(const InSlots& in, const Sums& sums, const Tasks& tasks, int64_t task) const {
    const int64_t image_hidden = tasks.hidden_panels * tasks.of_images, caption_hidden = tasks.hidden_panels * tasks.of_captions;
    if (task < image_hidden) return sum_image_hidden(s, in, sums, o, task, shared);
    task -= image_hidden;
    if (task < caption_hidden) return sum_caption_hidden(s, in, sums, o, task, shared);
    task -= caption_hidden;
    if (task < tasks.width_panels * tasks.of_images) return sum_image_features(s, in, sums, task, shared);
    sum_caption_features(s, in, sums, task - tasks.width_panels * tasks.of_images, shared);
  }
};

template <typename T>
struct InTiles {
  static constexpr int COLUMNS = PIECE;
  const Sides<T>& s;
  const Options& o;
  const Sizes& sizes;
  char* const shared;

  CAAN_DEVICE InTiles(const Sides<T>& s, const Options& o, const Sizes& sizes, char* shared)
      : s(s), o(o), sizes(sizes), shared(shared) {}
  CAAN_DEVICE int64_t size() const { return TiledShape<T>{s.M, s.N, s.D}.size(); }
  static size_t shared_bytes(const Sides<T>& s) { return size_t(TiledMemory<T>(s.M, s.N).bytes); }

  template <typename ScoreGradient>
  CAAN_DEVICE void work(int64_t image, int64_t caption, float* slot, ScoreGradient score_gradient) const {
    const auto begin = [&] { return OnTiles<T>(sizes.of(s), o, image, caption, slot, shared); };
    work_on<true>(begin, reinterpret_cast<float*>(shared), score_gradient);
    block_barrier();
    begin().make_gradient_factors();
  }

  CAAN_DEVICE void sum(const InSlots& in, const Sums& sums, const Tasks& tasks, int64_t task) const {
    const TiledSums<T> of{s, in, sums, o, shared};
    const int64_t hidden = tasks.hidden_panels, width = tasks.width_panels;
    if (task < hidden * tasks.of_images) return of.image_hidden(task / hidden, int(task % hidden) * PIECE);
    task -= hidden * tasks.of_images;
    if (task < hidden * tasks.of_captions) return of.caption_hidden(task / hidden, int(task % hidden) * PIECE);
    task -= hidden * tasks.of_captions;
    if (task < width * tasks.of_images) return of.image_features(task / width, int(task % width) * PIECE);
    task -= width * tasks.of_images;
    of.caption_features(task / width, int(task % width) * PIECE);
  }
};

// What both kernels do, by turns: for places from `first` to before `beyond`, as far as there are so many.
template <typename In, typename T>
CAAN_DEVICE void take_turns(char* shared_memory, const Sides<T>& given, const Schedule& schedule, int64_t first, int64_t beyond,
                            const Options& o, const float* score_gradients, float* scratch, int64_t slots, const Sums& sums,
                            int64_t* turns) {
  Turn& shared = *reinterpret_cast<Turn*>(shared_memory);
  if (threadIdx.x == 0) shared.sizes = {given.M, given.N, given.D, given.H};
  for (;;) {
    if (threadIdx.x == 0) shared.turn = take_turn(turns);
    block_barrier();
    const Sides<T> s = shared.sizes.of(given);
    const Tasks tasks(s, o, In::COLUMNS);
    const int64_t last = beyond < *schedule.count ? beyond : *schedule.count, round_turns = slots + tasks.count();
    const int64_t turn = shared.turn, before = turn / round_turns * round_turns, begin = first + turn / round_turns * slots;
    const int64_t end = begin + slots < last ? begin + slots : last, task = turn - before - (end - begin);
    // The last round may fill fewer slots.
    if (begin >= last || task >= tasks.count()) return;
    if (threadIdx.x == 0) wait_for_turns(turns + 1, task < 0 ? before : before + (end - begin));
    block_barrier();
    const In in(s, o, shared.sizes, shared_memory + TURN_BYTES);
    if (task < 0) {
      const int64_t slot = turn - before, place = begin + slot, key = schedule.keys[place];
      in.work(key / s.captions, key % s.captions, scratch + slot * in.size(),
              [&] { return score_gradients[schedule.order[place]]; });
    } else {
      in.sum(InSlots{schedule, scratch, begin, end}, sums, tasks, task);
    }
    block_barrier();
    if (threadIdx.x == 0) end_turn(turns + 1);
  }
}

CAAN_KERNEL void CAAN_BOUNDS(THREADS, 3)
    gradient_kernel(Sides<AnyType> s, Schedule schedule, int64_t first, int64_t beyond, Options o, const float* score_gradients,
                    float* scratch, int64_t slots, Sums sums, int64_t* turns) {
  CAAN_SHARED;
  take_turns<InPanels>(shared_memory, s, schedule, first, beyond, o, score_gradients, scratch, slots, sums, turns);
}

template <typename T>
CAAN_KERNEL void CAAN_BOUNDS(THREADS, 3)
    gradient_tile_kernel(Sides<T> s, Schedule schedule, int64_t first, int64_t beyond, Options o, const float* score_gradients,
                         float* scratch, int64_t slots, Sums sums, int64_t* turns) {
  CAAN_SHARED;
  take_turns<InTiles<T>>(shared_memory, s, schedule, first, beyond, o, score_gradients, scratch, slots, sums, turns);
}

template <typename T>
int64_t blocks_of(const Sides<T>& s, int64_t most, int64_t slots, int columns) {
  const int64_t panels = (s.H + columns - 1) / columns + (s.D + columns - 1) / columns;
  const int64_t round_turns = (most < slots ? most : slots) + (s.images + s.captions) * panels;
  return round_turns < MOST_BLOCKS ? round_turns : MOST_BLOCKS;
}

} // namespace

void differentiate(const Sides<AnyType>& s, const Schedule& schedule, int64_t first, int64_t most, const Options& o,
                   const float* score_gradients, float* scratch, int64_t slots, const Sums& sums, int64_t* turns, Stream stream) {
  launch<gradient_kernel>(blocks_of(s, most, slots, PANEL), THREADS, TURN_BYTES + InPanels::shared_bytes(s), stream, s, schedule,
                          first, first + most, o, score_gradients, scratch, slots, sums, turns);
}

template <typename T>
void differentiate_tiled(const Sides<T>& s, const Schedule& schedule, int64_t first, int64_t most, const Options& o,
                         const float* score_gradients, float* scratch, int64_t slots, const Sums& sums, int64_t* turns,
                         Stream stream) {
  launch<gradient_tile_kernel<T>>(blocks_of(s, most, slots, PIECE), THREADS, TURN_BYTES + InTiles<T>::shared_bytes(s), stream, s,
                                  schedule, first, first + most, o, score_gradients, scratch, slots, sums, turns);
}

template void differentiate_tiled(const Sides<float>&, const Schedule&, int64_t, int64_t, const Options&, const float*, float*,
                                  int64_t, const Sums&, int64_t*, Stream);
template void differentiate_tiled(const Sides<bfloat16>&, const Schedule&, int64_t, int64_t, const Options&, const float*, float*,
                                  int64_t, const Sums&, int64_t*, Stream);
template void differentiate_tiled(const Sides<float16>&, const Schedule&, int64_t, int64_t, const Options&, const float*, float*,
                                  int64_t, const Sums&, int64_t*, Stream);

} // namespace caan::context_attention
