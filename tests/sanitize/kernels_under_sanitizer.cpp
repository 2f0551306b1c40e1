// Runs every CPU kernel over ragged problems under AddressSanitizer and UndefinedBehaviorSanitizer, with workspaces that start as
// NaN. Inputs lie in allocations of exactly their size, so that a read or write one element outside is an error; what lies beyond a
// length is NaN. Results are held against each other: one thread against several, all pairs against pair lists, projected against
// raw.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "context_attention/cpu/kernels.h"

using namespace caan::context_attention;
using namespace caan::cpu;

namespace {

void run_threads(int64_t workers, Executor::Body body, void* context) {
  std::vector<std::thread> threads;
  for (int64_t w = 0; w < workers; ++w) threads.emplace_back(body, context, w);
  for (auto& t : threads) t.join();
}
Executor executor(int64_t threads) { return {threads, run_threads}; }

void expect(bool fine, const char* what) {
  if (fine) return;
  std::fprintf(stderr, "failed: %s\n", what);
  std::exit(1);
}

size_t size_of(Storage s) { return s == Storage::float64 ? 8 : s == Storage::float32 ? 4 : 2; }
size_t score_size(Storage s) { return s == Storage::float64 ? 8 : 4; }

// Exactly `count` elements, so that the sanitizer guards both ends.
struct Array {
  Storage storage;
  int64_t count;
  std::unique_ptr<char[]> data;
  Array(Storage s, int64_t n) : storage(s), count(n), data(new char[n * size_of(s)]) {
    std::memset(data.get(), 0xff, n * size_of(s));
  }
  void set(int64_t i, double v) {
    const float f = float(v);
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    if (storage == Storage::float64) std::memcpy(&data[i * 8], &v, 8);
    if (storage == Storage::float32) std::memcpy(&data[i * 4], &f, 4);
    if (storage == Storage::bfloat16) {
      const uint16_t b = uint16_t(bits >> 16);
      std::memcpy(&data[i * 2], &b, 2);
    }
    if (storage == Storage::float16) {
      const uint32_t magnitude = bits & 0x7fffffffu;
      const uint16_t h = uint16_t((bits >> 16 & 0x8000u) | (magnitude < 0x38800000u ? 0 : (magnitude - 0x38000000u) >> 13));
      std::memcpy(&data[i * 2], &h, 2);
    }
  }
  double get(int64_t i) const {
    if (storage == Storage::float64) {
      double v;
      std::memcpy(&v, &data[i * 8], 8);
      return v;
    }
    if (storage == Storage::float32) {
      float v;
      std::memcpy(&v, &data[i * 4], 4);
      return v;
    }
    uint16_t h;
    std::memcpy(&h, &data[i * 2], 2);
    if (storage == Storage::bfloat16) {
      const uint32_t bits = uint32_t(h) << 16;
      float v;
      std::memcpy(&v, &bits, 4);
      return v;
    }
    const int exponent = h >> 10 & 31, fraction = h & 1023;
    if (exponent == 31) return std::numeric_limits<double>::quiet_NaN();
    return (h & 0x8000 ? -1 : 1) * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
  }
  bool finite() const {
    for (int64_t i = 0; i < count; ++i)
      if (!std::isfinite(get(i))) return false;
    return true;
  }
  bool same(const Array& other) const { return std::memcmp(data.get(), other.data.get(), count * size_of(storage)) == 0; }
};

Storage scores_of(Storage s) { return s == Storage::float64 ? Storage::float64 : Storage::float32; }

struct Shape {
  int64_t I, M, T, N, D, H;
};

void run(Storage storage, const Shape& s, const Options& options, std::mt19937& random) {
  const auto [I, M, T, N, D, H] = s;
  std::normal_distribution<double> normal;
  const auto dense = [&](int64_t count, double scale) {
    Array a(storage, count);
    for (int64_t i = 0; i < count; ++i) a.set(i, normal(random) * scale);
    return a;
  };
  std::vector<int64_t> region_lengths, word_lengths;
  for (int64_t i = 0; i < I; ++i) region_lengths.push_back(int64_t(random() % (M + 1)));
  for (int64_t t = 0; t < T; ++t) word_lengths.push_back(int64_t(random() % (N + 1)));
  const auto ragged = [&](int64_t items, int64_t rows, const std::vector<int64_t>& lengths) {
    Array a(storage, items * rows * D);
    for (int64_t b = 0; b < items; ++b)
      for (int64_t i = 0; i < lengths[b] * D; ++i) a.set(b * rows * D + i, normal(random));
    return a;
  };
  const Array regions = ragged(I, M, region_lengths), words = ragged(T, N, word_lengths);
  const double scale = 1 / std::sqrt(double(D));
  const Array affinity = dense(D * D, scale), q1 = dense(D * H, scale), q2 = dense(D * H, scale), q3 = dense(D * H, scale);
  const Array q4 = dense(D * H, scale), wv = dense(H, 1), wu = dense(H, 1);
  Array region_weight(storage, D * 2 * H), word_weight(storage, D * (D + 2 * H));
  for (int64_t d = 0; d < D; ++d) {
    for (int64_t h = 0; h < H; ++h) {
      region_weight.set(d * 2 * H + h, q1.get(d * H + h));
      region_weight.set(d * 2 * H + H + h, q4.get(d * H + h));
      word_weight.set(d * (D + 2 * H) + D + h, q2.get(d * H + h));
      word_weight.set(d * (D + 2 * H) + D + H + h, q3.get(d * H + h));
    }
    for (int64_t e = 0; e < D; ++e) word_weight.set(d * (D + 2 * H) + e, affinity.get(e * D + d));
  }

  const Kernels& kernels = kernels_for(storage);
  const Projection for_regions{I, M, D, 2 * H, regions.data.get(), region_weight.data.get(), region_lengths.data()};
  const Projection for_words{T, N, D, D + 2 * H, words.data.get(), word_weight.data.get(), word_lengths.data()};
  Array region_products(storage, I * M * 2 * H), word_products(storage, T * N * (D + 2 * H));
  kernels.project(for_regions, region_products.data.get(), executor(1));
  kernels.project(for_words, word_products.data.get(), executor(3));
  expect(region_products.finite() && word_products.finite(), "products are finite, padding included");

  Problem p{};
  p.images = I, p.regions_per_image = M, p.captions = T, p.words_per_caption = N, p.width = D, p.hidden = H;
  p.regions = regions.data.get(), p.words = words.data.get();
  p.region_products = region_products.data.get(), p.word_products = word_products.data.get();
  p.affinity = affinity.data.get(), p.region_intra = q1.data.get(), p.region_inter = q2.data.get();
  p.word_intra = q3.data.get(), p.word_inter = q4.data.get();
  p.region_score = wv.data.get(), p.word_score = wu.data.get();
  p.region_lengths = region_lengths.data(), p.word_lengths = word_lengths.data();
  p.options = options;
  const Storage out = scores_of(storage);
  Array scores(out, I * T), again(out, I * T);
  kernels.scores(p, scores.data.get(), nullptr, executor(1));
  kernels.scores(p, again.data.get(), nullptr, executor(3));
  expect(scores.finite() && scores.same(again), "scores are finite and the same on three threads");
  Problem raw = p;
  raw.region_products = raw.word_products = nullptr;
  kernels.scores(raw, again.data.get(), nullptr, executor(3));
  expect(scores.same(again), "raw scores are those of projected items");

  std::vector<int64_t> pairs;
  for (int64_t k = 0; k < 2 * I * T; ++k) pairs.push_back(int64_t(random() % I)), pairs.push_back(int64_t(random() % T));
  const int64_t P = 2 * I * T;
  Problem list = p;
  list.pairs = pairs.data(), list.pair_count = P;
  Array listed(out, P), f(out, P * M), g(out, P * N), rows(out, P * M * N), columns(out, P * M * N);
  for (Array* a : {&f, &g, &rows, &columns}) std::memset(a->data.get(), 0, a->count * score_size(storage));
  const Maps maps{f.data.get(), g.data.get(), rows.data.get(), columns.data.get()};
  for (const Maps* wanted : {static_cast<const Maps*>(nullptr), &maps}) {
    kernels.scores(list, listed.data.get(), wanted, executor(2));
    for (int64_t k = 0; k < P; ++k)
      expect(listed.get(k) == scores.get(pairs[2 * k] * T + pairs[2 * k + 1]), "a pair list gives the scores of all pairs");
  }
  expect(f.finite() && g.finite() && rows.finite() && columns.finite(), "maps are finite");

  Array grad(out, I * T);
  for (int64_t i = 0; i < I * T; ++i) grad.set(i, random() % 3 ? normal(random) : 0);
  std::vector<Array> first;
  for (int64_t threads : {1, 3}) {
    std::vector<Array> d;
    for (int64_t count : {regions.count, region_products.count, words.count, word_products.count, H, H})
      d.emplace_back(storage, count);
    const Gradients gradients{d[0].data.get(), d[1].data.get(), d[2].data.get(), d[3].data.get(), d[4].data.get(), d[5].data.get()};
    kernels.scores_backward(p, grad.data.get(), gradients, executor(threads));
    d.emplace_back(storage, regions.count);
    d.emplace_back(storage, region_weight.count);
    kernels.project_backward(for_regions, d[1].data.get(), d[6].data.get(), d[7].data.get(), executor(threads));
    for (const Array& a : d) expect(a.finite(), "gradients are finite, padding included");
    for (size_t a = 0; a < first.size(); ++a) expect(first[a].same(d[a]), "gradients are the same on three threads");
    first = std::move(d);
  }
}

} // namespace

int main() {
  std::mt19937 random(0);
  const Shape shapes[] = {{1, 1, 1, 1, 1, 1},   {3, 5, 4, 7, 16, 8},   {2, 36, 5, 13, 70, 33}, {4, 7, 3, 40, 9, 65},
                          {2, 50, 2, 3, 33, 1}, {1, 13, 9, 1, 300, 5}, {6, 2, 70, 31, 5, 17}};
  int64_t cases = 0;
  for (Storage storage : {Storage::float32, Storage::float64, Storage::bfloat16, Storage::float16})
    for (const Shape& shape : shapes)
      for (int choice = 0; choice < 16; ++choice) {
        run(storage, shape, {bool(choice & 1), bool(choice & 2), 9.0, bool(choice & 4), bool(choice & 8)}, random);
        ++cases;
      }
  std::printf("%s: %lld cases passed\n", kernels_for(Storage::float32).name, static_cast<long long>(cases));
}
