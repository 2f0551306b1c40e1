// The largest inner product of every row of a block of queries with the rows of a document, and, where it is wanted, which row of
// the document has it. A tile of the products lies in registers and is folded into the largest of its columns: no product is
// stored.
//
// The rows of queries are columns of panels, laid out once and read by all threads; the rows of documents are read where they lie.
// Of equals the lowest row counts. A NaN is larger than all numbers, as it is for torch.max.
#pragma once

#include <limits>
#include <type_traits>
#include <vector>

#include "core/cpu/matmul.h"
#include "max_similarity/cpu/kernels.h"
#include "max_similarity/cpu/plan.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

using namespace caan::max_similarity;

// Products are summed in chains of so many k, and the chains one after the other. Up to this width a tile never leaves the
// registers.
inline constexpr int64_t search_chain = 128;
// A tile asks for the rows that follow so far behind, a few cache lines with every so many k: short rows come from memory without
// the processor's own prefetching. With one panel of 48 columns and D = 128 that gave 1.3 to 1.5 times the speed; with D = 1024 it
// took 7%.
inline constexpr int64_t ahead_bytes = 16 << 10;
inline constexpr int64_t ahead_step = 32;
inline constexpr int64_t short_row_bytes = 2048;
// Rows of documents that are worked on with all panels of a strip, and of a copy of them: beside one panel they fit the
// second-level cache. Of short documents several, since a panel comes from afar.
inline constexpr int64_t together_bytes = 384 << 10;
inline constexpr int64_t together_parts = 8;
// Of packed queries, and how many k of them are packed at a time.
inline constexpr int64_t packed_depth = 32;
inline constexpr int64_t block_bytes = 8 << 20;
// At most so many columns of a block, however short, and so many maxima of a thread.
inline constexpr int64_t block_columns = 1 << 17;
inline constexpr int64_t thread_maxima = 1 << 16;
// Enough columns that a document may come from memory for each strip; few enough that threads share its work.
inline constexpr int64_t shared_columns = 960;

template <class F>
using Place = std::conditional_t<sizeof(F) == 8, int64_t, int32_t>;

// Where the rows behind the present ones lie: `bytes` from `base` on, and then what `next` points to.
struct Following {
  const char *base = nullptr, *next = nullptr;
  int64_t bytes = 0;

  CAAN_INLINE void ask(int64_t offset, int64_t count) const {
    const char* p = offset < bytes ? base + offset : next + (offset - bytes);
    for (int64_t line = 0; line < count; line += 64) __builtin_prefetch(p + line, 0, 2);
  }
};

// Some rows of a document, the first of which is row `first` of it.
template <class F>
struct DocumentRows {
  const F* base;
  int64_t stride, count, first;
  Following following; // without base: nothing is asked for
};

// Largest products so far, and their places, or null; and where a tile keeps its sums between two chains.
template <class F>
struct Best {
  F* value;
  Place<F>* place;
  F* sums;
};

template <class F, int R, int V>
CAAN_INLINE void fold_values(const Vec<F> (&acc)[R][V], F* best) {
  for (int c = 0; c < V; ++c) {
    const Vec<F> before = load(best + c * lanes<F>);
    Vec<F> largest = before;
    auto ordered = before == before;
    for (int r = 0; r < R; ++r) {
      largest = acc[r][c] > largest ? acc[r][c] : largest;
      ordered &= acc[r][c] == acc[r][c];
    }
    store(best + c * lanes<F>, ordered ? largest : splat(std::numeric_limits<F>::quiet_NaN()));
  }
}
#if defined(__AVX512F__) && CAAN_VECTOR_BYTES == 64
// The compiler's comparisons take twice as many instructions: one here looks at two numbers.
template <int R, int V>
CAAN_INLINE void fold_values(const Vec<float> (&acc)[R][V], float* best) {
  for (int c = 0; c < V; ++c) {
    Vec<float> largest = load(best + c * lanes<float>);
    __mmask16 unordered = _mm512_cmp_ps_mask(acc[R - 1][c], largest, _CMP_UNORD_Q);
    for (int r = 0; r + 1 < R; r += 2) unordered |= _mm512_cmp_ps_mask(acc[r][c], acc[r + 1][c], _CMP_UNORD_Q);
    for (int r = 0; r < R; ++r) largest = _mm512_max_ps(acc[r][c], largest);
    store(best + c * lanes<float>,
          Vec<float>(_mm512_mask_mov_ps(largest, unordered, _mm512_set1_ps(std::numeric_limits<float>::quiet_NaN()))));
  }
}
#endif

template <class F, int R, int V>
CAAN_INLINE void fold_places(const Vec<F> (&acc)[R][V], int64_t row, const Best<F>& best) {
  using Mask = typename VectorOf<F>::mask;
  for (int c = 0; c < V; ++c) {
    Vec<F> largest = load(best.value + c * lanes<F>);
    Mask place;
    __builtin_memcpy(&place, best.place + c * lanes<F>, sizeof place);
    for (int r = 0; r < R; ++r) {
      const Mask taken = ~(acc[r][c] <= largest) & (largest == largest);
      largest = taken ? acc[r][c] : largest;
      place = taken ? Mask{} + Place<F>(row + r) : place;
    }
    store(best.value + c * lanes<F>, largest);
    __builtin_memcpy(best.place + c * lanes<F>, &place, sizeof place);
  }
}

