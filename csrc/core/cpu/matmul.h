// Matrix products in which the order of every element's sum depends on k alone, whatever tile the element falls into. So its bits
// depend on its row and its column, never on the batch around it or on the number of threads.
//
// Element (r, k) of a left operand is at a[r * row + k * step]; right operands are panels of up to tile_vectors vectors, k-major. A
// matrix's columns are shared evenly among its panels, so that none does much for padding (for_panels).
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "core/cpu/simd.h"
#include "core/cpu/types.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

template <class F, int R, int V>
CAAN_INLINE void multiply_add(Vec<F> (&acc)[R][V], const F* a, int64_t row, int64_t step, const F* b, int64_t ldb, int64_t depth) {
#pragma GCC unroll 2
  for (int64_t k = 0; k < depth; ++k, a += step, b += ldb) {
    Vec<F> right[V];
    for (int c = 0; c < V; ++c) right[c] = load(b + c * lanes<F>);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < V; ++c) acc[r][c] += a[r * row] * right[c];
  }
}
// The same of a left operand stored k-major, (depth, lda).
template <class F, int R, int V>
CAAN_INLINE void multiply_add(Vec<F> (&acc)[R][V], const F* a, int64_t lda, const F* b, int64_t ldb, int64_t depth) {
  multiply_add<F>(acc, a, 1, lda, b, ldb, depth);
}

template <class F, int R, int V>
CAAN_INLINE void clear(Vec<F> (&acc)[R][V]) {
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < V; ++c) acc[r][c] = Vec<F>{};
}
template <class F, int R, int V>
CAAN_INLINE void store_tile(F* p, int64_t stride, const Vec<F> (&acc)[R][V]) {
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < V; ++c) store(p + r * stride + c * lanes<F>, acc[r][c]);
}

// Products over D and over rows are summed in chains of so many k, and the chains one after the other: a single chain of 1,024 lost
// up to nine times the precision of a library's product where an alignment is small and its column's norm divides by it.
inline constexpr int64_t chain_depth = 64;

// to (R, stride) = or += left right, chain by chain.
template <class F, int R, int V>
CAAN_INLINE void multiply_in_chains(F* to, int64_t stride, bool first, const F* a, int64_t row, int64_t step, const F* b,
                                    int64_t ldb, int64_t depth) {
  for (int64_t k = 0; k == 0 || k < depth; k += chain_depth) {
    Vec<F> acc[R][V];
    clear<F>(acc);
    const int64_t length = depth - k < chain_depth ? depth - k : chain_depth;
    multiply_add<F>(acc, a + k * step, row, step, b + k * ldb, ldb, length);
    if (!first || k > 0)
      for (int r = 0; r < R; ++r)
        for (int c = 0; c < V; ++c) acc[r][c] += load(to + r * stride + c * lanes<F>);
    store_tile<F>(to, stride, acc);
  }
}

template <int N>
struct Count {
  static constexpr int count = N;
};

// Calls body(first_row, Count<R>{}) over tiles that share the rows evenly: 14 rows are 5 + 5 + 4, not 6 + 6 + 2, which would leave
// the multiply-add pipes waiting on too few accumulators.
template <int R = tile_rows, class Body>
CAAN_INLINE void with_rows(int64_t rows, int64_t first, Body&& body) {
  if constexpr (R > 1) {
    if (rows < R) return with_rows<R - 1>(rows, first, static_cast<Body&&>(body));
  }
  body(first, Count<R>{});
}
template <int R = tile_rows, class Body>
CAAN_INLINE void for_row_tiles(int64_t rows, Body&& body) {
  const int64_t tiles = (rows + R - 1) / R;
  for (int64_t t = 0, first = 0; t < tiles; ++t) {
    const int64_t height = rows / tiles + (t < rows % tiles);
    with_rows<R>(height, first, body);
    first += height;
  }
}

CAAN_INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
CAAN_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
CAAN_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// How columns lie in panels. Panel p holds width(p) columns from begin(p) on, those behind the last column included.
template <class F>
struct Panels {
  int64_t vectors, count;
  explicit Panels(int64_t columns)
      : vectors((columns + lanes<F> - 1) / lanes<F>), count((vectors + tile_vectors - 1) / tile_vectors) {}
  int64_t begin(int64_t p) const { return (vectors / count * p + smaller(p, vectors % count)) * lanes<F>; }
  int64_t width(int64_t p) const { return (vectors / count + (p < vectors % count)) * lanes<F>; }
  int64_t columns() const { return vectors * lanes<F>; }
  // The panel that holds a column.
  int64_t of(int64_t column) const {
    const int64_t vector = column / lanes<F>, even = vectors / count, longer = vectors % count;
    return vector < longer * (even + 1) ? vector / (even + 1) : longer + (vector - longer * (even + 1)) / even;
  }
};

// Calls body(p, Count<V>{}) for a panel of V vectors.
template <class F, int V = tile_vectors, class Body>
CAAN_INLINE void with_panel(const Panels<F>& panels, int64_t p, Body&& body) {
  if constexpr (V > 1) {
    if (panels.width(p) < V * lanes<F>) return with_panel<F, V - 1>(panels, p, static_cast<Body&&>(body));
  }
  body(p, Count<V>{});
}
template <class F, class Body>
CAAN_INLINE void for_panels(const Panels<F>& panels, Body&& body) {
  for (int64_t p = 0; p < panels.count; ++p) with_panel<F>(panels, p, body);
}

// Memory for one call; filled with NaN under test so that a number read before it was written shows.
template <class E>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) { resize(count); }
  ~Buffer() { __builtin_free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Contents are lost where the buffer grows.
  void resize(int64_t count) {
    if (count <= capacity_) return;
    __builtin_free(data_);
    const size_t bytes = (size_t(count) * sizeof(E) + 127) / 64 * 64;
    data_ = static_cast<E*>(aligned_alloc(64, bytes));
    capacity_ = count;
    if (!data_) {
      capacity_ = 0;
      throw std::bad_alloc();
    }
#ifdef CAAN_POISON_WORKSPACE
    __builtin_memset(data_, 0xff, bytes);
#endif
  }
  E* data() { return data_; }
  const E* data() const { return data_; }
  E& operator[](int64_t i) { return data_[i]; }
  const E& operator[](int64_t i) const { return data_[i]; }
  operator E*() { return data_; }
  operator const E*() const { return data_; }

 private:
  E* data_ = nullptr;
  int64_t capacity_ = 0;
};

// Runs body(unit, worker) for every unit once. Threads take the next unit when they are done with one: which thread takes which
// differs from run to run, so units must not share what they write.
template <class Body>
void parallel_units(const Executor& executor, int64_t units, int64_t workers, Body&& body) {
  struct Shared {
    Body& body;
    int64_t units;
    int64_t next;
  } shared{body, units, 0};
  const auto work = [](void* context, int64_t worker) {
    auto& s = *static_cast<Shared*>(context);
    for (int64_t u; (u = __atomic_fetch_add(&s.next, 1, __ATOMIC_RELAXED)) < s.units;) s.body(u, worker);
  };
  workers = smaller(workers, units);
  if (workers <= 1)
    work(&shared, 0);
  else
    executor.run(workers, work, &shared);
}
template <class Body>
void parallel_units(const Executor& executor, int64_t units, Body&& body) {
  parallel_units(executor, units, executor.threads, body);
}

// Rows of a matrix in memory: row i starts at base + stride * (rows ? rows[i] : i).
template <class T>
struct RowView {
  const T* base;
  int64_t stride;
  const int64_t* rows;
  const T* row(int64_t i) const { return base + stride * (rows ? rows[i] : i); }
};

template <class F, class T>
CAAN_INLINE void widen_run(F* out, const T* in, int64_t count) {
  int64_t i = 0;
  for (; i + lanes<F> <= count; i += lanes<F>) store(out + i, load_wide(in + i));
  for (; i < count; ++i) out[i] = widen(in[i]);
}

// The same, and zeros behind them up to `padded` numbers.
template <class F, class T>
CAAN_INLINE void copy_padded(F* out, const T* in, int64_t count, int64_t padded) {
  widen_run(out, in, count);
  for (int64_t i = count; i < padded; ++i) out[i] = 0;
}

// One panel of V vectors of the right operand, columns [first, first + count) padded with 0, from a matrix whose rows are k.
template <int V = tile_vectors, class F, class T>
void pack_right(F* out, const RowView<T>& view, int64_t first, int64_t count, int64_t k0, int64_t depth) {
  constexpr int64_t W = V * lanes<F>;
  for (int64_t k = 0; k < depth; ++k) copy_padded(out + k * W, view.row(k0 + k) + first, smaller(count, W), W);
}
// The same from a matrix whose rows are the operand's columns.
template <int V = tile_vectors, class F, class T>
void pack_right_transposed(F* out, const RowView<T>& view, int64_t first, int64_t count, int64_t k0, int64_t depth) {
  constexpr int64_t W = V * lanes<F>;
  for (int64_t c = 0; c < W; ++c) {
    if (c < count) {
      const T* in = view.row(first + c) + k0;
      for (int64_t k = 0; k < depth; ++k) out[k * W + c] = widen(in[k]);
    } else {
      for (int64_t k = 0; k < depth; ++k) out[k * W + c] = F(0);
    }
  }
}

// A panel of the right operand stays in the first-level cache over this many k, a block of rows and columns in the second.
inline constexpr int64_t gemm_depth = 128;
inline constexpr int64_t gemm_rows = 384;
inline constexpr int64_t gemm_columns = 192;
static_assert(gemm_columns % panel_width<float> == 0 && gemm_columns % panel_width<double> == 0);
// Rows of a left block begin in different sets of the cache.
inline constexpr int64_t gemm_left_row = gemm_depth + 16;
// Numbers that a thread holds: both operands' blocks and the sums.
inline constexpr int64_t gemm_scratch = gemm_rows * gemm_left_row + gemm_columns * gemm_depth + gemm_rows * gemm_columns;

// Rows [first, first + count) and k in [k0, k0 + depth) of a left operand, gemm_left_row numbers a row.
template <class F, class T>
void pack_left_rows(F* out, const RowView<T>& view, int64_t first, int64_t count, int64_t k0, int64_t depth) {
  for (int64_t r = 0; r < count; ++r) widen_run(out + r * gemm_left_row, view.row(first + r) + k0, depth);
}
// The same from a matrix whose columns are the operand's rows, k-major: gemm_rows numbers a k.
template <class F, class T>
void pack_left_columns(F* out, const RowView<T>& view, int64_t first, int64_t count, int64_t k0, int64_t depth) {
  for (int64_t k = 0; k < depth; ++k) widen_run(out + k * gemm_rows, view.row(k0 + k) + first, count);
}

// Where a product's rows go, as in RowView.
template <class T>
struct RowsOut {
  T* base;
  int64_t stride;
  const int64_t* rows;
  T* row(int64_t i) const { return base + stride * (rows ? rows[i] : i); }
};

// out row i = sum over k of left(i, k) right(k, :). `left_transposed`: view rows are k; `right_transposed`: view rows are columns.
template <class T, bool left_transposed, bool right_transposed>
void gemm(RowView<T> left, RowView<T> right, int64_t rows, int64_t columns, int64_t depth, RowsOut<T> out,
          const Executor& executor) {
  using F = Real<T>;
  const int64_t row_blocks = (rows + gemm_rows - 1) / gemm_rows;
  const int64_t column_blocks = (columns + gemm_columns - 1) / gemm_columns;
  const int64_t workers = smaller(executor.threads, row_blocks * column_blocks);
  constexpr int64_t left_size = gemm_rows * gemm_left_row, right_size = gemm_columns * gemm_depth;
  // A left block is stored as its matrix is.
  constexpr int64_t row = left_transposed ? 1 : gemm_left_row, step = left_transposed ? gemm_rows : 1;
  Buffer<F> scratch(larger(workers, 1) * gemm_scratch);
  parallel_units(executor, row_blocks * column_blocks, workers, [&](int64_t unit, int64_t worker) {
    F* packed_left = scratch + worker * gemm_scratch;
    F* packed_right = packed_left + left_size;
    F* sums = packed_right + right_size;
    const int64_t row0 = unit / column_blocks * gemm_rows, block_rows = smaller(gemm_rows, rows - row0);
    const int64_t column0 = unit % column_blocks * gemm_columns, block_columns = smaller(gemm_columns, columns - column0);
    const Panels<F> panels(block_columns);
    for (int64_t k0 = 0; k0 == 0 || k0 < depth; k0 += gemm_depth) {
      const int64_t block_depth = smaller(gemm_depth, depth - k0);
      for_panels(panels, [&](int64_t p, auto vectors) {
        const int64_t begin = panels.begin(p), first = column0 + begin, count = block_columns - begin;
        if constexpr (right_transposed)
          pack_right_transposed<vectors.count>(packed_right + begin * block_depth, right, first, count, k0, block_depth);
        else
          pack_right<vectors.count>(packed_right + begin * block_depth, right, first, count, k0, block_depth);
      });
      if constexpr (left_transposed)
        pack_left_columns(packed_left, left, row0, block_rows, k0, block_depth);
      else
        pack_left_rows(packed_left, left, row0, block_rows, k0, block_depth);
      for_panels(panels, [&](int64_t p, auto vectors) {
        const int64_t begin = panels.begin(p);
        for_row_tiles(block_rows, [&](int64_t r0, auto height) {
          multiply_in_chains<F, height.count, vectors.count>(sums + r0 * gemm_columns + begin, gemm_columns, k0 == 0,
                                                             packed_left + r0 * row, row, step, packed_right + begin * block_depth,
                                                             vectors.count * lanes<F>, block_depth);
        });
      });
    }
    for (int64_t r = 0; r < block_rows; ++r) {
      T* to = out.row(row0 + r) + column0;
      for (int64_t c = 0; c < block_columns; ++c) to[c] = narrow<T>(sums[r * gemm_columns + c]);
    }
  });
}

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE
