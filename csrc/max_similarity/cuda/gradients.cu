// Gradients of the pairs that have one, nothing kept from the forward pass: the place of every query row's largest product is
// searched again (search.h), by a warp for 32 query rows of a pair; then a row of a query adds up coefficient times document row at
// that place, pair after pair, and a row of a document the rows of queries that found it.
//
// A warp has one row and 128 columns of it, whose sums lie in registers: no two warps write to one place, nothing is atomic, and
// sums have the order of the schedule. float32 throughout.
#include "max_similarity/cuda/kernels.h"
#include "max_similarity/cuda/search.h"

namespace caan::max_similarity {

namespace {

constexpr int SUM_WARPS = 4, SUM_THREADS = SUM_WARPS * WARP, NUMBERS = 4, COLUMNS = NUMBERS * WARP;

// A row of an item and the columns of it that a warp sums up, one every 32 from `column`.
struct Target {
  int64_t item;
  int row, column;

  template <typename T>
  CAAN_DEVICE Target(const Rows<T>& side, int width) {
    const int64_t slabs = ceil_of(width, COLUMNS);
    const int64_t unit = int64_t(blockIdx.x) * SUM_WARPS + threadIdx.x / WARP;
    const int64_t row_of_all = unit / slabs;
    item = row_of_all / side.rows;
    row = int(row_of_all % side.rows);
    column = int(unit % slabs) * COLUMNS + int(threadIdx.x) % WARP;
  }
};

// The numbers of a row that a lane has.
struct Sums {
  float number[NUMBERS];
  int column, width;

  CAAN_DEVICE Sums(int column_, int width_) : number{}, column(column_), width(width_) {}
  CAAN_DEVICE Sums(const float* from, int column_, int width_) : Sums(column_, width_) {
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i)
      if (column + i * WARP < width) number[i] = from[column + i * WARP];
  }
  CAAN_DEVICE void add(const Sums& other) {
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i) number[i] += other.number[i];
  }
  template <typename T>
  CAAN_DEVICE void add(float coefficient, const T* row) {
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i)
      if (column + i * WARP < width) number[i] = fmaf(coefficient, to_float(row[column + i * WARP]), number[i]);
  }
  CAAN_DEVICE void store(float* to) const {
#pragma unroll
    for (int i = 0; i < NUMBERS; ++i)
      if (column + i * WARP < width) to[column + i * WARP] = number[i];
  }
};

// Calls body(pair of the list) for an item's places of the schedule that the list has, in their order.
template <typename Body>
CAAN_DEVICE void for_pairs(const Terms& terms, int64_t listed, int64_t item, Body body) {
  for (int64_t step = terms.starts[item]; step < terms.starts[item + 1]; ++step) {
    const int64_t pair = (terms.order ? terms.order[step] : step) - terms.first;
    if (pair >= 0 && pair < listed) body(pair);
  }
}

template <typename T>
CAAN_KERNEL void CAAN_BOUNDS(SUM_THREADS, 8) query_gradients_kernel(Search<T> s, Terms terms) {
  const Target target(s.queries, s.width);
  if (target.item >= s.queries.count || target.row >= s.queries.lengths[target.item]) return;
  float* const to = terms.sums + (target.item * s.queries.rows + target.row) * s.width;
  Sums sums(to, target.column, s.width);
  for_pairs(terms, s.listed, target.item, [&](int64_t pair) {
    const int64_t document = s.pairs[2 * pair + s.document_column];
    const int64_t row = document * s.documents.rows + terms.places[pair * s.queries.rows + target.row];
    sums.add(terms.coefficients[pair], s.documents.features + row * s.width);
  });
  sums.store(to);
}

template <typename T>
CAAN_KERNEL void CAAN_BOUNDS(SUM_THREADS, 8) document_gradients_kernel(Search<T> s, Terms terms) {
  const Target target(s.documents, s.width);
  if (target.item >= s.documents.count || target.row >= s.documents.lengths[target.item]) return;
  float* const to = terms.sums + (target.item * s.documents.rows + target.row) * s.width;
  const int lane = int(threadIdx.x) % WARP;
  Sums sums(to, target.column, s.width);
  for_pairs(terms, s.listed, target.item, [&](int64_t pair) {
    const int64_t query = s.pairs[2 * pair + 1 - s.document_column], first_row = query * s.queries.rows;
    const int n = int(s.queries.lengths[query]);
    const int32_t* places = terms.places + pair * s.queries.rows;
    // A long query's terms come to the others as one number: they may be a thousand.
    Sums of_pair(target.column, s.width);
    for (int first = 0; first < n; first += WARP) {
      uint32_t found = ballot(first + lane < n && places[first + lane] == target.row);
      for (; found; found &= found - 1)
        of_pair.add(terms.coefficients[pair], s.queries.features + (first_row + first + lowest_bit(found)) * s.width);
    }
    sums.add(of_pair);
  });
  sums.store(to);
}

template <typename T>
int64_t blocks_of(const Rows<T>& side, int width) {
  return ceil_of(side.count * side.rows * ceil_of(width, COLUMNS), SUM_WARPS);
}

} // namespace

template <typename T>
void find_places(const Search<T>& s, int32_t* places, Stream stream) {
  if constexpr (sizeof(T) == 2) {
    if (on_tensor_cores(s)) {
      using Listed = Tile<1, 64>;
      launch<search_tiles_kernel<T, Listed, true, true, int32_t>>(s.listed * ceil_of(s.queries.rows, Listed::QUERY_ROWS),
                                                                  Listed::THREADS, Listed::SHARED, stream, s, places, int64_t(0),
                                                                  int64_t(1));
      return;
    }
  }
  launch<search_kernel<T, true, true, int32_t>>(s.listed * ceil_of(s.queries.rows, SCALAR_ROWS), SCALAR_THREADS, SCALAR_SHARED,
                                                stream, s, places, int64_t(0), int64_t(1));
}

template <typename T>
void sum_query_gradients(const Search<T>& s, const Terms& terms, Stream stream) {
  launch<query_gradients_kernel<T>>(blocks_of(s.queries, s.width), SUM_THREADS, 0, stream, s, terms);
}
template <typename T>
void sum_document_gradients(const Search<T>& s, const Terms& terms, Stream stream) {
  launch<document_gradients_kernel<T>>(blocks_of(s.documents, s.width), SUM_THREADS, 0, stream, s, terms);
}

template void find_places(const Search<float>&, int32_t*, Stream);
template void find_places(const Search<bfloat16>&, int32_t*, Stream);
template void find_places(const Search<float16>&, int32_t*, Stream);
template void sum_query_gradients(const Search<float>&, const Terms&, Stream);
template void sum_query_gradients(const Search<bfloat16>&, const Terms&, Stream);
template void sum_query_gradients(const Search<float16>&, const Terms&, Stream);
template void sum_document_gradients(const Search<float>&, const Terms&, Stream);
template void sum_document_gradients(const Search<bfloat16>&, const Terms&, Stream);
template void sum_document_gradients(const Search<float16>&, const Terms&, Stream);

} // namespace caan::max_similarity
