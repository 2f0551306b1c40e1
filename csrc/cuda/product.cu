// product = left right, for projections and their gradients, a 64 x 64 tile a block.
//
// Each thread holds 4 x 4 sums in registers; 16 of the depth at a time pass through shared memory as float32. Products are
// fused multiply-adds in chains of 64, and a chain's sum joins the others as one number: a small alignment is a difference of large
// terms, and where it stands alone its relative error goes to the gradients.
#include "device.h"

namespace caan::cuda {

namespace {

constexpr int TILE = 64, DEPTH = 16, CHAIN = 64, SIDE = 4, GRID = TILE / SIDE, BLOCK = GRID * GRID;
constexpr int TILE_ROW = TILE + 4;

template <typename T>
CAAN_KERNEL void CAAN_BOUNDS(BLOCK, 2) product_kernel(Product<T> p) {
  CAAN_SHARED;
  auto* left = reinterpret_cast<float*>(shared_memory);
  float* right = left + DEPTH * TILE_ROW;
  const int64_t column_tiles = (p.columns + TILE - 1) / TILE;
  const int64_t row0 = blockIdx.x / column_tiles * TILE, column0 = blockIdx.x % column_tiles * TILE;
  const int t = int(threadIdx.x), x = t % GRID, y = t / GRID;
  const auto exists = [&](int64_t row) { return row % p.item_rows < p.lengths[row / p.item_rows]; };
  float chain[SIDE][SIDE] = {}, sums[SIDE][SIDE] = {};
  for (int64_t k0 = 0; k0 < p.depth; k0 += DEPTH) {
    for (int i = t; i < TILE * DEPTH; i += BLOCK) {
      // Threads run along whichever dimension lies one by one in memory.
      const bool deep = p.left_column == 1;
      const int r = deep ? i / DEPTH : i % TILE, k = deep ? i % DEPTH : i / TILE;
      const int64_t row = row0 + r, depth = k0 + k;
      const bool real = row < p.rows && depth < p.depth && exists(p.along_depth ? depth : row);
      left[k * TILE_ROW + r] = real ? to_float(p.left[row * p.left_row + depth * p.left_column]) : 0.0f;
    }
    for (int i = t; i < TILE * DEPTH; i += BLOCK) {
      const bool deep = p.right_row == 1;
      const int c = deep ? i / DEPTH : i % TILE, k = deep ? i % DEPTH : i / TILE;
      const int64_t column = column0 + c, depth = k0 + k;
      const bool real = column < p.columns && depth < p.depth && (!p.along_depth || exists(depth));
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

} // namespace

template <typename T>
void multiply(const Product<T>& p, Stream stream) {
  const int64_t tiles = (p.rows + TILE - 1) / TILE * ((p.columns + TILE - 1) / TILE);
  launch(product_kernel<T>, tiles, BLOCK, 2 * DEPTH * TILE_ROW * sizeof(float), stream, p);
}

template void multiply(const Product<float>&, Stream);
template void multiply(const Product<bfloat16>&, Stream);
template void multiply(const Product<float16>&, Stream);

} // namespace caan::cuda
