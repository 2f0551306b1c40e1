// One image against one caption: from the alignment's logits to the score. Equation numbers are those of docs/operator.md.
//
//   A = tanh(V affinity Uᵀ), P = max(A, 0)                                                       (7)
//   C = P by columns, R = P by rows, each column or row over its norm                            (12, 13)
//   Ĉ = C by rows, R̂ = Rᵀ by rows, each row over its norm
//   f = softmax(tanh(Ĉ Ĉᵀ V Q1 + C U Q2) w_v)            region side: X = C,  own = V Q1, other = U Q2   (8, 9, 16)
//   g = softmax(tanh(R̂ R̂ᵀ U Q3 + Rᵀ V Q4) w_u)           word side:   X = Rᵀ, own = U Q3, other = V Q4   (10, 11, 17)
//   score = similarity(fᵀV, gᵀU)                                                                 (5, 6, 18)
//
// H is walked in panels of panel_width columns: a tile of a panel of the context lies in registers, where its tanh is taken and
// folded into the running logits. Nothing of size (m, H) is stored. The second order X̂ X̂ᵀ own goes by association, X̂ (X̂ᵀ own),
// with a panel of X̂ᵀ own in the first-level cache; or by the Gram matrix X̂ X̂ᵀ where that takes fewer multiplications.

// How the columns and rows of small per-pair matrices are padded: a tile may read and write whole vectors.
template <class F>
CAAN_INLINE int64_t padded(int64_t n) {
  return round_up(n, lanes<F>);
}

// A score vector, padded with 0.
template <class F, class T>
void load_padded(F* to, const T* from, int64_t hidden) {
  for (int64_t h = 0; h < padded<F>(hidden); ++h) to[h] = h < hidden ? widen(from[h]) : F(0);
}

// Everything that scoring one image takes from it, in the kernels' layout.
template <class T>
struct PackedImage {
  using F = Real<T>;
  int64_t regions = 0;
  const T* features = nullptr; // V (m, D), the caller's
  Buffer<F> left;              // V as left operand, row tile after row tile
  Buffer<F> intra;             // V Q1, panel after panel, (m, width) each
  Buffer<F> inter;             // V Q4 likewise
};

// The same for the captions of a block, whose words stand one behind the other.
template <class T>
struct PackedCaptions {
  using F = Real<T>;
  Buffer<F> affinity;        // U affinityᵀ, panel of words after panel, (D, width) each
  Buffer<F> inter;           // U Q2, caption after caption, each in panels (H / W, n, W)
  Buffer<F> intra;           // U Q3 likewise
  Buffer<int64_t> first;     // first word of each caption in the block, and the end
  Buffer<const T*> features; // U (n, D) of each caption, the caller's
};

// Rows times columns as panels of columns, (count, width) each.
template <class F, class T>
void pack_panels(F* out, const T* rows, int64_t count, int64_t stride, int64_t columns) {
  const Panels<F> panels(columns);
  for_panels(panels, [&](int64_t p, auto vectors) {
    const int64_t first = panels.begin(p);
    pack_right<vectors.count>(out + first * count, RowView<T>{rows, stride, nullptr}, first, columns - first, 0, count);
  });
}

template <class T>
void pack_image(PackedImage<T>& image, const T* features, const T* products, int64_t m, int64_t width, int64_t hidden) {
  using F = Real<T>;
  const int64_t padded_hidden = padded<F>(hidden);
  image.regions = m;
  image.features = features;
  image.left.resize(m * width);
  image.intra.resize(m * padded_hidden);
  image.inter.resize(m * padded_hidden);
  const RowView<T> view{features, width, nullptr};
  for_row_tiles(m, [&](int64_t r0, auto height) { pack_left(image.left + r0 * width, view, r0, height.count, 0, width); });
  pack_panels(image.intra.data(), products, m, 2 * hidden, hidden);
  pack_panels(image.inter.data(), products + hidden, m, 2 * hidden, hidden);
}

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

// One side of the attention: X is (p, q), own (p, H), other (q, H), both in panels.
template <class F>
struct Side {
  int64_t p, q;
  int64_t ldp, ldq;       // rows of (q, p) and of (p, q) matrices
  const F* x_t;           // (q, ldp)
  const F *unit, *unit_t; // X̂; (p, ldq) is not read by the Gram form
  const F *own, *other;
  const F* weight; // padded with 0

  // X̂ X̂ᵀ own by the p x p matrix, or by association: whichever multiplies less.
  bool by_gram(int64_t hidden) const { return p * (hidden + q) <= 2 * q * hidden; }
};

template <class F>
Side<F> region_side(const PairScratch<F>& s, int64_t m, int64_t n, const F* intra, const F* inter, const F* weight) {
  return {m, n, s.ldm, s.ldn, s.c_t, s.c_unit, s.c_unit_t, intra, inter, weight};
}
template <class F>
Side<F> word_side(const PairScratch<F>& s, int64_t m, int64_t n, const F* intra, const F* inter, const F* weight) {
  return {n, m, s.ldn, s.ldm, s.r, s.r_unit_t, s.r_unit, intra, inter, weight};
}

// A panel of X̂ᵀ own, (q, width).
template <int V, class F>
CAAN_INLINE void gather_own(const Side<F>& side, const F* own, F* z) {
  constexpr int64_t W = V * lanes<F>;
  for_row_tiles(side.q, [&](int64_t j0, auto height) {
    Vec<F> acc[height.count][V];
    clear<F>(acc);
    multiply_add<F>(acc, side.unit + j0, side.ldq, own, W, side.p);
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
    const F* own = side.own + h * p;
    const F* other = side.other + h * q;
    if (!by_gram && options.intra) gather_own<V>(side, own, s.z.data());
    Vec<F> weight[V];
    for (int c = 0; c < V; ++c) weight[c] = load(side.weight + h + c * lanes<F>);
    for_row_tiles(p, [&](int64_t r0, auto height) {
      // Each tile asks for its share of the next panels, which lie behind these ones, those of the next caption behind the last.
      prefetch(own + (p + r0) * W, height.count * V);
      prefetch(other + (q + r0 * q / p) * W, (height.count * q / p + 1) * V);
      Vec<F> acc[height.count][V];
      clear<F>(acc);
      if (options.intra) {
        if (by_gram)
          multiply_add<F>(acc, s.gram + r0, ldp, own, W, p);
        else
          multiply_add<F>(acc, side.unit_t + r0, ldp, s.z.data(), W, q);
      }
      if (options.inter) multiply_add<F>(acc, side.x_t + r0, ldp, other, W, q);
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

// pooled = attentionᵀ rows, (width,) padded with 0 to whole vectors. A few rows at a time are read from end to end, which the
// processor's prefetching follows: three times as fast as a block of the width for all rows, where rows come from afar.
template <class F, class T>
void pool(F* pooled, const F* attention, const T* rows, int64_t count, int64_t width) {
  const auto add = [&](int64_t first, auto height) {
    const auto at = [&](int64_t d, auto load_row) {
      Vec<F> acc = first == 0 ? Vec<F>{} : load(pooled + d);
#pragma GCC unroll 4
      for (int r = 0; r < height.count; ++r) acc += attention[first + r] * load_row(rows + (first + r) * width + d);
      store(pooled + d, acc);
    };
    int64_t d = 0;
    for (; d + lanes<F> <= width; d += lanes<F>) at(d, [](const T* p) { return load_wide(p); });
    if (d < width) at(d, [&](const T* p) { return load_head(p, width - d); });
  };
  for (int64_t r = 0; r < count; r += 4) with_rows<4>(smaller(4, count - r), r, add);
}

// Pairs of one image that are pooled together: their V is then read once.
inline constexpr int pooled_together = tile_rows;

// The same for up to pooled_together attentions over the same rows, with the same order of sums: pooled (count, padded width);
// attention (rows, pooled_together) is k-major.
template <class F, class T>
void pool_together(F* pooled, const F* attention, int64_t count, const T* rows, int64_t row_count, int64_t width) {
  const int64_t stride = padded<F>(width);
  with_rows<pooled_together>(count, 0, [&](int64_t, auto height) {
    constexpr int V = tile_vectors;
    int64_t d = 0;
    for (; d + V * lanes<F> <= width; d += V * lanes<F>) {
      Vec<F> acc[height.count][V];
      clear<F>(acc);
      for (int64_t k = 0; k < row_count; ++k) {
        prefetch(rows + k * width + d + V * lanes<F>, V);
        Vec<F> right[V];
        for (int c = 0; c < V; ++c) right[c] = load_wide(rows + k * width + d + c * lanes<F>);
#pragma GCC unroll 16
        for (int r = 0; r < height.count; ++r)
#pragma GCC unroll 4
          for (int c = 0; c < V; ++c) acc[r][c] += attention[k * pooled_together + r] * right[c];
      }
      store_tile<F>(pooled + d, stride, acc);
    }
    for (; d < width; d += lanes<F>) {
      Vec<F> acc[height.count][1];
      clear<F>(acc);
      for (int64_t k = 0; k < row_count; ++k) {
        const T* row = rows + k * width + d;
        const Vec<F> right = d + lanes<F> <= width ? load_wide(row) : load_head(row, width - d);
        for (int r = 0; r < height.count; ++r) acc[r][0] += attention[k * pooled_together + r] * right;
      }
      store_tile<F>(pooled + d, stride, acc);
    }
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

// f and g of a pair; s.alignment holds V affinity Uᵀ in n columns of every row. Backward reads every layout.
template <class T>
void attend(const PackedImage<T>& image, const Real<T>* word_intra, const Real<T>* word_inter, int64_t n,
            const Real<T>* region_weight, const Real<T>* word_weight, int64_t hidden, const Options& options, bool every_layout,
            PairScratch<Real<T>>& s) {
  using F = Real<T>;
  const int64_t m = image.regions;
  for (int64_t i = 0; i < m; ++i) {
    F* row = s.alignment + i * s.ldn;
    for (int64_t j = n; j < s.ldn; ++j) row[j] = 0;
    for (int64_t j = 0; j < n; j += lanes<F>) store(row + j, tanh(load(row + j)));
  }
  normalize<F>(s, m, n);
  const Side<F> regions = region_side<F>(s, m, n, image.intra.data(), word_inter, region_weight);
  const Side<F> captions = word_side<F>(s, m, n, word_intra, image.inter.data(), word_weight);
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
