// The contexts of a block of tiles.cu: from S the logits of words and regions.
#pragma once

#include "context_attention/cuda/tiles.h"

namespace caan::context_attention {

// The rows of contexts that a thread copies.
template <typename S>
struct ContextRows {
  BlockRows<S, S::REGION_ROWS> regions;
  BlockRows<S, S::WORD_ROWS> words;
};

// Pieces of the words' contexts, and then of the regions'.
template <typename S, typename T>
CAAN_DEVICE void begin_piece(const Tile<S, T>& tile, const ContextRows<S>& rows, int piece) {
  const Sides<T>& s = tile.s;
  const int hidden = tile.pieces_of_hidden();
  if (piece < 2 * hidden) {
    const bool of_words = piece < hidden;
    const int column = (of_words ? piece : piece - hidden) * PIECE, side = of_words ? s.H : 0;
    if (tile.thread < PIECE) {
      const unsigned c = tile.thread;
      const int h = column + int(c);
      const T weight = h < s.H ? (of_words ? s.word_score : s.region_score)[h] : T{};
      tile.items.weights[piece % 2][8 * (c % 8) + c / 8] = weight.bits;
    }
    char* const to = tile.stage(piece);
    fetch_rows<S::REGION_ROWS, S::THREADS>(to, rows.regions, s.region_products + side, 2 * s.H, column, s.H);
    fetch_rows<S::WORD_ROWS, S::THREADS>(to + S::REGION_ROWS * PIECE_BYTES, rows.words, s.word_products + s.D + side, s.D + 2 * s.H,
                                         column, s.H);
  }
  close_copies();
}

// What a warp finds of a piece: its image's rows, those of its captions, and of the score vector what a lane's rows weigh, of
// columns 16 k and following: the first half those of its row, the second those 8 rows on.
struct Piece {
  const char *regions, *words;
  const uint32_t* weights;
};
template <typename S, typename T>
CAAN_DEVICE Piece next_piece(const Tile<S, T>& tile, const ContextRows<S>& rows, int piece) {
  wait_for_copies<0>();
  block_barrier();
  begin_piece(tile, rows, piece + 1);
  const char* const stage = tile.stage(piece);
  return {stage + tile.image() * S::REGIONS * PIECE_BYTES, stage + (S::REGION_ROWS + tile.caption(0) * S::WORDS) * PIECE_BYTES,
          reinterpret_cast<const uint32_t*>(tile.items.weights[piece % 2] + 8 * tile.row)};
}

// logits += tanh(X) weights, of the two rows that a lane has.
CAAN_DEVICE void add_tanh(float (&logits)[2], const float (&X)[4], float at_row, float on) {
#pragma unroll
  for (int e = 0; e < 2; ++e) logits[e] = fmaf(rough_tanh(X[2 + e]), on, fmaf(rough_tanh(X[e]), at_row, logits[e]));
}

// A warp's two pairs SHARE the last tile of 8 columns where no pair of the block has more than four there: those of the second pair
// then lie in columns 4 to 7, so that one tile holds both, and a lane makes half as many tanh.
template <int COUNT>
CAAN_DEVICE bool share(const int (&lengths)[COUNT], int tiles) {
  int longest = 0;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) longest = lengths[i] > longest ? lengths[i] : longest;
  return longest <= 8 * tiles - 4;
}

// The second pair's right factor with its halves of columns exchanged.
CAAN_DEVICE void exchange_halves(uint32_t& factor, bool shares) {
  const float exchanged = shuffle_xor(from_bits(factor), 16);
  if (shares) factor = bits_of(exchanged);
}

// Of all pairs' last tiles X.
template <bool SHARE, int LAST, int PAIRS, int TILES>
CAAN_DEVICE void add_last_tanh(float (&logits)[PAIRS][TILES][2], const float (&X)[PAIRS][4], float at_row, float on) {
  if constexpr (SHARE) {
    const bool of_first = threadIdx.x % 4 < 2;
    float both[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) both[e] = of_first ? X[0][e] : X[1][e];
    add_tanh(logits[0][LAST], both, at_row, on);
  } else {
#pragma unroll
    for (int p = 0; p < PAIRS; ++p) add_tanh(logits[p][LAST], X[p], at_row, on);
  }
}

// To the second pair what is its own.
template <int TILES>
CAAN_DEVICE void part_last_tile(float (&logits)[2][TILES][2], bool shares) {
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    const float shared = shuffle_xor(logits[0][TILES - 1][e], 2);
    if (shares) logits[1][TILES - 1][e] = shared;
  }
}

// Captions of 17 to 24 words lack the last tile of 8 words. A caption's own length decides, so that its sums are the same in every
// block.
template <typename S>
CAAN_DEVICE bool lacks_tile(int words) {
  return S::STRIPS == 2 && words <= 24;
}

// body(std::integral_constant) of how many tiles of words there are.
template <typename S, typename Body>
CAAN_DEVICE void for_word_tiles(bool lacks, Body body) {
  constexpr int ALL = 2 * S::STRIPS;
  if constexpr (S::STRIPS == 2)
    if (lacks) return body(std::integral_constant<int, ALL - 1>{});
  body(std::integral_constant<int, ALL>{});
}

// left[column, word] of a strip of 16 words, or of half a one.
CAAN_DEVICE void left_words(uint32_t (&left)[4], const char* words, int strip, bool half, int k) {
  uint32_t first[2];
  if (!half) return left_columns(left, words, strip, k);
  left_columns(first, words, strip, k);
  left[0] = first[0], left[1] = first[1];
}

// sums += left right, of such words.
template <typename T>
CAAN_DEVICE void add_words(float (&sums)[4], const uint32_t (&left)[4], const uint32_t (&right)[2], bool half) {
  const uint32_t first[2] = {left[0], left[1]};
  half ? add_product<T>(sums, first, right) : add_product<T>(sums, left, right);
}

template <bool SHARE, int WORD_TILES, typename S, typename T>
CAAN_DEVICE void add_word_logits(const Tile<S, T>& tile, const Piece& piece, const Factors<S::STRIPS, S::TILES> (&R)[S::PAIRS],
                                 const uint32_t (&H)[S::PAIRS][S::STRIPS][2 * S::STRIPS][2],
                                 float (&logits)[S::PAIRS][2 * S::STRIPS][2]) {
  constexpr int LAST = WORD_TILES - 1;
#pragma unroll S::UNROLLED
  for (int k = 0; k < PIECE / 16; ++k) {
    const float at_row = first_of<T>(piece.weights[k]), on = second_of<T>(piece.weights[k]);
    float X[S::PAIRS][LAST][4] = {}, last[S::PAIRS][4] = {};
    const auto sums = [&](int p, int j) -> float (&)[4] { return j < LAST ? X[p][j] : last[p]; };
    if (tile.o.inter)
      each_depth(tile, piece.regions, k, [&](int depth, const auto& left) {
#pragma unroll
        for (int p = 0; p < S::PAIRS; ++p)
#pragma unroll
          for (int j = 0; j < WORD_TILES; ++j) add_product<T>(sums(p, j), left, R[p][depth][j]);
      });
    if (tile.o.intra)
#pragma unroll
      for (int p = 0; p < S::PAIRS; ++p)
#pragma unroll
        for (int w = 0; w < S::STRIPS; ++w) {
          const bool half = 2 * w + 1 == WORD_TILES;
          uint32_t left[4];
          left_words(left, piece.words, p * S::STRIPS + w, half, k);
#pragma unroll
          for (int j = 0; j < WORD_TILES; ++j) add_words<T>(sums(p, j), left, H[p][w][j], half);
        }
#pragma unroll
    for (int p = 0; p < S::PAIRS; ++p)
#pragma unroll
      for (int j = 0; j < LAST; ++j) add_tanh(logits[p][j], X[p][j], at_row, on);
    add_last_tanh<SHARE, LAST>(logits, last, at_row, on);
  }
}

template <bool SHARE, typename S, typename T>
CAAN_DEVICE void add_word_logits(const Tile<S, T>& tile, const ContextRows<S>& rows,
                                 const Factors<S::STRIPS, S::TILES> (&R)[S::PAIRS],
                                 const uint32_t (&H)[S::PAIRS][S::STRIPS][2 * S::STRIPS][2],
                                 float (&logits)[S::PAIRS][2 * S::STRIPS][2]) {
  const bool lacks = lacks_tile<S>(tile.n(0));
#pragma unroll 1
  for (int number = 0; number < tile.pieces_of_hidden(); ++number) {
    const Piece piece = next_piece(tile, rows, number);
    for_word_tiles<S>(lacks, [&](auto tiles) { add_word_logits<SHARE, decltype(tiles)::value>(tile, piece, R, H, logits); });
  }
}

// A pair's factors of the regions' contexts: C_unit, and C and C_unit words by regions.
template <typename S>
struct RegionFactors {
  Factors<S::STRIPS, S::TILES> unit;
  uint32_t turned[S::STRIPS][S::TILES][2], unit_turned[S::STRIPS][S::TILES][2];
};

