// One image against one caption: from the alignment's logits to the score. Equation numbers are those of docs/operator.md.
//
//   A = tanh(V affinity Uᵀ), P = max(A, 0)                                                       (7)
//   C = P by columns, R = P by rows, each column or row over its norm                            (12, 13)
//   Ĉ = C by rows, R̂ = Rᵀ by rows, each row over its norm
//   f = softmax(tanh(Ĉ Ĉᵀ V Q1 + C U Q2) w_v)            region side: X = C,  own = V Q1, other = U Q2   (8, 9, 16)
//   g = softmax(tanh(R̂ R̂ᵀ U Q3 + Rᵀ V Q4) w_u)           word side:   X = Rᵀ, own = U Q3, other = V Q4   (10, 11, 17)
//   score = similarity(fᵀV, gᵀU)                                                                 (5, 6, 18)
//
// H is taken in panels of panel_width columns: a tile of a panel of the context lies in registers, where its tanh is taken and
// folded into the running logits. Nothing of size (m, H) is stored. The second order X̂ X̂ᵀ own goes by association, X̂ (X̂ᵀ own),
// with a panel of X̂ᵀ own in the first-level cache; or by the Gram matrix X̂ X̂ᵀ where that takes fewer multiplications.
#pragma once

#include "context_attention/cpu/kernels.h"
#include "core/cpu/matmul.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

using namespace caan::context_attention;

// How the columns and rows of small per-pair matrices are padded: a tile may read and write whole vectors.
template <class F>
CAAN_INLINE int64_t padded(int64_t n) {
  return round_up(n, lanes<F>);
}

// An item's rows times a weight, (rows, H): panel after panel, (rows, width) each, or `stride` numbers from row to row.
template <class F>
struct Products {
  const F* base = nullptr;
  int64_t rows = 0;
  int64_t stride = 0; // 0: in panels
  // The panel that begins with column h, and the numbers from one of its rows to the next.
  const F* panel(int64_t h) const { return base + (stride ? h : h * rows); }
  int64_t row(int64_t width) const { return stride ? stride : width; }
  // The panel behind one of this width, which comes first.
  const F* next(const F* panel, int64_t width) const { return panel + (stride ? width : width * rows); }
};

// Everything that scoring one image takes from it: the caller's memory, or a copy in the kernels' layout.
template <class T>
struct Image {
  using F = Real<T>;
  int64_t regions = 0;
  const F* features = nullptr; // V (m, D), in whole vectors
  int64_t row = 0;             // numbers from one row of features to the next
  Products<F> intra, inter;    // V Q1 and V Q4
  Buffer<F> copied_features, copied_intra, copied_inter;
};

// The same for the captions of a block, whose words stand one behind the other. For the alignment they are the columns of panels:
// all captions together, where an image needs them all, or each by itself, where it needs some.
template <class T>
struct PackedCaptions {
  using F = Real<T>;
  Buffer<int64_t> column;    // first column of each caption among the block's, and the end
  Buffer<F> affinity;        // U affinityᵀ, panel of words after panel, (D, width) each
  Buffer<F> inter;           // U Q2, caption after caption, each in panels (H / W, n, W)
  Buffer<F> intra;           // U Q3 likewise
  Buffer<int64_t> first;     // first word of each caption in the block, and the end
  Buffer<const T*> features; // U (n, D) of each caption, the caller's
};

// Rows times columns as panels of columns, (count, width) each. Row by row, as memory that comes from afar is best read.
template <class F, class T>
void pack_panels(F* out, const T* rows, int64_t count, int64_t stride, int64_t columns) {
  const Panels<F> panels(columns);
  for (int64_t r = 0; r < count; ++r)
    for (int64_t p = 0; p < panels.count; ++p) {
      const int64_t first = panels.begin(p), width = panels.width(p);
      copy_padded(out + first * count + r * width, rows + r * stride + first, smaller(width, columns - first), width);
    }
}

// An odd number of cache lines for a row, so that the rows of a tile lie in different sets of the cache.
template <class F>
CAAN_INLINE int64_t spread_row(int64_t columns) {
  constexpr int64_t line = 64 / sizeof(F);
  return ((columns + line - 1) / line | 1) * line;
}

// An image with so many pairs or fewer is read where it lies: a copy is paid back by the pairs after them.
inline constexpr int64_t pairs_in_place = 16;

