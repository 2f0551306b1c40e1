// The CUDA kernels as the host calls them: plain pointers on the device, a stream, and nothing of torch.
//
// Rows of queries look for their largest product with a row of a document (docs/max-similarity.md).
#pragma once

#include <cstdint>

#include "core/cuda/types.h"

namespace caan::max_similarity {

using namespace cuda;

// One side of a call: features (count, rows, width) and how many rows of each item are real. starts (count + 1), for all pairs
// only: how many real rows lie before each item, counted from anywhere.
template <typename T>
struct Rows {
  const T* features;
  const int64_t *lengths, *starts;
  int64_t count;
  int rows;
};

// All pairs of queries and documents, or `listed` of them: pairs (listed, 2), the document in column document_column and the query
// in the other one. A pair that names no item is left out.
template <typename T>
struct Search {
  Rows<T> queries, documents;
  int width;
  const int64_t* pairs;
  int64_t listed;
  int document_column;
};

// The largest product of every row of queries. All pairs: largest[document * stride + real row of queries], where a block takes
// `together` documents; a list: largest[pair * queries.rows + row].
template <typename T>
void find_largest(const Search<T>& search, float* largest, int64_t stride, int64_t together, Stream stream);

// A list's places of the same, rows of the document: places[pair * queries.rows + row].
template <typename T>
void find_places(const Search<T>& search, int32_t* places, Stream stream);

// Scores from largest products: their sums in rising order of a query's rows, in chains of 32, or means. All pairs: scores[document
// * document_step + query * query_step]; a list: scores[pair]. A pair with an empty side is left out.
struct Scores {
  float* scores;
  int64_t document_step, query_step;
  bool mean;
};
template <typename T>
void add_largest(const Search<T>& search, const float* largest, int64_t stride, const Scores& scores, Stream stream);

// Gradients of the pairs of a schedule from its place `first`, a list of which the search has: pair k gives coefficients[k] times a
// document's row to a query's row, and that to the document's. The schedule's places of item i are those from starts[i] to the
// next, or what `order` has there. sums: float32 of the side's features, which are added to.
struct Terms {
  const float* coefficients;
  const int32_t* places;
  const int64_t *starts, *order;
  int64_t first;
  float* sums;
};
template <typename T>
void sum_query_gradients(const Search<T>& search, const Terms& terms, Stream stream);
template <typename T>
void sum_document_gradients(const Search<T>& search, const Terms& terms, Stream stream);

} // namespace caan::max_similarity