// Rows of a document against a panel of V vectors, k-major.
template <int V, bool places, class F>
void search_panel(const DocumentRows<F>& rows, const F* panel, int64_t depth, const Best<F>& best) {
  constexpr int64_t W = V * lanes<F>;
  for_row_tiles(rows.count, [&](int64_t r0, auto height) {
    constexpr int R = height.count;
    constexpr int64_t line = R * int64_t(sizeof(F));
    const F* left = rows.base + r0 * rows.stride;
    const int64_t offset = (rows.first + r0) * rows.stride * int64_t(sizeof(F)) + ahead_bytes;
    for (int64_t k = 0; k == 0 || k < depth; k += search_chain) {
      Vec<F> acc[R][V];
      clear<F>(acc);
      const int64_t end = smaller(k + search_chain, depth);
      for (int64_t p = k; p < end; p += ahead_step) {
        const int64_t steps = smaller(ahead_step, end - p);
        if (rows.following.base) rows.following.ask(offset + p * line, steps * line);
        multiply_add<F>(acc, left + p, rows.stride, 1, panel + p * W, W, steps);
      }
      if (k > 0)
        for (int r = 0; r < R; ++r)
          for (int c = 0; c < V; ++c) acc[r][c] += load(best.sums + r * W + c * lanes<F>);
      if (end < depth)
        store_tile<F>(best.sums, W, acc);
      else if constexpr (places)
        fold_places<F>(acc, rows.first + r0, best);
      else
        fold_values<F>(acc, best.value);
    }
  });
}

// Searches the documents of tasks for the rows of a block's queries.
template <class T, bool places>
class Searcher {
  using F = Real<T>;
  static constexpr bool in_place = std::is_same_v<T, F>;

 public:
  Searcher(const Problem& problem, const Executor& executor)
      : problem_(problem), executor_(executor), workers_(new Worker[executor.threads]) {}
  ~Searcher() { delete[] workers_; }
  Searcher(const Searcher&) = delete;
  Searcher& operator=(const Searcher&) = delete;

  static Limits limits(const Problem& problem) {
    const int64_t row_bytes = problem.width * int64_t(sizeof(F));
    const int64_t document_bytes = larger(1, problem.documents().rows) * row_bytes;
    return {larger(1, smaller(block_columns, block_bytes / row_bytes)), shared_columns, lanes<F>,
            larger(1, smaller(together_parts, together_bytes / document_bytes))};
  }

  // Lays out the queries of a block.
  void load_queries(const Block& block) {
    const Items& queries = problem_.queries();
    int64_t total = 0;
    for (const Strip& strip : block.strips) total += strip.columns;
    rows_.resize(total);
    first_row_.resize(int64_t(block.strips.size()));
    packed_.resize(block.columns * problem_.width);
    // Panels of all strips, numbered through.
    std::vector<std::pair<int64_t, int64_t>> panels;
    int64_t next = 0;
    for (size_t s = 0; s < block.strips.size(); ++s) {
      const Strip& strip = block.strips[s];
      first_row_[int64_t(s)] = next;
      for (int64_t q = strip.begin; q < strip.end; ++q)
        for (int64_t r = 0; r < queries.row_count(block.queries[q]); ++r) rows_[next++] = block.queries[q] * queries.rows + r;
      for (int64_t p = 0; p < Panels<F>(strip.columns).count; ++p) panels.emplace_back(int64_t(s), p);
    }
    const T* features = static_cast<const T*>(queries.features);
    parallel_units(executor_, int64_t(panels.size()), [&](int64_t unit, int64_t) {
      const auto [s, number] = panels[unit];
      const Strip& strip = block.strips[s];
      const Panels<F> of_strip(strip.columns);
      with_panel(of_strip, number, [&](int64_t p, auto vectors) {
        const int64_t begin = of_strip.begin(p), width = problem_.width;
        F* panel = packed_ + (strip.first + begin) * width;
        // A few k at a time: what is written stays in the first-level cache from the first column to the last.
        for (int64_t k = 0; k < width; k += packed_depth)
          pack_right_transposed<vectors.count>(panel + k * vectors.count * lanes<F>,
                                               RowView<T>{features, width, rows_ + first_row_[s]}, begin, strip.columns - begin, k,
                                               smaller(packed_depth, width - k));
      });
    });
  }