template <class T>
void load_image(Image<T>& image, const T* features, const T* products, int64_t m, int64_t width, int64_t hidden, int64_t pairs) {
  using F = Real<T>;
  image.regions = m;
  if constexpr (sizeof(T) == sizeof(F))
    if (pairs <= pairs_in_place && width % lanes<F> == 0 && hidden % lanes<F> == 0) {
      image.features = features;
      image.row = width;
      image.intra = {products, m, 2 * hidden};
      image.inter = {products + hidden, m, 2 * hidden};
      return;
    }
  const int64_t padded_hidden = padded<F>(hidden);
  image.row = spread_row<F>(width);
  image.copied_features.resize(m * image.row);
  image.copied_intra.resize(m * padded_hidden);
  image.copied_inter.resize(m * padded_hidden);
  for (int64_t r = 0; r < m; ++r) copy_padded(image.copied_features + r * image.row, features + r * width, width, padded<F>(width));
  pack_panels(image.copied_intra.data(), products, m, 2 * hidden, hidden);
  pack_panels(image.copied_inter.data(), products + hidden, m, 2 * hidden, hidden);
  image.features = image.copied_features;
  image.intra = {image.copied_intra, m, 0};
  image.inter = {image.copied_inter, m, 0};
}

// Memory that will be read soon, prefetched a few cache lines at a time while the arithmetic goes on.
struct Prefetched {
  const char *next = nullptr, *end = nullptr;
  CAAN_INLINE void prefetch(int lines) {
    for (; lines > 0 && next < end; --lines, next += 64) __builtin_prefetch(next, 0, 2);
  }
};

// Working memory of one thread for pairs of up to m regions and n words. A matrix named with _t is transposed.
template <class F>
struct PairScratch {
  int64_t ldm = 0, ldn = 0;                   // row lengths of (n, m) and (m, n) matrices
  Buffer<F> alignment;                        // A (m, n)
  Buffer<F> c, c_unit;                        // C and Ĉ (m, n)
  Buffer<F> r, r_unit;                        // R and R̂ᵀ (m, n)
  Buffer<F> c_t, c_unit_t;                    // (n, m)
  Buffer<F> r_t, r_unit_t;                    // Rᵀ and R̂ (n, m)
  Buffer<F> row_norms, column_norms;          // of P
  Buffer<F> c_row_norms, r_column_norms;      // of C's rows, of R's columns
  Buffer<F> gram;                             // X̂ X̂ᵀ
  Buffer<F> z;                                // a panel of X̂ᵀ own
  Buffer<F> partial;                          // logits before their lanes are added up
  Buffer<F> region_attention, word_attention; // f, g
  Prefetched next_regions;

  void fit(int64_t m, int64_t n) {
    ldm = padded<F>(m);
    ldn = padded<F>(n);
    // Whole vectors are stored behind a row's end before the next row is.
    for (Buffer<F>* b : {&alignment, &c, &c_unit, &r, &r_unit}) b->resize(m * ldn + lanes<F>);
    for (Buffer<F>* b : {&c_t, &c_unit_t, &r_t, &r_unit_t}) b->resize(n * ldm + lanes<F>);
    for (Buffer<F>* b : {&row_norms, &c_row_norms}) b->resize(ldm);
    for (Buffer<F>* b : {&column_norms, &r_column_norms}) b->resize(ldn);
    const int64_t longer = larger(m, n), largest_gram = smaller(longer, 2 * smaller(m, n)); // Side::by_gram wants p < 2q
    gram.resize(largest_gram * padded<F>(largest_gram) + lanes<F>);
    z.resize(longer * panel_width<F>);
    partial.resize(longer * lanes<F>);
    region_attention.resize(ldm);
    word_attention.resize(ldn);
  }
};

template <class F>
inline constexpr F norm_floor = F(1e-8);

