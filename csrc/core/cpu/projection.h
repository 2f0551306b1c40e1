// What an item gives to every pair it takes part in, computed once for the rows that exist.
#pragma once

#include <cstdint>

#include "core/cpu/matmul.h"
#include "core/cpu/types.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

inline int64_t row_count(const Projection& p, int64_t item) { return p.lengths ? p.lengths[item] : p.length; }

// Indices of the rows that exist; the other rows of the matrices are given to absent(row).
template <class Absent>
int64_t split_rows(const Projection& p, Buffer<int64_t>& rows, Absent absent) {
  int64_t total = 0;
  for (int64_t b = 0; b < p.batch; ++b) total += row_count(p, b);
  rows.resize(total);
  int64_t next = 0;
  for (int64_t b = 0; b < p.batch; ++b)
    for (int64_t r = 0; r < p.length; ++r) {
      if (r < row_count(p, b))
        rows[next++] = b * p.length + r;
      else
        absent(b * p.length + r);
    }
  return total;
}

template <class T>
void clear_row(T* out, int64_t row, int64_t columns) {
  for (int64_t c = 0; c < columns; ++c) out[row * columns + c] = T{};
}

template <class T>
void project(const Projection& p, void* out, const Executor& executor) {
  T* to = static_cast<T*>(out);
  Buffer<int64_t> rows;
  const int64_t count = split_rows(p, rows, [&](int64_t row) { clear_row(to, row, p.columns); });
  gemm<T, false, false>({static_cast<const T*>(p.items), p.width, rows}, {static_cast<const T*>(p.weight), p.columns, nullptr},
                        count, p.columns, p.width, {to, p.columns, rows}, executor);
}

template <class T>
void project_backward(const Projection& p, const void* grad, void* grad_items, void* grad_weight, const Executor& executor) {
  T* items = static_cast<T*>(grad_items);
  Buffer<int64_t> rows;
  const int64_t count = split_rows(p, rows, [&](int64_t row) {
    if (items) clear_row(items, row, p.width);
  });
  const RowView<T> grad_rows{static_cast<const T*>(grad), p.columns, rows};
  if (items)
    gemm<T, false, true>(grad_rows, {static_cast<const T*>(p.weight), p.columns, nullptr}, count, p.width, p.columns,
                         {items, p.width, rows}, executor);
  if (grad_weight)
    gemm<T, true, false>({static_cast<const T*>(p.items), p.width, rows}, grad_rows, p.width, p.columns, count,
                         {static_cast<T*>(grad_weight), p.columns, nullptr}, executor);
}

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE
