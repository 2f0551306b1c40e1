// Gradients that pairs share, from what pair.cu left in their slots: a block has one image, or one caption, and 32 columns, and
// takes its pairs in the order of the walk. No two blocks write to one place, so nothing is atomic and sums have one order.
//
//   dV        = sum of dS (U affinityT) + f dv           dU           = sum of g du
//   dV Q1     = sum of R RT dY                           dU affinityT = sum of dST V
//   dV Q4     = sum of C dY'                             dU Q2        = sum of RT dY
//   dw_v, dw_u = sum of tanh(Y)T df, tanh(Y')T dg        dU Q3        = sum of CT C dY'
//
// with Y, Y' the contexts of pair.cu, made again, and dY, dY' their gradients. float32 throughout.
#include "device.h"
#include "panels.h"

namespace caan::cuda {

namespace {

// The pair at a place of the walk.
template <typename T>
struct Walked {
  int64_t image, caption;
  int m, n;
  Slot slot;

  CAAN_DEVICE Walked(const Sides<T>& s, const Sums& sums, const SlotShape& shape, int64_t place)
      : image(sums.keys[place] / s.captions),
        caption(sums.keys[place] % s.captions),
        m(int(s.region_lengths[image])),
        n(int(s.word_lengths[caption])),
        // A slot is read here, never written.
        slot(const_cast<float*>(sums.scratch) + (place - sums.first_slot) * shape.size(), shape) {}
};

// Places of the walk, of those in slots, that belong to an item.
struct Range {
  int64_t begin, end;
};
CAAN_DEVICE Range image_places(const Sums& sums, int64_t image) {
  const int64_t last = sums.first_slot + sums.slots;
  int64_t begin = sums.image_starts[image], end = sums.image_starts[image + 1];
  begin = begin > sums.first_slot ? begin : sums.first_slot;
  end = end < last ? end : last;
  end = end < *sums.walked ? end : *sums.walked;
  return {begin, end};
}
CAAN_DEVICE bool in_slots(const Sums& sums, int64_t place) {
  return place >= sums.first_slot && place < sums.first_slot + sums.slots;
}

template <typename T>
CAAN_KERNEL void CAAN_BOUNDS(THREADS, 4) image_features_kernel(Sides<T> s, Sums sums) {
  CAAN_SHARED;
  auto* UK = reinterpret_cast<float*>(shared_memory);
  const SlotShape shape{s.M, s.N, s.D, true};
  const int panels = (s.D + PANEL - 1) / PANEL, d0 = int(blockIdx.x % panels) * PANEL, d = d0 + lane_of_thread();
  const int64_t image = blockIdx.x / panels;
  const Range range = image_places(sums, image);
  float* out = sums.regions + image * s.M * s.D;
  for (int64_t place = range.begin; place < range.end; ++place) {
    const Walked<T> w(s, sums, shape, place);
    load_panel(UK, s.UQ(w.caption), s.D + 2 * s.H, w.n, d0, s.D);
    block_barrier();
    const float dv = d < s.D ? w.slot.dv[d] : 0.0f;
    times_panel(w.slot.dA, shape.row(), w.m, w.n, UK, [&](int r, float sum) {
      if (d < s.D) out[int64_t(r) * s.D + d] += fmaf(w.slot.f[r], dv, sum);
    });
    block_barrier();
  }
}

template <typename T>
CAAN_KERNEL void CAAN_BOUNDS(THREADS, 4) caption_features_kernel(Sides<T> s, Sums sums) {
  CAAN_SHARED;
  auto* V = reinterpret_cast<float*>(shared_memory);
  const SlotShape shape{s.M, s.N, s.D, true};
  const int panels = (s.D + PANEL - 1) / PANEL, d0 = int(blockIdx.x % panels) * PANEL, d = d0 + lane_of_thread();
  const int64_t caption = blockIdx.x / panels;
  float *of_U = sums.words + caption * s.N * s.D, *of_UK = sums.word_products + caption * s.N * (s.D + 2 * s.H);
  for (int64_t step = sums.caption_starts[caption]; step < sums.caption_starts[caption + 1]; ++step) {
    const int64_t place = sums.by_caption[step];
    if (!in_slots(sums, place)) continue;
    const Walked<T> w(s, sums, shape, place);
    load_panel(V, s.V(w.image), s.D, w.m, d0, s.D);
    block_barrier();
    const float du = d < s.D ? w.slot.du[d] : 0.0f;
    transposed_times_panel(w.slot.dA, shape.row(), w.n, w.m, V, [&](int j, float sum) {
      if (d >= s.D) return;
      of_U[int64_t(j) * s.D + d] += w.slot.g[j] * du;
      of_UK[int64_t(j) * (s.D + 2 * s.H) + d] += sum;
    });
    block_barrier();
  }
}

// Panels of both sides; what a kernel leaves there is said beside it.
struct HiddenPanels {
  float *P0, *P1, *Q0, *Q1, *by_warp;
  int h0, h;
  float w_v, w_u;

