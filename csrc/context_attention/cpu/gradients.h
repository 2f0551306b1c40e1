// Gradients of the pairs that have one. Each pair is scored again, then its stages are taken backwards (pair_gradients.h); nothing
// was kept from the forward pass.
//
// Pairs that share neither image nor caption run at once; order_by_level() fixes the order in which pairs add to a row.
#pragma once

#include <vector>

#include "context_attention/cpu/pair_gradients.h"
#include "context_attention/cpu/scores.h"
#include "core/cpu/sums.h"

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
        workers_(new Worker[executor.threads]),
        sums_(executor),
        d_regions_{static_cast<T*>(gradients.regions), problem.regions_per_image * problem.width},
        d_region_products_{static_cast<T*>(gradients.region_products), problem.regions_per_image * 2 * problem.hidden},
        d_words_{static_cast<T*>(gradients.words), problem.words_per_caption * problem.width},
        d_word_products_{static_cast<T*>(gradients.word_products),
                         problem.words_per_caption * (problem.width + 2 * problem.hidden)} {
    copy_padded<F>(region_weight_, static_cast<const T*>(problem.region_score), hidden_, padded_hidden_);
    copy_padded<F>(word_weight_, static_cast<const T*>(problem.word_score), hidden_, padded_hidden_);
    for (int64_t h = 0; h < 2 * padded_hidden_; ++h) total_[h] = 0;
  }
  ~Differentiator() { delete[] workers_; }
  Differentiator(const Differentiator&) = delete;
  Differentiator& operator=(const Differentiator&) = delete;

  void run() {
    if (problem_.pairs)
      windows_ = windows_of(problem_.images, problem_.pair_count, sorted_pairs, [&](int64_t p) {
        const int64_t image = problem_.pairs[2 * p];
        return has_gradient(p, image, problem_.pairs[2 * p + 1]) ? image : -1;
      });
    in_sweeps<T>({problem_.images, d_regions_.row + d_region_products_.row},
                 {problem_.captions, d_words_.row + d_word_products_.row}, sums_bytes,
                 [&](Range images, Range captions) { sweep(images, captions); });
    for (int64_t h = 0; h < hidden_; ++h) {
      static_cast<T*>(gradients_.region_score)[h] = narrow<T>(total_[h]);
      static_cast<T*>(gradients_.word_score)[h] = narrow<T>(total_[padded_hidden_ + h]);
    }
  }

 private:
  struct Worker {
    Image<T> image;
    Buffer<F> word_affinity, word_intra, word_inter; // U affinityᵀ, U Q3 and U Q2 in panels
    PairScratch<F> pair;
    GradientScratch<F> gradient;
  };
  // Of the 256 MiB that backward may take, what float32 sums of narrower gradients may: the rest is for the pairs' own work.
  static constexpr int64_t sums_bytes = int64_t(160) << 20;

  bool has_gradient(int64_t score, int64_t image, int64_t caption) const {
    return grad_scores_[score] != 0 && problem_.region_count(image) > 0 && problem_.word_count(caption) > 0;
  }

  // All gradients of the items in both ranges.
  void sweep(Range images, Range captions) {
    d_regions_.items = d_region_products_.items = images;
    d_words_.items = d_word_products_.items = captions;
    sums_.begin({&d_regions_, &d_region_products_, &d_words_, &d_word_products_});

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

    sums_.end({&d_regions_, &d_region_products_, &d_words_, &d_word_products_});
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
        if (d_regions_.items.size() == 0) continue;
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
  Sums<T> sums_;
  ItemSums<T> d_regions_, d_region_products_, d_words_, d_word_products_;
};

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE
