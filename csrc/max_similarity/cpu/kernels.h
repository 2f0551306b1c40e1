// The CPU kernels' interface: plain pointers, sizes and a way to run on several threads. Nothing here knows torch.
//
// Every row of a query looks for the largest inner product with a row of a document: words are the queries and images the
// documents, or the other way round with over_regions.
#pragma once

#include <cstdint>

#include "core/cpu/instruction_set.h"
#include "core/cpu/types.h"

namespace caan::max_similarity {

using cpu::Executor;
using cpu::Storage;

struct Options {
  bool over_regions;
  bool mean;
};

// (count, rows, D) features, contiguous.
struct Items {
  const void* features;
  int64_t count, rows;
  const int64_t* lengths; // (count,) or null: all rows

  int64_t row_count(int64_t item) const { return lengths ? lengths[item] : rows; }
};

// One call of the operator. Features are of one storage type.
struct Problem {
  Items regions, words;
  int64_t width;        // D
  const int64_t* pairs; // (P, 2) of (image, caption), or null: every image with every caption
  int64_t pair_count;   // P
  Options options;

  const Items& queries() const { return options.over_regions ? regions : words; }
  const Items& documents() const { return options.over_regions ? words : regions; }
  int64_t score_count() const { return pairs ? pair_count : regions.count * words.count; }
  // Of all pairs: where the score of a document with a query is.
  int64_t score(int64_t document, int64_t query) const {
    return options.over_regions ? query * words.count + document : document * words.count + query;
  }
  // Of a list: the items of a pair.
  int64_t query(int64_t pair) const { return pairs[2 * pair + (options.over_regions ? 0 : 1)]; }
  int64_t document(int64_t pair) const { return pairs[2 * pair + (options.over_regions ? 1 : 0)]; }
  bool has_rows(int64_t document, int64_t query) const {
    return documents().row_count(document) > 0 && queries().row_count(query) > 0;
  }
};

// Each in the storage type and shape of its features; null: not wanted.
struct Gradients {
  void* regions;
  void* words;
};

struct Kernels {
  // out (I, T) or (P,), float64 for float64 storage, else float32.
  void (*scores)(const Problem&, void* out, const Executor&);
  // grad_scores is shaped and typed as scores.
  void (*scores_backward)(const Problem&, const void* grad_scores, const Gradients&, const Executor&);
};

CAAN_TABLES(Kernels)

// Throws std::runtime_error when CAAN_CPU_ISA names an instruction set that cannot run here.
inline const Kernels& kernels_for(Storage storage) { return chosen_table()[static_cast<int>(storage)]; }

} // namespace caan::max_similarity