  template <typename T>
  CAAN_DEVICE HiddenPanels(char* shared, const Sides<T>& s, int first)
      : P0(reinterpret_cast<float*>(shared)),
        P1(P0 + s.M * PANEL_ROW),
        Q0(P1 + s.M * PANEL_ROW),
        Q1(Q0 + s.N * PANEL_ROW),
        by_warp(Q1 + s.N * PANEL_ROW),
        h0(first),
        h(first + lane_of_thread()),
        w_v(h < s.H ? to_float(s.region_score[h]) : 0.0f),
        w_u(h < s.H ? to_float(s.word_score[h]) : 0.0f) {}
};

// P1 = dY; each(r, tanh(Y)) on the way.
template <typename T, typename Each>
CAAN_DEVICE void region_context(const Sides<T>& s, const Walked<T>& w, const Options& o, int row, const HiddenPanels& p,
                                Each each) {
  const int lane = lane_of_thread();
  load_panel(p.P0, s.VQ(w.image), 2 * s.H, w.m, p.h0, s.H);
  load_panel(p.Q0, s.UQ(w.caption) + s.D, s.D + 2 * s.H, w.n, p.h0, s.H);
  block_barrier();
  transposed_times_panel(w.slot.R, row, w.n, w.m, p.P0, [&](int j, float sum) {
    const int at = j * PANEL_ROW + lane;
    p.Q1[at] = (o.intra ? sum : 0.0f) + (o.inter ? p.Q0[at] : 0.0f);
  });
  block_barrier();
  times_panel(w.slot.R, row, w.m, w.n, p.Q1, [&](int r, float sum) {
    const float t = exact_tanh(sum);
    each(r, t);
    p.P1[r * PANEL_ROW + lane] = w.slot.df[r] * p.w_v * (1.0f - t * t);
  });
  block_barrier();
}

// Q1 = dY'; each(j, tanh(Y')) on the way.
template <typename T, typename Each>
CAAN_DEVICE void word_context(const Sides<T>& s, const Walked<T>& w, const Options& o, int row, const HiddenPanels& p, Each each) {
  const int lane = lane_of_thread();
  load_panel(p.P0, s.VQ(w.image) + s.H, 2 * s.H, w.m, p.h0, s.H);
  load_panel(p.Q0, s.UQ(w.caption) + s.D + s.H, s.D + 2 * s.H, w.n, p.h0, s.H);
  block_barrier();
  times_panel(w.slot.C, row, w.m, w.n, p.Q0, [&](int r, float sum) {
    const int at = r * PANEL_ROW + lane;
    p.P1[at] = (o.intra ? sum : 0.0f) + (o.inter ? p.P0[at] : 0.0f);
  });
  block_barrier();
  transposed_times_panel(w.slot.C, row, w.n, w.m, p.P1, [&](int j, float sum) {
    const float t = exact_tanh(sum);
    each(j, t);
    p.Q1[j * PANEL_ROW + lane] = w.slot.dg[j] * p.w_u * (1.0f - t * t);
  });
  block_barrier();
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

template <typename T>
CAAN_KERNEL void CAAN_BOUNDS(THREADS, 4) image_hidden_kernel(Sides<T> s, Sums sums, Options o) {
  CAAN_SHARED;
  const SlotShape shape{s.M, s.N, s.D, true};
  const int panels = (s.H + PANEL - 1) / PANEL, row = shape.row(), lane = lane_of_thread();
  const int64_t image = blockIdx.x / panels;
  const HiddenPanels p(shared_memory, s, int(blockIdx.x % panels) * PANEL);
  const Range range = image_places(sums, image);
  float* out = sums.region_products + image * s.M * (2 * s.H);
  const bool real = p.h < s.H;
  for (int64_t place = range.begin; place < range.end; ++place) {
    const Walked<T> w(s, sums, shape, place);
    float dw = 0;
    region_context(s, w, o, row, p, [&](int r, float t) { dw = fmaf(w.slot.df[r], t, dw); });
    add_over_warps(dw, p.by_warp, sums.region_score + image * s.H + p.h, real);
    if (o.intra) {
      transposed_times_panel(w.slot.R, row, w.n, w.m, p.P1, [&](int j, float sum) { p.Q0[j * PANEL_ROW + lane] = sum; });
      block_barrier();
      times_panel(w.slot.R, row, w.m, w.n, p.Q0, [&](int r, float sum) {
        if (real) out[int64_t(r) * 2 * s.H + p.h] += sum;
      });
      block_barrier();
    }
    dw = 0;
    word_context(s, w, o, row, p, [&](int j, float t) { dw = fmaf(w.slot.dg[j], t, dw); });
    add_over_warps(dw, p.by_warp, sums.word_score + image * s.H + p.h, real);
    if (o.inter)
      times_panel(w.slot.C, row, w.m, w.n, p.Q1, [&](int r, float sum) {
        if (real) out[int64_t(r) * 2 * s.H + s.H + p.h] += sum;
      });
    block_barrier();
  }
}

template <typename T>
CAAN_KERNEL void CAAN_BOUNDS(THREADS, 4) caption_hidden_kernel(Sides<T> s, Sums sums, Options o) {
  CAAN_SHARED;
  const SlotShape shape{s.M, s.N, s.D, true};
  const int panels = (s.H + PANEL - 1) / PANEL, row = shape.row(), lane = lane_of_thread();
  const int64_t caption = blockIdx.x / panels, UQ_row = s.D + 2 * s.H;
  const HiddenPanels p(shared_memory, s, int(blockIdx.x % panels) * PANEL);
  float* out = sums.word_products + caption * s.N * UQ_row + s.D;
  const bool real = p.h < s.H;
  const auto ignore = [](int, float) {};
  for (int64_t step = sums.caption_starts[caption]; step < sums.caption_starts[caption + 1]; ++step) {
    const int64_t place = sums.by_caption[step];
    if (!in_slots(sums, place)) continue;
    const Walked<T> w(s, sums, shape, place);
    if (o.inter) {
      region_context(s, w, o, row, p, ignore);
      transposed_times_panel(w.slot.R, row, w.n, w.m, p.P1, [&](int j, float sum) {
        if (real) out[j * UQ_row + p.h] += sum;
      });
      block_barrier();
    }
    if (o.intra) {
      word_context(s, w, o, row, p, ignore);
      times_panel(w.slot.C, row, w.m, w.n, p.Q1, [&](int r, float sum) { p.P0[r * PANEL_ROW + lane] = sum; });
      block_barrier();
      transposed_times_panel(w.slot.C, row, w.n, w.m, p.P0, [&](int j, float sum) {
        if (real) out[j * UQ_row + s.H + p.h] += sum;
      });
      block_barrier();
    }
  }
}

} // namespace

template <typename T>
void sum_gradients(const Sides<T>& s, const Sums& sums, const Options& o, Stream stream) {
  const int64_t of_width = (s.D + PANEL - 1) / PANEL, of_hidden = (s.H + PANEL - 1) / PANEL;
  const size_t row = PANEL_ROW * sizeof(float);
  launch<image_features_kernel<T>>(s.images * of_width, THREADS, s.N * row, stream, s, sums);
  launch<caption_features_kernel<T>>(s.captions * of_width, THREADS, s.M * row, stream, s, sums);
  if (!o.inter && !o.intra) return;
  const size_t panels = 2 * (s.M + s.N) * row + THREADS * sizeof(float);
  launch<image_hidden_kernel<T>>(s.images * of_hidden, THREADS, panels, stream, s, sums, o);
  launch<caption_hidden_kernel<T>>(s.captions * of_hidden, THREADS, panels, stream, s, sums, o);
}

template void sum_gradients(const Sides<float>&, const Sums&, const Options&, Stream);
template void sum_gradients(const Sides<bfloat16>&, const Sums&, const Options&, Stream);
template void sum_gradients(const Sides<float16>&, const Sums&, const Options&, Stream);

} // namespace caan::cuda
