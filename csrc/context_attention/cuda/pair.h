// What a block does for one pair, in float32 whatever the features are: its score, and what its derivatives come from.
//
//   A = tanh(V (U affinityT)T)                                  a cell of (m, n) a thread, 32 of the width at a time
//   C, R; C_unit, R_unit                                        a row or a column a warp
//   f = softmax(tanh(C_unit (C_unitT V Q1) + C U Q2) w_v)       32 columns of the hidden width at a time: a lane has a column, a
//   g = softmax(tanh(R_unitT (R_unit U Q3) + RT V Q4) w_u)      warp four rows at a time, and only the logits outlive the panel
//   score = v.u, over |v| |u| for the cosine
//
// Matrices and vectors lie in the pair's slot of scratch memory, small enough for the cache; panels, at most (m + n) rows of
// them twice, in shared memory; nothing of size (m, H) or (m, m) exists. The derivative goes through the panels once more.
#pragma once

#include "context_attention/cuda/block.h"
#include "context_attention/cuda/panels.h"

namespace caan::context_attention {

// A line of cells, `count` of them `stride` apart, over its norm, which is returned; what is negative counts as 0. By one warp.
// A reciprocal would not do: one positive cell alone must become 1 exactly, and then pass a gradient of 0 exactly.
CAAN_DEVICE float divide_by_norm(const float* line, float* unit, int count, int64_t stride) {
  const int lane = lane_of_thread();
  float squares = 0;
  for (int i = lane; i < count; i += WARP) {
    const float x = positive_part(line[i * stride]);
    squares = fmaf(x, x, squares);
  }
  const float norm = norm_of(sum_over_warp(squares));
  for (int i = lane; i < count; i += WARP) unit[i * stride] = positive_part(line[i * stride]) / norm;
  return norm;
}

// From the gradient of what `divide_by_norm` makes to that of what it takes, in place.
CAAN_DEVICE void norm_gradient(const float* unit, float* gradient, int count, int64_t stride, float norm) {
  const int lane = lane_of_thread();
  float along = 0;
  for (int i = lane; i < count; i += WARP) along = fmaf(unit[i * stride], gradient[i * stride], along);
  along = sum_over_warp(along);
  if (norm <= EPSILON) along = 0;
  for (int i = lane; i < count; i += WARP) gradient[i * stride] = (gradient[i * stride] - unit[i * stride] * along) / norm;
}

// Through a softmax, by one warp: from d(weights) to d(logits), in place.
CAAN_DEVICE void softmax_gradient(const float* weights, float* gradient, int count) {
  const int lane = lane_of_thread();
  float along = 0;
  for (int i = lane; i < count; i += WARP) along = fmaf(weights[i], gradient[i], along);
  along = sum_over_warp(along);
  for (int i = lane; i < count; i += WARP) gradient[i] = weights[i] * (gradient[i] - along);
}

// Rows of (rows, width) times a vector, a row a warp.
template <typename Rows>
CAAN_DEVICE void times_vector(Rows matrix, int rows, int width, const float* vector, float* products) {
  for (int r = warp_of_thread(); r < rows; r += WARPS) {
    float sum = 0;
    for (int d = lane_of_thread(); d < width; d += WARP) sum = fmaf(to_float(matrix[int64_t(r) * width + d]), vector[d], sum);
    sum = sum_over_warp(sum);
    if (lane_of_thread() == 0) products[r] = sum;
  }
}

// dS, from the gradients of C, R, C_unit and R_unit, which are overwritten.
template <typename T>
CAAN_DEVICE void alignment_gradient(const Pair<T>& p) {
  const Slot& slot = p.slot;
  const int m = p.m, n = p.n, row = p.row, warp = warp_of_thread();
  const auto at = [&](int cell) { return cell / n * row + cell % n; };
  // What is not positive has no gradient, and a gradient there, infinite perhaps, must not meet a 0. NaN has one: NaN.
  for (int cell = int(threadIdx.x); cell < m * n; cell += THREADS) {
    const int i = at(cell);
    if (slot.A[i] <= 0) slot.dC[i] = slot.dR[i] = slot.dC_unit[i] = slot.dR_unit[i] = 0;
  }
  block_barrier();
  for (int r = warp; r < m; r += WARPS) norm_gradient(slot.C_unit + r * row, slot.dC_unit + r * row, n, 1, slot.C_norm[r]);
  for (int j = warp; j < n; j += WARPS) norm_gradient(slot.R_unit + j, slot.dR_unit + j, m, row, slot.R_norm[j]);
  block_barrier();
  for (int cell = int(threadIdx.x); cell < m * n; cell += THREADS) {
    const int i = at(cell);
    slot.dC[i] += slot.dC_unit[i];
    slot.dR[i] += slot.dR_unit[i];
  }
  block_barrier();
  for (int r = warp; r < m; r += WARPS) norm_gradient(slot.R + r * row, slot.dR + r * row, n, 1, slot.row_norm[r]);
  for (int j = warp; j < n; j += WARPS) norm_gradient(slot.C + j, slot.dC + j, m, row, slot.column_norm[j]);
  block_barrier();
  for (int cell = int(threadIdx.x); cell < m * n; cell += THREADS) {
    const int i = at(cell);
    const float A = slot.A[i];
    slot.dS[i] = A <= 0 ? 0.0f : (slot.dC[i] + slot.dR[i]) * (1.0f - A * A);
  }
}

// R, C, R_unit, C_unit and their norms, from S in A, which becomes its tanh; f and g are 0.
template <typename T>
CAAN_DEVICE void find_weights(const Pair<T>& p) {
  const Slot& slot = p.slot;
  const int m = p.m, n = p.n, row = p.row, warp = warp_of_thread(), lane = lane_of_thread();
  for (int cell = int(threadIdx.x); cell < m * n; cell += THREADS) {
    float& A = slot.A[cell / n * row + cell % n];
    A = exact_tanh(A);
  }
  block_barrier();
  for (int r = warp; r < m; r += WARPS) {
    const float norm = divide_by_norm(slot.A + r * row, slot.R + r * row, n, 1);
    if (lane == 0) slot.row_norm[r] = norm, slot.f[r] = 0;
  }
  for (int j = warp; j < n; j += WARPS) {
    const float norm = divide_by_norm(slot.A + j, slot.C + j, m, row);
    if (lane == 0) slot.column_norm[j] = norm, slot.g[j] = 0;
  }
  block_barrier();
  for (int r = warp; r < m; r += WARPS) {
    const float norm = divide_by_norm(slot.C + r * row, slot.C_unit + r * row, n, 1);
    if (lane == 0) slot.C_norm[r] = norm;
  }
  for (int j = warp; j < n; j += WARPS) {
    const float norm = divide_by_norm(slot.R + j, slot.R_unit + j, m, row);
    if (lane == 0) slot.R_norm[j] = norm;
  }
  block_barrier();
}

// From v and u in dv and du: those gradients, and those of the logits. Other gradients are 0 in so many rows.
template <typename T>
CAAN_DEVICE void logit_gradients(const Sides<T>& s, const Pair<T>& p, int rows, float across, float along_v, float along_u) {
  const Slot& slot = p.slot;
  const int m = p.m, n = p.n, row = p.row, warp = warp_of_thread();
  for (int d = int(threadIdx.x); d < s.D; d += THREADS) {
    const float v = slot.dv[d], u = slot.du[d];
    slot.dv[d] = across * u - along_v * v;
    slot.du[d] = across * v - along_u * u;
  }
  block_barrier();
  times_vector(p.V, m, s.D, slot.dv, slot.df);
  times_vector(p.U, n, s.D, slot.du, slot.dg);
  for (int cell = int(threadIdx.x); cell < rows * row; cell += THREADS)
    slot.dS[cell] = slot.dC[cell] = slot.dR[cell] = slot.dC_unit[cell] = slot.dR_unit[cell] = 0;
  block_barrier();
  if (warp == 0) softmax_gradient(slot.f, slot.df, m);
  if (warp == 1) softmax_gradient(slot.g, slot.dg, n);
  block_barrier();
}

// What `work_on` does with panels, in float32 arithmetic.
struct OnPanels {
  // Rows of the slot's matrices come in multiples of it.
  static constexpr int ROWS = 1;
  const Sides<AnyType>& s;
  const Options& o;
  const Pair<AnyType> p;
  const Panels panels;