// C, Ĉ, R and R̂ᵀ from A, whose padding columns are 0 and stay 0. By division: a row of one entry becomes exactly 1.
template <class F>
void normalize(PairScratch<F>& s, int64_t m, int64_t n) {
  const int64_t ldn = s.ldn, vectors = round_up(n, lanes<F>);
  const Vec<F> zero{};
  for (int64_t j = 0; j < vectors; j += lanes<F>) {
    store(s.column_norms + j, zero);
    store(s.r_column_norms + j, zero);
  }
  for (int64_t i = 0; i < m; ++i) {
    Vec<F> squares{};
    for (int64_t j = 0; j < vectors; j += lanes<F>) {
      const Vec<F> a = load(s.alignment + i * ldn + j);
      const Vec<F> p = a < zero ? zero : a;
      const Vec<F> square = p * p;
      squares += square;
      store(s.column_norms + j, load(s.column_norms + j) + square);
    }
    s.row_norms[i] = __builtin_sqrt(sum<F>(squares));
  }
  for (int64_t j = 0; j < vectors; ++j) s.column_norms[j] = __builtin_sqrt(s.column_norms[j]);
  for (int64_t i = 0; i < m; ++i) {
    const Vec<F> norm = splat(at_least_scalar(s.row_norms[i], norm_floor<F>));
    Vec<F> squares{};
    for (int64_t j = 0; j < vectors; j += lanes<F>) {
      const Vec<F> a = load(s.alignment + i * ldn + j);
      const Vec<F> p = a < zero ? zero : a;
      const Vec<F> c = p / at_least<F>(load(s.column_norms + j), norm_floor<F>), r = p / norm;
      squares += c * c;
      store(s.c + i * ldn + j, c);
      store(s.r + i * ldn + j, r);
      store(s.r_column_norms + j, load(s.r_column_norms + j) + r * r);
    }
    s.c_row_norms[i] = __builtin_sqrt(sum<F>(squares));
  }
  for (int64_t j = 0; j < vectors; ++j) s.r_column_norms[j] = __builtin_sqrt(s.r_column_norms[j]);
  for (int64_t i = 0; i < m; ++i) {
    const Vec<F> norm = splat(at_least_scalar(s.c_row_norms[i], norm_floor<F>));
    for (int64_t j = 0; j < vectors; j += lanes<F>) {
      store(s.c_unit + i * ldn + j, load(s.c + i * ldn + j) / norm);
      store(s.r_unit + i * ldn + j, load(s.r + i * ldn + j) / at_least<F>(load(s.r_column_norms + j), norm_floor<F>));
    }
  }
}

// out (columns, ld_out) = in (rows, ld_in) transposed, padded with 0.
template <class F>
void transpose(F* out, int64_t ld_out, const F* in, int64_t ld_in, int64_t rows, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) out[c * ld_out + r] = in[r * ld_in + c];
    for (int64_t r = rows; r < ld_out; ++r) out[c * ld_out + r] = 0;
  }
}

// One side of the attention: X is (p, q), own (p, H), other (q, H).
template <class F>
struct Side {
  int64_t p, q;
  int64_t ldp, ldq;       // rows of (q, p) and of (p, q) matrices
  const F* x_t;           // (q, ldp)
  const F *unit, *unit_t; // X̂; (p, ldq) is not read by the Gram form
  Products<F> own, other;
  const F* weight;     // padded with 0
  Products<F> later{}; // (p, H): what is read after this side; asked for where it is not in panels

  // X̂ X̂ᵀ own by the p x p matrix, or by association: whichever multiplies less.
  bool by_gram(int64_t hidden) const { return p * (hidden + q) <= 2 * q * hidden; }
};

template <class F>
Side<F> region_side(const PairScratch<F>& s, int64_t m, int64_t n, Products<F> intra, Products<F> inter, const F* weight) {
  return {m, n, s.ldm, s.ldn, s.c_t, s.c_unit, s.c_unit_t, intra, inter, weight};
}
template <class F>
Side<F> word_side(const PairScratch<F>& s, int64_t m, int64_t n, Products<F> intra, Products<F> inter, const F* weight) {
  return {n, m, s.ldn, s.ldm, s.r, s.r_unit_t, s.r_unit, intra, inter, weight};
}

// A panel of X̂ᵀ own, (q, width).
template <int V, class F>
CAAN_INLINE void gather_own(const Side<F>& side, int64_t h, F* z) {
  constexpr int64_t W = V * lanes<F>;
  for_row_tiles(side.q, [&](int64_t j0, auto height) {
    Vec<F> acc[height.count][V];
    clear<F>(acc);
    multiply_add<F>(acc, side.unit + j0, side.ldq, side.own.panel(h), side.own.row(W), side.p);
    store_tile<F>(z + j0 * W, W, acc);
  });
}

