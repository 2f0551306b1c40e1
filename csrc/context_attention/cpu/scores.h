// All pairs, or a list of them: blocks of images against blocks of captions. A caption block is laid out once and read by all
// threads; a thread takes a few images, lays them out, multiplies them with the block's words panel by panel, and finishes the
// pairs of a few captions at a time.
#pragma once

#include <vector>

#include "context_attention/cpu/pair.h"
#include "context_attention/cpu/plan.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

using namespace caan::context_attention;

// Words of a caption block: enough pairs to make laying out an image negligible (1-2% at 70 captions), few enough for the caches.
inline constexpr int64_t block_words = 1024;
// What a call may take in all beside its results: a little less than the 64 MiB that it promises.
inline constexpr int64_t workspace_bytes = int64_t(60) << 20;
// The most that a caption block takes of it. Captions are projected anew for every block of images, so most goes to the images.
inline constexpr int64_t caption_block_bytes = int64_t(14) << 20;
// Pairs of a pair list that are planned together.
inline constexpr int64_t planned_pairs = int64_t(1) << 18;

template <class T>
class Scorer {
  using F = Real<T>;

 public:
  Scorer(const Problem& problem, F* out, const Maps* maps, const Executor& executor)
      : problem_(problem),
        out_(out),
        maps_(maps),
        executor_(executor),
        width_(problem.width),
        hidden_(problem.hidden),
        padded_hidden_(padded<F>(problem.hidden)),
        region_weight_(padded_hidden_),
        word_weight_(padded_hidden_),
        workers_(new Worker[executor.threads]) {
    copy_padded<F>(region_weight_, static_cast<const T*>(problem.region_score), hidden_, padded_hidden_);
    copy_padded<F>(word_weight_, static_cast<const T*>(problem.word_score), hidden_, padded_hidden_);
  }
  ~Scorer() { delete[] workers_; }
  Scorer(const Scorer&) = delete;
  Scorer& operator=(const Scorer&) = delete;

  void run() {
    for (int64_t i = 0, count = problem_.score_count(); i < count; ++i) out_[i] = 0;
    const BlockLimits limits = block_limits();
    const int64_t step = problem_.pairs ? planned_pairs : 1;
    const int64_t end = problem_.pairs ? problem_.pair_count : 1;
    for (int64_t begin = 0; begin < end; begin += step)
      run_plan(plan_tiles(problem_, limits, begin, smaller(end, begin + step)), limits.images);
  }

 private:
  // Blocks that fit the workspace beside what every thread holds: its images, their alignment with a block, a pair, and while items
  // are projected the matrix product's blocks. Where nothing is left, blocks of one item.
  BlockLimits block_limits() const {
    const int64_t m = problem_.regions_per_image, n = problem_.words_per_caption, real = sizeof(F), stored = sizeof(T);
    const bool project_images = !problem_.region_products, project_words = !problem_.word_products;
    const int64_t word_bytes =
        (width_ + 2 * padded_hidden_) * real + (project_words ? (width_ + 2 * hidden_) * stored : 0) + int64_t(sizeof(int64_t));
    const int64_t region_bytes = 2 * hidden_ * stored + int64_t(sizeof(int64_t));
    const int64_t words = larger(n, smaller(block_words, caption_block_bytes / word_bytes));
    constexpr int64_t panel = panel_width<F>, vector = lanes<F>;
    const int64_t packed = m * (spread_row<F>(width_) + 2 * padded_hidden_), alignment = (words + panel) * m;
    const int64_t image = packed + alignment + captions_together * (m + n + width_) + width_;
    const int64_t pair = 10 * m * (n + vector);
    const int64_t product = project_images || project_words ? gemm_scratch : 0;
    // Half of the workspace is the least that is left to the blocks.
    const int64_t fitting = (workspace_bytes / 2 / executor_.threads / real - pair - product) / image;
    const int64_t images = smaller(images_together, larger(1, fitting));
    const int64_t worker_bytes = (images * image + pair + product) * real;
    const int64_t plan_bytes = problem_.pairs ? smaller(problem_.pair_count, planned_pairs) * int64_t(sizeof(Entry) + 16) : 0;
    const int64_t left = workspace_bytes - executor_.threads * worker_bytes - plan_bytes - words * word_bytes;
    return {project_images ? larger(1, left / region_bytes) : INT64_MAX, words, lanes<F>, images};
  }

