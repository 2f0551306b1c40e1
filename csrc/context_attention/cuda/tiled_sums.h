// What sums.h adds up, of slots that tiled_pair.h filled: a block has one image, or one caption, and 64 columns, a warp 16 of them.
// No warp waits for another.
#pragma once

#include "context_attention/cuda/sums.h"
#include "context_attention/cuda/tiled_pair.h"

namespace caan::context_attention {

template <typename T>
struct TiledSums {
  const Sides<T>& s;
  const InSlots& in;
  const Sums& sums;
  const Options& o;
  char* const shared;
  const int lane = lane_of_thread();

  // work(pair) for each of an image's, or a caption's, pairs in slots.
  CAAN_DEVICE OnTiles<T> pair_at(int64_t place) const {
    float* const slot = const_cast<float*>(in.scratch) + (place - in.first) * TiledShape<T>{s.M, s.N, s.D}.size();
    return OnTiles<T>(s, o, in.schedule.keys[place] / s.captions, in.schedule.keys[place] % s.captions, slot, shared);
  }
  template <typename Work>
  CAAN_DEVICE void for_image(int64_t image, Work work) const {
    const Range range = image_places(in, image);
    for (int64_t place = range.begin; place < range.end; ++place) {
      work(pair_at(place));
      warp_barrier();
    }
  }
  template <typename Work>
  CAAN_DEVICE void for_caption(int64_t caption, Work work) const {
    for_caption_places(in, caption, [&](int64_t place) {
      work(pair_at(place));
      warp_barrier();
    });
  }

  // rows[r, column] += cells, of strip i of `count` rows, where they lie below `columns`.
  CAAN_DEVICE void add_to(float* rows, int64_t stride, int i, int count, int column, int columns, Cells& cells) const {
    for_each(cells, [&](int r, int c, float x) {
      if (STRIP * i + r < count && column + c < columns) rows[(STRIP * i + r) * stride + column + c] += x;
    });
  }

  // What a lane has of dw, for its columns: added to the sum after all of a pair's rows.
  CAAN_DEVICE void add_score(float (&dw)[2][2], float* sum, int h) const {
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float x = sum_over_rows(dw[half][i]);
        const int column = h + STRIP * warp_of_thread() + 8 * half + 2 * lane + i;
        if (lane < 4 && column < s.H) sum[column] += x;
      }
  }

  CAAN_DEVICE void image_features(int64_t image, int d) const {
    float* const out = sums.regions + image * s.M * s.D;
    for_image(image, [&](const OnTiles<T>& on) {
      on.load_words(on.p.UQ, d, s.D);
      warp_barrier();
#pragma unroll 1
      for (int i = 0; i < on.regions; ++i) {
        Cells cells = {};
        on.times_words(cells, OF_DS, i, on.U);
        for_each(cells, [&](int r, int c, float& x) {
          const int region = STRIP * i + r;
          if (region < on.p.m && d + c < s.D) x = fmaf(on.p.slot.f[region], on.p.slot.dv[d + c], x);
        });
        add_to(out, s.D, i, on.p.m, d, s.D, cells);
      }
    });
  }

  CAAN_DEVICE void caption_features(int64_t caption, int d) const {
    const int64_t row = s.D + 2 * s.H;
    float *const of_U = sums.words + caption * s.N * s.D, *const of_UK = sums.word_products + caption * s.N * row;
    for_caption(caption, [&](const OnTiles<T>& on) {
      on.for_chunks([&](int first, int count) {
        on.load_regions(on.p.V, s.D, first, count, d, s.D);
        warp_barrier();
        on.sum_over_regions(
            first, count, [&](int j, Cells& cells) { on.times_regions(cells, OF_DS_T, j, first, count, on.V); },
            [&](int j, Cells& cells) {
              add_to(of_UK, row, j, on.p.n, d, s.D, cells);
              for_each(cells, [&](int r, int c, float& x) {
                const int word = STRIP * j + r;
                if (word < on.p.n && d + c < s.D) x = on.p.slot.g[word] * on.p.slot.du[d + c];
              });
              add_to(of_U, s.D, j, on.p.n, d, s.D, cells);
            });
        warp_barrier();
      });
    });
  }

  CAAN_DEVICE void image_hidden(int64_t image, int h) const {
    float* const out = sums.region_products + image * s.M * (2 * s.H);
    float w_v[2][2], w_u[2][2];
    for_image(image, [&](const OnTiles<T>& on) {
      float dw[2][2] = {};
      const auto add_dw = [&](int half, int i, float of_logit, float t) { dw[half][i] = fmaf(of_logit, t, dw[half][i]); };
      on.load_score(w_v, s.region_score, h);
      on.begin_regions(h);
      on.for_chunks([&](int first, int count) {
        on.region_gradients(first, count, w_v, add_dw);
        if (o.intra) on.gather(first, count, on.of_V);
        warp_barrier();
      });
      add_score(dw, sums.region_score + image * s.H, h);
#pragma unroll 1
      for (int i = 0; o.intra && i < on.regions; ++i) {
        Cells cells = {};
        on.times_words(cells, OF_C_UNIT, i, on.of_U);
        add_to(out, 2 * s.H, i, on.p.m, h, s.H, cells);
      }
      warp_barrier();
#pragma unroll
      for (int half = 0; half < 2; ++half) dw[half][0] = dw[half][1] = 0;
      on.load_score(w_u, s.word_score, h);
      on.word_gradients(h, w_u, add_dw);
      add_score(dw, sums.word_score + image * s.H, h);
#pragma unroll 1
      for (int i = 0; o.inter && i < on.regions; ++i) {
        Cells cells = {};
        on.times_words(cells, OF_R, i, on.of_U);
        add_to(out + s.H, 2 * s.H, i, on.p.m, h, s.H, cells);
      }
    });
  }

  CAAN_DEVICE void caption_hidden(int64_t caption, int h) const {
    const int64_t row = s.D + 2 * s.H;
    float* const out = sums.word_products + caption * s.N * row + s.D;
    float w[2][2];
    for_caption(caption, [&](const OnTiles<T>& on) {
      if (o.inter) {
        on.load_score(w, s.region_score, h);
        on.begin_regions(h);
        on.for_chunks([&](int first, int count) {
          on.region_gradients(first, count, w, on.ignore_tanh);
          on.sum_over_regions(
              first, count, [&](int j, Cells& cells) { on.times_regions(cells, OF_C_T, j, first, count, on.of_V); },
              [&](int j, Cells& cells) { add_to(out, row, j, on.p.n, h, s.H, cells); });
          warp_barrier();
        });
      }
      if (o.intra) {
        on.load_score(w, s.word_score, h);
        on.word_gradients(h, w, on.ignore_tanh);
        on.for_chunks([&](int first, int count) {
          on.spread(first, count, on.of_U);
          on.sum_over_regions(
              first, count, [&](int j, Cells& cells) { on.times_regions(cells, OF_R_UNIT_T, j, first, count, on.of_V); },
              [&](int j, Cells& cells) { add_to(out + s.H, row, j, on.p.n, h, s.H, cells); });
          warp_barrier();
        });
      }
    });
  }
};

} // namespace caan::context_attention