template <class F>
void side_logits(const Side<F>& side, int64_t hidden, bool by_gram, const Options& options, PairScratch<F>& s, F* logits) {
  const int64_t p = side.p, q = side.q, ldp = side.ldp;
  if (by_gram && options.intra) {
    const Panels<F> columns(p);
    for_panels(columns, [&](int64_t panel, auto vectors) {
      const int64_t c0 = columns.begin(panel);
      for_row_tiles(p, [&](int64_t r0, auto height) {
        Vec<F> acc[height.count][vectors.count];
        clear<F>(acc);
        multiply_add<F>(acc, side.unit_t + r0, ldp, side.unit_t + c0, ldp, q);
        store_tile<F>(s.gram + r0 * ldp + c0, ldp, acc);
      });
    });
  }
  for (int64_t r = 0; r < p; ++r) store(s.partial + r * lanes<F>, Vec<F>{});
  const Panels<F> panels(hidden);
  for_panels(panels, [&](int64_t panel, auto vectors) {
    constexpr int V = vectors.count;
    constexpr int64_t W = V * lanes<F>;
    const int64_t h = panels.begin(panel);
    const F *own = side.own.panel(h), *next_own = side.own.next(own, W);
    const F *other = side.other.panel(h), *next_other = side.other.next(other, W);
    const int64_t own_row = side.own.row(W), other_row = side.other.row(W);
    if (!by_gram && options.intra) gather_own<V>(side, h, s.z.data());
    Vec<F> weight[V];
    for (int c = 0; c < V; ++c) weight[c] = load(side.weight + h + c * lanes<F>);
    for_row_tiles(p, [&](int64_t r0, auto height) {
      // Each tile asks for its share of the next panels: in copies, those of the next caption lie behind the last.
      for (int64_t r = r0; r < r0 + height.count; ++r) {
        prefetch(next_own + r * own_row, V);
        if (side.later.stride) prefetch<2>(side.later.panel(h) + r * side.later.stride, V);
      }
      for (int64_t r = r0 * q / p, end = (r0 + height.count) * q / p + 1; r < end; ++r) prefetch(next_other + r * other_row, V);
      s.next_regions.prefetch(24);
      Vec<F> acc[height.count][V];
      clear<F>(acc);
      if (options.intra) {
        if (by_gram)
          multiply_add<F>(acc, s.gram + r0, ldp, own, own_row, p);
        else
          multiply_add<F>(acc, side.unit_t + r0, ldp, s.z.data(), W, q);
      }
      if (options.inter) multiply_add<F>(acc, side.x_t + r0, ldp, other, other_row, q);
      for (int r = 0; r < height.count; ++r) {
        F* partial = s.partial + (r0 + r) * lanes<F>;
        Vec<F> logit = load(partial);
        for (int c = 0; c < V; ++c) logit += weight[c] * tanh(acc[r][c]);
        store(partial, logit);
      }
    });
  });
  for (int64_t r = 0; r < p; ++r) logits[r] = sum<F>(load(s.partial + r * lanes<F>));
}

template <class F>
void softmax_in_place(F* logits, int64_t count) {
  F top = logits[0];
  for (int64_t i = 1; i < count; ++i) top = logits[i] < top ? top : logits[i];
  const int64_t end = round_up(count, lanes<F>);
  for (int64_t i = count; i < end; ++i) logits[i] = top;
  F total = 0;
  for (int64_t i = 0; i < end; i += lanes<F>) store(logits + i, exp_nonpositive(load(logits + i) - top));
  for (int64_t i = 0; i < count; ++i) total += logits[i];
  const F scale = F(1) / total;
  for (int64_t i = 0; i < count; ++i) logits[i] *= scale;
}

// Images that are scored together: the words of their captions are then read once for all of them.
inline constexpr int images_together = 4;
// Captions whose pairs with an image are pooled together: its regions are then read once.
inline constexpr int captions_together = tile_rows;

// pooled = attention rows, (attentions, padded width): up to images_together attentions over the same rows, which follow each other
// after `attention_row` numbers. A few rows at a time are read from end to end, which the processor's prefetching follows: three
// times as fast as a block of the width for all rows, where rows come from afar.
template <class F, class T>
void pool(F* pooled, const F* attention, int64_t attention_row, int64_t attentions, const T* rows, int64_t count, int64_t width) {
  const int64_t stride = padded<F>(width);
  with_rows<images_together>(attentions, 0, [&](int64_t, auto images) {
    const auto add = [&](int64_t first, auto height) {
      const auto at = [&](int64_t d, auto load_row) {
        Vec<F> acc[images.count];
        for (int i = 0; i < images.count; ++i) acc[i] = first == 0 ? Vec<F>{} : load(pooled + i * stride + d);
#pragma GCC unroll 4
        for (int r = 0; r < height.count; ++r) {
          const Vec<F> row = load_row(rows + (first + r) * width + d);
          for (int i = 0; i < images.count; ++i) acc[i] += attention[i * attention_row + first + r] * row;
        }
        for (int i = 0; i < images.count; ++i) store(pooled + i * stride + d, acc[i]);
      };
      int64_t d = 0;
      for (; d + lanes<F> <= width; d += lanes<F>) at(d, [](const T* p) { return load_wide(p); });
      if (d < width) at(d, [&](const T* p) { return load_head(p, width - d); });
    };
    for (int64_t r = 0; r < count; r += 4) with_rows<4>(smaller(4, count - r), r, add);
  });
}

