// Pieces, 128 bytes of ragged rows in shared memory, 64 columns in half precision: how copies bring them, and the factors that
// tensor cores take from them.
#pragma once

#include "core/cuda/device.h"

namespace caan::cuda {

constexpr uint32_t NO_ROW = 0xffffffff;

// Rows that follow each other, as `fetch_rows` takes them.
struct Consecutive {
  uint32_t first;
  int count;

  CAAN_DEVICE uint32_t operator[](int r) const { return r < count ? first + uint32_t(r) : NO_ROW; }
};

// A piece's columns from `column` of COUNT rows of `from`, which has `width` columns; row r of the piece is row rows[r]. Zeros
// where there is no row or column, and nothing is read there. By THREADS threads.
template <int COUNT, int THREADS, typename Rows, typename T>
CAAN_DEVICE void fetch_rows(char* piece, const Rows& rows, const T* from, uint32_t stride, int column, int width) {
  constexpr int STEP = THREADS / 8;
  const int first = int(threadIdx.x) / 8, unit = int(threadIdx.x) % 8;
  column += UNIT_COLUMNS<T> * unit;
  // More at once would spill in tiles of 64 regions on sm_80.
#pragma unroll 2
  for (int begin = 0; begin < COUNT; begin += STEP) {
    if (begin + STEP > COUNT && begin + first >= COUNT) break;
    const uint32_t row = rows[begin + first];
    const bool exists = row != NO_ROW && column < width;
    copy_16_bytes(piece + unit_offset(begin + first, unit), from + (exists ? uint64_t(row) * stride + column : 0), exists);
  }
}

// Factors of `multiply_add` from rows 16 r to 16 r + 15 and columns 16 k to 16 k + 15 of a piece that begins at a multiple of 8
// rows. A right factor is two of 8 columns: parts 0 and 1, parts 2 and 3.
//
// left[row, column]
CAAN_DEVICE void left_rows(uint32_t (&parts)[4], const char* piece, int r, int k) {
  const int lane = int(threadIdx.x) % WARP;
  load_matrices<false>(parts, piece + unit_offset(16 * r + lane % 8 + lane / 8 % 2 * 8, 2 * k + lane / 16));
}
// left[column, row]
CAAN_DEVICE void left_columns(uint32_t (&parts)[4], const char* piece, int r, int k) {
  const int lane = int(threadIdx.x) % WARP;
  load_matrices<true>(parts, piece + unit_offset(16 * r + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
}
// right[column, row]
CAAN_DEVICE void right_rows(uint32_t (&parts)[4], const char* piece, int r, int k) {
  const int lane = int(threadIdx.x) % WARP;
  load_matrices<false>(parts, piece + unit_offset(16 * r + lane % 8 + lane / 16 * 8, 2 * k + lane / 8 % 2));
}
// right[row, column]
CAAN_DEVICE void right_columns(uint32_t (&parts)[4], const char* piece, int r, int k) {
  const int lane = int(threadIdx.x) % WARP;
  load_matrices<true>(parts, piece + unit_offset(16 * r + lane % 8 + lane / 8 % 2 * 8, 2 * k + lane / 16));
}

// What `multiply_add` leaves in a lane are rows lane / 4 and that + 8, columns 2 (lane % 4) and the next: sums over what lanes
// hold of one column, and of one row.
CAAN_DEVICE float sum_over_rows(float x) {
  for (int mask = 4; mask < WARP; mask *= 2) x += shuffle_xor(x, mask);
  return x;
}
CAAN_DEVICE float sum_over_columns(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}
CAAN_DEVICE float highest_of_columns(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}

} // namespace caan::cuda
