// The derivatives of one pair, stage by stage. docs/operator.md derives what follows; a hat is a matrix whose rows are divided by
// their norms.
//
//   s = v̂·û / (|v̂| |û|)           dv̂, dû
//   v̂ = fᵀV                        df = V dv̂, dV += f dv̂ᵀ; the word side alike
//   f = softmax(t w), t = tanh(Y)  dl = f (df - f·df); dw += tᵀ dl; dY = dl wᵀ (1 - t²)
//   Y = X̂ Z + X other, Z = X̂ᵀ own  dZ = X̂ᵀ dY; dX̂ = dY Zᵀ + own dZᵀ; d own += X̂ dZ; dX = dY otherᵀ; d other += Xᵀ dY
//   X̂ = X / |X| by rows            dX += (dX̂ - X̂ (X̂·dX̂)) / |X|
//   C = P / |P| by columns         dP = (dC - C (C·dC)) / |P|, the same by rows for R
//   S = V (U affinityᵀ)ᵀ           dS = dP (1 - A²) where A > 0; dV += dS (U affinityᵀ); d(U affinityᵀ) += dSᵀ V
#pragma once

#include "context_attention/cpu/pair.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

using namespace caan::context_attention;

template <class F, int R, int V>
CAAN_INLINE void add_tile(F* to, int64_t stride, int64_t columns, Vec<F> (&acc)[R][V]) {
  constexpr int64_t W = V * lanes<F>;
  if (columns >= W) {
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < V; ++c) {
        F* p = to + r * stride + c * lanes<F>;
        store(p, load(p) + acc[r][c]);
      }
    return;
  }
  F row[W];
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < V; ++c) store(row + c * lanes<F>, acc[r][c]);
    for (int64_t c = 0; c < columns; ++c) to[r * stride + c] += row[c];
  }
}

// to (rows, stride) += left (depth, rows; k-major) right (depth, columns). A few rows are read from end to end: they come from
// afar.
template <class F>
void add_product(F* to, int64_t stride, const F* left, int64_t lda, int64_t rows, const Products<F>& right, int64_t depth,
                 int64_t columns) {
  const Panels<F> panels(columns);
  for_row_tiles(rows, [&](int64_t r0, auto height) {
    for_panels(panels, [&](int64_t p, auto vectors) {
      constexpr int64_t W = vectors.count * lanes<F>;
      const int64_t h = panels.begin(p);
      Vec<F> acc[height.count][vectors.count];
      clear<F>(acc);
      multiply_add<F>(acc, left + r0, lda, right.panel(h), right.row(W), depth);
      add_tile<F>(to + r0 * stride + h, stride, columns - h, acc);
    });
  });
}

inline constexpr int dot_rows = CAAN_REGISTERS >= 32 ? 6 : 3;
inline constexpr int dot_columns = 4;

// to (p, q) = or += left (p, columns) rightᵀ, right (q, columns); both padded with 0 to whole vectors.
template <class F>
void dot_products(F* to, bool add, const Products<F>& left, int64_t p, const Products<F>& right, int64_t q, int64_t columns) {
  const Panels<F> panels(columns);
  for_row_tiles<dot_rows>(p, [&](int64_t r0, auto height) {
    for_row_tiles<dot_columns>(q, [&](int64_t j0, auto breadth) {
      Vec<F> acc[height.count][breadth.count];
      clear<F>(acc);
      for (int64_t panel = 0; panel < panels.count; ++panel) {
        const int64_t h = panels.begin(panel), W = panels.width(panel), left_row = left.row(W), right_row = right.row(W);
        const F *a = left.panel(h) + r0 * left_row, *b = right.panel(h) + j0 * right_row;
        for (int64_t c = 0; c < W; c += lanes<F>) {
          Vec<F> of_right[breadth.count];
          for (int j = 0; j < breadth.count; ++j) of_right[j] = load(b + j * right_row + c);
#pragma GCC unroll 8
          for (int r = 0; r < height.count; ++r) {
            const Vec<F> of_left = load(a + r * left_row + c);
#pragma GCC unroll 4
            for (int j = 0; j < breadth.count; ++j) acc[r][j] += of_left * of_right[j];
          }
        }
      }
      for (int r = 0; r < height.count; ++r)
        for (int j = 0; j < breadth.count; ++j) {
          F& out = to[(r0 + r) * q + j0 + j];
          out = (add ? out : F(0)) + sum<F>(acc[r][j]);
        }
    });
  });
}

