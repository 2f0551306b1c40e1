// Products of a pair's small matrices with panels, 32 columns of a tensor's rows, one row after another in shared memory as
// float32, and both sides' contexts as such products. A lane has a column, a warp four rows at a time; sums run over rows in rising
// order.
#pragma once

#include "context_attention/cuda/block.h"

namespace caan::context_attention {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
constexpr int PANEL = WARP;
// Four numbers more than a panel's row: reading 16 bytes, the lanes of a quarter warp then find eight rows in different banks.
constexpr int PANEL_ROW = PANEL + 4;

// Columns from `first` of `rows` rows, 0 beyond `columns`.
template <typename Rows>
CAAN_DEVICE void load_panel(float* panel, Rows from, int64_t row_stride, int rows, int first, int columns) {
  const int column = first + lane_of_thread();
  // With more rows at once the gradients' kernel spills on sm_90.
#pragma unroll 2
  for (int r = warp_of_thread(); r < rows; r += WARPS)
    panel[r * PANEL_ROW + lane_of_thread()] = column < columns ? to_float(from[r * row_stride + column]) : 0.0f;
}

// each(r, sum over b of matrix[r, b] panel[b, lane]) for every row r of matrix (rows, depth).
template <typename Each>
CAAN_DEVICE void times_panel(const float* matrix, int matrix_row, int rows, int depth, const float* panel, Each each) {
  for (int r = 4 * warp_of_thread(); r < rows; r += 4 * WARPS) {
    const float* of[4];
    float sums[4] = {};
    for (int i = 0; i < 4; ++i) of[i] = matrix + int64_t(r + i < rows ? r + i : rows - 1) * matrix_row;
#pragma unroll 4
    for (int b = 0; b < depth; ++b) {
      const float x = panel[b * PANEL_ROW + lane_of_thread()];
      for (int i = 0; i < 4; ++i) sums[i] = fmaf(of[i][b], x, sums[i]);
    }
    for (int i = 0; i < 4; ++i)
      if (r + i < rows) each(r + i, sums[i]);
  }
}

// each(c, sum over b of matrix[b, c] panel[b, lane]) for every column c of matrix (depth, columns), whose rows are padded to fours.
template <typename Each>
CAAN_DEVICE void transposed_times_panel(const float* matrix, int matrix_row, int columns, int depth, const float* panel,
                                        Each each) {
  for (int c = 4 * warp_of_thread(); c < columns; c += 4 * WARPS) {
    float sums[4] = {};
#pragma unroll 4
    for (int b = 0; b < depth; ++b) {
      const float x = panel[b * PANEL_ROW + lane_of_thread()];
      const float4 of = *reinterpret_cast<const float4*>(matrix + int64_t(b) * matrix_row + c);
      sums[0] = fmaf(of.x, x, sums[0]);
      sums[1] = fmaf(of.y, x, sums[1]);
      sums[2] = fmaf(of.z, x, sums[2]);
      sums[3] = fmaf(of.w, x, sums[3]);
    }
    for (int i = 0; i < 4; ++i)
      if (c + i < columns) each(c + i, sums[i]);
  }
}

// matrix[r, c] += sum over the panels' columns of left[r] right[c].
CAAN_DEVICE void add_products(float* matrix, int matrix_row, int rows, int columns, const float* left, const float* right) {
  for (int cell = int(threadIdx.x); cell < rows * columns; cell += THREADS) {
    const int r = cell / columns, c = cell % columns;
    const auto* x = reinterpret_cast<const float4*>(left + r * PANEL_ROW);
    const auto* y = reinterpret_cast<const float4*>(right + c * PANEL_ROW);
    float sum = 0;
    for (int k = 0; k < PANEL / 4; ++k) {
      sum = fmaf(x[k].x, y[k].x, sum);
      sum = fmaf(x[k].y, y[k].y, sum);
      sum = fmaf(x[k].z, y[k].z, sum);
      sum = fmaf(x[k].w, y[k].w, sum);
    }
    matrix[int64_t(r) * matrix_row + c] += sum;
  }
}

// A pair at work: its items, its slot of scratch memory, and how long a row of the slot's matrices is.
template <typename T>
struct Pair {
  Numbers<T> V, VQ, U, UQ;
  int m, n, row;
  Slot slot;

  CAAN_DEVICE Pair(const Sides<T>& s, int64_t image, int64_t caption, float* scratch, const SlotShape& shape)
      : V(s.V(image)),
        VQ(s.VQ(image)),
        U(s.U(caption)),
        UQ(s.UQ(caption)),
        m(int(s.region_lengths[image])),
        n(int(s.word_lengths[caption])),
        row(shape.row()),
        slot(scratch, shape) {}
};

// Two panels of regions and two of words.
struct Panels {
  float *P0, *P1, *Q0, *Q1;