// The same for up to captions_together attentions over the regions of an image: attention (m, captions_together) is k-major.
template <class T>
void pool_regions(Real<T>* pooled, const Real<T>* attention, int64_t count, const Image<T>& image, int64_t width) {
  using F = Real<T>;
  const int64_t stride = padded<F>(width);
  with_rows<captions_together>(count, 0, [&](int64_t, auto height) {
    const Panels<F> panels(width);
    for_panels(panels, [&](int64_t p, auto vectors) {
      const F* columns = image.features + panels.begin(p);
      Vec<F> acc[height.count][vectors.count];
      clear<F>(acc);
      for (int64_t k = 0; k < image.regions; ++k) {
        const F* row = columns + k * image.row;
        prefetch(row + vectors.count * lanes<F>, vectors.count);
        Vec<F> right[vectors.count];
        for (int c = 0; c < vectors.count; ++c) right[c] = load(row + c * lanes<F>);
#pragma GCC unroll 16
        for (int r = 0; r < height.count; ++r)
#pragma GCC unroll 4
          for (int c = 0; c < vectors.count; ++c) acc[r][c] += attention[k * captions_together + r] * right[c];
      }
      store_tile<F>(pooled + panels.begin(p), stride, acc);
    });
  });
}

template <class F>
struct Similarity {
  F score;
  F dot, region_norm, word_norm;
};

template <class F>
Similarity<F> similarity(const F* v, const F* u, int64_t width, bool cosine) {
  Vec<F> dot{}, vv{}, uu{};
  for (int64_t d = 0; d < width; d += lanes<F>) {
    const Vec<F> a = load(v + d), b = load(u + d);
    dot += a * b;
    vv += a * a;
    uu += b * b;
  }
  Similarity<F> s{0, sum<F>(dot), F(__builtin_sqrt(sum<F>(vv))), F(__builtin_sqrt(sum<F>(uu)))};
  s.score = cosine ? s.dot / (at_least_scalar(s.region_norm, norm_floor<F>) * at_least_scalar(s.word_norm, norm_floor<F>)) : s.dot;
  return s;
}

// What attention takes from a caption's n words: U Q3 and U Q2.
template <class F>
struct Words {
  Products<F> intra, inter;
  int64_t n;
};

// What all pairs of a call share; the score vectors are padded with 0.
template <class F>
struct Shared {
  const F *region_weight, *word_weight;
  int64_t hidden;
  Options options;
};

// f and g of a pair; s.alignment holds V affinity Uᵀ in n columns of every row. Backward reads every layout.
template <class T>
void attend(const Image<T>& image, const Words<Real<T>>& words, const Shared<Real<T>>& shared, bool every_layout,
            PairScratch<Real<T>>& s) {
  using F = Real<T>;
  const int64_t m = image.regions, n = words.n, hidden = shared.hidden;
  const Options options = shared.options;
  for (int64_t i = 0; i < m; ++i) {
    F* row = s.alignment + i * s.ldn;
    for (int64_t j = n; j < s.ldn; ++j) row[j] = 0;
    for (int64_t j = 0; j < n; j += lanes<F>) store(row + j, tanh(load(row + j)));
  }
  normalize<F>(s, m, n);
  Side<F> regions = region_side<F>(s, m, n, image.intra, words.inter, shared.region_weight);
  regions.later = image.inter;
  const Side<F> captions = word_side<F>(s, m, n, words.intra, image.inter, shared.word_weight);
  const bool word_gram = captions.by_gram(hidden);
  transpose<F>(s.c_t, s.ldm, s.c, s.ldn, m, n);
  transpose<F>(s.c_unit_t, s.ldm, s.c_unit, s.ldn, m, n);
  if (!word_gram || every_layout) transpose<F>(s.r_unit_t, s.ldm, s.r_unit, s.ldn, m, n);
  if (every_layout) transpose<F>(s.r_t, s.ldm, s.r, s.ldn, m, n);
  side_logits<F>(regions, hidden, regions.by_gram(hidden), options, s, s.region_attention);
  side_logits<F>(captions, hidden, word_gram, options, s, s.word_attention);
  softmax_in_place<F>(s.region_attention.data(), m);
  softmax_in_place<F>(s.word_attention.data(), n);
}

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE
