// Which queries are packed together, and which of them a document meets: host-side planning, independent of instruction set and of
// the arithmetic.
#pragma once

#include <cstdint>
#include <vector>

#include "max_similarity/cpu/kernels.h"

namespace caan::max_similarity {

// A pair to be looked at, and where its result goes.
struct Entry {
  int64_t document, query, out;
};

// Queries whose rows share panels of columns: positions [begin, end) of Block::queries, with `columns` real columns from `first`
// on.
struct Strip {
  int64_t begin, end;
  int64_t first, columns;
};

// A document against a strip, for the pairs [begin, end) of Block::entries; begin < 0: for all queries of the strip.
struct Task {
  int64_t document, strip;
  int64_t begin, end;
};

// Queries that are packed at one time.
struct Block {
  std::vector<int64_t> queries; // none is empty
  std::vector<int64_t> column;  // of each query, its first column within its strip
  std::vector<Strip> strips;
  std::vector<Entry> entries; // of a list, by document and query
  std::vector<Task> tasks;    // of a list, by document, or by a few documents where strips are shared
  int64_t columns = 0;        // of all strips, padding included
};

struct Limits {
  int64_t block_columns; // at most so many columns in a block (one query at the least)
  int64_t strip_columns; // a shared strip ends with the query that reaches so many
  int64_t lanes;         // columns of a strip are padded to a multiple of these
  int64_t documents;     // so many follow each other against a shared strip, and only then against the next
};

// Queries with rows from `next` on, as many as a block takes, in shared strips without tasks; `next` becomes the first behind them.
Block plan_block(const Problem& problem, Limits limits, int64_t& next);

// Documents [begin, end) that have rows against all strips of such a block, `together` of them against one and then the next.
std::vector<Task> tasks_of(const Problem& problem, const Block& block, int64_t begin, int64_t end, int64_t together);

// Entries, none with an empty side. A query has a strip of its own unless strips for all queries of a block have fewer columns to
// multiply.
std::vector<Block> plan_list(const Problem& problem, std::vector<Entry> entries, Limits limits);

} // namespace caan::max_similarity