// Gradients of a side's X and X̂ (p, q), without padding.
template <class F>
struct AttentionGradients {
  Buffer<F> x, unit;

  void fit(int64_t count) {
    x.resize(count);
    unit.resize(count);
  }
};

template <class F>
struct GradientScratch {
  AttentionGradients<F> of_c, of_r; // (m, n) and (n, m)
  Buffer<F> d_alignment;            // dS (m, ldn)
  Buffer<F> d_alignment_t;          // (n + 1, ldm); row n is f, so that dV takes both its terms in one product
  Buffer<F> words;                  // (n + 1, word_row): U affinityᵀ, and dv̂ behind it likewise
  int64_t word_row = 0;
  Buffer<F> dy, z, dz;                  // a side's dY (p, H), Z and dZ (q, H), in panels
  Buffer<F> region_pooled, word_pooled; // v̂, û
  Buffer<F> d_region_pooled, d_word_pooled;
  Buffer<F> d_region_logits, d_word_logits;

  void fit(int64_t m, int64_t n, int64_t ldm, int64_t ldn, int64_t width, int64_t hidden) {
    const int64_t longer = larger(m, n);
    of_c.fit(m * n);
    of_r.fit(m * n);
    d_alignment.resize(m * ldn);
    d_alignment_t.resize((n + 1) * ldm);
    word_row = spread_row<F>(width);
    words.resize((n + 1) * word_row);
    for (Buffer<F>* b : {&dy, &z, &dz}) b->resize(longer * padded<F>(hidden));
    for (Buffer<F>* b : {&region_pooled, &word_pooled, &d_region_pooled, &d_word_pooled}) b->resize(padded<F>(width));
    d_region_logits.resize(ldm);
    d_word_logits.resize(ldn);
  }
};

// Sums of rows, so many numbers from one to the next; null where they are not wanted.
template <class F>
struct RowSums {
  F* base;
  int64_t stride;
  // Those of the columns from one on.
  RowSums from(int64_t column) const { return {base ? base + column : nullptr, stride}; }
};

// What a side's gradients are added to: those of own (p, H), of other (q, H) and of the score vector.
template <class F>
struct SideSums {
  RowSums<F> own, other;
  F* weight;
};

// Adds to the sums, and writes the gradients of X and X̂. x is X itself (p, ldq).
template <class F>
void side_gradients(const Side<F>& side, const F* x, const Shared<F>& shared, const F* d_logits, GradientScratch<F>& g,
                    AttentionGradients<F>& attention, const SideSums<F>& sums) {
  const int64_t p = side.p, q = side.q, hidden = shared.hidden;
  const Options options = shared.options;
  F* const d_weight = sums.weight;
  const Products<F> dy{g.dy, p, 0}, z{g.z, q, 0}, dz{g.dz, q, 0};
  const Panels<F> panels(hidden);
  for_panels(panels, [&](int64_t panel, auto vectors) {
    constexpr int V = vectors.count;
    constexpr int64_t W = V * lanes<F>;
    const int64_t h = panels.begin(panel);
    if (options.intra) gather_own<V>(side, h, g.z + h * q);
    Vec<F> weight[V], dw[V] = {};
    for (int c = 0; c < V; ++c) weight[c] = load(side.weight + h + c * lanes<F>);
    for_row_tiles(p, [&](int64_t r0, auto height) {
      Vec<F> acc[height.count][V];
      clear<F>(acc);
      if (options.intra) multiply_add<F>(acc, side.unit_t + r0, side.ldp, z.panel(h), W, q);
      if (options.inter) multiply_add<F>(acc, side.x_t + r0, side.ldp, side.other.panel(h), side.other.row(W), q);
      for (int r = 0; r < height.count; ++r)
        for (int c = 0; c < V; ++c) {
          const Vec<F> t = tanh(acc[r][c]);
          const F d = d_logits[r0 + r];
          dw[c] += d * t;
          acc[r][c] = d * weight[c] * (F(1) - t * t);
        }
      store_tile<F>(g.dy + h * p + r0 * W, W, acc);
    });
    for (int c = 0; c < V; ++c) store(d_weight + h + c * lanes<F>, load(d_weight + h + c * lanes<F>) + dw[c]);
    if (!options.intra) return;
    for_row_tiles(q, [&](int64_t j0, auto height) {
      Vec<F> acc[height.count][V];
      clear<F>(acc);
      multiply_add<F>(acc, side.unit + j0, side.ldq, dy.panel(h), W, p);
      store_tile<F>(g.dz + h * q + j0 * W, W, acc);
    });
  });
  if (options.inter) {
    dot_products<F>(attention.x, false, dy, p, side.other, q, hidden);
    if (sums.other.base) add_product<F>(sums.other.base, sums.other.stride, x, side.ldq, q, dy, p, hidden);
  } else {
    for (int64_t i = 0; i < p * q; ++i) attention.x[i] = 0;
  }
  if (options.intra) {
    dot_products<F>(attention.unit, false, dy, p, z, q, hidden);
    dot_products<F>(attention.unit, true, side.own, p, dz, q, hidden);
    if (sums.own.base) add_product<F>(sums.own.base, sums.own.stride, side.unit_t, side.ldp, p, dz, q, hidden);
  }
}