  CAAN_DEVICE OnPanels(const Sides<AnyType>& s, const Options& o, int64_t image, int64_t caption, float* scratch, bool gradient,
                       char* shared)
      : s(s), o(o), p(s, image, caption, scratch, SlotShape{s.M, s.N, s.D, gradient}), panels(shared, s.M, s.N) {}

  CAAN_DEVICE bool has_contexts() const { return o.inter || o.intra; }

  // S to A.
  CAAN_DEVICE void align() const {
    for (int d = 0; d < s.D; d += PANEL) {
      load_panel(panels.P0, p.V, s.D, p.m, d, s.D);
      load_panel(panels.Q0, p.UQ, s.D + 2 * s.H, p.n, d, s.D);
      block_barrier();
      add_products(p.slot.A, p.row, p.m, p.n, panels.P0, panels.Q0);
      block_barrier();
    }
  }

  // To f and g.
  CAAN_DEVICE void add_logits() const {
    const Slot& slot = p.slot;
    const int lane = lane_of_thread();
    for (int h = 0; has_contexts() && h < s.H; h += PANEL) {
      const float w_v = h + lane < s.H ? to_float(s.region_score[h + lane]) : 0.0f;
      const float w_u = h + lane < s.H ? to_float(s.word_score[h + lane]) : 0.0f;
      region_contexts(s, p, o, h, panels, [&](int r, float y) {
        const float logit = sum_over_warp(exact_tanh(y) * w_v);
        if (lane == 0) slot.f[r] += logit;
      });
      word_contexts(s, p, o, h, panels, [&](int j, float x) {
        const float logit = sum_over_warp(exact_tanh(x) * w_u);
        if (lane == 0) slot.g[j] += logit;
      });
    }
  }

  // To dC, dR, dC_unit and dR_unit.
  CAAN_DEVICE void differentiate() const {
    const Slot& slot = p.slot;
    const int m = p.m, n = p.n, row = p.row, lane = lane_of_thread();
    float *P0 = panels.P0, *P1 = panels.P1, *Q0 = panels.Q0, *Q1 = panels.Q1;
    for (int h = 0; has_contexts() && h < s.H; h += PANEL) {
      region_gradients(s, p, o, h, panels, ignore);
      if (o.inter) add_products(slot.dC, row, m, n, P1, Q0);
      if (o.intra) add_products(slot.dC_unit, row, m, n, P1, Q1);
      block_barrier();
      if (o.intra) {
        transposed_times_panel(slot.C_unit, row, n, m, P1, [&](int j, float sum) { Q1[j * PANEL_ROW + lane] = sum; });
        block_barrier();
        add_products(slot.dC_unit, row, m, n, P0, Q1);
        block_barrier();
      }
      word_gradients(s, p, o, h, panels, ignore);
      if (o.inter) add_products(slot.dR, row, m, n, P0, Q1);
      if (o.intra) add_products(slot.dR_unit, row, m, n, P1, Q1);
      block_barrier();
      if (o.intra) {
        times_panel(slot.R_unit, row, m, n, Q1, [&](int r, float sum) { P1[r * PANEL_ROW + lane] = sum; });
        block_barrier();
        add_products(slot.dR_unit, row, m, n, P1, Q0);
        block_barrier();
      }
    }
  }
};

// The score of a pair by products as `begin()` does them, in the slot that it has. `by_warp` has room for a number a warp.
// `begin` is asked again where a step begins, and `score_gradient` late, so that what they give takes no register until then.
template <bool GRADIENT, typename Begin, typename ScoreGradient>
CAAN_DEVICE float work_on(Begin begin, float* by_warp, ScoreGradient score_gradient) {
  const int warp = warp_of_thread();
  const auto& on = begin();
  const auto& s = on.s;
  const auto& p = on.p;
  const Slot& slot = p.slot;
  const int m = p.m, n = p.n, rows = (m + on.ROWS - 1) / on.ROWS * on.ROWS;

  // Columns beyond the words are read, and must count as nothing.
  for (int cell = int(threadIdx.x); cell < rows * p.row; cell += THREADS)
    slot.A[cell] = slot.C[cell] = slot.R[cell] = slot.C_unit[cell] = slot.R_unit[cell] = 0;
  on.align();
  find_weights(p);
  begin().add_logits();
  if (warp == 0) softmax_of(slot.f, m);
  if (warp == 1) softmax_of(slot.g, n);
  block_barrier();

  const Pooled pooled = pool<WARPS>(p.V, p.U, slot.f, slot.g, m, n, s.D, by_warp, [&](int d, float v, float u) {
    if (GRADIENT) slot.dv[d] = v, slot.du[d] = u;
  });
  const float v_norm = norm_of(pooled.v_squares), u_norm = norm_of(pooled.u_squares);
  float across = on.o.cosine ? 1.0f / (v_norm * u_norm) : 1.0f;
  if constexpr (GRADIENT) {
    across *= score_gradient();
    const float towards = across * pooled.product;
    const float along_v = on.o.cosine && v_norm > EPSILON ? towards / pooled.v_squares : 0.0f;
    const float along_u = on.o.cosine && u_norm > EPSILON ? towards / pooled.u_squares : 0.0f;
    logit_gradients(s, p, rows, across, along_v, along_u);
    begin().differentiate();
    alignment_gradient(begin().p);
  }
  return pooled.product * across;
}

} // namespace caan::context_attention
