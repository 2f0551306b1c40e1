// Products of a pair's small matrices with panels: 32 columns of a tensor's rows, one row after another in shared memory as
// float32. A lane has a column, a warp four rows at a time; sums run over rows in rising order.
#pragma once

#include "device.h"

namespace caan::cuda {

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / WARP;
constexpr int PANEL = WARP;
// Four numbers more than a panel's row: reading 16 bytes, the lanes of a quarter warp then find eight rows in different banks.
constexpr int PANEL_ROW = PANEL + 4;

CAAN_DEVICE int lane_of_thread() { return int(threadIdx.x) % WARP; }
CAAN_DEVICE int warp_of_thread() { return int(threadIdx.x) / WARP; }

// Columns from `first` of `rows` rows, 0 beyond `columns`.
template <typename T>
CAAN_DEVICE void load_panel(float* panel, const T* from, int64_t row_stride, int rows, int first, int columns) {
  const int column = first + lane_of_thread();
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

} // namespace caan::cuda
