// product = left right, for projections.
//
// Half precision: 128 x 128 a block by tensor cores, 64 x 32 a warp in registers. 64 of the depth at a time come into shared memory
// by asynchronous copies, a piece ahead, as they lie: `left` along the depth, `right` across it, which ldmatrix turns over on the
// way to registers.
//
// float32, and what cannot be copied 16 bytes at a time: 64 x 64 a block, 4 x 4 a thread. Products are fused multiply-adds in
// chains of 64, and a chain's sum joins the others as one number: a small alignment is a difference of large terms, and where it
// stands alone its relative error goes to the gradients.
#include "core/cuda/product.h"

#include "core/cuda/pieces.h"

namespace caan::cuda {

namespace {

constexpr int TILE = 64, DEPTH = 16, CHAIN = 64, SIDE = 4, GRID = TILE / SIDE, BLOCK = GRID * GRID;
constexpr int TILE_ROW = TILE + 4;

template <typename T>
CAAN_DEVICE bool exists(const Product<T>& p, int64_t row) {
  return row % p.item_rows < p.lengths[row / p.item_rows];
}

template <typename T>
CAAN_KERNEL void CAAN_BOUNDS(BLOCK, 2) product_kernel(Product<T> p) {
  CAAN_SHARED;
  auto* left = reinterpret_cast<float*>(shared_memory);
  float* right = left + DEPTH * TILE_ROW;
  const int64_t column_tiles = (p.columns + TILE - 1) / TILE;
  const int64_t row0 = blockIdx.x / column_tiles * TILE, column0 = blockIdx.x % column_tiles * TILE;
  const int t = int(threadIdx.x), x = t % GRID, y = t / GRID;
  float chain[SIDE][SIDE] = {}, sums[SIDE][SIDE] = {};
  for (int64_t k0 = 0; k0 < p.depth; k0 += DEPTH) {
    for (int i = t; i < TILE * DEPTH; i += BLOCK) {
      // Threads run along whichever dimension lies one by one in memory.
      const bool deep = p.left_column == 1;
      const int r = deep ? i / DEPTH : i % TILE, k = deep ? i % DEPTH : i / TILE;
      const int64_t row = row0 + r, depth = k0 + k;
      const bool real = row < p.rows && depth < p.depth && exists(p, row);
      left[k * TILE_ROW + r] = real ? to_float(p.left[row * p.left_row + depth * p.left_column]) : 0.0f;
    }
    for (int i = t; i < TILE * DEPTH; i += BLOCK) {
      const bool deep = p.right_row == 1;
      const int c = deep ? i / DEPTH : i % TILE, k = deep ? i % DEPTH : i / TILE;
      const int64_t column = column0 + c, depth = k0 + k;
      const bool real = column < p.columns && depth < p.depth;
      right[k * TILE_ROW + c] = real ? to_float(p.right[depth * p.right_row + column * p.right_column]) : 0.0f;
    }
    block_barrier();
    for (int k = 0; k < DEPTH; ++k) {
      const float4 a = *reinterpret_cast<const float4*>(left + k * TILE_ROW + SIDE * y);
      const float4 b = *reinterpret_cast<const float4*>(right + k * TILE_ROW + SIDE * x);
      const float of_rows[SIDE] = {a.x, a.y, a.z, a.w}, of_columns[SIDE] = {b.x, b.y, b.z, b.w};
      for (int i = 0; i < SIDE; ++i)
        for (int j = 0; j < SIDE; ++j) chain[i][j] = fmaf(of_rows[i], of_columns[j], chain[i][j]);
    }
    block_barrier();
    if ((k0 + DEPTH) % CHAIN == 0 || k0 + DEPTH >= p.depth) {
      for (int i = 0; i < SIDE; ++i)
        for (int j = 0; j < SIDE; ++j) {
          sums[i][j] += chain[i][j];
          chain[i][j] = 0;
        }
    }
  }
  for (int i = 0; i < SIDE; ++i)
    for (int j = 0; j < SIDE; ++j) {
      const int64_t row = row0 + SIDE * y + i, column = column0 + SIDE * x + j;
      if (row < p.rows && column < p.columns) p.product[row * p.columns + column] = from_float<T>(sums[i][j]);
    }
}

constexpr int SIDE_ROWS = 128, SIDE_BYTES = SIDE_ROWS * PIECE_BYTES, HALF_THREADS = 256, COPIES = SIDE_BYTES / 16 / HALF_THREADS;

// 64 of the depth for 128 rows of `left`, or columns of `right`. DEEP: the depth lies one by one in memory, and in shared memory a
// row has it; else 64 rows of the depth have the first 64 of the others, 64 more their second half. `left` is deep and has rows of
// padding, `right` neither.
template <bool DEEP, typename T>
CAAN_DEVICE void fetch_side(char* to, const Product<T>& p, const T* from, int64_t stride, int64_t first, int64_t count,
                            int64_t depth) {
#pragma unroll
  for (int i = 0; i < COPIES; ++i) {
    const int at = int(threadIdx.x) + i * HALF_THREADS;
    const int64_t other = first + (DEEP ? at / 8 : at % 16 * 8), k = depth + (DEEP ? at % 8 * 8 : at / 16);
    const bool real = other < count && k < p.depth && (!DEEP || exists(p, other));
    const int offset = DEEP ? unit_offset(at / 8, at % 8) : at % 16 / 8 * (SIDE_BYTES / 2) + unit_offset(at / 16, at % 8);
    copy_16_bytes(to + offset, real ? from + (DEEP ? other * stride + k : k * stride + other) : from, real);
  }
}

template <typename T>
CAAN_KERNEL void CAAN_BOUNDS(HALF_THREADS, 1) product_tile_kernel(Product<T> p) {
  CAAN_SHARED;
  const int64_t column_tiles = (p.columns + SIDE_ROWS - 1) / SIDE_ROWS;
  const int64_t row0 = blockIdx.x / column_tiles * SIDE_ROWS, column0 = blockIdx.x % column_tiles * SIDE_ROWS;
  const int lane = int(threadIdx.x) % WARP, warp = int(threadIdx.x) / WARP, warp_row = warp / 4 * 64, warp_column = warp % 4 * 32;
  const auto begin = [&](int64_t depth) {
    char* stage = shared_memory + depth / PIECE % 2 * 2 * SIDE_BYTES;
    if (depth < p.depth) {
      fetch_side<true>(stage, p, p.left, p.left_row, row0, p.rows, depth);
      fetch_side<false>(stage + SIDE_BYTES, p, p.right, p.right_row, column0, p.columns, depth);
    }
    close_copies();
  };
  float sums[4][4][4] = {};
  begin(0);
  for (int64_t depth = 0; depth < p.depth; depth += PIECE) {
    wait_for_copies<0>();
    block_barrier();
    begin(depth + PIECE);
    const char *left = shared_memory + depth / PIECE % 2 * 2 * SIDE_BYTES, *right = left + SIDE_BYTES;
#pragma unroll 1
    for (int k = 0; k < PIECE / 16; ++k) {
      uint32_t of_rows[4][4], of_columns[2][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) left_rows(of_rows[i], left, warp_row / 16 + i, k);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int column = warp_column + 16 * j;
        right_columns(of_columns[j], right + column / PIECE * (SIDE_BYTES / 2), k, column % PIECE / 16);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          multiply_add(sums[i][j], of_rows[i], of_columns[j / 2][j % 2 * 2], of_columns[j / 2][j % 2 * 2 + 1], T{});
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int64_t row = row0 + warp_row + 16 * i + 8 * half + lane / 4, column = column0 + warp_column + 8 * j + 2 * (lane % 4);
        if (row < p.rows && column < p.columns)
          *reinterpret_cast<uint32_t*>(p.product + row * p.columns + column) =
              pack(sums[i][j][2 * half], sums[i][j][2 * half + 1], T{});
      }
}

// Whether rows of 8 numbers, 16 bytes, can be copied along the dimension of `count` that lies one by one.
template <typename T>
bool copyable(const T* from, int64_t stride, int64_t count) {
  return reinterpret_cast<uintptr_t>(from) % 16 == 0 && stride % 8 == 0 && count % 8 == 0;
}

template <typename T>
bool multiply_tiles(const Product<T>& p, Stream stream) {
  if (p.left_column != 1 || p.right_column != 1 || p.columns % 8) return false;
  if (!copyable(p.left, p.left_row, p.depth) || !copyable(p.right, p.right_row, p.columns)) return false;
  const int64_t tiles = (p.rows + SIDE_ROWS - 1) / SIDE_ROWS * ((p.columns + SIDE_ROWS - 1) / SIDE_ROWS);
  launch<product_tile_kernel<T>>(tiles, HALF_THREADS, 4 * SIDE_BYTES, stream, p);
  return true;
}

} // namespace

template <typename T>
void multiply(const Product<T>& p, Stream stream) {
  if constexpr (sizeof(T) == 2)
    if (multiply_tiles(p, stream)) return;
  const int64_t tiles = (p.rows + TILE - 1) / TILE * ((p.columns + TILE - 1) / TILE);
  launch<product_kernel<T>>(tiles, BLOCK, 2 * DEPTH * TILE_ROW * sizeof(float), stream, p);
}

int device_error(int device) { return error_on(device, product_kernel<float>); }

template void multiply(const Product<float>&, Stream);
template void multiply(const Product<bfloat16>&, Stream);
template void multiply(const Product<float16>&, Stream);

} // namespace caan::cuda
