// What a block of tiles.cu has in float32: its shape, and rows as parts in shared memory.
//
// A number is the sum of three bfloat16 numbers, its parts, made when it comes to shared memory. A product is six of parts: what is
// left out is 2^-25 of it at most.
#pragma once

#include "context_attention/cuda/tiles.h"

namespace caan::context_attention {

// Up to 40 regions and 16 words, a warp with one pair: of more the parts would not fit in registers. What it shares with `Shape`
// means the same here.
template <bool LISTED_>
struct FloatShape {
  static constexpr bool LISTED = LISTED_, BOTH = false;
  static constexpr int TILES = 5, DEPTHS = (TILES + 1) / 2, REGIONS = 16 * DEPTHS, STRIPS = 1, WORDS = 16 * STRIPS, PAIRS = 1,
                       HELD = STRIPS, AT_ONCE = 1;
  static constexpr int IMAGES = 2, BESIDE = LISTED ? 1 : 4, CAPTIONS = LISTED ? IMAGES : BESIDE;
  static constexpr int WARPS = IMAGES * BESIDE, THREADS = WARPS * WARP, BLOCKS = LISTED ? 2 : 1;
  static constexpr int REGION_ROWS = IMAGES * REGIONS, WORD_ROWS = CAPTIONS * WORDS;
  // Columns of a piece. Two parts of them are a row of 128 bytes, and the third of two rows another.
  static constexpr int COLUMNS = 32, ROW_BYTES = PIECE_BYTES * 3 / 2;
  static constexpr int PRODUCT_ROWS = REGION_ROWS + 2 * WORD_ROWS, CONTEXT_ROWS = REGION_ROWS + WORD_ROWS;
  static constexpr int PRODUCT_BYTES = PRODUCT_ROWS * ROW_BYTES, WEIGHTS_AT = CONTEXT_ROWS * ROW_BYTES;
  static constexpr int CONTEXT_BYTES = WEIGHTS_AT + COLUMNS * int(sizeof(float));
  // Rows come through registers: AHEAD, a piece waits there while the one before is worked on, and is written to the other of two
  // stages. A block of a list has few threads, whose registers would not do; several of them share a multiprocessor.
  static constexpr bool AHEAD = !LISTED;
  static constexpr int STAGES = AHEAD ? 2 : 1, AFTER_BYTES = STAGES * CONTEXT_BYTES / 2;
  static constexpr int CELLS = STRIPS * TILES, PARKED = CELLS;
  static constexpr int SUMS_ROW = 8 * TILES, SUMS_BYTES = LISTED ? 0 : IMAGES * WORD_ROWS * SUMS_ROW * int(sizeof(float));
  static constexpr int OF_CONTEXTS = 2 * AFTER_BYTES + PARKED * 16 * THREADS;
  static constexpr int ITEMS_AT = STAGES * PRODUCT_BYTES > OF_CONTEXTS ? STAGES * PRODUCT_BYTES : OF_CONTEXTS;
  static_assert(SUMS_BYTES <= ITEMS_AT);
};

// Where a lane's row of a 16 x 16 part of third parts lies, as `down_rows` and `along_columns` of the others.
CAAN_DEVICE int third_down_rows(int r, int k) {
  const int lane = int(threadIdx.x % WARP);
  return 8 * r * PIECE_BYTES + (unit_offset(lane % 8, lane / 8 % 2 * 4 + lane / 16) ^ (k << 5));
}
CAAN_DEVICE int third_along_columns(int r, int k) {
  const int lane = int(threadIdx.x % WARP);
  return 8 * r * PIECE_BYTES + (unit_offset(lane % 8, lane / 16 * 4 + lane / 8 % 2) ^ (k << 5));
}

// Rows of a stage: two parts, and the third.
struct Section {
  char *both, *third;
};

// Factors of all parts, of rows 16 r to 16 r + 15 and columns 16 k to 16 k + 15.
using FactorParts = uint32_t[3][4];
// left[row, column]
CAAN_DEVICE void left_parts(FactorParts& parts, const Section& from, int r, int k) {
  left_rows(parts[0], from.both, r, k);
  left_rows(parts[1], from.both, r, 2 + k);
  load_matrices<false>(parts[2], from.third + third_down_rows(r, k));
}
// right[column, row]
CAAN_DEVICE void right_parts(FactorParts& parts, const Section& from, int r, int k) {
  right_rows(parts[0], from.both, r, k);
  right_rows(parts[1], from.both, r, 2 + k);
  load_matrices<false>(parts[2], from.third + third_along_columns(r, k));
}
// left[column, row]
CAAN_DEVICE void turned_parts(FactorParts& parts, const Section& from, int r, int k) {
  left_columns(parts[0], from.both, r, k);
  left_columns(parts[1], from.both, r, 2 + k);
  load_matrices<true>(parts[2], from.third + third_along_columns(r, k));
}

// multiply(term, left part, right part) for the products of so many terms, those that are small first. Terms take turns, since a
// product waits for the one before it in its sum.
template <int TERMS, typename Multiply>
CAAN_DEVICE void each_product(Multiply multiply) {
#pragma unroll
  for (int last = 2; last >= 0; --last)
#pragma unroll
    for (int l = 0; l <= last; ++l)
#pragma unroll
      for (int term = 0; term < TERMS; ++term) multiply(term, l, last - l);
}

// COUNT rows on their way to shared memory, a piece's columns at a time: a thread has 8 of every STEP-th row. Four threads write a
// row's parts, and the next four those of the row four on, which lie in the other half of the banks. AHEAD: a piece waits in
// registers while the one before is worked on.
template <int COUNT, int THREADS, bool AHEAD>
struct ComingRows {
  static constexpr int STEP = THREADS / 4, STEPS = (COUNT + STEP - 1) / STEP;
  const uint32_t* rows;
  const float* from;
  uint32_t stride;
  int width;
  float4 of[STEPS][2] = {};

  static CAAN_DEVICE int row(int step) {
    const int t = int(threadIdx.x);
    return step * STEP + t / 32 * 8 + t / 8 % 4 + t / 4 % 2 * 4;
  }

  // Before the piece that begins at a column is stored.
  CAAN_DEVICE void announce(int column) {
    if (AHEAD) load(column);
  }
  CAAN_DEVICE void store(int column, const Section& to) {
    if (!AHEAD) load(column);
    store(to);
  }

 private:
  // Zeros where there is no row or column, and nothing is read there.
  CAAN_DEVICE void load(int column) {
    column += int(threadIdx.x % 4) * 8;
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      const int r = row(i);
      const uint32_t found = r < COUNT ? rows[r] : NO_ROW;
      const float* const begin = from + uint64_t(found) * stride + column;
#pragma unroll
      for (int half = 0; half < 2; ++half)
        of[i][half] = found != NO_ROW && column + 4 * half < width ? reinterpret_cast<const float4*>(begin)[half] : float4{};
    }
  }

  CAAN_DEVICE void store(const Section& to) const {
    const int unit = int(threadIdx.x % 4);
#pragma unroll
    for (int i = 0; i < STEPS; ++i) {
      const int r = row(i);
      if (r >= COUNT) break;
      uint32_t parts[4][3];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        split(parts[2 * half], of[i][half].x, of[i][half].y);
        split(parts[2 * half + 1], of[i][half].z, of[i][half].w);
      }
      char* const places[] = {to.both + unit_offset(r, unit), to.both + unit_offset(r, 4 + unit),
                              to.third + r / 16 * 8 * PIECE_BYTES + unit_offset(r % 8, r / 8 % 2 * 4 + unit)};
#pragma unroll
      for (int part = 0; part < 3; ++part)
        *reinterpret_cast<uint4*>(places[part]) = {parts[0][part], parts[1][part], parts[2][part], parts[3][part]};
    }
  }
};

} // namespace caan::context_attention
