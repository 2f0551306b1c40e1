// One pair a block, in float32 whatever the features are: every dtype, length and derivative, where tiles of many pairs do not fit.
//
//   A = tanh(V (U affinityT)T)                          a cell of (m, n) a thread, 32 of the width at a time
//   R, C                                                a row, then a column, a warp
//   f = softmax(tanh(R (RT V Q1 + U Q2)) w_v)           32 columns of the hidden width at a time: a lane has a column, a warp
//   g = softmax(tanh(CT (C U Q3 + V Q4)) w_u)           four rows at a time, and only the logits outlive the panel
//   score = v.u / (|v| |u|)
//
// A, R, C and vectors lie in the pair's slot of scratch memory, small enough for the cache; panels, at most (m + n) rows of
// them twice, in shared memory; nothing of size (m, H) or (m, m) exists. The derivative walks the panels once more.
#include "device.h"
#include "panels.h"

namespace caan::cuda {

namespace {

struct Panels {
  float *regions0, *regions1, *words0, *words1;

  CAAN_DEVICE Panels(char* shared, int M, int N) {
    regions0 = reinterpret_cast<float*>(shared);
    regions1 = regions0 + M * PANEL_ROW;
    words0 = regions1 + M * PANEL_ROW;
    words1 = words0 + N * PANEL_ROW;
  }
};

// A line of cells, `count` of them `stride` apart: equation 2 from A to `weights`, which are 0 where A does not count.
CAAN_DEVICE float attend(const float* A, float* weights, int count, int64_t stride, bool softmax, float temperature) {
  const int lane = lane_of_thread();
  if (!softmax) {
    float squares = 0;
    for (int i = lane; i < count; i += WARP) {
      const float P = fmaxf(A[i * stride], 0.0f);
      squares = fmaf(P, P, squares);
    }
    const float scale = inverse_norm(sum_over_warp(squares));
    for (int i = lane; i < count; i += WARP) weights[i * stride] = fmaxf(A[i * stride], 0.0f) * scale;
    return scale;
  }
  float highest = -INFINITY, sum = 0;
  for (int i = lane; i < count; i += WARP) highest = fmaxf(highest, temperature * A[i * stride]);
  highest = highest_of_warp(highest);
  for (int i = lane; i < count; i += WARP) {
    const float e = expf(temperature * A[i * stride] - highest);
    weights[i * stride] = e;
    sum += e;
  }
  const float scale = 1.0f / sum_over_warp(sum);
  for (int i = lane; i < count; i += WARP) weights[i * stride] *= scale;
  return scale;
}

// In place, by one warp.
CAAN_DEVICE void softmax_of(float* logits, int count) {
  const int lane = lane_of_thread();
  float highest = -INFINITY, sum = 0;
  for (int i = lane; i < count; i += WARP) highest = fmaxf(highest, logits[i]);
  highest = highest_of_warp(highest);
  for (int i = lane; i < count; i += WARP) {
    const float e = expf(logits[i] - highest);
    logits[i] = e;
    sum += e;
  }
  const float scale = 1.0f / sum_over_warp(sum);
  for (int i = lane; i < count; i += WARP) logits[i] *= scale;
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
template <typename T>
CAAN_DEVICE void times_vector(const T* matrix, int rows, int width, const float* vector, float* products) {
  for (int r = warp_of_thread(); r < rows; r += WARPS) {
    float sum = 0;
    for (int d = lane_of_thread(); d < width; d += WARP) sum = fmaf(to_float(matrix[int64_t(r) * width + d]), vector[d], sum);
    sum = sum_over_warp(sum);
    if (lane_of_thread() == 0) products[r] = sum;
  }
}

CAAN_DEVICE float sum_over_block(float x, float* by_warp) {
  x = sum_over_warp(x);
  if (lane_of_thread() == 0) by_warp[warp_of_thread()] = x;
  block_barrier();
  x = by_warp[0];
  for (int w = 1; w < WARPS; ++w) x += by_warp[w];
  block_barrier();
  return x;
}

// The gradient of R and C along a line of cells, to that of A: added for columns, written for rows.
CAAN_DEVICE void attend_gradient(const float* weights, const float* gradient, float* dA, int count, int64_t stride, float scale,
                                 bool softmax, float temperature, bool add) {
  const int lane = lane_of_thread();
  float along = 0;
  for (int i = lane; i < count; i += WARP) along = fmaf(gradient[i * stride], weights[i * stride], along);
  along = sum_over_warp(along);
  // A scale of 1e8 is that of a norm held at 1e-8, which passes no gradient.
  if (!softmax && scale >= 1e8f) along = 0;
  for (int i = lane; i < count; i += WARP) {
    const float w = weights[i * stride], towards = gradient[i * stride];
    const float d = softmax ? temperature * w * (towards - along) : scale * (towards - w * along);
    dA[i * stride] = add ? dA[i * stride] + d : d;
  }
}

template <typename T>
struct PairOfCall {
  const T *V, *VQ, *U, *UQ;
  int m, n;
};

template <typename T>
CAAN_DEVICE void differentiate(const Sides<T>& s, const PairOfCall<T>& p, const Slot& slot, int row, const Panels& panels,
                               const Options& o, float across, float along_v, float along_u) {
  const int m = p.m, n = p.n, H = s.H, warp = warp_of_thread();
  for (int d = int(threadIdx.x); d < s.D; d += THREADS) {
    const float v = slot.dv[d], u = slot.du[d];
    slot.dv[d] = across * u - along_v * v;
    slot.du[d] = across * v - along_u * u;
  }
  block_barrier();
  times_vector(p.V, m, s.D, slot.dv, slot.df);
  times_vector(p.U, n, s.D, slot.du, slot.dg);
  for (int cell = int(threadIdx.x); cell < m * row; cell += THREADS) slot.dA[cell] = slot.dC[cell] = 0;
  block_barrier();
  if (warp == 0) softmax_gradient(slot.f, slot.df, m);
  if (warp == 1) softmax_gradient(slot.g, slot.dg, n);
  // For the compiler: what follows begins with a barrier of its own, but without this one sm_90a spills 48 bytes of addresses that
  // the loops begin with.
  block_barrier();

  const int64_t VQ_row = 2 * H, UQ_row = s.D + 2 * H;
  float *P0 = panels.regions0, *P1 = panels.regions1, *Q0 = panels.words0, *Q1 = panels.words1;
  const int lane = lane_of_thread();
  for (int h = 0; (o.inter || o.intra) && h < H; h += PANEL) {
    const float w_v = h + lane < H ? to_float(s.region_score[h + lane]) : 0.0f;
    const float w_u = h + lane < H ? to_float(s.word_score[h + lane]) : 0.0f;
    load_panel(P0, p.VQ, VQ_row, m, h, H);
    load_panel(Q0, p.UQ + s.D, UQ_row, n, h, H);
    block_barrier();
    transposed_times_panel(slot.R, row, n, m, P0, [&](int j, float sum) {
      const int at = j * PANEL_ROW + lane;
      Q1[at] = (o.intra ? sum : 0.0f) + (o.inter ? Q0[at] : 0.0f);
    });
    block_barrier();
    times_panel(slot.R, row, m, n, Q1, [&](int r, float sum) {
      const float t = exact_tanh(sum);
      P1[r * PANEL_ROW + lane] = slot.df[r] * w_v * (1.0f - t * t);
    });
    block_barrier();
    // The gradient of R shares that of A, which is made last.
    add_products(slot.dA, row, m, n, P1, Q1);
    if (o.intra) transposed_times_panel(slot.R, row, n, m, P1, [&](int j, float sum) { Q0[j * PANEL_ROW + lane] = sum; });
    block_barrier();
    if (o.intra) add_products(slot.dA, row, m, n, P0, Q0);
    block_barrier();

    load_panel(P0, p.VQ + H, VQ_row, m, h, H);
    load_panel(Q0, p.UQ + s.D + H, UQ_row, n, h, H);
    block_barrier();
    times_panel(slot.C, row, m, n, Q0, [&](int r, float sum) {
      const int at = r * PANEL_ROW + lane;
      P1[at] = (o.intra ? sum : 0.0f) + (o.inter ? P0[at] : 0.0f);
    });
    block_barrier();
    transposed_times_panel(slot.C, row, n, m, P1, [&](int j, float sum) {
      const float t = exact_tanh(sum);
      Q1[j * PANEL_ROW + lane] = slot.dg[j] * w_u * (1.0f - t * t);
    });
    block_barrier();
    add_products(slot.dC, row, m, n, P1, Q1);
    if (o.intra) times_panel(slot.C, row, m, n, Q1, [&](int r, float sum) { P0[r * PANEL_ROW + lane] = sum; });
    block_barrier();
    if (o.intra) add_products(slot.dC, row, m, n, P0, Q0);
    block_barrier();
  }

  for (int r = warp; r < m; r += WARPS) {
    float* dA = slot.dA + r * row;
    attend_gradient(slot.R + r * row, dA, dA, n, 1, slot.row_scale[r], o.softmax, o.temperature, false);
  }
  block_barrier();
  for (int j = warp; j < n; j += WARPS)
    attend_gradient(slot.C + j, slot.dC + j, slot.dA + j, m, row, slot.column_scale[j], o.softmax, o.temperature, true);
  block_barrier();
  for (int cell = int(threadIdx.x); cell < m * n; cell += THREADS) {
    const int at = cell / n * row + cell % n;
    const float A = slot.A[at];
    slot.dA[at] = o.softmax || A > 0 ? slot.dA[at] * (1.0f - A * A) : 0.0f;
  }
}

// `score_gradient` is asked late, so as to take no register until then.
template <typename T, bool GRADIENT, typename ScoreGradient>
CAAN_DEVICE float work_on(const Sides<T>& s, int64_t image, int64_t caption, const Options& o, float* scratch, char* shared,
                          ScoreGradient score_gradient) {
  const int m = int(s.region_lengths[image]), n = int(s.word_lengths[caption]);
  const PairOfCall<T> p{s.V(image), s.VQ(image), s.U(caption), s.UQ(caption), m, n};
  const SlotShape shape{s.M, s.N, s.D, GRADIENT};
  const Slot slot(scratch + blockIdx.x * shape.size(), shape);
  const Panels panels(shared, s.M, s.N);
  float *P0 = panels.regions0, *P1 = panels.regions1, *Q0 = panels.words0, *Q1 = panels.words1;
  const int row = shape.row(), H = s.H, warp = warp_of_thread(), lane = lane_of_thread();
  const int64_t VQ_row = 2 * H, UQ_row = s.D + 2 * H;

  // Columns up to a multiple of 4 are read, and must count as nothing.
  for (int cell = int(threadIdx.x); cell < m * row; cell += THREADS) slot.A[cell] = slot.R[cell] = slot.C[cell] = 0;
  for (int d = 0; d < s.D; d += PANEL) {
    load_panel(P0, p.V, s.D, m, d, s.D);
    load_panel(Q0, p.UQ, UQ_row, n, d, s.D);
    block_barrier();
    add_products(slot.A, row, m, n, P0, Q0);
    block_barrier();
  }
  for (int cell = int(threadIdx.x); cell < m * n; cell += THREADS) {
    float& A = slot.A[cell / n * row + cell % n];
    A = exact_tanh(A);
  }
  block_barrier();
  for (int r = warp; r < m; r += WARPS) {
    const float scale = attend(slot.A + r * row, slot.R + r * row, n, 1, o.softmax, o.temperature);
    if (lane == 0) slot.row_scale[r] = scale, slot.f[r] = 0;
  }
  for (int j = warp; j < n; j += WARPS) {
    const float scale = attend(slot.A + j, slot.C + j, m, row, o.softmax, o.temperature);
    if (lane == 0) slot.column_scale[j] = scale, slot.g[j] = 0;
  }
  block_barrier();

  for (int h = 0; (o.inter || o.intra) && h < H; h += PANEL) {
    const float w_v = h + lane < H ? to_float(s.region_score[h + lane]) : 0.0f;
    const float w_u = h + lane < H ? to_float(s.word_score[h + lane]) : 0.0f;
    load_panel(P0, p.VQ, VQ_row, m, h, H);
    load_panel(Q0, p.UQ + s.D, UQ_row, n, h, H);
    block_barrier();
    transposed_times_panel(slot.R, row, n, m, P0, [&](int j, float sum) {
      const int at = j * PANEL_ROW + lane;
      Q1[at] = (o.intra ? sum : 0.0f) + (o.inter ? Q0[at] : 0.0f);
    });
    block_barrier();
    times_panel(slot.R, row, m, n, Q1, [&](int r, float sum) {
      const float logit = sum_over_warp(exact_tanh(sum) * w_v);
      if (lane == 0) slot.f[r] += logit;
    });
    load_panel(P0, p.VQ + H, VQ_row, m, h, H);
    load_panel(Q0, p.UQ + s.D + H, UQ_row, n, h, H);
    block_barrier();
    times_panel(slot.C, row, m, n, Q0, [&](int r, float sum) {
      const int at = r * PANEL_ROW + lane;
      P1[at] = (o.intra ? sum : 0.0f) + (o.inter ? P0[at] : 0.0f);
    });
    block_barrier();
    transposed_times_panel(slot.C, row, n, m, P1, [&](int j, float sum) {
      const float logit = sum_over_warp(exact_tanh(sum) * w_u);
      if (lane == 0) slot.g[j] += logit;
    });
  }
  block_barrier();
  if (warp == 0) softmax_of(slot.f, m);
  if (warp == 1) softmax_of(slot.g, n);
  block_barrier();

  float product = 0, v_squares = 0, u_squares = 0;
  for (int d = int(threadIdx.x); d < s.D; d += THREADS) {
    float v = 0, u = 0;
    for (int r = 0; r < m; ++r) v = fmaf(slot.f[r], to_float(p.V[int64_t(r) * s.D + d]), v);
    for (int j = 0; j < n; ++j) u = fmaf(slot.g[j], to_float(p.U[int64_t(j) * s.D + d]), u);
    product = fmaf(v, u, product);
    v_squares = fmaf(v, v, v_squares);
    u_squares = fmaf(u, u, u_squares);
    if (GRADIENT) slot.dv[d] = v, slot.du[d] = u;
  }
  product = sum_over_block(product, P0);
  v_squares = sum_over_block(v_squares, P0);
  u_squares = sum_over_block(u_squares, P0);
  float across = o.cosine ? inverse_norm(v_squares) * inverse_norm(u_squares) : 1.0f;
  if constexpr (GRADIENT) {
    across *= score_gradient();
    const float towards = across * product;
    // A norm held at 1e-8 passes no gradient.
    const float along_v = o.cosine && sqrtf(v_squares) > 1e-8f ? towards / v_squares : 0.0f;
    const float along_u = o.cosine && sqrtf(u_squares) > 1e-8f ? towards / u_squares : 0.0f;
    differentiate(s, p, slot, row, panels, o, across, along_v, along_u);
  }
  return product * across;
}

struct Found {
  int64_t image = 0, caption = 0;
  bool wanted = false;
};

// The pair at a place of the call; unwanted where there is none, or none for this kernel.
template <typename T>
CAAN_DEVICE Found find_pair(const Sides<T>& s, const Pairs& pairs, int64_t place, bool skip_tiles) {
  Found found;
  if (place >= pairs.count) return found;
  place += pairs.first;
  found.image = pairs.pairs ? pairs.pairs[2 * place] : place / s.captions;
  found.caption = pairs.pairs ? pairs.pairs[2 * place + 1] : place % s.captions;
  if (found.image < 0 || found.image >= s.images || found.caption < 0 || found.caption >= s.captions) return found;
  const int m = int(s.region_lengths[found.image]), n = int(s.word_lengths[found.caption]);
  found.wanted = m > 0 && n > 0 && !(skip_tiles && fits_tile(m, n));
  return found;
}

// Scores: a block takes every gridDim-th place. Where most are left to the tiles, as many at once as it has threads are looked at.
template <typename T>
CAAN_KERNEL void CAAN_BOUNDS(THREADS, 4)
    score_kernel(Sides<T> s, Pairs pairs, Options o, float* scores, int64_t score_row, bool skip_tiles, float* scratch) {
  CAAN_SHARED;
  bool* const wanted = reinterpret_cast<bool*>(shared_memory);
  for (int64_t first = blockIdx.x; first < pairs.count; first += int64_t(THREADS) * gridDim.x) {
    wanted[threadIdx.x] = find_pair(s, pairs, first + int64_t(threadIdx.x) * gridDim.x, skip_tiles).wanted;
    block_barrier();
    for (int t = 0; t < THREADS; ++t) {
      if (!wanted[t]) continue;
      const int64_t place = first + int64_t(t) * gridDim.x;
      const Found pair = find_pair(s, pairs, place, skip_tiles);
      float* const score = scores + (pairs.pairs ? pairs.first + place : pair.image * score_row + pair.caption);
      const float found = work_on<T, false>(s, pair.image, pair.caption, o, scratch, shared_memory + THREADS, [] { return 0.0f; });
      if (threadIdx.x == 0) *score = found;
      // The next pair is worked on in the same memory.
      block_barrier();
    }
    block_barrier();
  }
}

template <typename T>
CAAN_KERNEL void CAAN_BOUNDS(THREADS, 4)
    gradient_kernel(Sides<T> s, Pairs pairs, Options o, const float* score_gradients, float* scratch) {
  CAAN_SHARED;
  const int64_t place = pairs.first + blockIdx.x;
  if (place >= *pairs.walked) return;
  work_on<T, true>(s, pairs.keys[place] / s.captions, pairs.keys[place] % s.captions, o, scratch, shared_memory,
                   [&] { return score_gradients[pairs.order[pairs.first + blockIdx.x]]; });
}

size_t panel_bytes(int M, int N) { return size_t(2 * (M + N)) * PANEL_ROW * sizeof(float); }

} // namespace

template <typename T>
void score_pairs(const Sides<T>& s, const Pairs& pairs, const Options& o, float* scores, int64_t score_row, bool skip_tiles,
                 float* scratch, int64_t slots, Stream stream) {
  const int64_t blocks = pairs.count < slots ? pairs.count : slots;
  launch<score_kernel<T>>(blocks, THREADS, THREADS + panel_bytes(s.M, s.N), stream, s, pairs, o, scores, score_row, skip_tiles,
                          scratch);
}

template <typename T>
void differentiate_pairs(const Sides<T>& s, const Pairs& pairs, const Options& o, const float* score_gradients, float* scratch,
                         Stream stream) {
  launch<gradient_kernel<T>>(pairs.count, THREADS, panel_bytes(s.M, s.N), stream, s, pairs, o, score_gradients, scratch);
}

template void score_pairs(const Sides<float>&, const Pairs&, const Options&, float*, int64_t, bool, float*, int64_t, Stream);
template void score_pairs(const Sides<bfloat16>&, const Pairs&, const Options&, float*, int64_t, bool, float*, int64_t, Stream);
template void score_pairs(const Sides<float16>&, const Pairs&, const Options&, float*, int64_t, bool, float*, int64_t, Stream);

template void differentiate_pairs(const Sides<float>&, const Pairs&, const Options&, const float*, float*, Stream);
template void differentiate_pairs(const Sides<bfloat16>&, const Pairs&, const Options&, const float*, float*, Stream);
template void differentiate_pairs(const Sides<float16>&, const Pairs&, const Options&, const float*, float*, Stream);

} // namespace caan::cuda