  // Calls finish(task, best) for every task, best being that of the strip's columns; at once for several tasks.
  template <class Finish>
  void run(const Block& block, const std::vector<Task>& tasks, Finish finish) {
    const int64_t count = int64_t(tasks.size()), together = limits(problem_).documents;
    // Neighbours share a document or a strip: many of them to a unit, not so many that a thread waits for another at the end.
    const int64_t unit = larger(together, smaller(64, count / (8 * executor_.threads)));
    parallel_units(executor_, (count + unit - 1) / unit, [&](int64_t u, int64_t worker) {
      const int64_t end = smaller(count, (u + 1) * unit);
      for (int64_t begin = u * unit; begin < end;) {
        const Strip& strip = block.strips[tasks[begin].strip];
        const int64_t most = smaller(together, thread_maxima / padded(strip));
        int64_t behind = begin + 1;
        while (behind < end && behind - begin < most && tasks[behind].strip == tasks[begin].strip) ++behind;
        const Task* next = behind < count ? &tasks[behind] : nullptr;
        search(strip, {&tasks[begin], behind - begin, next}, workers_[worker]);
        for (int64_t i = begin; i < behind; ++i) finish(tasks[i], best_of(workers_[worker], strip, i - begin));
        begin = behind;
      }
    });
  }

 private:
  struct Worker {
    Buffer<F> value;
    Buffer<Place<F>> place;
    Buffer<F> rows; // a copy in the arithmetic type
    Buffer<F> sums{tile_rows * panel_width<F>};
  };
  // Tasks of one strip, and the one behind them.
  struct Together {
    const Task* tasks;
    int64_t count;
    const Task* next;
  };
  // Rows of a task's document.
  struct Part {
    DocumentRows<F> rows;
    int64_t task;
  };

  static int64_t padded(const Strip& strip) { return round_up(strip.columns, lanes<F>); }
  static Best<F> best_of(Worker& worker, const Strip& strip, int64_t task, int64_t column = 0) {
    const int64_t place = task * padded(strip) + column;
    return {worker.value + place, places ? worker.place + place : nullptr, worker.sums};
  }
  const T* document(int64_t item) const {
    return static_cast<const T*>(problem_.documents().features) + item * problem_.documents().rows * problem_.width;
  }

  void search(const Strip& strip, const Together& together, Worker& worker) {
    const int64_t columns = together.count * padded(strip), width = problem_.width;
    worker.value.resize(columns);
    for (int64_t c = 0; c < columns; ++c) worker.value[c] = -std::numeric_limits<F>::infinity();
    if constexpr (places) {
      worker.place.resize(columns);
      for (int64_t c = 0; c < columns; ++c) worker.place[c] = 0;
    }
    const int64_t most_rows = larger(tile_rows, together_bytes / int64_t(sizeof(F)) / width);
    Part parts[together_parts];
    int64_t count = 0, rows = 0;
    for (int64_t task = 0; task < together.count; ++task) {
      const int64_t all = problem_.documents().row_count(together.tasks[task].document);
      for (int64_t first = 0; first < all;) {
        const int64_t taken = smaller(all - first, most_rows - rows);
        parts[count++] = {rows_of(together, task, first, taken, rows, worker), task};
        first += taken, rows += taken;
        if (rows == most_rows || count == together_parts) {
          search_parts(strip, parts, count, worker);
          count = rows = 0;
        }
      }
    }
    if (count) search_parts(strip, parts, count, worker);
  }

  // Rows of a task's document where they lie, or copied behind `before` rows of others.
  DocumentRows<F> rows_of(const Together& together, int64_t task, int64_t first, int64_t count, int64_t before,
                          Worker& worker) const {
    const int64_t item = together.tasks[task].document, width = problem_.width;
    const T* features = document(item);
    if constexpr (in_place) {
      const Task* next = task + 1 < together.count ? &together.tasks[task + 1] : together.next;
      Following following;
      if (width * int64_t(sizeof(F)) < short_row_bytes)
        following = {reinterpret_cast<const char*>(features), reinterpret_cast<const char*>(document(next ? next->document : item)),
                     problem_.documents().row_count(item) * width * int64_t(sizeof(F))};
      return {features + first * width, width, count, first, following};
    } else {
      worker.rows.resize(larger(tile_rows, together_bytes / int64_t(sizeof(F)) / width) * width);
      F* copy = worker.rows + before * width;
      widen_run(copy, features + first * width, count * width);
      return {copy, width, count, first, {}};
    }
  }

  void search_parts(const Strip& strip, const Part* parts, int64_t count, Worker& worker) const {
    const Panels<F> panels(strip.columns);
    for_panels(panels, [&](int64_t p, auto vectors) {
      const int64_t begin = panels.begin(p);
      const F* panel = packed_ + (strip.first + begin) * problem_.width;
      for (int64_t i = 0; i < count; ++i)
        search_panel<vectors.count, places, F>(parts[i].rows, panel, problem_.width, best_of(worker, strip, parts[i].task, begin));
    });
  }

  const Problem& problem_;
  const Executor& executor_;
  Worker* workers_;
  Buffer<int64_t> rows_, first_row_; // of the block's strips: the queries' rows, and where each strip's begin
  Buffer<F> packed_;
};

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE
