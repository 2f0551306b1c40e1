// Products of float32 numbers on tensor cores: a number is a sum of bfloat16 numbers, its parts, each of which rounds what those
// before it leave. Of products of parts, those below the last part's own rounding are left out.
#pragma once

#include "context_attention/cuda/block.h"
#include "core/cuda/pieces.h"

namespace caan::context_attention {

// Rows of 64 columns in shared memory, one part of all after another.
template <int PARTS>
struct Piece {
  char* base;
  int part_bytes;

  static CAAN_BOTH int bytes(int strips) { return PARTS * strips * STRIP * PIECE_BYTES; }
  CAAN_DEVICE Piece(char* base, int strips) : base(base), part_bytes(strips * STRIP * PIECE_BYTES) {}
  CAAN_DEVICE char* part(int i) const { return base + i * part_bytes; }
};

// What a product of 16 rows and 16 columns leaves in a lane: two of 8 columns.
using Cells = float[2][4];

template <int LEFT, int RIGHT>
CAAN_DEVICE void multiply_parts(Cells& sums, const uint32_t (&left)[LEFT][4], const uint32_t (&right)[RIGHT][4]) {
  constexpr int MOST = LEFT > RIGHT ? LEFT : RIGHT;
#pragma unroll
  for (int l = 0; l < LEFT; ++l)
#pragma unroll
    for (int r = 0; r < RIGHT; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        if (l + r < MOST) multiply_add(sums[half], left[l], right[r][2 * half], right[r][2 * half + 1], bfloat16{});
}

// sums += left[16 i + row] . right[16 j + column] over the pieces' columns.
template <int LEFT, int RIGHT>
CAAN_DEVICE void add_row_products(Cells& sums, const Piece<LEFT>& left, int i, const Piece<RIGHT>& right, int j) {
#pragma unroll 1
  for (int k = 0; k < PIECE / STRIP; ++k) {
    uint32_t of_rows[LEFT][4], of_columns[RIGHT][4];
#pragma unroll
    for (int part = 0; part < LEFT; ++part) left_rows(of_rows[part], left.part(part), i, k);
#pragma unroll
    for (int part = 0; part < RIGHT; ++part) right_rows(of_columns[part], right.part(part), j, k);
    multiply_parts(sums, of_rows, of_columns);
  }
}

template <typename T>
struct alignas(16) Eight {
  T of[8];
};

// Of `rows` rows from `from`, which has `columns` columns, the warp's 16 of 64 columns from `first`; zeros beyond both, up to whole
// strips. By one warp.
template <typename T>
CAAN_DEVICE void load_features(const Piece<Parts<T>::OF_FEATURES>& piece, const T* from, int64_t stride, int rows, int first,
                               int columns) {
  constexpr int PARTS = Parts<T>::OF_FEATURES;
  const int lane = lane_of_thread(), unit = 2 * warp_of_thread() + lane % 2, column = first + 8 * unit;
  const bool copied = column + 8 <= columns && (reinterpret_cast<uintptr_t>(from) | uintptr_t(stride * sizeof(T))) % 16 == 0;
#pragma unroll 1
  for (int r = lane / 2; r < strips_of(rows) * STRIP; r += STRIP) {
    Eight<T> x{};
    const T* const row = from + r * stride + column;
    if (r < rows && copied)
      x = *reinterpret_cast<const Eight<T>*>(row);
    else if (r < rows)
#pragma unroll
      for (int i = 0; i < 8; ++i)
        if (column + i < columns) x.of[i] = row[i];
    if constexpr (PARTS == 1) {
      *reinterpret_cast<Eight<T>*>(piece.base + unit_offset(r, unit)) = x;
    } else {
      uint32_t of[4][PARTS];
#pragma unroll
      for (int i = 0; i < 4; ++i) split(of[i], to_float(x.of[2 * i]), to_float(x.of[2 * i + 1]));
#pragma unroll
      for (int part = 0; part < PARTS; ++part)
        *reinterpret_cast<uint4*>(piece.part(part) + unit_offset(r, unit)) = {of[0][part], of[1][part], of[2][part], of[3][part]};
    }
  }
}

// each(row of the strip, column of the piece, number) of a lane's sums of the warp's 16 columns.
template <typename Each>
CAAN_DEVICE void for_each(Cells& sums, Each each) {
  const int lane = lane_of_thread(), row = lane / 4, column = STRIP * warp_of_thread() + 2 * (lane % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int i = 0; i < 4; ++i) each(row + 8 * (i / 2), column + 8 * half + i % 2, sums[half][i]);
}

// Sums of the warp's columns become rows 16 i to 16 i + 15 of a piece.
template <int PARTS>
CAAN_DEVICE void store_cells(const Piece<PARTS>& piece, int i, const Cells& sums) {
  const int lane = lane_of_thread(), row = STRIP * i + lane / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half)
#pragma unroll
    for (int below = 0; below < 2; ++below) {
      uint32_t of[PARTS];
      split(of, sums[half][2 * below], sums[half][2 * below + 1]);
      const int offset = unit_offset(row + 8 * below, 2 * warp_of_thread() + half) + 4 * (lane % 4);
#pragma unroll
      for (int part = 0; part < PARTS; ++part) *reinterpret_cast<uint32_t*>(piece.part(part) + offset) = of[part];
    }
}

} // namespace caan::context_attention