  // What a thread keeps of each image of its unit.
  struct OfImage {
    Image<T> item;
    int64_t index;              // of the call's images
    Buffer<F> alignment;        // panel of words after panel, (m, width) each
    Buffer<F> region_attention; // (m, captions_together)
    Buffer<F> region_pooled;    // (captions_together, padded D), v̂
  };
  struct Worker {
    OfImage images[images_together];
    int64_t image_count = 0;
    int64_t panels_done = 0;
    PairScratch<F> pair;
    Buffer<F> word_attention; // (captions_together, images_together, padded N)
    Buffer<F> word_pooled;    // (images_together, padded D), û
  };

  void run_plan(const Plan& plan, int64_t images_of_unit) {
    const Tile* loaded = nullptr;
    for (const Tile& tile : plan.tiles) {
      if (!problem_.region_products && (!loaded || loaded->image_begin != tile.image_begin)) project_images(plan, tile);
      if (!loaded || loaded->caption_begin != tile.caption_begin) pack_captions(plan, tile);
      loaded = &tile;
      const auto units = split_tile(plan, tile, images_of_unit, executor_.threads);
      parallel_units(executor_, int64_t(units.size()), [&](int64_t u, int64_t worker) {
        prefetch_next(plan, units, u + 1, workers_[worker]);
        run_unit(plan, tile, units[u], workers_[worker]);
      });
    }
  }

  // Has the pairs at work prefetch the regions of a list's next unit: they lie in no cache, and few pairs read them.
  void prefetch_next(const Plan& plan, const std::vector<Unit>& units, int64_t unit, Worker& worker) const {
    worker.pair.next_regions = {};
    if (plan.all_pairs || unit == int64_t(units.size())) return;
    const int64_t image = plan.images[units[unit].image_begin];
    const char* features = reinterpret_cast<const char*>(image_features(image));
    worker.pair.next_regions = {features, features + problem_.region_count(image) * width_ * int64_t(sizeof(T))};
  }

  const T* image_features(int64_t image) const {
    return static_cast<const T*>(problem_.regions) + image * problem_.regions_per_image * width_;
  }
  const T* image_products(const Plan& plan, int64_t position) const {
    if (!problem_.region_products) return projected_regions_.data() + region_first_[position - region_base_] * 2 * hidden_;
    return static_cast<const T*>(problem_.region_products) + plan.images[position] * problem_.regions_per_image * 2 * hidden_;
  }

  // Rows of (count, length) items that exist, one behind the other, and where each item's begin.
  template <class Index, class Length>
  static int64_t list_rows(Buffer<int64_t>& first, Buffer<int64_t>& rows, int64_t begin, int64_t end, int64_t stride, Index index,
                           Length length) {
    first.resize(end - begin + 1);
    int64_t total = 0;
    for (int64_t i = begin; i < end; ++i) {
      first[i - begin] = total;
      total += length(index(i));
    }
    first[end - begin] = total;
    rows.resize(total);
    for (int64_t i = begin; i < end; ++i)
      for (int64_t r = 0; r < length(index(i)); ++r) rows[first[i - begin] + r] = index(i) * stride + r;
    return total;
  }

  void project_images(const Plan& plan, const Tile& tile) {
    region_base_ = tile.image_begin;
    const int64_t rows = list_rows(
        region_first_, rows_, tile.image_begin, tile.image_end, problem_.regions_per_image,
        [&](int64_t i) { return plan.images[i]; }, [&](int64_t i) { return problem_.region_count(i); });
    projected_regions_.resize(rows * 2 * hidden_);
    T* out = projected_regions_.data();
    project<false>(problem_.regions, rows, problem_.region_intra, hidden_, out, 2 * hidden_);
    project<false>(problem_.regions, rows, problem_.word_inter, hidden_, out + hidden_, 2 * hidden_);
  }

