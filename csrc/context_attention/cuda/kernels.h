// The CUDA kernels as the host calls them: plain pointers on the device, a stream, and nothing of torch.
#pragma once

#include <cstdint>
#include <type_traits>

#include "context_attention/options.h"
#include "core/cuda/types.h"

namespace caan::context_attention {

using namespace cuda;

// In place of the type of a call's numbers, in kernels whose time is float32 arithmetic: compiled once, they read every type.
struct AnyType {};
struct AnyNumbers {
  enum Type { FLOAT32, BFLOAT16, FLOAT16 };
  template <typename T>
  static constexpr Type TYPE = std::is_same_v<T, float>      ? FLOAT32
                               : std::is_same_v<T, bfloat16> ? BFLOAT16
                                                             : FLOAT16;

  const void* at;
  Type type;

  CAAN_BOTH AnyNumbers operator+(int64_t count) const {
    return {static_cast<const char*>(at) + count * (type == FLOAT32 ? 4 : 2), type};
  }
  CAAN_DEVICE float operator[](int64_t i) const;
};

template <typename T>
struct NumbersOf {
  using Type = const T*;
};
template <>
struct NumbersOf<AnyType> {
  using Type = AnyNumbers;
};
template <typename T>
using Numbers = typename NumbersOf<T>::Type;

// One call's sides, shapes as in docs/operator.md: V (I, M, D), [V Q1 | V Q4] (I, M, 2H), U (T, N, D),
// [U affinityT | U Q2 | U Q3] (T, N, D + 2H), both score vectors (H,), lengths (I,) and (T,) from 0 to M and N.
template <typename T>
struct Sides {
  Numbers<T> regions, region_products, words, word_products, region_score, word_score;
  const int64_t *region_lengths, *word_lengths;
  int64_t images, captions;
  int M, N, D, H;

  CAAN_DEVICE Numbers<T> V(int64_t image) const { return regions + image * M * D; }
  CAAN_DEVICE Numbers<T> VQ(int64_t image) const { return region_products + image * M * (2 * H); }
  CAAN_DEVICE Numbers<T> U(int64_t caption) const { return words + caption * N * D; }
  CAAN_DEVICE Numbers<T> UQ(int64_t caption) const { return word_products + caption * N * (D + 2 * H); }
};

// The same sides for kernels that read any type.
template <typename T>
Sides<AnyType> any_type(const Sides<T>& s) {
  const auto any = [](const T* at) { return AnyNumbers{at, AnyNumbers::TYPE<T>}; };
  return {any(s.regions),
          any(s.region_products),
          any(s.words),
          any(s.word_products),
          any(s.region_score),
          any(s.word_score),
          s.region_lengths,
          s.word_lengths,
          s.images,
          s.captions,
          s.M,
          s.N,
          s.D,
          s.H};
}

// Which pairs a launch takes, `count` of them from `first`. All: in rows of captions. Listed: `pairs` (P, 2).
struct Pairs {
  const int64_t* pairs;
  int64_t first, count;
};

// Which kernels score a pair on tensor cores, where rows can be copied 16 bytes at a time: its own lengths decide. Otherwise, and
// of float32 where products are IEEE's, `score_pairs` scores all. In float32 tiles are smaller and have no cosine.
template <typename T>
constexpr int MOST_REGIONS = sizeof(T) == 2 ? 64 : 40;
template <typename T>
constexpr int MOST_WORDS = sizeof(T) == 2 ? 32 : 16;
template <typename T>
constexpr int MOST_LARGE_WORDS = sizeof(T) == 2 ? 128 : 64;
template <typename T>
CAAN_BOTH bool fits_tile(int m, int n, const Options& o) {
  return m <= MOST_REGIONS<T> && n <= MOST_WORDS<T> && (sizeof(T) == 2 || !o.cosine);
}
// Strips of 16 words, a power of two, that `score_large` has for a pair; 0 for one that it does not take.
template <typename T>
CAAN_DEVICE int large_strips(int m, int n, const Options& o) {
  if (fits_tile<T>(m, n, o) || n > MOST_LARGE_WORDS<T>) return 0;
  return n <= 16 ? 1 : n <= 32 ? 2 : n <= 64 ? 4 : 8;
}

// A pair's floats in scratch memory; each part begins at a multiple of 4.
struct SlotShape {
  int M, N, D;
  bool gradient;

  CAAN_DEVICE int row() const { return (N + 3) / 4 * 4; }
  CAAN_DEVICE int regions() const { return (M + 3) / 4 * 4; }
  CAAN_DEVICE int width() const { return (D + 3) / 4 * 4; }
  CAAN_DEVICE int64_t cells() const { return int64_t(M) * row(); }
  CAAN_DEVICE int64_t size() const { return 5 * cells() + 4 * (regions() + row()) + (gradient ? 5 * cells() + 2 * width() : 0); }
};

// Matrices are (m, n), regions by words. C_unit is C with unit rows; R_unit is R with unit columns, the transpose of what the
// formula calls R with a hat. Norms are held at 1e-8: `row_norm` and `column_norm` are those of A's positive part, for R and C,
// `C_norm` those of C's rows and `R_norm` those of R's columns. f and g hold logits first. dS is the gradient of the alignment
// before tanh; dv and du are those of the pooled vectors.
struct Slot {
  float *A, *C, *R, *C_unit, *R_unit;
  float *row_norm, *C_norm, *f, *df, *column_norm, *R_norm, *g, *dg;
  float *dS, *dC, *dR, *dC_unit, *dR_unit, *dv, *du;

  CAAN_DEVICE Slot(float* base, const SlotShape& shape) {
    const int64_t cells = shape.cells();
    A = base, C = A + cells, R = C + cells, C_unit = R + cells, R_unit = C_unit + cells;
    row_norm = R_unit + cells, C_norm = row_norm + shape.regions(), f = C_norm + shape.regions(), df = f + shape.regions();
    column_norm = df + shape.regions(), R_norm = column_norm + shape.row(), g = R_norm + shape.row(), dg = g + shape.row();
    dS = dg + shape.row(), dC = dS + cells, dR = dC + cells, dC_unit = dR + cells, dR_unit = dC_unit + cells;
    dv = dR_unit + cells, du = dv + shape.width();
  }
};

// bfloat16 numbers that add up to a feature, nothing lost, and to what is made in float32 (parts.h): all of it where the features
// are float32, else 16 bits.
template <typename T>
struct Parts {
  static constexpr int OF_FEATURES = 1, OF_MADE = 2;
};
template <>
struct Parts<float16> {
  static constexpr int OF_FEATURES = 2, OF_MADE = 2;
};
template <>
struct Parts<float> {
  static constexpr int OF_FEATURES = 3, OF_MADE = 3;
};

// Rows of a tensor-core product.
constexpr int STRIP = 16;
CAAN_BOTH int strips_of(int rows) { return (rows + STRIP - 1) / STRIP; }

// Words of a caption up to which tensor cores differentiate pairs, for want of shared memory: the padded ones of the call decide.
template <typename T>
constexpr int MOST_GRADIENT_WORDS = sizeof(T) == 2 ? 112 : 80;
// Matrices of weights that they take as factors, C, C_unit, R, R_unit and dS, each with its transpose.
constexpr int FACTORS = 10;

// A pair's scratch memory there: matrices have whole strips of rows and columns, and factors come last.
template <typename T>
struct TiledShape {
  int M, N, D;

  CAAN_DEVICE SlotShape slot() const { return {STRIP * strips_of(M), STRIP * strips_of(N), D, true}; }
  // 16-byte parts of a factor.
  CAAN_DEVICE int64_t units() const { return slot().cells() * Parts<T>::OF_MADE / 8; }
  CAAN_DEVICE int64_t size() const { return slot().size() + FACTORS * units() * 4; }
};

// Scores of listed or of all pairs, by as many blocks as there are slots. Of an all-pairs call: scores[image * score_row +
// caption]; of a list: scores[place]. With `rest`, pairs that `score_tiles` and `score_large` take are left out. A block's slot
// keeps what its last pair left there; in one launch with a slot for each pair, that of its place from `first`. A launch has
// `launch_pairs` places at most.
void score_pairs(const Sides<AnyType>& sides, const Pairs& pairs, const Options& options, float* scores, int64_t score_row,
                 bool rest, float* scratch, int64_t slots, int64_t launch_pairs, Stream stream);

// Scores of the pairs for which `large_strips` is not 0, in scratch memory of so many floats; `blocks` is how many multiprocessors
// there are, and a launch has `launch_pairs` places at most.
template <typename T>
void score_large(const Sides<T>& sides, const Pairs& pairs, const Options& options, float* scores, int64_t score_row,
                 float* scratch, int64_t floats, int64_t blocks, int64_t launch_pairs, Stream stream);

// Every image with the captions of one bucket, `word_order` from word_starts[bucket] to the next; or `listed` of the places of a
// list `pairs`, sorted by `keys` bucket * images + image, positions `order` of the call, those of that bucket. A bucket's
// captions have at most 16 * strips words. `blocks` is how many multiprocessors there are; a launch has at most about
// `launch_images` images.
struct Tiles {
  const int64_t *word_order, *word_starts, *pairs, *order, *keys;
  int64_t listed, score_row, blocks, launch_images;
  int bucket, strips;
};
template <typename T>
void score_tiles(const Sides<T>& sides, const Tiles& tiles, const Options& options, float* scores, Stream stream);

// Pairs with a gradient in the order in which it is summed: keys image * captions + caption, `count` of them, at positions `order`
// of the call; image_starts (I + 1) into keys, by_caption places in keys and caption_starts (T + 1) into those.
struct Schedule {
  const int64_t *keys, *order, *count, *image_starts, *by_caption, *caption_starts;
};

// float32 of the sides' shapes, and (I, H) of both score vectors; all are added to.
struct Sums {
  float *regions, *region_products, *words, *word_products, *region_score, *word_score;
};

// Adds what `most` of the schedule's pairs from `first` give, as far as there are so many, from the gradients of their scores. As
// many of them as there are slots are worked on at once, however often it takes, in one launch. `turns` are two numbers, 0 before.
void differentiate(const Sides<AnyType>& sides, const Schedule& schedule, int64_t first, int64_t most, const Options& options,
                   const float* score_gradients, float* scratch, int64_t slots, const Sums& sums, int64_t* turns, Stream stream);

// The same on tensor cores, in slots of TiledShape; up to MOST_GRADIENT_WORDS words.
template <typename T>
void differentiate_tiled(const Sides<T>& sides, const Schedule& schedule, int64_t first, int64_t most, const Options& options,
                         const float* score_gradients, float* scratch, int64_t slots, const Sums& sums, int64_t* turns,
                         Stream stream);

} // namespace caan::context_attention
