// Products of query rows by document rows, of which only the largest of every query row leaves the registers.
//
// A block takes a tile of query rows, those of all queries one after the other, and goes through the rows of some documents, also
// packed, tile after tile: no padding is multiplied but that of the last tiles. A warp owns its query rows and sees every document
// row, so that largest products are carried from tile to tile in registers and a document may begin and end anywhere in one.
//
// Half precision, and widths of whole 16-byte units: mma.sync, 32 query rows a warp by 112 document rows a tile, 64 columns at a
// time through two stages of shared memory; four warps a block, three blocks a multiprocessor. Up to 128 columns a block's queries
// stay in shared memory. All else: fused multiply-adds, 64 by 64 a block, in chains of 64 columns.
//
// Batch invariance: an inner product is one chain over the width in one order in every shape of tile, and maxima are exact.
//
// A pair is m n D multiply-adds and nothing on padding: 36 x 13 x 128 60 k, 1,030 x 32 x 128 4.2 M. Estimates, none measured, for
// a tile of 128 x 112 in bfloat16 and 64 columns on an H100, with the rates of docs/cuda.md: tensor cores 917,504 multiply-adds,
// 677 clocks. Shared memory 144 reads of 512 bytes and what is copied, 690 clocks with resident queries (D = 128), 816 without
// (D = 1024). L2 cache 14 KiB and 410 clocks, 30 KiB and 880 clocks. Instructions of a warp, by the machine code: 430 and 590, and
// with every tile 340 to take maxima of one document, 760 of the four that have rows in it at 36 rows each. So tensor cores work
// 98% of the time at 1,030 x 32, D = 128 (shared memory is the limit), 84% at 36 x 13, D = 128 (instructions) and 77% at D = 1024
// (L2 cache). Largest products: 4 bytes a pair and query row, written to and read from the L2 cache.
#pragma once

#include <cstdint>

#include "core/cuda/largest.h"
#include "core/cuda/pieces.h"
#include "max_similarity/cuda/kernels.h"

namespace caan::max_similarity {

namespace {

constexpr int64_t NO_ROW = -1;
// Blocks that run at one time share so many tiles of queries, and the documents that these go through, in the L2 cache.
constexpr int64_t BAND = 16;

CAAN_BOTH constexpr int64_t ceil_of(int64_t count, int64_t step) { return (count + step - 1) / step; }

// Tiles of queries in a band, fewer where there are fewer.
template <typename T>
CAAN_BOTH constexpr int64_t band_of(const Search<T>& s, int tile_rows) {
  const int64_t tiles = ceil_of(s.queries.count * s.queries.rows, tile_rows);
  return tiles < BAND ? tiles : BAND;
}

// The item that a packed row belongs to.
CAAN_DEVICE int64_t item_at(const int64_t* starts, int64_t low, int64_t high, int64_t row) {
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (starts[middle] <= row)
      low = middle;
    else
      high = middle;
  }
  return low;
}

// What a block works on: query_count rows of queries, and the rows of `documents` documents from the first one.
template <typename T, bool LISTED>
struct Work {
  const Search<T>& s;
  int64_t first_query_row = 0, query = 0, first_document = 0, pair = 0;
  int query_count = 0, documents = 0;

  CAAN_DEVICE explicit Work(const Search<T>& search) : s(search) {}

  // False if there is nothing to do, in every thread alike.
  CAAN_DEVICE bool find(int tile_rows, int64_t together) {
    if constexpr (LISTED) {
      const int64_t tiles = (s.queries.rows + tile_rows - 1) / tile_rows;
      pair = blockIdx.x / tiles;
      first_query_row = blockIdx.x % tiles * tile_rows;
      first_document = s.pairs[2 * pair + s.document_column], query = s.pairs[2 * pair + 1 - s.document_column];
      if (first_document < 0 || first_document >= s.documents.count || query < 0 || query >= s.queries.count) return false;
      query_count = rows_left(s.queries.lengths[query], tile_rows);
      documents = 1;
      return query_count > 0 && s.documents.lengths[first_document] > 0;
    } else {
      const int64_t groups = ceil_of(s.documents.count, together), wide = band_of(s, tile_rows);
      const int64_t band = blockIdx.x / (wide * groups), within = blockIdx.x % (wide * groups);
      first_query_row = (band * wide + within % wide) * tile_rows;
      query_count = rows_left(s.queries.starts[s.queries.count] - s.queries.starts[0], tile_rows);
      first_document = within / wide * together;
      documents = int(s.documents.count - first_document < together ? s.documents.count - first_document : together);
      return query_count > 0 && end_of(documents - 1) > 0;
    }
  }