  // The rows that rows_ lists times a weight (width, columns), or (columns, width) where it is transposed.
  template <bool transposed>
  void project(const void* items, int64_t rows, const void* weight, int64_t columns, T* out, int64_t out_stride) {
    gemm<T, false, transposed>({static_cast<const T*>(items), width_, rows_},
                               {static_cast<const T*>(weight), transposed ? width_ : columns, nullptr}, rows, columns, width_,
                               {out, out_stride, nullptr}, executor_);
  }

  void pack_captions(const Plan& plan, const Tile& tile) {
    const int64_t products = width_ + 2 * hidden_;
    const int64_t words = list_rows(
        captions_.first, rows_, tile.caption_begin, tile.caption_end, problem_.words_per_caption,
        [&](int64_t t) { return plan.captions[t]; }, [&](int64_t t) { return problem_.word_count(t); });
    RowView<T> view{static_cast<const T*>(problem_.word_products), products, rows_};
    if (!problem_.word_products) {
      projected_words_.resize(words * products);
      T* out = projected_words_.data();
      project<true>(problem_.words, words, problem_.affinity, width_, out, products);
      project<false>(problem_.words, words, problem_.region_inter, hidden_, out + width_, products);
      project<false>(problem_.words, words, problem_.word_intra, hidden_, out + width_ + hidden_, products);
      view = {projected_words_.data(), products, nullptr};
    }
    const int64_t captions = tile.caption_end - tile.caption_begin;
    captions_.column.resize(captions + 1);
    captions_.column[0] = 0;
    for (int64_t c = 0; c < captions; ++c) {
      const int64_t n = captions_.first[c + 1] - captions_.first[c];
      captions_.column[c + 1] = captions_.column[c] + (plan.all_pairs ? n : padded<F>(n));
    }
    const Panels<F> panels(captions_.column[captions]);
    captions_.affinity.resize(panels.columns() * width_);
    captions_.inter.resize(words * padded_hidden_);
    captions_.intra.resize(words * padded_hidden_);
    captions_.features.resize(captions);
    const auto pack_affinity = [&](F* out, const Panels<F>& in, int64_t panel, int64_t first, int64_t n) {
      with_panel(in, panel, [&](int64_t p, auto vectors) {
        const int64_t begin = in.begin(p);
        pack_right_transposed<vectors.count>(out + begin * width_, view, first + begin, n - begin, 0, width_);
      });
    };
    if (together())
      parallel_units(executor_, panels.count,
                     [&](int64_t panel, int64_t) { pack_affinity(captions_.affinity, panels, panel, 0, words); });
    parallel_units(executor_, captions, [&](int64_t c, int64_t) {
      const int64_t first = captions_.first[c], n = captions_.first[c + 1] - first;
      const T* rows = view.row(first);
      if (!together()) {
        const Panels<F> own(n);
        for (int64_t p = 0; p < own.count; ++p) pack_affinity(captions_.affinity + captions_.column[c] * width_, own, p, first, n);
      }
      pack_panels(captions_.inter + first * padded_hidden_, rows + width_, n, products, hidden_);
      pack_panels(captions_.intra + first * padded_hidden_, rows + width_ + hidden_, n, products, hidden_);
      captions_.features[c] =
          static_cast<const T*>(problem_.words) + plan.captions[tile.caption_begin + c] * problem_.words_per_caption * width_;
    });
  }

  void run_unit(const Plan& plan, const Tile& tile, const Unit& unit, Worker& worker) {
    const int64_t columns = Panels<F>(captions_.column[tile.caption_end - tile.caption_begin]).columns();
    worker.image_count = unit.image_end - unit.image_begin;
    worker.panels_done = 0;
    worker.word_attention.resize(captions_together * images_together * padded<F>(problem_.words_per_caption));
    worker.word_pooled.resize(images_together * padded<F>(width_));
    for (int64_t i = 0; i < worker.image_count; ++i) {
      OfImage& image = worker.images[i];
      const int64_t position = unit.image_begin + i;
      image.index = plan.images[position];
      const int64_t m = problem_.region_count(image.index);
      load_image(image.item, image_features(image.index), image_products(plan, position), m, width_, hidden_,
                 unit.end - unit.begin);
      image.alignment.resize(columns * m + lanes<F>);
      image.region_attention.resize(m * captions_together);
      image.region_pooled.resize(captions_together * padded<F>(width_));
    }
    for (int64_t begin = unit.begin; begin < unit.end; begin += captions_together)
      run_captions(plan, tile, begin, smaller(unit.end, begin + captions_together), worker);
  }

  // The worker's images with a few captions: [begin, end) of Plan::entries, or of Plan::captions where all pairs are scored.
  void run_captions(const Plan& plan, const Tile& tile, int64_t begin, int64_t end, Worker& worker) {
    const int64_t g_row = padded<F>(problem_.words_per_caption), count = end - begin;
    // Where a caption stands in its block, and where the score of its pair with an image goes.
    const auto caption = [&](int64_t c) {
      return (plan.all_pairs ? begin + c : plan.entries[begin + c].caption) - tile.caption_begin;
    };
    const auto out = [&](const OfImage& image, int64_t c) {
      return plan.all_pairs ? image.index * problem_.captions + plan.captions[begin + c] : plan.entries[begin + c].out;
    };
    for (int64_t c = 0; c < count; ++c) align(place(tile, caption(c)), worker);
    for (int64_t i = 0; i < worker.image_count; ++i) {
      OfImage& image = worker.images[i];
      for (int64_t c = 0; c < count; ++c)
        attend_to(place(tile, caption(c)), out(image, c), image, image.region_attention + c,
                  worker.word_attention + (c * images_together + i) * g_row, worker.pair);
      pool_regions(image.region_pooled.data(), image.region_attention.data(), count, image.item, width_);
    }
    for (int64_t c = 0; c < count; ++c) {
      const int64_t first = captions_.first[caption(c)], n = captions_.first[caption(c) + 1] - first;
      pool<F>(worker.word_pooled.data(), worker.word_attention + c * images_together * g_row, g_row, worker.image_count,
              captions_.features[caption(c)], n, width_);
      for (int64_t i = 0; i < worker.image_count; ++i) {
        const OfImage& image = worker.images[i];
        out_[out(image, c)] = similarity<F>(image.region_pooled + c * padded<F>(width_), worker.word_pooled + i * padded<F>(width_),
                                            width_, problem_.options.cosine)
                                  .score;
      }
    }
  }

  // A caption of the block: its words, and its columns in the panels of the alignment.
  struct Place {
    int64_t word, n;
    int64_t base; // where the panels begin among the block's columns
    Panels<F> panels;
    int64_t first; // the caption's first column in them
  };
  bool together() const { return !problem_.pairs; }
  Place place(const Tile& tile, int64_t caption) const {
    const int64_t word = captions_.first[caption], n = captions_.first[caption + 1] - word, column = captions_.column[caption];
    if (together()) return {word, n, 0, Panels<F>(captions_.column[tile.caption_end - tile.caption_begin]), column};
    return {word, n, column, Panels<F>(n), 0};
  }

  // S = V (U affinityᵀ)ᵀ for the panels that hold a caption's words, unless an earlier caption has brought them.
  void align(const Place& caption, Worker& worker) {
    const Panels<F>& panels = caption.panels;
    const int64_t done = together() ? worker.panels_done : 0, last = panels.of(caption.first + caption.n - 1);
    for (int64_t panel = larger(done, panels.of(caption.first)); panel <= last; ++panel) {
      with_panel(panels, panel, [&](int64_t p, auto vectors) {
        constexpr int64_t W = vectors.count * lanes<F>;
        const int64_t begin = caption.base + panels.begin(p);
        for (int64_t k = 0; k == 0 || k < width_; k += gemm_depth)
          for (int64_t i = 0; i < worker.image_count; ++i) {
            OfImage& image = worker.images[i];
            const Image<T>& item = image.item;
            for_row_tiles(item.regions, [&](int64_t r0, auto height) {
              multiply_in_chains<F, height.count, vectors.count>(
                  image.alignment + begin * item.regions + r0 * W, W, k == 0, item.features + r0 * item.row + k, item.row, 1,
                  captions_.affinity + begin * width_ + k * W, W, smaller(gemm_depth, width_ - k));
            });
          }
      });
      worker.panels_done = panel + 1;
    }
  }

  // Rows of a caption's alignment, out of the panels that hold its words.
  void gather_alignment(const Place& caption, const OfImage& image, PairScratch<F>& s) {
    const Panels<F>& panels = caption.panels;
    const int64_t m = image.item.regions, n = caption.n;
    for (int64_t j = 0; j < n;) {
      const int64_t p = panels.of(caption.first + j), W = panels.width(p), from = caption.first + j - panels.begin(p),
                    count = smaller(W - from, n - j);
      const F* in = image.alignment + (caption.base + panels.begin(p)) * m + from;
      // What a vector leaves behind the part's end is written over by the next part, or with 0. Only the last could reach the next
      // row.
      const int64_t end = smaller(count, s.ldn - j - lanes<F> + 1);
      for (int64_t r = 0; r < m; ++r) {
        F* row = s.alignment + r * s.ldn + j;
        int64_t c = 0;
        for (; c < end; c += lanes<F>) store(row + c, load(in + r * W + c));
        for (; c < count; ++c) row[c] = in[r * W + c];
      }
      j += count;
    }
  }

  // f of the pair, captions_together numbers from one to the next, and g.
  void attend_to(const Place& caption, int64_t out, const OfImage& image, F* f, F* g, PairScratch<F>& s) {
    const int64_t n = caption.n, m = image.item.regions, products = caption.word * padded_hidden_;
    s.fit(m, n);
    gather_alignment(caption, image, s);
    const Words<F> words{{captions_.intra + products, n, 0}, {captions_.inter + products, n, 0}, n};
    attend<T>(image.item, words, {region_weight_, word_weight_, hidden_, problem_.options}, false, s);
    if (maps_) write_maps(s, m, n, out);
    for (int64_t r = 0; r < m; ++r) f[r * captions_together] = s.region_attention[r];
    for (int64_t j = 0; j < n; ++j) g[j] = s.word_attention[j];
  }

  void write_maps(const PairScratch<F>& s, int64_t m, int64_t n, int64_t out) const {
    const int64_t M = problem_.regions_per_image, N = problem_.words_per_caption;
    F* f = static_cast<F*>(maps_->region_attention) + out * M;
    F* g = static_cast<F*>(maps_->word_attention) + out * N;
    F* alignment = static_cast<F*>(maps_->alignment) + out * M * N;
    F* word_to_region = static_cast<F*>(maps_->word_to_region) + out * M * N;
    F* region_to_word = static_cast<F*>(maps_->region_to_word) + out * M * N;
    for (int64_t r = 0; r < m; ++r) f[r] = s.region_attention[r];
    for (int64_t j = 0; j < n; ++j) g[j] = s.word_attention[j];
    for (int64_t r = 0; r < m; ++r)
      for (int64_t j = 0; j < n; ++j) {
        alignment[r * N + j] = s.alignment[r * s.ldn + j];
        word_to_region[r * N + j] = s.c[r * s.ldn + j];
        region_to_word[j * M + r] = s.r[r * s.ldn + j];
      }
  }

  const Problem& problem_;
  F* out_;
  const Maps* maps_;
  const Executor& executor_;
  const int64_t width_, hidden_, padded_hidden_;
  Buffer<F> region_weight_, word_weight_;
  Worker* workers_;
  PackedCaptions<T> captions_;
  Buffer<int64_t> rows_, region_first_;
  int64_t region_base_ = 0;
  Buffer<T> projected_regions_, projected_words_;
};

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE
