// Gradients that pairs share, from what `work_on` left in their slots: a block has one image, or one caption, and 32 columns, and
// takes its pairs in the order of the schedule. No two blocks write to one place, so no sum is atomic, and each has one order.
//
//   dV        = sum of dS (U affinityT) + f dv           dU           = sum of g du
//   dV Q1     = sum of C_unit C_unitT dY                 dU affinityT = sum of dST V
//   dV Q4     = sum of R dX                              dU Q2        = sum of CT dY
//   dw_v, dw_u = sum of tanh(Y)T df, tanh(X)T dg         dU Q3        = sum of R_unitT R_unit dX
//
// with Y, X the contexts of pair.h, made again, and dY, dX their gradients. float32 throughout.
#pragma once

#include "context_attention/cuda/kernels.h"
#include "context_attention/cuda/panels.h"
#include "core/cuda/device.h"

namespace caan::context_attention {

// The pairs of a schedule that lie in slots: places from `first`, each in the slot of its place.
struct InSlots {
  const Schedule& schedule;
  const float* scratch;
  int64_t first, last;
};

// The pair at a place of the schedule; a slot is read here, never written.
CAAN_DEVICE Pair<AnyType> scheduled_pair(const Sides<AnyType>& s, const InSlots& in, const SlotShape& shape, int64_t place) {
  float* const slot = const_cast<float*>(in.scratch) + (place - in.first) * shape.size();
  return Pair<AnyType>(s, in.schedule.keys[place] / s.captions, in.schedule.keys[place] % s.captions, slot, shape);
}

// Places in slots that belong to an image.
struct Range {
  int64_t begin, end;
};
CAAN_DEVICE Range image_places(const InSlots& in, int64_t image) {
  const int64_t begin = in.schedule.image_starts[image], end = in.schedule.image_starts[image + 1];
  return {begin > in.first ? begin : in.first, end < in.last ? end : in.last};
}

// work(place) for each place in slots that belongs to a caption. Its places rise: a binary search finds the first in slots.
template <typename Work>
CAAN_DEVICE void for_caption_places(const InSlots& in, int64_t caption, Work work) {
  const int64_t* const places = in.schedule.by_caption;
  int64_t step = in.schedule.caption_starts[caption];
  const int64_t end = in.schedule.caption_starts[caption + 1];
  for (int64_t beyond = end; step < beyond;) {
    const int64_t middle = (step + beyond) / 2;
    if (places[middle] < in.first)
      step = middle + 1;
    else
      beyond = middle;
  }
  for (; step < end && places[step] < in.last; ++step) work(places[step]);
}

CAAN_DEVICE void sum_image_features(const Sides<AnyType>& s, const InSlots& in, const Sums& sums, int64_t task, char* shared) {
  auto* UK = reinterpret_cast<float*>(shared);
  const SlotShape shape{s.M, s.N, s.D, true};
  const int panels = (s.D + PANEL - 1) / PANEL, d0 = int(task % panels) * PANEL, d = d0 + lane_of_thread();
  const int64_t image = task / panels;
  const Range range = image_places(in, image);
  float* out = sums.regions + image * s.M * s.D;
  for (int64_t place = range.begin; place < range.end; ++place) {
    const Pair<AnyType> p = scheduled_pair(s, in, shape, place);
    load_panel(UK, p.UQ, s.D + 2 * s.H, p.n, d0, s.D);
    block_barrier();
    const float dv = d < s.D ? p.slot.dv[d] : 0.0f;
    times_panel(p.slot.dS, p.row, p.m, p.n, UK, [&](int r, float sum) {
      if (d < s.D) out[int64_t(r) * s.D + d] += fmaf(p.slot.f[r], dv, sum);
    });
    block_barrier();
  }
}

CAAN_DEVICE void sum_caption_features(const Sides<AnyType>& s, const InSlots& in, const Sums& sums, int64_t task, char* shared) {
  auto* V = reinterpret_cast<float*>(shared);
  const SlotShape shape{s.M, s.N, s.D, true};
  const int panels = (s.D + PANEL - 1) / PANEL, d0 = int(task % panels) * PANEL, d = d0 + lane_of_thread();
  const int64_t caption = task / panels;
  float *of_U = sums.words + caption * s.N * s.D, *of_UK = sums.word_products + caption * s.N * (s.D + 2 * s.H);
  for_caption_places(in, caption, [&](int64_t place) {
    const Pair<AnyType> p = scheduled_pair(s, in, shape, place);
    load_panel(V, p.V, s.D, p.m, d0, s.D);
    block_barrier();
    const float du = d < s.D ? p.slot.du[d] : 0.0f;
    transposed_times_panel(p.slot.dS, p.row, p.n, p.m, V, [&](int j, float sum) {
      if (d >= s.D) return;
      of_U[int64_t(j) * s.D + d] += p.slot.g[j] * du;
      of_UK[int64_t(j) * (s.D + 2 * s.H) + d] += sum;
    });
    block_barrier();
  });
}

// Adds to each column's sum what the warps hold of a pair, in their order.
CAAN_DEVICE void add_over_warps(float x, float* by_warp, float* sum, bool real) {
  by_warp[threadIdx.x] = x;
  block_barrier();
  if (warp_of_thread() == 0 && real)
    *sum +=
        ((by_warp[threadIdx.x] + by_warp[WARP + threadIdx.x]) + by_warp[2 * WARP + threadIdx.x]) + by_warp[3 * WARP + threadIdx.x];
  block_barrier();
}

CAAN_DEVICE void sum_image_hidden(const Sides<AnyType>& s, const InSlots& in, const Sums& sums, const Options& o, int64_t task,
                                  char* shared) {
  const SlotShape shape{s.M, s.N, s.D, true};
  const int panels = (s.H + PANEL - 1) / PANEL, lane = lane_of_thread();
  const int h0 = int(task % panels) * PANEL, h = h0 + lane;
  const int64_t image = task / panels;
  const Panels x(shared, s.M, s.N);
  float* by_warp = x.Q1 + s.N * PANEL_ROW;
  const Range range = image_places(in, image);
  float* out = sums.region_products + image * s.M * (2 * s.H);
  const bool real = h < s.H;
  for (int64_t place = range.begin; place < range.end; ++place) {
    const Pair<AnyType> p = scheduled_pair(s, in, shape, place);
    float dw = 0;
    region_gradients(s, p, o, h0, x, [&](int r, float t) { dw = fmaf(p.slot.df[r], t, dw); });
    add_over_warps(dw, by_warp, sums.region_score + image * s.H + h, real);
    if (o.intra) {
      transposed_times_panel(p.slot.C_unit, p.row, p.n, p.m, x.P1, [&](int j, float sum) { x.Q1[j * PANEL_ROW + lane] = sum; });
      block_barrier();
      times_panel(p.slot.C_unit, p.row, p.m, p.n, x.Q1, [&](int r, float sum) {
        if (real) out[int64_t(r) * 2 * s.H + h] += sum;
      });
      block_barrier();
    }
    dw = 0;
    word_gradients(s, p, o, h0, x, [&](int j, float t) { dw = fmaf(p.slot.dg[j], t, dw); });
    add_over_warps(dw, by_warp, sums.word_score + image * s.H + h, real);
    if (o.inter)
      times_panel(p.slot.R, p.row, p.m, p.n, x.Q1, [&](int r, float sum) {
        if (real) out[int64_t(r) * 2 * s.H + s.H + h] += sum;
      });
    block_barrier();
  }
}

CAAN_DEVICE void sum_caption_hidden(const Sides<AnyType>& s, const InSlots& in, const Sums& sums, const Options& o, int64_t task,
                                    char* shared) {
  const SlotShape shape{s.M, s.N, s.D, true};
  const int panels = (s.H + PANEL - 1) / PANEL, lane = lane_of_thread();
  const int h0 = int(task % panels) * PANEL, h = h0 + lane;
  const int64_t caption = task / panels, UQ_row = s.D + 2 * s.H;
  const Panels x(shared, s.M, s.N);
  float* out = sums.word_products + caption * s.N * UQ_row + s.D;
  const bool real = h < s.H;
  for_caption_places(in, caption, [&](int64_t place) {
    const Pair<AnyType> p = scheduled_pair(s, in, shape, place);
    if (o.inter) {
      region_gradients(s, p, o, h0, x, ignore);
      transposed_times_panel(p.slot.C, p.row, p.n, p.m, x.P1, [&](int j, float sum) {
        if (real) out[j * UQ_row + h] += sum;
      });
      block_barrier();
    }
    if (o.intra) {
      word_gradients(s, p, o, h0, x, ignore);
      times_panel(p.slot.R_unit, p.row, p.m, p.n, x.Q1, [&](int r, float sum) { x.P1[r * PANEL_ROW + lane] = sum; });
      block_barrier();
      transposed_times_panel(p.slot.R_unit, p.row, p.n, p.m, x.P1, [&](int j, float sum) {
        if (real) out[j * UQ_row + s.H + h] += sum;
      });
      block_barrier();
    }
  });
}

} // namespace caan::context_attention