  CAAN_DEVICE int rows_left(int64_t rows, int tile_rows) const {
    const int64_t left = rows - first_query_row;
    return left < tile_rows ? int(left < 0 ? 0 : left) : tile_rows;
  }

  // Of the call's rows, the one that is row i of the tile.
  CAAN_DEVICE int64_t query_row(int i) const {
    if (i >= query_count) return NO_ROW;
    if constexpr (LISTED) return query * s.queries.rows + first_query_row + i;
    const int64_t row = s.queries.starts[0] + first_query_row + i;
    const int64_t item = item_at(s.queries.starts, 0, s.queries.count, row);
    return item * s.queries.rows + row - s.queries.starts[item];
  }
  // The same of a row of the documents.
  CAAN_DEVICE int64_t document_row(int within) const {
    if (within >= end_of(documents - 1)) return NO_ROW;
    if constexpr (LISTED) return first_document * s.documents.rows + within;
    const int64_t row = s.documents.starts[first_document] + within;
    const int64_t item = item_at(s.documents.starts, first_document, first_document + documents, row);
    return item * s.documents.rows + row - s.documents.starts[item];
  }
  // Where a document's rows end.
  CAAN_DEVICE int end_of(int document) const {
    if constexpr (LISTED) return int(s.documents.lengths[first_document]);
    return int(s.documents.starts[first_document + document + 1] - s.documents.starts[first_document]);
  }
  // Where the number of row i of the tile and a document goes.
  CAAN_DEVICE int64_t place_of(int i, int document, int64_t stride) const {
    if constexpr (LISTED) return pair * s.queries.rows + first_query_row + i;
    return (first_document + document) * stride + first_query_row + i;
  }
};

// Where a row begins; any address of the tensor for one that does not exist.
template <typename T>
CAAN_DEVICE const T* row_of(const Rows<T>& side, int64_t row, int width) {
  return side.features + (row == NO_ROW ? 0 : row * width);
}

// The largest numbers of COUNT query rows that a lane has seen of the document that is open, and where.
template <int COUNT, bool PLACED>
struct Largest {
  float value[COUNT];
  int place[COUNT];

  CAAN_DEVICE void reset() {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) value[i] = -INFINITY, place[i] = 0x7fffffff;
  }
  CAAN_DEVICE void take(int i, float x, int at) {
    if constexpr (PLACED) {
      const bool first = comes_first(x, at, value[i], place[i]);
      value[i] = first ? x : value[i];
      place[i] = first ? at : place[i];
    } else {
      value[i] = larger(value[i], x);
    }
  }
  // Over the lanes that have the same query rows, LANES neighbours.
  template <int LANES>
  CAAN_DEVICE void gather() {
#pragma unroll
    for (int mask = 1; mask < LANES; mask *= 2)
#pragma unroll
      for (int i = 0; i < COUNT; ++i) take(i, shuffle_xor(value[i], mask), PLACED ? shuffle_xor(place[i], mask) : 0);
  }
  // What is written of one of the query rows.
  CAAN_DEVICE auto result(int which) const {
    const auto& results = results_of();
    auto x = results[0];
#pragma unroll
    for (int i = 1; i < COUNT; ++i) x = which == i ? results[i] : x;
    return x;
  }

 private:
  CAAN_DEVICE const auto& results_of() const {
    if constexpr (PLACED)
      return place;
    else
      return value;
  }
};

// Goes through the documents that have rows in a tile of `rows` rows from `begin`: take(first, last) rows of the tile belong to the
// document that is open, and flush() ends it. `open` is the first that has not ended.
template <typename Work, typename Take, typename Flush>
CAAN_DEVICE void fold(const Work& work, int& open, int begin, int rows, Take take, Flush flush) {
  int first = 0;
  while (open < work.documents) {
    const int end = work.end_of(open) - begin;
    // An empty document ends where the one before has.
    if (end > first) {
      take(first, end < rows ? end : rows);
      if (end > rows) return;
      flush();
      first = end;
    }
    ++open;
  }
}

template <int WARPS_, int DOCUMENT_ROWS_>
struct Tile {
  static constexpr int WARPS = WARPS_, THREADS = WARPS * WARP, QUERY_ROWS = 32 * WARPS, DOCUMENT_ROWS = DOCUMENT_ROWS_;
  static constexpr int QUERY_BYTES = QUERY_ROWS * PIECE_BYTES, DOCUMENT_BYTES = DOCUMENT_ROWS * PIECE_BYTES;
  static constexpr int SHARED = 2 * (QUERY_BYTES + DOCUMENT_BYTES) + (QUERY_ROWS + 2 * DOCUMENT_ROWS) * int(sizeof(int64_t));
  static constexpr int BLOCKS = WARPS == 4 ? 3 : 8;
};

// 64 columns of the first `count` of ROWS rows, zeros for the others, 8 columns of a row a thread at a time; `rows` has where each
// begins.
template <int ROWS, int THREADS, typename T>
CAAN_DEVICE void fetch_rows(char* to, const T* const* rows, int count, int column, int width) {
  constexpr int STEP = THREADS / 8;
  static_assert(ROWS % STEP == 0 && STEP % 4 == 0);
  const int first = int(threadIdx.x) / 8, unit = int(threadIdx.x) % 8;
  column += 8 * unit;
  const bool in_width = column < width;
#pragma unroll 1
  for (int i = 0; i < ROWS / STEP; ++i) {
    const int r = first + i * STEP;
    // Rows that are a multiple of 8 apart are turned alike.
    char* at = STEP % 8 ? to + unit_offset(r, unit) : to + unit_offset(first, unit) + i * STEP * PIECE_BYTES;
    copy_16_bytes(at, rows[r] + column, in_width && r < count);
  }
}

// Adds the products of 32 query rows of a warp by all document rows of a tile over 64 columns.
template <typename S, typename T>
CAAN_DEVICE void multiply_piece(float (&sums)[2][S::DOCUMENT_ROWS / 8][4], const char* queries, const char* documents, int warp) {
#pragma unroll 1
  for (int k = 0; k < PIECE / 16; ++k) {
    uint32_t of_queries[2][4];
#pragma unroll
    for (int i = 0; i < 2; ++i) left_rows(of_queries[i], queries, 2 * warp + i, k);
#pragma unroll
    for (int j = 0; j < S::DOCUMENT_ROWS / 16; ++j) {
      uint32_t of_documents[4];
      right_rows(of_documents, documents, j, k);
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          multiply_add(sums[i][2 * j + half], of_queries[i], of_documents[2 * half], of_documents[2 * half + 1], T{});
    }
  }
}

// Of what a lane has of those products, takes the rows from `first` to `last` of a tile that begins at row0.
template <typename S, bool PLACED>
CAAN_DEVICE void take_products(Largest<4, PLACED>& best, const float (&sums)[2][S::DOCUMENT_ROWS / 8][4], int row0, int first,
                               int last) {
  const int lane = int(threadIdx.x) % WARP;
#pragma unroll
  for (int j = 0; j < S::DOCUMENT_ROWS / 8; ++j) {
    if (8 * j + 8 <= first || 8 * j >= last) continue;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int row = 8 * j + 2 * (lane % 4) + e;
      const bool real = row >= first && row < last;
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (real) best.take(i, sums[i / 2][j][2 * (i % 2) + e], row0 + row);
    }
  }
}

template <typename T, typename S, bool LISTED, bool PLACED, typename Out>
CAAN_KERNEL void CAAN_BOUNDS(S::THREADS, S::BLOCKS) search_tiles_kernel(Search<T> s, Out* out, int64_t stride, int64_t together) {
  CAAN_SHARED;
  Work<T, LISTED> work(s);
  if (!work.find(S::QUERY_ROWS, together)) return;
  char* const document_stages = shared_memory + 2 * S::QUERY_BYTES;
  auto* const query_rows = reinterpret_cast<const T**>(document_stages + 2 * S::DOCUMENT_BYTES);
  const T** const document_rows = query_rows + S::QUERY_ROWS;
  const int t = int(threadIdx.x), lane = t % WARP, warp = t / WARP;
  const int pieces = (s.width + PIECE - 1) / PIECE;
  const int rows = work.end_of(work.documents - 1), tiles = (rows - 1) / S::DOCUMENT_ROWS + 1;
  const bool resident = pieces <= 2;

  // Of tiles in turns: rows are found two steps before they are worked on, a barrier before they are fetched.
  const auto find_rows = [&](int tile) {
    for (int r = t; r < S::DOCUMENT_ROWS; r += S::THREADS)
      document_rows[tile % 2 * S::DOCUMENT_ROWS + r] = row_of(s.documents, work.document_row(tile * S::DOCUMENT_ROWS + r), s.width);
  };
  const auto query_stage = [&](int tile, int piece) {
    return shared_memory + (resident ? piece : (tile * pieces + piece) % 2) * S::QUERY_BYTES;
  };
  const auto document_stage = [&](int tile, int piece) {
    return document_stages + (tile * pieces + piece) % 2 * S::DOCUMENT_BYTES;
  };
  const auto begin = [&](int tile, int piece) {
    if (tile < tiles) {
      if (tile == 0 || !resident)
        fetch_rows<S::QUERY_ROWS, S::THREADS>(query_stage(tile, piece), query_rows, work.query_count, piece * PIECE, s.width);
      fetch_rows<S::DOCUMENT_ROWS, S::THREADS>(document_stage(tile, piece), document_rows + tile % 2 * S::DOCUMENT_ROWS,
                                               rows - tile * S::DOCUMENT_ROWS, piece * PIECE, s.width);
    }
    close_copies();
  };

  for (int r = t; r < S::QUERY_ROWS; r += S::THREADS) query_rows[r] = row_of(s.queries, work.query_row(r), s.width);
  find_rows(0);
  if (pieces == 1) find_rows(1);
  block_barrier();
  begin(0, 0);
  Largest<4, PLACED> best;
  best.reset();
  int open = 0;
  for (int tile = 0; tile < tiles; ++tile) {
    float sums[2][S::DOCUMENT_ROWS / 8][4] = {};
    for (int piece = 0; piece < pieces; ++piece) {
      wait_for_copies<0>();
      block_barrier();
      const bool last = piece == pieces - 1;
      begin(last ? tile + 1 : tile, last ? 0 : piece + 1);
      if (pieces == 1 || piece == pieces - 2) find_rows(pieces == 1 ? tile + 2 : tile + 1);
      const char *queries = query_stage(tile, piece), *documents = document_stage(tile, piece);
      multiply_piece<S, T>(sums, queries, documents, warp);
    }
    const int row0 = tile * S::DOCUMENT_ROWS;
    const auto take = [&](int first, int last) { take_products<S, PLACED>(best, sums, row0, first, last); };
    const auto flush = [&] {
      best.template gather<4>();
      const int which = lane % 4, row = 32 * warp + 8 * which + lane / 4;
      if (row < work.query_count) {
        out[work.place_of(row, open, stride)] = best.result(which);
      }
      best.reset();
    };
    fold(work, open, row0, S::DOCUMENT_ROWS, take, flush);
  }
}

constexpr int SIDE = 4, GRID = 16, SCALAR_THREADS = GRID * GRID, SCALAR_ROWS = SIDE * GRID, DEPTH = 16, CHAIN = 64;
constexpr int SCALAR_ROW = SCALAR_ROWS + 4;
constexpr int SCALAR_SHARED = 2 * (DEPTH * SCALAR_ROW * int(sizeof(float)) + SCALAR_ROWS * int(sizeof(int64_t)));

// 16 columns of 64 rows, turned over.
template <typename T>
CAAN_DEVICE void load_panel(float* to, const T* from, const int64_t* rows, int column, int width) {
#pragma unroll
  for (int i = int(threadIdx.x); i < SCALAR_ROWS * DEPTH; i += SCALAR_THREADS) {
    const int64_t row = rows[i / DEPTH];
    const int k = i % DEPTH;
    to[k * SCALAR_ROW + i / DEPTH] = row != NO_ROW && column + k < width ? to_float(from[row * width + column + k]) : 0.0f;
  }
}

template <typename T, bool LISTED, bool PLACED, typename Out>
CAAN_KERNEL void CAAN_BOUNDS(SCALAR_THREADS, 2) search_kernel(Search<T> s, Out* out, int64_t stride, int64_t together) {
  CAAN_SHARED;
  Work<T, LISTED> work(s);
  if (!work.find(SCALAR_ROWS, together)) return;
  auto* const queries = reinterpret_cast<float*>(shared_memory);
  float* const documents = queries + DEPTH * SCALAR_ROW;
  auto* const query_rows = reinterpret_cast<int64_t*>(documents + DEPTH * SCALAR_ROW);
  int64_t* const document_rows = query_rows + SCALAR_ROWS;
  // 16 lanes have the same query rows, and four rows of documents each.
  const int t = int(threadIdx.x), x = t % GRID, y = t / GRID;
  if (t < SCALAR_ROWS) query_rows[t] = work.query_row(t);
  Largest<SIDE, PLACED> best;
  best.reset();
  int open = 0;
  const int rows = work.end_of(work.documents - 1);
  for (int row0 = 0; row0 < rows; row0 += SCALAR_ROWS) {
    if (t < SCALAR_ROWS) document_rows[t] = work.document_row(row0 + t);
    block_barrier();
    float chain[SIDE][SIDE] = {}, sums[SIDE][SIDE] = {};
    for (int column = 0; column < s.width; column += DEPTH) {
      load_panel(queries, s.queries.features, query_rows, column, s.width);
      load_panel(documents, s.documents.features, document_rows, column, s.width);
      block_barrier();
#pragma unroll 4
      for (int k = 0; k < DEPTH; ++k) {
        const float4 a = *reinterpret_cast<const float4*>(queries + k * SCALAR_ROW + SIDE * y);
        const float4 b = *reinterpret_cast<const float4*>(documents + k * SCALAR_ROW + SIDE * x);
        const float of_queries[SIDE] = {a.x, a.y, a.z, a.w}, of_documents[SIDE] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int i = 0; i < SIDE; ++i)
#pragma unroll
          for (int j = 0; j < SIDE; ++j) chain[i][j] = fmaf(of_queries[i], of_documents[j], chain[i][j]);
      }
      block_barrier();
      if ((column + DEPTH) % CHAIN == 0 || column + DEPTH >= s.width) {
#pragma unroll
        for (int i = 0; i < SIDE; ++i)
#pragma unroll
          for (int j = 0; j < SIDE; ++j) {
            sums[i][j] += chain[i][j];
            chain[i][j] = 0;
          }
      }
    }
    const auto take = [&](int first, int last) {
#pragma unroll
      for (int j = 0; j < SIDE; ++j) {
        const int row = SIDE * x + j;
        const bool real = row >= first && row < last;
#pragma unroll
        for (int i = 0; i < SIDE; ++i)
          if (real) best.take(i, sums[i][j], row0 + row);
      }
    };
    const auto flush = [&] {
      best.template gather<GRID>();
      const int row = SIDE * y + x;
      if (x < SIDE && row < work.query_count) {
        out[work.place_of(row, open, stride)] = best.result(x);
      }
      best.reset();
    };
    fold(work, open, row0, SCALAR_ROWS, take, flush);
  }
}

// Whether rows are copied 16 bytes at a time; the host has seen to it that tensors begin at a multiple of those.
template <typename T>
bool on_tensor_cores(const Search<T>& s) {
  return sizeof(T) == 2 && s.width % 8 == 0;
}

} // namespace

} // namespace caan::max_similarity