template <bool SHARE, int WORD_TILES, typename S, typename T>
CAAN_DEVICE void add_region_logits(const Tile<S, T>& tile, const Piece& piece, const RegionFactors<S> (&C)[S::PAIRS],
                                   float (&logits)[S::PAIRS][S::TILES][2]) {
#pragma unroll S::UNROLLED
  for (int k = 0; k < PIECE / 16; ++k) {
    const float at_row = first_of<T>(piece.weights[k]), on = second_of<T>(piece.weights[k]);
    float z[S::PAIRS][WORD_TILES][4] = {}, last[S::PAIRS][4] = {};
    if (tile.o.intra)
      each_depth(tile, piece.regions, k, [&](int depth, const auto& left) {
#pragma unroll
        for (int p = 0; p < S::PAIRS; ++p)
#pragma unroll
          for (int j = 0; j < WORD_TILES; ++j) add_product<T>(z[p][j], left, C[p].unit[depth][j]);
      });
#pragma unroll
    for (int p = 0; p < S::PAIRS; ++p) {
      uint32_t Z[S::STRIPS][4] = {}, UQ2[S::STRIPS][4] = {};
#pragma unroll
      for (int j = 0; j < WORD_TILES; ++j)
#pragma unroll
        for (int i = 0; i < 2; ++i) Z[j / 2][2 * (j % 2) + i] = pack(z[p][j][2 * i], z[p][j][2 * i + 1], T{});
      if (tile.o.inter)
#pragma unroll
        for (int w = 0; w < S::STRIPS; ++w) left_words(UQ2[w], piece.words, p * S::STRIPS + w, 2 * w + 1 == WORD_TILES, k);
#pragma unroll
      for (int t = 0; t < S::TILES; ++t) {
        float other[4] = {}, (&Y)[4] = t == S::TILES - 1 ? last[p] : other;
#pragma unroll
        for (int w = 0; w < S::STRIPS; ++w) {
          const bool half = 2 * w + 1 == WORD_TILES;
          if (tile.o.intra) add_words<T>(Y, Z[w], C[p].unit_turned[w][t], half);
          if (tile.o.inter) add_words<T>(Y, UQ2[w], C[p].turned[w][t], half);
        }
        if (t < S::TILES - 1) add_tanh(logits[p][t], Y, at_row, on);
      }
    }
    add_last_tanh<SHARE, S::TILES - 1>(logits, last, at_row, on);
  }
}

template <bool SHARE, typename S, typename T>
CAAN_DEVICE void add_region_logits(const Tile<S, T>& tile, const ContextRows<S>& rows, const RegionFactors<S> (&C)[S::PAIRS],
                                   float (&logits)[S::PAIRS][S::TILES][2]) {
  const bool lacks = lacks_tile<S>(tile.n(0));
#pragma unroll 1
  for (int number = 0; number < tile.pieces_of_hidden(); ++number) {
    const Piece piece = next_piece(tile, rows, tile.pieces_of_hidden() + number);
    for_word_tiles<S>(lacks, [&](auto tiles) { add_region_logits<SHARE, decltype(tiles)::value>(tile, piece, C, logits); });
  }
}

// From S the logits of the warp's words and regions. What a side needs of the weights is made late, for the sake of registers.
template <typename S, typename T>
CAAN_DEVICE void add_logits(const Tile<S, T>& tile, const ContextRows<S>& rows, Cells<S>& A,
                            float (&of_regions)[S::PAIRS][S::TILES][2], float (&of_words)[S::PAIRS][2 * S::STRIPS][2]) {
  constexpr int STRIPS = S::STRIPS, TILES = S::TILES, PAIRS = S::PAIRS;
  uint32_t H[PAIRS][STRIPS][2 * STRIPS][2];
  Factors<STRIPS, TILES> R[PAIRS], turnable;
  Scales<STRIPS, TILES> scales[PAIRS];
#pragma unroll
  for (int p = 0; p < PAIRS; ++p) {
    scales[p] = attend<T, STRIPS, TILES>(A[p], tile.m(), tile.n(p));
    make_factors<T, STRIPS, TILES>(
        R[p], turnable, [&](int w, int t, int e) { return A[p][w][t][e] * scales[p].of_region[t][e % 2]; },
        [&](int w, int, int e) { return scales[p].of_R[w][e / 2]; });
    word_affinity<T, STRIPS, TILES>(H[p], turnable);
  }
  if constexpr (PAIRS == 2) {
    const bool shares = share(tile.items.n, 2);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int depth = 0; depth < S::DEPTHS; ++depth) exchange_halves(R[1][depth][1][half], shares);
      exchange_halves(H[1][0][1][half], shares);
    }
    shares ? add_word_logits<true>(tile, rows, R, H, of_words) : add_word_logits<false>(tile, rows, R, H, of_words);
    part_last_tile(of_words, shares);
  } else {
    add_word_logits<false>(tile, rows, R, H, of_words);
  }
  RegionFactors<S> C[PAIRS];
#pragma unroll
  for (int p = 0; p < PAIRS; ++p) {
    make_factors<T, STRIPS, TILES>(
        turnable, C[p].unit, [&](int w, int t, int e) { return A[p][w][t][e] * scales[p].of_word[w][e / 2]; },
        [&](int, int t, int e) { return scales[p].of_C[t][e % 2]; });
#pragma unroll
    for (int w = 0; w < STRIPS; ++w)
#pragma unroll
      for (int t = 0; t < TILES; ++t)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          C[p].turned[w][t][half] = transpose_matrix(turnable[t / 2][2 * w + half][t % 2]);
          C[p].unit_turned[w][t][half] = transpose_matrix(C[p].unit[t / 2][2 * w + half][t % 2]);
        }
  }
  if constexpr (PAIRS == 2) {
    const bool shares = share(tile.items.m, TILES);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      exchange_halves(C[1].turned[0][TILES - 1][half], shares);
      exchange_halves(C[1].unit_turned[0][TILES - 1][half], shares);
    }
    shares ? add_region_logits<true>(tile, rows, C, of_regions) : add_region_logits<false>(tile, rows, C, of_regions);
    part_last_tile(of_regions, shares);
  } else {
    add_region_logits<false>(tile, rows, C, of_regions);
  }
}

} // namespace caan::context_attention
