// Gradients of the pairs that have one. Each pair is scored again, then its stages are walked backwards (pair_gradients.h); nothing
// was kept from the forward pass.
//
// Pairs that share neither image nor caption run at once; order_by_level() fixes the order in which pairs add to a row.
#pragma once

#include <vector>

#include "context_attention/cpu/pair_gradients.h"
#include "context_attention/cpu/scores.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

using namespace caan::context_attention;

template <class T>
class Differentiator {
  using F = Real<T>;
  static constexpr int64_t W = panel_width<F>;
  // Pairs whose gradients of the two score vectors are kept apart until they are added up in order.
  static constexpr int64_t slots = 64;
  // Pairs of a list that are sorted at one time, about 60 bytes each.
  static constexpr int64_t sorted_pairs = int64_t(1) << 20;

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
    if (problem_.pairs) find_windows();
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

  bool has_gradient(int64_t score, int64_t image, int64_t caption) const {
    return grad_scores_[score] != 0 && problem_.region_count(image) > 0 && problem_.word_count(caption) > 0;
  }

  // Windows of a list's images, each with as many pairs as are sorted at one time, or one image: in which order pairs are added up
  // must not depend on how they were listed.
  void find_windows() {
    std::vector<int64_t> count(problem_.images);
    for (int64_t p = 0; p < problem_.pair_count; ++p)
      if (has_gradient(p, problem_.pairs[2 * p], problem_.pairs[2 * p + 1])) ++count[problem_.pairs[2 * p]];
    int64_t begin = 0, pairs = 0;
    for (int64_t i = 0; i < problem_.images; ++i) {
      if (pairs > 0 && pairs + count[i] > sorted_pairs) {
        windows_.push_back({begin, i});
        begin = i, pairs = 0;
      }
      pairs += count[i];
    }
    windows_.push_back({begin, problem_.images});
  }

  // All gradients of the items in both ranges.
  void sweep(Range images, Range captions) {
    begin_sums(d_regions_, gradients_.regions, images, problem_.regions_per_image * width_);
    begin_sums(d_region_products_, gradients_.region_products, images, problem_.regions_per_image * 2 * hidden_);
    begin_sums(d_words_, gradients_.words, captions, problem_.words_per_caption * width_);
    begin_sums(d_word_products_, gradients_.word_products, captions, problem_.words_per_caption * (width_ + 2 * hidden_));

    std::vector<GradientEntry> entries;
    const auto add = [&](int64_t s, int64_t image, int64_t caption) {
      if (has_gradient(s, image, caption) && (images.has(image) || captions.has(caption)))
        entries.push_back({image, caption, double(grad_scores_[s])});
    };
    if (problem_.pairs) {
      for (const Range& window : windows_) {
        for (int64_t p = 0; p < problem_.pair_count; ++p)
          if (window.has(problem_.pairs[2 * p])) add(p, problem_.pairs[2 * p], problem_.pairs[2 * p + 1]);
        run_entries(entries);
      }
    } else {
      for (int64_t s = 0, scores = problem_.score_count(); s < scores; ++s) {
        add(s, s / problem_.captions, s % problem_.captions);
        if (int64_t(entries.size()) == planned_pairs) run_entries(entries);
      }
      run_entries(entries);
    }

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
    const Words<F> of_caption{{worker.word_intra, n, 0}, {worker.word_inter, n, 0}, n};
    const Shared<F> shared{region_weight_, word_weight_, hidden_, problem_.options};
    attend<T>(worker.image, of_caption, shared, true, s);
    pool<F>(g.region_pooled.data(), s.region_attention.data(), 0, 1, regions, m, width_);
    pool<F>(g.word_pooled.data(), s.word_attention.data(), 0, 1, words, n, width_);
    const Similarity<F> similarity =
        caan::cpu::CAAN_NAMESPACE::similarity<F>(g.region_pooled, g.word_pooled, width_, problem_.options.cosine);

    pooled_gradients(similarity, F(entry.gradient), g);
    softmax_gradients<F>(g.d_region_logits.data(), s.region_attention.data(), regions, g.d_region_pooled.data(), m, width_);
    softmax_gradients<F>(g.d_word_logits.data(), s.word_attention.data(), words, g.d_word_pooled.data(), n, width_);

    // Null where this sweep does not sum up the side, in all four alike.
    const RowSums<F> d_region_products{d_region_products_.at(entry.image), 2 * hidden_};
    const RowSums<F> d_word_products{d_word_products_.at(entry.caption), products};
    F* d_regions = d_regions_.at(entry.image);
    F* d_words = d_words_.at(entry.caption);
    for (int64_t h = 0; h < 2 * padded_hidden_; ++h) d_weights[h] = 0;
    const Side<F> of_regions = region_side<F>(s, m, n, worker.image.intra, of_caption.inter, region_weight_);
    const Side<F> of_words = word_side<F>(s, m, n, of_caption.intra, worker.image.inter, word_weight_);
    side_gradients<F>(of_regions, s.c, shared, g.d_region_logits, g, g.of_c,
                      {d_region_products, d_word_products.from(width_), d_weights});
    side_gradients<F>(of_words, s.r_t, shared, g.d_word_logits, g, g.of_r,
                      {d_word_products.from(width_ + hidden_), d_region_products.from(hidden_), d_weights + padded_hidden_});

    alignment_gradients<F>(s, g, m, n, problem_.options);
    if (d_regions) {
      for (int64_t j = 0; j < n; ++j) copy_padded(g.words + j * g.word_row, view.row(j), width_, padded<F>(width_));
      copy_padded(g.words + n * g.word_row, g.d_region_pooled.data(), padded<F>(width_), padded<F>(width_));
      add_product<F>(d_regions, width_, g.d_alignment_t, s.ldm, m, {g.words, n + 1, g.word_row}, n + 1, width_);
    }
    if (d_words) {
      add_product<F>(d_word_products.base, products, g.d_alignment, s.ldn, n, {worker.image.features, m, worker.image.row}, m,
                     width_);
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
  std::vector<Range> windows_;
  Sums d_regions_, d_region_products_, d_words_, d_word_products_;
};

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE
