// The CPU kernels' interface: plain pointers, sizes and a way to run on several threads. Nothing here knows torch.
#pragma once

#include <cstdint>

#include "context_attention/options.h"
#include "core/cpu/instruction_set.h"
#include "core/cpu/types.h"

namespace caan::context_attention {

using cpu::Executor;
using cpu::Projection;
using cpu::Storage;

// One call of the operator (equations of docs/operator.md). All tensors are contiguous and of one storage type.
struct Problem {
  int64_t images, regions_per_image;   // I, M
  int64_t captions, words_per_caption; // T, N
  int64_t width, hidden;               // D, H

  const void* regions;         // (I, M, D)
  const void* region_products; // (I, M, 2H): V region_intra | V word_inter; null: project with the weights below
  const void* words;           // (T, N, D)
  const void* word_products;   // (T, N, D + 2H): U affinityᵀ | U region_inter | U word_intra; null: likewise
  const void* affinity;        // (D, D), like the next four read only where products are null
  const void* region_intra;    // (D, H)
  const void* region_inter;    // (D, H)
  const void* word_intra;      // (D, H)
  const void* word_inter;      // (D, H)
  const void* region_score;    // (H,)
  const void* word_score;      // (H,)

  const int64_t* region_lengths; // (I,) or null: all M
  const int64_t* word_lengths;   // (T,) or null: all N
  const int64_t* pairs;          // (P, 2) of (image, caption), or null: every image with every caption
  int64_t pair_count;            // P

  Options options;

  int64_t region_count(int64_t image) const { return region_lengths ? region_lengths[image] : regions_per_image; }
  int64_t word_count(int64_t caption) const { return word_lengths ? word_lengths[caption] : words_per_caption; }
  int64_t score_count() const { return pairs ? pair_count : images * captions; }
};

// What attention_maps() keeps of a pair; float64 for float64 storage, else float32; (P, ...) contiguous, zeroed by the caller.
struct Maps {
  void* region_attention; // (P, M)
  void* word_attention;   // (P, N)
  void* alignment;        // (P, M, N), A
  void* word_to_region;   // (P, M, N), C
  void* region_to_word;   // (P, N, M), Rᵀ
};

// Gradients, each in the storage type and shape of its tensor.
struct Gradients {
  void* regions;
  void* region_products;
  void* words;
  void* word_products;
  void* region_score;
  void* word_score;
};

struct Kernels {
  // out (batch, length, columns); rows beyond an item's length are written as 0.
  void (*project)(const Projection&, void* out, const Executor&);
  // grad (batch, length, columns) -> grad_items (batch, length, width), grad_weight (width, columns).
  void (*project_backward)(const Projection&, const void* grad, void* grad_items, void* grad_weight, const Executor&);
  // out (I, T) or (P,), float64 for float64 storage, else float32. maps may be null and needs pairs otherwise.
  void (*scores)(const Problem&, void* out, const Maps* maps, const Executor&);
  // grad_scores is shaped and typed as scores.
  void (*scores_backward)(const Problem&, const void* grad_scores, const Gradients&, const Executor&);
};

CAAN_TABLES(Kernels)

// Throws std::runtime_error when CAAN_CPU_ISA names an instruction set that cannot run here.
inline const Kernels& kernels_for(Storage storage) { return chosen_table()[static_cast<int>(storage)]; }

} // namespace caan::context_attention
