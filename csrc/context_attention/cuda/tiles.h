// What a block of `tile_kernel` works on, and what a warp has of it.
#pragma once

#include <type_traits>

#include "context_attention/cuda/attention.h"
#include "context_attention/cuda/kernels.h"

namespace caan::context_attention {

// Blocks that follow each other share an image's rows, and those of so many images share a caption's, in the L2 cache.
constexpr int BAND = 32;

template <int TILES_, int STRIPS_, bool LISTED_, bool BOTH_>
struct Shape {
  // TILES of 8 regions, DEPTHS of 16 of them, the last one perhaps a half.
  static constexpr int TILES = TILES_, DEPTHS = (TILES + 1) / 2, REGIONS = 8 * TILES;
  static constexpr int STRIPS = STRIPS_, WORDS = 16 * STRIPS;
  // BOTH: inter and intra terms are known at compile time, which saves branches in the inner loops. Lists do without it: memory
  // limits them.
  static constexpr bool LISTED = LISTED_, BOTH = BOTH_;
  // A warp has PAIRS pairs of one image, whose factors it reads once for all. With eight warps a thread has 255 registers, with
  // 12 it has 168.
  static constexpr int PAIRS = TILES == 5 && STRIPS == 1 && !LISTED ? 2 : 1, HELD = PAIRS * STRIPS;
  // Warps are images by captions; in a list every warp has an image and a caption of its own. Two stages fit the 99 KB of shared
  // memory that every GPU has.
  static constexpr int IMAGES = LISTED && STRIPS == 1 ? 4 : 2, BESIDE = LISTED ? 1 : TILES == 8 && STRIPS == 1 ? 6 : 4;
  // Blocks of a multiprocessor that has the shared memory.
  static constexpr int BLOCKS = LISTED ? 4 / IMAGES : 1;
  static constexpr int WARPS = IMAGES * BESIDE, THREADS = WARPS * WARP, CAPTIONS = LISTED ? IMAGES : BESIDE * PAIRS;
  // Images that a warp multiplies words by AT_ONCE: all where registers allow it, so that words are read once. Then the warps of
  // the first image multiply, words are packed, and all warps take their sums from shared memory.
  static constexpr int AT_ONCE = TILES == 5 && !LISTED ? IMAGES : 1;
  // Steps of 16 columns whose code lies side by side, as far as registers allow it.
  static constexpr int UNROLLED = TILES == 8 ? 1 : 2;
  // Rows that a thread copies stay in registers.
  static constexpr bool ROWS_STAY = !LISTED && HELD * TILES <= 10;
  static constexpr int REGION_ROWS = IMAGES * REGIONS, WORD_ROWS = CAPTIONS * WORDS;
  // Stages of products, and of what comes after. Behind these is X where it comes from shared memory; elsewhere a thread keeps
  // PARKED fours of it there, for the sake of registers.
  static constexpr int AFTER_BYTES = (REGION_ROWS + WORD_ROWS) * PIECE_BYTES, STAGE_BYTES = AFTER_BYTES + WORD_ROWS * PIECE_BYTES;
  static constexpr int CELLS = HELD * TILES, ROOM = 2 * (STAGE_BYTES - AFTER_BYTES) / (16 * THREADS);
  static constexpr int PARKED = AT_ONCE > 1 ? 0 : ROOM < CELLS ? ROOM : CELLS;
  // Numbers from a word's sums with an image's regions to the next word's: four rows then lie in different banks.
  static constexpr int SUMS_ROW = 8 * TILES % 32 ? 8 * TILES : 8 * TILES + 8;
  static_assert(TILES == 5 || TILES == 8);
  static constexpr int SUMS_BYTES = LISTED ? 0 : IMAGES * WORD_ROWS * SUMS_ROW * int(sizeof(float));
  static constexpr int LAST_SUMS = AT_ONCE > 1 ? 2 * AFTER_BYTES + SUMS_BYTES : SUMS_BYTES;
  static constexpr int ITEMS_AT = LAST_SUMS > 2 * STAGE_BYTES ? LAST_SUMS : 2 * STAGE_BYTES;
  static_assert(AT_ONCE == 1 || SUMS_BYTES <= 2 * AFTER_BYTES);
};

// What a block works on; nothing where a length is 0. `words` of a caption begin at a multiple of a tile's. Where the block packs
// words, `packed` ones begin where those of the caption before end, and otherwise they are the same.
template <typename S>
struct Items {
  int64_t image[S::IMAGES], caption[S::CAPTIONS], place[S::CAPTIONS];
  int m[S::IMAGES], n[S::CAPTIONS], begin[S::CAPTIONS];
  // Rows of the call's regions or words.
  uint32_t regions[S::REGION_ROWS], words[S::WORD_ROWS], packed[S::WORD_ROWS];
  float g[S::WARPS][S::PAIRS][S::WORDS];
  // Of the score vector of a piece in either stage: column c of 64 at place 8 (c % 8) + c / 8.
  alignas(16) uint16_t weights[2][PIECE];

