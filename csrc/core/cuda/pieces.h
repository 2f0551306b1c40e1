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

// The rows of a piece that a thread copies, found once where pieces of several widths have the same rows.
template <int COUNT, int THREADS>
struct CopiedRows {
  static constexpr int STEP = THREADS / 8, STEPS = (COUNT + STEP - 1) / STEP;
  static_assert(STEP % 8 == 0 && STEPS <= 32);
  uint32_t rows[STEPS], existing = 0;

  CAAN_DEVICE explicit CopiedRows(const uint32_t* all) {
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      const int r = i * STEP + int(threadIdx.x / 8);
      const uint32_t row = r < COUNT ? all[r] : NO_ROW;
      rows[i] = row == NO_ROW ? 0 : row;
      existing |= uint32_t(row != NO_ROW) << i;
    }
  }
};

// As above, of such rows.
template <int COUNT, int THREADS, typename T>
CAAN_DEVICE void fetch_rows(char* piece, const CopiedRows<COUNT, THREADS>& copied, const T* from, uint32_t stride, int column,
                            int width) {
  using Copied = CopiedRows<COUNT, THREADS>;
  const int first = int(threadIdx.x / 8), unit = int(threadIdx.x % 8);
  column += 8 * unit;
  const uint32_t existing = column < width ? copied.existing : 0;
  const char* const begin = reinterpret_cast<const char*>(from + (column < width ? column : 0));
  char* const to = piece + unit_offset(first, unit);
#pragma unroll
  for (int i = 0; i < Copied::STEPS; ++i) {
    if ((i + 1) * Copied::STEP > COUNT && i * Copied::STEP + first >= COUNT) break;
    copy_16_bytes(to + i * Copied::STEP * PIECE_BYTES, begin + uint64_t(copied.rows[i]) * (stride * uint32_t(sizeof(T))),
                  existing >> i & 1);
  }
}

// Where a lane's row of a 16 x 16 part of a piece lies, from rows 16 r and columns 16 k on, in either of two orders of the part's
// 8 x 8 matrices: down its rows first, or along its columns. k alone changes the place by more than a constant.
CAAN_DEVICE int down_rows(int r, int k) {
  const int lane = int(threadIdx.x % WARP);
  return 16 * r * PIECE_BYTES + (unit_offset(lane % 16, lane / 16) ^ (k << 5));
}
CAAN_DEVICE int along_columns(int r, int k) {
  const int lane = int(threadIdx.x % WARP);
  return 16 * r * PIECE_BYTES + (unit_offset(lane % 8 + lane / 16 * 8, lane / 8 % 2) ^ (k << 5));
}

// Factors of `multiply_add` from rows 16 r to 16 r + 15 and columns 16 k to 16 k + 15 of a piece that begins at a multiple of 8
// rows. A right factor is two of 8 columns: parts 0 and 1, parts 2 and 3. Two parts are of the first 8 rows alone.
//
// left[row, column]
CAAN_DEVICE void left_rows(uint32_t (&parts)[4], const char* piece, int r, int k) {
  load_matrices<false>(parts, piece + down_rows(r, k));
}
// left[column, row]
template <int PARTS>
CAAN_DEVICE void left_columns(uint32_t (&parts)[PARTS], const char* piece, int r, int k) {
  load_matrices<true>(parts, piece + along_columns(r, k));
}
// right[column, row]
template <int PARTS>
CAAN_DEVICE void right_rows(uint32_t (&parts)[PARTS], const char* piece, int r, int k) {
  load_matrices<false>(parts, piece + along_columns(r, k));
}
// right[row, column]
CAAN_DEVICE void right_columns(uint32_t (&parts)[4], const char* piece, int r, int k) {
  load_matrices<true>(parts, piece + down_rows(r, k));
}

// Two numbers as sums of bfloat16 numbers, each of which rounds what those before it leave: parts[i] has the i-th of both.
template <int PARTS>
CAAN_DEVICE void split(uint32_t (&parts)[PARTS], float first, float second) {
#pragma unroll
  for (int i = 0; i < PARTS; ++i) {
    parts[i] = pack(first, second, bfloat16{});
    first -= first_of<bfloat16>(parts[i]);
    second -= second_of<bfloat16>(parts[i]);
  }
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
