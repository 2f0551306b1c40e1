// Scores: the largest product of every query row and document (search.h) goes to a workspace that the L2 cache holds, from which a
// thread a pair adds those of a query in rising order of its rows, in chains of 32.
//
// All pairs: four warps a block, or one where there are few rows of queries. A list: a warp for 32 query rows of a pair.
#include "max_similarity/cuda/kernels.h"
#include "max_similarity/cuda/search.h"

namespace caan::max_similarity {

namespace {

constexpr int ADD_THREADS = 128;
// Rows whose numbers are added to one, which joins the others': a chain of 1,030 would lose three bits.
constexpr int CHAIN_ROWS = 32;

template <typename T, bool LISTED>
CAAN_KERNEL void CAAN_BOUNDS(ADD_THREADS, 4) add_kernel(Search<T> s, const float* largest, int64_t stride, Scores out) {
  const int64_t pair = int64_t(blockIdx.x) * ADD_THREADS + threadIdx.x;
  if (pair >= (LISTED ? s.listed : s.documents.count * s.queries.count)) return;
  const int64_t document = LISTED ? s.pairs[2 * pair + s.document_column] : pair / s.queries.count;
  const int64_t query = LISTED ? s.pairs[2 * pair + 1 - s.document_column] : pair % s.queries.count;
  if (document < 0 || document >= s.documents.count || query < 0 || query >= s.queries.count) return;
  const int n = int(s.queries.lengths[query]);
  if (n == 0 || s.documents.lengths[document] == 0) return;
  const float* from =
      largest + (LISTED ? pair * s.queries.rows : document * stride + s.queries.starts[query] - s.queries.starts[0]);
  float sum = 0;
  for (int first = 0; first < n; first += CHAIN_ROWS) {
    const int last = first + CHAIN_ROWS < n ? first + CHAIN_ROWS : n;
    float chain = 0;
#pragma unroll 4
    for (int row = first; row < last; ++row) chain += from[row];
    sum += chain;
  }
  out.scores[LISTED ? pair : document * out.document_step + query * out.query_step] = out.mean ? sum / float(n) : sum;
}

// Blocks of an all-pairs search whose tiles have so many rows of queries.
template <typename T>
int64_t blocks_of(const Search<T>& s, int tile_rows, int64_t together) {
  const int64_t tiles = ceil_of(s.queries.count * s.queries.rows, tile_rows), wide = band_of(s, tile_rows);
  return ceil_of(tiles, wide) * wide * ceil_of(s.documents.count, together);
}

} // namespace

template <typename T>
void find_largest(const Search<T>& s, float* largest, int64_t stride, int64_t together, Stream stream) {
  if constexpr (sizeof(T) == 2) {
    if (on_tensor_cores(s)) {
      using Large = Tile<4, 112>;
      using Narrow = Tile<1, 112>;
      using Listed = Tile<1, 64>;
      if (s.pairs)
        launch<search_tiles_kernel<T, Listed, true, false, float>>(s.listed * ceil_of(s.queries.rows, Listed::QUERY_ROWS),
                                                                   Listed::THREADS, Listed::SHARED, stream, s, largest, stride,
                                                                   int64_t(1));
      else if (s.queries.count * s.queries.rows <= Narrow::QUERY_ROWS)
        launch<search_tiles_kernel<T, Narrow, false, false, float>>(blocks_of(s, Narrow::QUERY_ROWS, together), Narrow::THREADS,
                                                                    Narrow::SHARED, stream, s, largest, stride, together);
      else
        launch<search_tiles_kernel<T, Large, false, false, float>>(blocks_of(s, Large::QUERY_ROWS, together), Large::THREADS,
                                                                   Large::SHARED, stream, s, largest, stride, together);
      return;
    }
  }
  if (s.pairs)
    launch<search_kernel<T, true, false, float>>(s.listed * ceil_of(s.queries.rows, SCALAR_ROWS), SCALAR_THREADS, SCALAR_SHARED,
                                                 stream, s, largest, stride, int64_t(1));
  else
    launch<search_kernel<T, false, false, float>>(blocks_of(s, SCALAR_ROWS, together), SCALAR_THREADS, SCALAR_SHARED, stream, s,
                                                  largest, stride, together);
}

template <typename T>
void add_largest(const Search<T>& s, const float* largest, int64_t stride, const Scores& out, Stream stream) {
  if (s.pairs)
    launch<add_kernel<T, true>>(ceil_of(s.listed, ADD_THREADS), ADD_THREADS, 0, stream, s, largest, stride, out);
  else
    launch<add_kernel<T, false>>(ceil_of(s.documents.count * s.queries.count, ADD_THREADS), ADD_THREADS, 0, stream, s, largest,
                                 stride, out);
}

template void find_largest(const Search<float>&, float*, int64_t, int64_t, Stream);
template void find_largest(const Search<bfloat16>&, float*, int64_t, int64_t, Stream);
template void find_largest(const Search<float16>&, float*, int64_t, int64_t, Stream);
template void add_largest(const Search<float>&, const float*, int64_t, const Scores&, Stream);
template void add_largest(const Search<bfloat16>&, const float*, int64_t, const Scores&, Stream);
template void add_largest(const Search<float16>&, const float*, int64_t, const Scores&, Stream);

} // namespace caan::max_similarity