// d_logits = f (df - f·df), df = rows · d_pooled.
template <class F, class T>
void softmax_gradients(F* d_logits, const F* attention, const T* rows, const F* d_pooled, int64_t count, int64_t width) {
  F mean = 0;
  for (int64_t r = 0; r < count; ++r) {
    const T* row = rows + r * width;
    Vec<F> dot{};
    int64_t d = 0;
    for (; d + lanes<F> <= width; d += lanes<F>) dot += load_wide(row + d) * load(d_pooled + d);
    if (d < width) dot += load_head(row + d, width - d) * load(d_pooled + d);
    d_logits[r] = sum<F>(dot);
    mean += attention[r] * d_logits[r];
  }
  for (int64_t r = 0; r < count; ++r) d_logits[r] = attention[r] * (d_logits[r] - mean);
}

// Through y = x / max(norm, floor) for count numbers, a stride between them: d becomes (d - y (y·d)) / norm. A norm at the floor is
// a constant. d is 0 wherever x is: what a zero row divides by the floor would otherwise meet a zero again as NaN, if it overflows.
template <class F>
CAAN_INLINE void through_norm(F* d, int64_t d_stride, const F* y, int64_t y_stride, F norm, int64_t count) {
  F along = 0;
  if (norm > norm_floor<F>)
    for (int64_t i = 0; i < count; ++i) along += y[i * y_stride] * d[i * d_stride];
  const F divisor = at_least_scalar(norm, norm_floor<F>);
  for (int64_t i = 0; i < count; ++i) {
    const F value = y[i * y_stride];
    F& gradient = d[i * d_stride];
    gradient = value == 0 ? F(0) : (gradient - value * along) / divisor;
  }
}

// dS from the gradients of C, Ĉ, Rᵀ and R̂.
template <class F>
void alignment_gradients(const PairScratch<F>& s, GradientScratch<F>& g, int64_t m, int64_t n, const Options& options) {
  const int64_t ldn = s.ldn, ldm = s.ldm;
  F *dc = g.of_c.x, *dr = g.of_r.x;
  if (options.intra) {
    for (int64_t r = 0; r < m; ++r) through_norm<F>(g.of_c.unit + r * n, 1, s.c_unit + r * ldn, 1, s.c_row_norms[r], n);
    for (int64_t j = 0; j < n; ++j) through_norm<F>(g.of_r.unit + j * m, 1, s.r_unit_t + j * ldm, 1, s.r_column_norms[j], m);
    for (int64_t i = 0; i < m * n; ++i) {
      dc[i] += g.of_c.unit[i];
      dr[i] += g.of_r.unit[i];
    }
  }
  for (int64_t j = 0; j < n; ++j) through_norm<F>(dc + j, n, s.c + j, ldn, s.column_norms[j], m);
  for (int64_t r = 0; r < m; ++r) through_norm<F>(dr + r, m, s.r + r * ldn, 1, s.row_norms[r], n);
  for (int64_t r = 0; r < m; ++r) {
    for (int64_t j = 0; j < n; ++j) {
      const F a = s.alignment[r * ldn + j];
      // NaN gives NaN.
      const F d = a <= 0 ? F(0) : (dc[r * n + j] + dr[j * m + r]) * (F(1) - a * a);
      g.d_alignment[r * ldn + j] = d;
      g.d_alignment_t[j * ldm + r] = d;
    }
    g.d_alignment_t[n * ldm + r] = s.region_attention[r];
  }
}

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE
