// Gradients of the pairs that have one. Each pair is scored again, then walked backwards; nothing was kept from the forward pass.
// docs/operator.md derives what follows; a hat is a matrix whose rows are divided by their norms.
//
//   s = v̂·û / (|v̂| |û|)           dv̂, dû
//   v̂ = fᵀV                        df = V dv̂, dV += f dv̂ᵀ; the word side alike
//   f = softmax(t w), t = tanh(Y)  dl = f (df - f·df); dw += tᵀ dl; dY = dl wᵀ (1 - t²)
//   Y = X̂ Z + X other, Z = X̂ᵀ own  dZ = X̂ᵀ dY; dX̂ = dY Zᵀ + own dZᵀ; d own += X̂ dZ; dX = dY otherᵀ; d other += Xᵀ dY
//   X̂ = X / |X| by rows            dX += (dX̂ - X̂ (X̂·dX̂)) / |X|
//   C = P / |P| by columns         dP = (dC - C (C·dC)) / |P|, the same by rows for R
//   S = V (U affinityᵀ)ᵀ           dS = dP (1 - A²) where A > 0; dV += dS (U affinityᵀ); d(U affinityᵀ) += dSᵀ V
//
// Pairs that share neither image nor caption run at once; order_by_level() fixes the order in which pairs add to a row.
#pragma once

#include <vector>

#include "context_attention/cpu/scores.h"

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

// to (rows, stride) += left (depth, rows; k-major) right (depth, columns). A few rows are walked from end to end: they come from
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

// Where sums go that may not be wanted.
template <class F>
CAAN_INLINE F* behind(F* sums, int64_t columns) {
  return sums ? sums + columns : nullptr;
}

// Adds to d_own (p rows) and d_other (q rows), either of which may be null, and to d_weight; writes the gradients of X and X̂.
// x is X itself (p, ldq).
template <class F>
void side_gradients(const Side<F>& side, const F* x, int64_t hidden, const Options& options, const F* d_logits,
                    GradientScratch<F>& g, AttentionGradients<F>& attention, F* d_own, int64_t own_stride, F* d_other,
                    int64_t other_stride, F* d_weight) {
  const int64_t p = side.p, q = side.q;
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
    if (d_other) add_product<F>(d_other, other_stride, x, side.ldq, q, dy, p, hidden);
  } else {
    for (int64_t i = 0; i < p * q; ++i) attention.x[i] = 0;
  }
  if (options.intra) {
    dot_products<F>(attention.unit, false, dy, p, z, q, hidden);
    dot_products<F>(attention.unit, true, side.own, p, dz, q, hidden);
    if (d_own) add_product<F>(d_own, own_stride, side.unit_t, side.ldp, p, dz, q, hidden);
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
      const F d = a > 0 ? (dc[r * n + j] + dr[j * m + r]) * (F(1) - a * a) : F(0);
      g.d_alignment[r * ldn + j] = d;
      g.d_alignment_t[j * ldm + r] = d;
    }
    g.d_alignment_t[n * ldm + r] = s.region_attention[r];
  }
}

template <class T>
class Differentiator {
  using F = Real<T>;
  static constexpr int64_t W = panel_width<F>;
  // Pairs whose gradients of the two score vectors are kept apart until they are added up in order.
  static constexpr int64_t slots = 64;

 public:
  Differentiator(const Problem& problem, const F* grad_scores, const Gradients& gradients, const Executor& executor)
      : problem_(problem),
        grad_scores_(grad_scores),
        gradients_(gradients),
        executor_(executor),
        width_(problem.width),
        hidden_(problem.hidden),
        padded_hidden_(padded<F>(problem.hidden)),
        region_weight_(padded_hidden_),
        word_weight_(padded_hidden_),
        d_weights_(slots * 2 * padded_hidden_),
        total_(2 * padded_hidden_),
        workers_(new Worker[executor.threads]) {
    copy_padded<F>(region_weight_, static_cast<const T*>(problem.region_score), hidden_, padded_hidden_);
    copy_padded<F>(word_weight_, static_cast<const T*>(problem.word_score), hidden_, padded_hidden_);
    for (int64_t h = 0; h < 2 * padded_hidden_; ++h) total_[h] = 0;
  }
  ~Differentiator() { delete[] workers_; }
  Differentiator(const Differentiator&) = delete;
  Differentiator& operator=(const Differentiator&) = delete;

  void run() {
    const Range images{0, problem_.images}, captions{0, problem_.captions}, none{0, 0};
    const int64_t image_bytes = problem_.regions_per_image * (width_ + 2 * hidden_) * int64_t(sizeof(F));
    const int64_t caption_bytes = problem_.words_per_caption * (2 * width_ + 2 * hidden_) * int64_t(sizeof(F));
    if (same_type || images.end * image_bytes + captions.end * caption_bytes <= sums_bytes) {
      sweep(images, captions);
    } else {
      // The sums do not fit beside the outputs: one side after the other, block by block, each pair walked backwards twice.
      const int64_t image_step = larger(1, sums_bytes / larger(1, image_bytes));
      for (int64_t i = 0; i < images.end; i += image_step) sweep({i, smaller(images.end, i + image_step)}, none);
      const int64_t caption_step = larger(1, sums_bytes / larger(1, caption_bytes));
      for (int64_t t = 0; t < captions.end; t += caption_step) sweep(none, {t, smaller(captions.end, t + caption_step)});
    }
    for (int64_t h = 0; h < hidden_; ++h) {
      static_cast<T*>(gradients_.region_score)[h] = narrow<T>(total_[h]);
      static_cast<T*>(gradients_.word_score)[h] = narrow<T>(total_[padded_hidden_ + h]);
    }
  }

 private:
  struct Range {
    int64_t begin, end;
    bool has(int64_t i) const { return begin <= i && i < end; }
  };
  struct Worker {
    Image<T> image;
    Buffer<F> word_affinity, word_intra, word_inter; // U affinityᵀ, U Q3 and U Q2 in panels
    PairScratch<F> pair;
    GradientScratch<F> gradient;
  };
  // Sums of the items of a sweep, `row` numbers each: in the output itself where it has the arithmetic type, else beside it.
  struct Sums {
    Buffer<F> own;
    Range items{0, 0};
    int64_t row = 0;
    F* base = nullptr;
    // Where an item's sums are; null where the sweep does not make them.
    F* at(int64_t item) const { return items.has(item) ? base + (item - items.begin) * row : nullptr; }
  };

  static constexpr bool same_type = sizeof(T) == sizeof(F);
  // Of the 256 MiB that backward may take, what float32 sums of narrower gradients may: the rest is for the pairs' own work.
  static constexpr int64_t sums_bytes = int64_t(160) << 20;

  // All gradients of the items in both ranges.
  void sweep(Range images, Range captions) {
    begin_sums(d_regions_, gradients_.regions, images, problem_.regions_per_image * width_);
    begin_sums(d_region_products_, gradients_.region_products, images, problem_.regions_per_image * 2 * hidden_);
    begin_sums(d_words_, gradients_.words, captions, problem_.words_per_caption * width_);
    begin_sums(d_word_products_, gradients_.word_products, captions, problem_.words_per_caption * (width_ + 2 * hidden_));

    std::vector<GradientEntry> entries;
    const int64_t scores = problem_.score_count();
    for (int64_t s = 0; s < scores; ++s) {
      if (grad_scores_[s] == 0) continue;
      const int64_t image = problem_.pairs ? problem_.pairs[2 * s] : s / problem_.captions;
      const int64_t caption = problem_.pairs ? problem_.pairs[2 * s + 1] : s % problem_.captions;
      const bool empty = problem_.region_count(image) == 0 || problem_.word_count(caption) == 0;
      if (empty || !(images.has(image) || captions.has(caption))) continue;
      entries.push_back({image, caption, double(grad_scores_[s])});
      // All pairs come in order, so they may be handled part by part; the entries of a pair list have to be sorted as a whole.
      if (!problem_.pairs && int64_t(entries.size()) == planned_pairs) run_entries(entries);
    }
    run_entries(entries);

    end_sums(d_regions_, gradients_.regions);
    end_sums(d_region_products_, gradients_.region_products);
    end_sums(d_words_, gradients_.words);
    end_sums(d_word_products_, gradients_.word_products);
  }

  void begin_sums(Sums& sums, void* out, Range items, int64_t row) {
    sums.items = items;
    sums.row = row;
    const int64_t count = (items.end - items.begin) * row;
    if constexpr (same_type) {
      sums.base = static_cast<F*>(out) + items.begin * row;
    } else {
      sums.own.resize(count);
      sums.base = sums.own;
    }
    in_parts(count, [&](int64_t i) { sums.base[i] = 0; });
  }
  void end_sums(const Sums& sums, void* out) {
    if constexpr (!same_type) {
      T* to = static_cast<T*>(out) + sums.items.begin * sums.row;
      in_parts((sums.items.end - sums.items.begin) * sums.row, [&](int64_t i) { to[i] = narrow<T>(sums.base[i]); });
    }
  }
  template <class Body>
  void in_parts(int64_t count, Body body) {
    constexpr int64_t part = 1 << 16;
    parallel_units(executor_, (count + part - 1) / part, [&](int64_t u, int64_t) {
      for (int64_t i = u * part, end = smaller(count, i + part); i < end; ++i) body(i);
    });
  }

  void run_entries(std::vector<GradientEntry>& entries) {
    const auto bounds = order_by_level(entries, problem_.images, problem_.captions);
    for (size_t level = 0; level + 1 < bounds.size(); ++level)
      for (int64_t begin = bounds[level]; begin < bounds[level + 1]; begin += slots) {
        const int64_t count = smaller(slots, bounds[level + 1] - begin);
        parallel_units(executor_, count, [&](int64_t slot, int64_t worker) {
          run_pair(entries[begin + slot], d_weights_ + slot * 2 * padded_hidden_, workers_[worker]);
        });
        // A second sweep over the captions meets the same pairs again.
        if (d_regions_.items.end == d_regions_.items.begin) continue;
        for (int64_t slot = 0; slot < count; ++slot)
          for (int64_t h = 0; h < 2 * padded_hidden_; ++h) total_[h] += d_weights_[slot * 2 * padded_hidden_ + h];
      }
    entries.clear();
  }