  CAAN_DEVICE Panels(char* shared, int M, int N)
      : P0(reinterpret_cast<float*>(shared)), P1(P0 + M * PANEL_ROW), Q0(P1 + M * PANEL_ROW), Q1(Q0 + N * PANEL_ROW) {}
};
inline size_t panel_bytes(int M, int N) { return size_t(2 * (M + N)) * PANEL_ROW * sizeof(float); }

// each(r, Y[r, h + lane]) of Y = C_unit (C_unitT V Q1) + C (U Q2). Of the columns from `h`, P0 = V Q1, Q0 = U Q2, Q1 = C_unitT V Q1
// are left, and P1 is for `each`, which has its row's numbers there to itself. A product of no depth is 0.
template <typename Each>
CAAN_DEVICE void region_contexts(const Sides<AnyType>& s, const Pair<AnyType>& pair, const Options& o, int h, const Panels& p,
                                 Each each) {
  const int lane = lane_of_thread();
  const Slot& slot = pair.slot;
  load_panel(p.P0, pair.VQ, 2 * s.H, pair.m, h, s.H);
  load_panel(p.Q0, pair.UQ + s.D, s.D + 2 * s.H, pair.n, h, s.H);
  block_barrier();
  if (o.intra)
    transposed_times_panel(slot.C_unit, pair.row, pair.n, pair.m, p.P0,
                           [&](int j, float sum) { p.Q1[j * PANEL_ROW + lane] = sum; });
  block_barrier();
  times_panel(slot.C, pair.row, pair.m, o.inter ? pair.n : 0, p.Q0, [&](int r, float sum) { p.P1[r * PANEL_ROW + lane] = sum; });
  times_panel(slot.C_unit, pair.row, pair.m, o.intra ? pair.n : 0, p.Q1,
              [&](int r, float sum) { each(r, p.P1[r * PANEL_ROW + lane] + sum); });
  block_barrier();
}

// each(j, X[j, h + lane]) of X = R_unitT (R_unit U Q3) + RT (V Q4). P0 = V Q4, Q0 = U Q3, P1 = R_unit U Q3 are left, and Q1 is for
// `each`.
template <typename Each>
CAAN_DEVICE void word_contexts(const Sides<AnyType>& s, const Pair<AnyType>& pair, const Options& o, int h, const Panels& p,
                               Each each) {
  const int lane = lane_of_thread();
  const Slot& slot = pair.slot;
  load_panel(p.P0, pair.VQ + s.H, 2 * s.H, pair.m, h, s.H);
  load_panel(p.Q0, pair.UQ + s.D + s.H, s.D + 2 * s.H, pair.n, h, s.H);
  block_barrier();
  if (o.intra)
    times_panel(slot.R_unit, pair.row, pair.m, pair.n, p.Q0, [&](int r, float sum) { p.P1[r * PANEL_ROW + lane] = sum; });
  block_barrier();
  transposed_times_panel(slot.R, pair.row, pair.n, o.inter ? pair.m : 0, p.P0,
                         [&](int j, float sum) { p.Q1[j * PANEL_ROW + lane] = sum; });
  transposed_times_panel(slot.R_unit, pair.row, pair.n, o.intra ? pair.m : 0, p.P1,
                         [&](int j, float sum) { each(j, p.Q1[j * PANEL_ROW + lane] + sum); });
  block_barrier();
}

// What `region_contexts` leaves, with P1 = dY; each(r, tanh(Y)) on the way.
template <typename Each>
CAAN_DEVICE void region_gradients(const Sides<AnyType>& s, const Pair<AnyType>& pair, const Options& o, int h, const Panels& p,
                                  Each each) {
  const int lane = lane_of_thread();
  const float w = h + lane < s.H ? to_float(s.region_score[h + lane]) : 0.0f;
  region_contexts(s, pair, o, h, p, [&](int r, float y) {
    const float t = exact_tanh(y);
    each(r, t);
    p.P1[r * PANEL_ROW + lane] = pair.slot.df[r] * w * (1.0f - t * t);
  });
}

// What `word_contexts` leaves, with Q1 = dX; each(j, tanh(X)) on the way.
template <typename Each>
CAAN_DEVICE void word_gradients(const Sides<AnyType>& s, const Pair<AnyType>& pair, const Options& o, int h, const Panels& p,
                                Each each) {
  const int lane = lane_of_thread();
  const float w = h + lane < s.H ? to_float(s.word_score[h + lane]) : 0.0f;
  word_contexts(s, pair, o, h, p, [&](int j, float x) {
    const float t = exact_tanh(x);
    each(j, t);
    p.Q1[j * PANEL_ROW + lane] = pair.slot.dg[j] * w * (1.0f - t * t);
  });
}

CAAN_DEVICE void ignore(int, float) {}

} // namespace caan::context_attention
