// The derivatives of a walk's pairs, in one launch, however many of them the device finds.
//
// A round fills the slots of scratch memory with pairs (pair.h), a block a pair, and then adds up what they give (sums.h), a block
// an item and 32 columns. Blocks take their turns from a counter. A turn waits until all turns of the steps before are done, and
// those have been taken before: by blocks that are running. So no block waits for one that has not begun, and the grid may be of
// any size. Whichever block takes a turn, its sums have the same order and bits.
#include "context_attention/cuda/kernels.h"
#include "context_attention/cuda/pair.h"
#include "context_attention/cuda/sums.h"
#include "core/cuda/device.h"

namespace caan::context_attention {

namespace {

// More than any GPU runs of them at once; those that begin late find no turn left.
constexpr int64_t MOST_BLOCKS = 1024;
// In shared memory, before the panels.
constexpr int TURN_BYTES = 16;

// Turns of a step of a round: each an item and a panel of its columns.
struct Tasks {
  int64_t hidden_panels, width_panels, of_images, of_captions;

  template <typename T>
  CAAN_DEVICE Tasks(const Sides<T>& s, const Options& o)
      : hidden_panels(o.inter || o.intra ? (s.H + PANEL - 1) / PANEL : 0),
        width_panels((s.D + PANEL - 1) / PANEL),
        of_images(s.images),
        of_captions(s.captions) {}
  CAAN_DEVICE int64_t count() const { return (hidden_panels + width_panels) * (of_images + of_captions); }
};

// By one block. What takes longest comes first.
template <typename T>
CAAN_DEVICE void sum_task(const Sides<T>& s, const InSlots& in, const Sums& sums, const Options& o, const Tasks& tasks,
                          int64_t task, char* shared) {
  const int64_t image_hidden = tasks.hidden_panels * tasks.of_images, caption_hidden = tasks.hidden_panels * tasks.of_captions;
  if (task < image_hidden) return sum_image_hidden(s, in, sums, o, task, shared);
  task -= image_hidden;
  if (task < caption_hidden) return sum_caption_hidden(s, in, sums, o, task, shared);
  task -= caption_hidden;
  if (task < tasks.width_panels * tasks.of_images) return sum_image_features(s, in, sums, task, shared);
  sum_caption_features(s, in, sums, task - tasks.width_panels * tasks.of_images, shared);
}

template <typename T>
CAAN_KERNEL void CAAN_BOUNDS(THREADS, 3)
    gradient_kernel(Sides<T> s, Walk walk, int64_t first, int64_t most, Options o, const float* score_gradients, float* scratch,
                    int64_t slots, Sums sums, int64_t* turns) {
  CAAN_SHARED;
  int64_t& shared_turn = *reinterpret_cast<int64_t*>(shared_memory);
  char* const panels = shared_memory + TURN_BYTES;
  const int64_t last = first + most < *walk.walked ? first + most : *walk.walked;
  const Tasks tasks(s, o);
  const int64_t round_turns = slots + tasks.count();
  while (first < last) {
    if (threadIdx.x == 0) shared_turn = take_turn(turns);
    block_barrier();
    const int64_t turn = shared_turn, before = turn / round_turns * round_turns, begin = first + turn / round_turns * slots;
    const int64_t end = begin + slots < last ? begin + slots : last, task = turn - before - (end - begin);
    // The last round may fill fewer slots.
    if (begin >= last || task >= tasks.count()) return;
    if (threadIdx.x == 0) wait_for_turns(turns + 1, task < 0 ? before : before + (end - begin));
    block_barrier();
    if (task < 0) {
      const int64_t slot = turn - before, place = begin + slot, key = walk.keys[place];
      work_on<T, true>(s, key / s.captions, key % s.captions, o, scratch + slot * SlotShape{s.M, s.N, s.D, true}.size(), panels,
                       [&] { return score_gradients[walk.order[place]]; });
    } else {
      sum_task(s, InSlots{walk, scratch, begin, end}, sums, o, tasks, task, panels);
    }
    block_barrier();
    if (threadIdx.x == 0) end_turn(turns + 1);
  }
}

} // namespace

template <typename T>
void differentiate(const Sides<T>& s, const Walk& walk, int64_t first, int64_t most, const Options& o, const float* score_gradients,
                   float* scratch, int64_t slots, const Sums& sums, int64_t* turns, Stream stream) {
  const int64_t panels = (s.H + PANEL - 1) / PANEL + (s.D + PANEL - 1) / PANEL;
  const int64_t round_turns = (most < slots ? most : slots) + (s.images + s.captions) * panels;
  const size_t shared = TURN_BYTES + panel_bytes(s.M, s.N) + THREADS * sizeof(float);
  launch<gradient_kernel<T>>(round_turns < MOST_BLOCKS ? round_turns : MOST_BLOCKS, THREADS, shared, stream, s, walk, first, most,
                             o, score_gradients, scratch, slots, sums, turns);
}

template void differentiate(const Sides<float>&, const Walk&, int64_t, int64_t, const Options&, const float*, float*, int64_t,
                            const Sums&, int64_t*, Stream);
template void differentiate(const Sides<bfloat16>&, const Walk&, int64_t, int64_t, const Options&, const float*, float*, int64_t,
                            const Sums&, int64_t*, Stream);
template void differentiate(const Sides<float16>&, const Walk&, int64_t, int64_t, const Options&, const float*, float*, int64_t,
                            const Sums&, int64_t*, Stream);

} // namespace caan::context_attention
