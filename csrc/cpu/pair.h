// One image against one caption: from the alignment's logits to the score.
//
//   A = tanh(V affinity Uᵀ), P = max(A, 0), R and C: P normalised by rows and by columns (or two softmaxes of temperature·A)
//   f = softmax(tanh(R (Rᵀ V Q1 + U Q2)) w_v)            region side: X = R,  own = V Q1, other = U Q2
//   g = softmax(tanh(Cᵀ (C U Q3 + V Q4)) w_u)            word side:   X = Cᵀ, own = U Q3, other = V Q4
//   score = similarity(fᵀV, gᵀU)
//
// H is walked in panels of panel_width columns: a panel's Z = Xᵀ own + other (q x panel) lives in the first-level cache, a tile of
// X Z in registers, where its tanh is taken and folded into the running logits. Nothing of size (m, H) or (m, m) is stored, except
// X Xᵀ where the side is the shorter one: (X Xᵀ) own + X other then takes fewer multiplications than X (Xᵀ own + other).

// How the columns and rows of small per-pair matrices are padded: a tile may read and write up to a whole panel behind the last
// one.
template <class F>
CAAN_INLINE int64_t padded(int64_t n) {
  return round_up(n, panel_width<F>);
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
  Buffer<F> intra;             // V Q1 in panels (H / W, m, W)
  Buffer<F> inter;             // V Q4 likewise
};

// The same for the captions of a block, whose words stand one behind the other.
template <class T>
struct PackedCaptions {
  using F = Real<T>;
  Buffer<F> affinity;        // U affinityᵀ as panels of words (words / W, D, W)
  Buffer<F> inter;           // U Q2, caption after caption, each in panels (H / W, n, W)
  Buffer<F> intra;           // U Q3 likewise
  Buffer<int64_t> first;     // first word of each caption in the block, and the end
  Buffer<const T*> features; // U (n, D) of each caption, the caller's
};

