// Products of 16 by 16 numbers on tensor cores for every type: half precision as it is, float32 as three products of TF32.
//
// A number of float32 is the sum of two that TF32 holds, up to 2^-23 of it. Of the four products of two such sums the smallest is
// left out, 2^-22 at most. Tensor cores cut their sums off, so that one over 16 of the depth stands alone, its small products
// first, and is added to the others in float32 arithmetic.
#pragma once

#include "core/cuda/pieces.h"

namespace caan::cuda {

// A lane's part of a left factor: rows lane / 4 and that + 8, columns 2 (lane % 4) and the next, both tiles of 8 columns. In
// float32 of[4 t + i] is row 8 (i % 2) and column i / 2 of tile t. A factor that comes from pieces along the depth has columns lane
// % 4 and that + 4 instead: both factors of a product are of one kind.
template <typename T>
struct alignas(16) Left {
  uint32_t of[4];
};
template <>
struct alignas(16) Left<float> {
  float of[8];
};

// The same of a right factor, whose columns are the rows; of two tiles of 8 columns, one after the other.
template <typename T>
struct Right {
  uint32_t of[4];
};
// of[4 tile + 2 t + i]
template <>
struct Right<float> {
  float of[8];
};

// What TF32 holds of a number, to nearest, and the rest. Of an infinite number, and of NaN, one of them is NaN.
struct Split {
  uint32_t big, small;

  CAAN_DEVICE explicit Split(float x) : big((bits_of(x) + 0x1000) & 0xffffe000), small(bits_of(x - from_bits(big))) {}
};

// sums += left right, of both tiles of columns.
template <typename T>
CAAN_DEVICE void multiply_add(float (&sums)[2][4], const Left<T>& left, const Right<T>& right) {
  multiply_add(sums[0], left.of, right.of[0], right.of[1], T{});
  multiply_add(sums[1], left.of, right.of[2], right.of[3], T{});
}
CAAN_DEVICE void multiply_add(float (&sums)[2][4], const Left<float>& left, const Right<float>& right) {
  float chain[2][4] = {};
  uint32_t big[2][4], small[2][4];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const Split x(left.of[i]);
    big[i / 4][i % 4] = x.big, small[i / 4][i % 4] = x.small;
  }
#pragma unroll
  for (int t = 0; t < 2; ++t)
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const Split x(right.of[4 * tile + 2 * t]), y(right.of[4 * tile + 2 * t + 1]);
      multiply_add(chain[tile], small[t], x.big, y.big, float{});
      multiply_add(chain[tile], big[t], x.small, y.small, float{});
    }
#pragma unroll
  for (int t = 0; t < 2; ++t)
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      const Split x(right.of[4 * tile + 2 * t]), y(right.of[4 * tile + 2 * t + 1]);
      multiply_add(chain[tile], big[t], x.big, y.big, float{});
    }
#pragma unroll
  for (int tile = 0; tile < 2; ++tile)
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[tile][e] += chain[tile][e];
}

// A left factor of what a product leaves: number(t, e) of tile t, where e / 2 is 1 for 8 rows on, e % 2 for the next column.
template <typename T, typename Number>
CAAN_DEVICE Left<T> left_of(Number number) {
  Left<T> left;
  if constexpr (sizeof(T) == 4)
#pragma unroll
    for (int i = 0; i < 8; ++i) left.of[i] = number(i / 4, i % 2 * 2 + i % 4 / 2);
  else
#pragma unroll
    for (int i = 0; i < 4; ++i) left.of[i] = pack(number(i / 2, i % 2 * 2), number(i / 2, i % 2 * 2 + 1), T{});
  return left;
}

// Its transpose, to where the lanes' parts lie.
template <typename T, typename Number>
CAAN_DEVICE void store_transposed(Left<T>* to, Number number) {
  const int lane = int(threadIdx.x) % WARP, row = lane / 4, column = 2 * (lane % 4);
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
      for (int e = 0; e < 4; ++e) to[4 * (column + e % 2) + row / 2].of[e / 2 * 4 + row % 2 * 2 + t] = number(t, e);
  } else {
    const Left<T> left = left_of<T>(number);
    Left<T> turned;
#pragma unroll
    for (int i = 0; i < 4; ++i) turned.of[i % 2 * 2 + i / 2] = transpose_matrix(left.of[i]);
    to[lane] = turned;
  }
}

// The transpose of a left factor as a right one.
template <typename T>
CAAN_DEVICE Right<T> right_of(const Left<T>& left) {
  if constexpr (sizeof(T) == 4) {
    Right<T> right;
#pragma unroll
    for (int i = 0; i < 8; ++i) right.of[i] = left.of[i / 2 % 2 * 4 + i % 2 * 2 + i / 4];
    return right;
  } else {
    return {{left.of[0], left.of[2], left.of[1], left.of[3]}};
  }
}

// Factors of rows 16 r to 16 r + 15 and columns 16 k to 16 k + 15 of a piece.
//
// left[row, column], along the depth.
template <typename T>
CAAN_DEVICE Left<T> left_rows(const char* piece, int r, int k) {
  Left<T> left;
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      uint32_t parts[4];
      left_rows(parts, piece, r, 2 * k + t);
#pragma unroll
      for (int i = 0; i < 4; ++i) left.of[4 * t + i] = from_bits(parts[i]);
    }
  } else {
    left_rows(left.of, piece, r, k);
  }
  return left;
}
// right[column, row], along the depth.
template <typename T>
CAAN_DEVICE Right<T> right_rows(const char* piece, int r, int k) {
  Right<T> right;
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      uint32_t parts[4];
      right_rows(parts, piece, r, 2 * k + t);
#pragma unroll
      for (int i = 0; i < 4; ++i) right.of[i / 2 * 4 + 2 * t + i % 2] = from_bits(parts[i]);
    }
  } else {
    right_rows(right.of, piece, r, k);
  }
  return right;
}
// right[row, column]. Those of the two tiles take turns in float32, which brings two numbers at a time: `column_of`.
template <typename T>
CAAN_DEVICE Right<T> right_columns(const char* piece, int r, int k) {
  Right<T> right;
  if constexpr (sizeof(T) == 4) {
    // Of a piece's rows the lowest bits decide where a unit lies, and here 0 and 1 for `i` and `k` change single bits of it.
    const int lane = int(threadIdx.x) % WARP, own = unit_offset(2 * (lane % 4), lane / 8) + lane / 4 % 2 * 8;
#pragma unroll
    for (int t = 0; t < 2; ++t)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int offset = (own ^ ((4 * k + i) << 4)) + (16 * r + 8 * t + i) * PIECE_BYTES;
        const auto both = *reinterpret_cast<const float2*>(piece + offset);
        right.of[2 * t + i] = both.x, right.of[4 + 2 * t + i] = both.y;
      }
  } else {
    right_columns(right.of, piece, r, k);
  }
  return right;
}

// Which of 16 columns of `right_columns` a product's sums are of: sums[t][e].
template <typename T>
CAAN_DEVICE int column_of(int t, int e) {
  const int column = int(threadIdx.x) % 4 * 2 + e % 2;
  return sizeof(T) == 4 ? 2 * column + t : 8 * t + column;
}

// A row of 16 such sums, those of e / 2 = `half`, to where `right_columns` finds them: row 8 half + lane / 4 of rows from 16 r and
// columns from 16 k of a piece.
template <typename T>
CAAN_DEVICE void store_sums(char* piece, int r, int k, int half, const float (&sums)[2][4]) {
  const int lane = int(threadIdx.x) % WARP, e = 2 * half;
  // Eight rows on, units lie as they do here.
  char* const rows = piece + (16 * r + 8 * half) * PIECE_BYTES;
  if constexpr (sizeof(T) == 4)
    *reinterpret_cast<float4*>(rows + unit_offset(lane / 4, 4 * k + lane % 4)) = {sums[0][e], sums[1][e], sums[0][e + 1],
                                                                                  sums[1][e + 1]};
  else
#pragma unroll
    for (int t = 0; t < 2; ++t)
      *reinterpret_cast<uint32_t*>(rows + unit_offset(lane / 4, 2 * k + t) + lane % 4 * 4) = pack(sums[t][e], sums[t][e + 1], T{});
}

} // namespace caan::cuda
