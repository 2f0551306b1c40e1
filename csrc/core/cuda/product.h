// A matrix product of the rows of ragged items, as the host calls it.
#pragma once

#include "core/cuda/types.h"

namespace caan::cuda {

// The cudaError_t that these kernels would meet on a device; 0 is none.
int device_error(int device);

// left (rows, depth) times right (depth, columns); any strides. Row r of `left` is row r % item_rows of item r / item_rows, and
// counts as 0 at and beyond lengths[item].
template <typename T>
struct Product {
  const T *left, *right;
  T* product;
  const int64_t* lengths;
  int64_t rows, columns, depth, item_rows, left_row, left_column, right_row, right_column;
};
template <typename T>
void multiply(const Product<T>& product, Stream stream);

} // namespace caan::cuda