template <class F, class T>
void pack_panels(F* out, const T* rows, int64_t count, int64_t stride, int64_t columns) {
  for (int64_t h = 0; h < columns; h += panel_width<F>)
    pack_right(out + h * count, RowView<T>{rows, stride, nullptr}, h, columns - h, 0, count);
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

// Working memory of one thread for pairs of up to m regions and n words.
template <class F>
struct PairScratch {
  int64_t ldm = 0, ldn = 0;    // row lengths of (n, m) and (m, n) matrices
  Buffer<F> alignment;         // A (m, n)
  Buffer<F> rows, columns;     // R and C (m, n)
  Buffer<F> rows_t, columns_t; // Rᵀ and Cᵀ (n, m)
  Buffer<F> row_norms, column_norms;
  Buffer<F> gram;                             // X Xᵀ of the shorter side
  Buffer<F> z;                                // a panel of Xᵀ own + other
  Buffer<F> partial;                          // logits before their lanes are added up
  Buffer<F> region_attention, word_attention; // f, g
  Buffer<F> region_pooled, word_pooled;       // v̂, û

  void fit(int64_t m, int64_t n, int64_t width) {
    ldm = padded<F>(m);
    ldn = padded<F>(n);
    for (Buffer<F>* b : {&alignment, &rows, &columns}) b->resize(m * ldn);
    for (Buffer<F>* b : {&rows_t, &columns_t}) b->resize(n * ldm);
    row_norms.resize(ldm);
    column_norms.resize(ldn);
    const int64_t longer = larger(m, n), largest_gram = smaller(longer, 2 * smaller(m, n)); // Side::by_gram wants p < 2q
    gram.resize(largest_gram * padded<F>(largest_gram));
    z.resize(longer * panel_width<F>);
    partial.resize(longer * lanes<F>);
    region_attention.resize(ldm);
    word_attention.resize(ldn);
    region_pooled.resize(padded<F>(width));
    word_pooled.resize(padded<F>(width));
  }
};

template <class F>
inline constexpr F norm_floor = F(1e-8);

// R and C of max(A, 0); padding columns of A are 0 and stay 0.
template <class F>
void normalize_l2(PairScratch<F>& s, int64_t m, int64_t n) {
  const int64_t ldn = s.ldn;
  const Vec<F> zero{};
  for (int64_t j = 0; j < ldn; j += lanes<F>) store(s.column_norms + j, zero);
  for (int64_t r = 0; r < m; ++r) {
    Vec<F> squares{};
    for (int64_t j = 0; j < n; j += lanes<F>) {
      const Vec<F> a = load(s.alignment + r * ldn + j);
      const Vec<F> p = a < zero ? zero : a;
      const Vec<F> square = p * p;
      squares += square;
      store(s.rows + r * ldn + j, p);
      store(s.column_norms + j, load(s.column_norms + j) + square);
    }
    s.row_norms[r] = __builtin_sqrt(sum<F>(squares));
  }
  for (int64_t j = 0; j < n; ++j) s.column_norms[j] = __builtin_sqrt(s.column_norms[j]);
  for (int64_t r = 0; r < m; ++r) {
    const Vec<F> norm = splat(at_least_scalar(s.row_norms[r], norm_floor<F>));
    for (int64_t j = 0; j < n; j += lanes<F>) {
      const Vec<F> p = load(s.rows + r * ldn + j);
      store(s.columns + r * ldn + j, p / at_least<F>(load(s.column_norms + j), norm_floor<F>));
      store(s.rows + r * ldn + j, p / norm);
    }
    for (int64_t j = round_up(n, lanes<F>); j < ldn; j += lanes<F>) {
      store(s.rows + r * ldn + j, zero);
      store(s.columns + r * ldn + j, zero);
    }
  }
}

// R and C as softmaxes of temperature·A over words and over regions.
template <class F>
void normalize_softmax(PairScratch<F>& s, int64_t m, int64_t n, F temperature) {
  const int64_t ldn = s.ldn;
  const Vec<F> zero{};
  for (int64_t r = 0; r < m; ++r) {
    F* row = s.rows + r * ldn;
    F top = temperature * s.alignment[r * ldn];
    for (int64_t j = 0; j < n; ++j) {
      row[j] = temperature * s.alignment[r * ldn + j];
      top = row[j] < top ? top : row[j];
    }
    for (int64_t j = n; j < ldn; ++j) row[j] = top;
    for (int64_t j = 0; j < n; j += lanes<F>) store(row + j, exp_nonpositive(load(row + j) - top));
    for (int64_t j = n; j < ldn; ++j) row[j] = 0;
    Vec<F> total{};
    for (int64_t j = 0; j < n; j += lanes<F>) total += load(row + j);
    const F scale = F(1) / sum<F>(total);
    for (int64_t j = 0; j < n; j += lanes<F>) store(row + j, load(row + j) * scale);
  }
  for (int64_t j = 0; j < ldn; j += lanes<F>) {
    if (j >= n) {
      for (int64_t r = 0; r < m; ++r) store(s.columns + r * ldn + j, zero);
      continue;
    }
    // Products are rounded before the largest is subtracted: fused into one operation, exp could overflow at a high temperature.
    Vec<F> top = temperature * load(s.alignment + j);
    for (int64_t r = 0; r < m; ++r) {
      const Vec<F> v = temperature * load(s.alignment + r * ldn + j);
      top = v < top ? top : v;
      store(s.columns + r * ldn + j, v);
    }
    Vec<F> total{};
    for (int64_t r = 0; r < m; ++r) {
      const Vec<F> e = exp_nonpositive(load(s.columns + r * ldn + j) - top);
      total += e;
      store(s.columns + r * ldn + j, e);
    }
    for (int64_t r = 0; r < m; ++r) store(s.columns + r * ldn + j, load(s.columns + r * ldn + j) / total);
  }
  for (int64_t r = 0; r < m; ++r)
    for (int64_t j = n; j < ldn; ++j) s.columns[r * ldn + j] = 0;
}

// out (columns, ld_out) = in (rows, ld_in) transposed, padded with 0.
template <class F>
void transpose(F* out, int64_t ld_out, const F* in, int64_t ld_in, int64_t rows, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t r = 0; r < rows; ++r) out[c * ld_out + r] = in[r * ld_in + c];
    for (int64_t r = rows; r < ld_out; ++r) out[c * ld_out + r] = 0;
  }
}

// One side of the attention: X is (p, q), own (p, H), other (q, H), both in panels; x_t is X transposed.
template <class F>
struct Side {
  int64_t p, q;
  const F *x, *x_t;
  int64_t ldp, ldq; // rows of x_t (q, ldp) and of x (p, ldq)
  const F *own, *other;
  const F* weight; // padded with 0

  // X Xᵀ own + X other by the p x p matrix, or by association: whichever multiplies less.
  bool by_gram(int64_t hidden, const Options& options) const {
    return !options.intra || p * (hidden + q) <= (options.inter ? 1 : 2) * q * hidden;
  }
};

// A panel of Z = Xᵀ own + other, (q, W).
template <class F>
CAAN_INLINE void panel_z(const Side<F>& side, const F* own, const F* other, const Options& options, F* z) {
  constexpr int64_t W = panel_width<F>;
  for_row_tiles(side.q, [&](int64_t j0, auto height) {
    Vec<F> acc[height.count][tile_vectors];
    if (options.inter)
      load_tile<F>(acc, other + j0 * W, W);
    else
      clear<F>(acc);
    if (options.intra) multiply_add<F>(acc, side.x + j0, side.ldq, own, W, side.p);
    store_tile<F>(z + j0 * W, W, acc);
  });
}

template <class F>
void side_logits(const Side<F>& side, int64_t padded_hidden, bool by_gram, const Options& options, PairScratch<F>& s, F* logits) {
  constexpr int64_t W = panel_width<F>;
  const int64_t p = side.p, q = side.q, ldp = side.ldp, ldq = side.ldq;
  if (by_gram && options.intra) {
    for (int64_t c = 0; c < p; c += W)
      for_row_tiles(p, [&](int64_t r0, auto height) {
        Vec<F> acc[height.count][tile_vectors];
        clear<F>(acc);
        multiply_add<F>(acc, side.x_t + r0, ldp, side.x_t + c, ldp, q);
        store_tile<F>(s.gram + r0 * ldp + c, ldp, acc);
      });
  }
  for (int64_t r = 0; r < p; ++r) store(s.partial + r * lanes<F>, Vec<F>{});
  for (int64_t h = 0; h < padded_hidden; h += W) {
    const F* own = side.own + h * p;
    const F* other = side.other + h * q;
    const F* z = other;
    if (!by_gram) {
      panel_z<F>(side, own, other, options, s.z);
      z = s.z;
    }
    Vec<F> weight[tile_vectors];
    for (int c = 0; c < tile_vectors; ++c) weight[c] = load(side.weight + h + c * lanes<F>);
    for_row_tiles(p, [&](int64_t r0, auto height) {
      Vec<F> acc[height.count][tile_vectors];
      clear<F>(acc);
      if (by_gram && options.intra) multiply_add<F>(acc, s.gram + r0, ldp, own, W, p);
      if (!by_gram || options.inter) multiply_add<F>(acc, side.x_t + r0, ldp, z, W, q);
      for (int r = 0; r < height.count; ++r) {
        F* partial = s.partial + (r0 + r) * lanes<F>;
        Vec<F> logit = load(partial);
        for (int c = 0; c < tile_vectors; ++c) logit += weight[c] * tanh(acc[r][c]);
        store(partial, logit);
      }
    });
  }
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

// pooled = attentionᵀ rows, (width,) padded with 0 to whole panels.
template <class F, class T>
void pool(F* pooled, const F* attention, const T* rows, int64_t count, int64_t width) {
  constexpr int vectors = 8; // as many sums as it takes to keep both multiply-add pipes busy
  constexpr int64_t block = vectors * lanes<F>;
  int64_t d = 0;
  for (; d + block <= width; d += block) {
    Vec<F> acc[vectors] = {};
    for (int64_t r = 0; r < count; ++r)
#pragma GCC unroll 8
      for (int c = 0; c < vectors; ++c) acc[c] += attention[r] * load_wide(rows + r * width + d + c * lanes<F>);
    for (int c = 0; c < vectors; ++c) store(pooled + d + c * lanes<F>, acc[c]);
  }
  for (; d < width; d += lanes<F>) {
    Vec<F> acc{};
    for (int64_t r = 0; r < count; ++r) acc += attention[r] * load_head(rows + r * width + d, smaller(lanes<F>, width - d));
    store(pooled + d, acc);
  }
  for (; d < padded<F>(width); d += lanes<F>) store(pooled + d, Vec<F>{});
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

// The part of a pair behind the alignment: s.alignment holds V affinity Uᵀ in n columns of every row.
template <class T>
Similarity<Real<T>> finish_pair(const PackedImage<T>& image, const Real<T>* word_intra, const Real<T>* word_inter, const T* words,
                                int64_t n, const Real<T>* region_weight, const Real<T>* word_weight, int64_t width, int64_t hidden,
                                const Options& options, bool both_layouts, PairScratch<Real<T>>& s) {
  using F = Real<T>;
  const int64_t m = image.regions, padded_hidden = padded<F>(hidden);
  for (int64_t r = 0; r < m; ++r) {
    F* row = s.alignment + r * s.ldn;
    for (int64_t j = n; j < s.ldn; ++j) row[j] = 0;
    for (int64_t j = 0; j < n; j += lanes<F>) store(row + j, tanh(load(row + j)));
  }
  if (options.softmax)
    normalize_softmax<F>(s, m, n, F(options.temperature));
  else
    normalize_l2<F>(s, m, n);

  const Side<F> region_side{m, n, s.rows, s.rows_t, s.ldm, s.ldn, image.intra.data(), word_inter, region_weight};
  const Side<F> word_side{n, m, s.columns_t, s.columns, s.ldn, s.ldm, word_intra, image.inter.data(), word_weight};
  const bool word_gram = word_side.by_gram(hidden, options);
  transpose<F>(s.rows_t, s.ldm, s.rows, s.ldn, m, n);
  if (!word_gram || both_layouts) transpose<F>(s.columns_t, s.ldm, s.columns, s.ldn, m, n);
  side_logits<F>(region_side, padded_hidden, region_side.by_gram(hidden, options), options, s, s.region_attention);
  side_logits<F>(word_side, padded_hidden, word_gram, options, s, s.word_attention);
  softmax_in_place<F>(s.region_attention, m);
  softmax_in_place<F>(s.word_attention, n);
  pool<F>(s.region_pooled.data(), s.region_attention.data(), image.features, m, width);
  pool<F>(s.word_pooled.data(), s.word_attention.data(), words, n, width);
  return similarity<F>(s.region_pooled, s.word_pooled, width, options.cosine);
}