  CAAN_DEVICE int all_words() const {
    int sum = 0;
    for (int words : n) sum += words;
    return sum;
  }
  CAAN_DEVICE bool packs() const { return S::AT_ONCE > 1 || (!S::LISTED && all_words() <= S::WORD_ROWS - 16 * S::HELD); }
};

// Blocks' worth of work, as `find_items` numbers it.
template <typename S, typename T>
CAAN_DEVICE int64_t count_work(const Sides<T>& s, const Tiles& tiles) {
  if (S::LISTED) return (tiles.listed + S::IMAGES - 1) / S::IMAGES;
  const int64_t captions = tiles.word_starts[tiles.bucket + 1] - tiles.word_starts[tiles.bucket];
  return (s.images + BAND - 1) / BAND * (BAND / S::IMAGES) * ((captions + S::CAPTIONS - 1) / S::CAPTIONS);
}

// The thread's number. That it does not change from one work to the next is kept from the compiler, which would carry whatever
// follows from it along in registers.
CAAN_DEVICE unsigned thread_at(int64_t work) { return threadIdx.x + unsigned(work >> 62); }

// False if there is no work at this number, in every thread alike.
template <typename S, typename T>
CAAN_DEVICE bool find_items(Items<S>& items, const Sides<T>& s, const Tiles& tiles, int64_t work) {
  const int t = int(thread_at(work));
  if constexpr (S::LISTED) {
    const int64_t first = work * S::IMAGES;
    const auto wanted = [&](int64_t p) {
      if (p >= tiles.listed) return false;
      const int64_t key = tiles.keys[p];
      return key / s.images == tiles.bucket && s.region_lengths[key % s.images] <= 8 * S::TILES;
    };
    bool any = false;
    for (int i = 0; i < S::IMAGES; ++i) any = any || wanted(first + i);
    if (!any) return false;
    if (t < S::IMAGES) {
      const bool real = wanted(first + t);
      items.image[t] = real ? tiles.keys[first + t] % s.images : 0;
      items.m[t] = real ? int(s.region_lengths[items.image[t]]) : 0;
      items.place[t] = real ? tiles.order[first + t] : 0;
      items.caption[t] = real ? tiles.pairs[2 * items.place[t] + 1] : 0;
      items.n[t] = real ? int(s.word_lengths[items.caption[t]]) : 0;
    }
  } else {
    const int64_t begin = tiles.word_starts[tiles.bucket], end = tiles.word_starts[tiles.bucket + 1];
    const int64_t groups = (end - begin + S::CAPTIONS - 1) / S::CAPTIONS, in_band = BAND / S::IMAGES;
    const int64_t within = work % (in_band * groups), image0 = (work / (in_band * groups) * in_band + within % in_band) * S::IMAGES;
    const int64_t first = begin + within / in_band * S::CAPTIONS;
    if (image0 >= s.images) return false;
    if (t < S::IMAGES) {
      const bool real = image0 + t < s.images && s.region_lengths[image0 + t] <= 8 * S::TILES;
      items.image[t] = real ? image0 + t : 0;
      items.m[t] = real ? int(s.region_lengths[image0 + t]) : 0;
    }
    if (t < S::CAPTIONS) {
      const bool real = first + t < end;
      items.caption[t] = real ? tiles.word_order[first + t] : 0;
      items.n[t] = real ? int(s.word_lengths[items.caption[t]]) : 0;
    }
  }
  return true;
}

template <typename S, typename T>
CAAN_DEVICE void find_rows(Items<S>& items, const Sides<T>& s, int64_t work) {
  const auto row_of = [](int64_t item, int rows, int within, int length) {
    return within < length ? uint32_t(item * rows + within) : NO_ROW;
  };
  for (unsigned r = thread_at(work); r < S::REGION_ROWS; r += S::THREADS) {
    const unsigned i = r / S::REGIONS;
    items.regions[r] = row_of(items.image[i], s.M, int(r % S::REGIONS), items.m[i]);
  }
  for (int r = int(thread_at(work)); r < S::WORD_ROWS; r += S::THREADS) {
    const unsigned own = unsigned(r) / S::WORDS;
    items.words[r] = row_of(items.caption[own], s.N, int(unsigned(r) % S::WORDS), items.n[own]);
    if (S::LISTED) continue;
    const bool packs = items.packs();
    uint32_t packed = packs ? NO_ROW : items.words[r];
    for (int c = 0, begin = 0; c < S::CAPTIONS && packs; begin += items.n[c++]) {
      if (r >= begin && r < begin + items.n[c]) packed = uint32_t(items.caption[c] * s.N + (r - begin));
      if (r == 0) items.begin[c] = begin;
    }
    items.packed[r] = packed;
  }
}

// A warp at work on its pairs, captions that follow each other with one image.
template <typename S, typename T>
struct Tile {
  const Sides<T>& s;
  const Options& o;
  Items<S>& items;
  char* const stages;
  const unsigned thread;
  const int lane = int(thread % WARP), row = int(thread % WARP / 4), column = int(2 * (thread % 4));

  // Found where they are needed: in between they would take registers.
  CAAN_DEVICE unsigned warp() const { return thread / WARP; }
  CAAN_DEVICE int image() const { return int(warp() / S::BESIDE); }
  CAAN_DEVICE int caption(int pair) const { return int(S::LISTED ? warp() : warp() % S::BESIDE * S::PAIRS + unsigned(pair)); }
  CAAN_DEVICE int m() const { return items.m[image()]; }
  CAAN_DEVICE int n(int pair) const { return items.n[caption(pair)]; }
  CAAN_DEVICE char* product_stage(int piece) const { return stages + piece % 2 * S::STAGE_BYTES; }
  CAAN_DEVICE char* stage(int piece) const { return stages + piece % 2 * S::AFTER_BYTES; }
  CAAN_DEVICE int pieces_of_width() const { return (s.D + PIECE - 1) / PIECE; }
  CAAN_DEVICE int pieces_of_hidden() const { return o.inter || o.intra ? (s.H + PIECE - 1) / PIECE : 0; }
};

// Rows that a block copies.
template <typename S, int COUNT>
using BlockRows = std::conditional_t<S::ROWS_STAY, CopiedRows<COUNT, S::THREADS>, const uint32_t*>;

// What a warp holds of S or of X: strips of 16 words by TILES of 8 regions.
template <typename S>
using Cells = float[S::PAIRS][S::STRIPS][S::TILES][4];

// body(float4, what of X it holds) for all that is parked.
template <typename S, typename T, typename Body>
CAAN_DEVICE void each_parked(const Tile<S, T>& tile, Cells<S>& X, Body body) {
  float4* const parked = reinterpret_cast<float4*>(tile.stages + 2 * S::AFTER_BYTES) + tile.thread;
#pragma unroll
  for (int i = 0; i < S::PARKED; ++i) {
    const int cell = S::CELLS - 1 - i;
    body(parked[i * S::THREADS], X[cell / (S::STRIPS * S::TILES)][cell / S::TILES % S::STRIPS][cell % S::TILES]);
  }
}

// body(depth, left) for every factor left[column, region] of 16 columns of an image's rows. Regions from 32 to 39 are one of 8 for
// an image that has no more of them, in every shape, so that its sums are the same in all.
template <typename S, typename T, typename Body>
CAAN_DEVICE void each_depth(const Tile<S, T>& tile, const char* regions, int k, Body body) {
  constexpr int WHOLE = 2;
  static_assert(S::TILES == 2 * WHOLE + 1 || S::TILES == 2 * WHOLE + 4);
  const auto whole = [&](int depth) {
    uint32_t left[4];
    left_columns(left, regions, depth, k);
    body(depth, left);
  };
  const auto half = [&] {
    uint32_t left[2];
    left_columns(left, regions, WHOLE, k);
    body(WHOLE, left);
  };
#pragma unroll
  for (int depth = 0; depth < WHOLE; ++depth) whole(depth);
  if (S::DEPTHS == WHOLE + 1) return half();
  if (tile.m() <= 8 * (2 * WHOLE + 1)) return half();
#pragma unroll
  for (int depth = WHOLE; depth < S::DEPTHS; ++depth) whole(depth);
}

// sums += left right, of 16 regions or words or of the first 8.
template <typename T>
CAAN_DEVICE void add_product(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2]) {
  multiply_add(sums, left, right[0], right[1], T{});
}
template <typename T>
CAAN_DEVICE void add_product(float (&sums)[4], const uint32_t (&left)[2], const uint32_t (&right)[2]) {
  multiply_add(sums, left, right[0], T{});
}

// body(pair, strip, tile of regions, half) for all that a warp holds; words of the second half lie 8 rows on.
template <typename S, typename Body>
CAAN_DEVICE void each_cell(Body body) {
#pragma unroll
  for (int p = 0; p < S::PAIRS; ++p)
#pragma unroll
    for (int w = 0; w < S::STRIPS; ++w)
#pragma unroll
      for (int t = 0; t < S::TILES; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half) body(p, w, t, half);
}

} // namespace caan::context_attention