  void run_pair(const GradientEntry& entry, F* d_weights, Worker& worker) {
    const int64_t m = problem_.region_count(entry.image), n = problem_.word_count(entry.caption);
    const int64_t first_region = entry.image * problem_.regions_per_image, first_word = entry.caption * problem_.words_per_caption;
    const int64_t products = width_ + 2 * hidden_;
    const T* regions = static_cast<const T*>(problem_.regions) + first_region * width_;
    const T* words = static_cast<const T*>(problem_.words) + first_word * width_;
    const T* word_products = static_cast<const T*>(problem_.word_products) + first_word * products;
    PairScratch<F>& s = worker.pair;
    GradientScratch<F>& g = worker.gradient;
    s.fit(m, n);
    g.fit(m, n, s.ldm, s.ldn, width_, hidden_);
    load_image(worker.image, regions, static_cast<const T*>(problem_.region_products) + first_region * 2 * hidden_, m, width_,
               hidden_, 1);
    worker.word_affinity.resize(padded<F>(n) * width_);
    worker.word_inter.resize(n * padded_hidden_);
    worker.word_intra.resize(n * padded_hidden_);
    const RowView<T> view{word_products, products, nullptr};
    pack_panels(worker.word_inter.data(), word_products + width_, n, products, hidden_);
    pack_panels(worker.word_intra.data(), word_products + width_ + hidden_, n, products, hidden_);

    const Panels<F> panels(n);
    for_panels(panels, [&](int64_t p, auto vectors) {
      constexpr int64_t V = vectors.count;
      const int64_t j = panels.begin(p);
      F* affinity = worker.word_affinity + j * width_;
      pack_right_transposed<V>(affinity, view, j, n - j, 0, width_);
      for_row_tiles(m, [&](int64_t r0, auto height) {
        multiply_in_chains<F, height.count, V>(s.alignment + r0 * s.ldn + j, s.ldn, true,
                                               worker.image.features + r0 * worker.image.row, worker.image.row, 1, affinity,
                                               V * lanes<F>, width_);
      });
    });
    const Products<F> word_intra{worker.word_intra, n, 0}, word_inter{worker.word_inter, n, 0};
    attend<T>(worker.image, word_intra, word_inter, n, region_weight_, word_weight_, hidden_, problem_.options, true, s);
    pool<F>(g.region_pooled.data(), s.region_attention.data(), 0, 1, regions, m, width_);
    pool<F>(g.word_pooled.data(), s.word_attention.data(), 0, 1, words, n, width_);
    const Similarity<F> similarity =
        caan::cpu::CAAN_NAMESPACE::similarity<F>(g.region_pooled, g.word_pooled, width_, problem_.options.cosine);

    pooled_gradients(similarity, F(entry.gradient), g);
    softmax_gradients<F>(g.d_region_logits.data(), s.region_attention.data(), regions, g.d_region_pooled.data(), m, width_);
    softmax_gradients<F>(g.d_word_logits.data(), s.word_attention.data(), words, g.d_word_pooled.data(), n, width_);

    // Null where this sweep does not sum up the side, in all four alike.
    F* d_region_products = d_region_products_.at(entry.image);
    F* d_word_products = d_word_products_.at(entry.caption);
    F* d_regions = d_regions_.at(entry.image);
    F* d_words = d_words_.at(entry.caption);
    for (int64_t h = 0; h < 2 * padded_hidden_; ++h) d_weights[h] = 0;
    const Side<F> of_regions = region_side<F>(s, m, n, worker.image.intra, word_inter, region_weight_);
    const Side<F> of_words = word_side<F>(s, m, n, word_intra, worker.image.inter, word_weight_);
    side_gradients<F>(of_regions, s.c, hidden_, problem_.options, g.d_region_logits, g, g.of_c, d_region_products, 2 * hidden_,
                      behind(d_word_products, width_), products, d_weights);
    side_gradients<F>(of_words, s.r_t, hidden_, problem_.options, g.d_word_logits, g, g.of_r,
                      behind(d_word_products, width_ + hidden_), products, behind(d_region_products, hidden_), 2 * hidden_,
                      d_weights + padded_hidden_);

    alignment_gradients<F>(s, g, m, n, problem_.options);
    if (d_regions) {
      for (int64_t j = 0; j < n; ++j) copy_padded(g.words + j * g.word_row, view.row(j), width_, padded<F>(width_));
      copy_padded(g.words + n * g.word_row, g.d_region_pooled.data(), padded<F>(width_), padded<F>(width_));
      add_product<F>(d_regions, width_, g.d_alignment_t, s.ldm, m, {g.words, n + 1, g.word_row}, n + 1, width_);
    }
    if (d_words) {
      add_product<F>(d_word_products, products, g.d_alignment, s.ldn, n, {worker.image.features, m, worker.image.row}, m, width_);
      add_product<F>(d_words, width_, s.word_attention, s.ldn, n, {g.d_word_pooled, 1, width_}, 1, width_);
    }
  }

  void pooled_gradients(const Similarity<F>& similarity, F gradient, GradientScratch<F>& g) const {
    F scale = gradient, region_pull = 0, word_pull = 0;
    if (problem_.options.cosine) {
      const F region_norm = at_least_scalar(similarity.region_norm, norm_floor<F>);
      const F word_norm = at_least_scalar(similarity.word_norm, norm_floor<F>);
      scale = gradient / (region_norm * word_norm);
      // A norm that is held at its floor passes no gradient.
      if (similarity.region_norm > norm_floor<F>) region_pull = gradient * similarity.score / (region_norm * region_norm);
      if (similarity.word_norm > norm_floor<F>) word_pull = gradient * similarity.score / (word_norm * word_norm);
    }
    for (int64_t d = 0; d < padded<F>(width_); d += lanes<F>) {
      const Vec<F> v = load(g.region_pooled + d), u = load(g.word_pooled + d);
      store(g.d_region_pooled + d, scale * u - region_pull * v);
      store(g.d_word_pooled + d, scale * v - word_pull * u);
    }
  }

  const Problem& problem_;
  const F* grad_scores_;
  const Gradients& gradients_;
  const Executor& executor_;
  const int64_t width_, hidden_, padded_hidden_;
  Buffer<F> region_weight_, word_weight_;
  Buffer<F> d_weights_, total_;
  Worker* workers_;
  Sums d_regions_, d_region_products_, d_words_, d_word_products_;
};

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE
