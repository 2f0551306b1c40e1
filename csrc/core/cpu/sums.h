// What derivatives add up: rows of items, in the output itself where it has the arithmetic type, else beside it; and the order and
// the parts in which a call is gone through, so that memory is bounded and sums have one order on any number of threads.
#pragma once

#include <initializer_list>
#include <type_traits>
#include <vector>

#include "core/cpu/matmul.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

struct Range {
  int64_t begin, end;
  bool has(int64_t i) const { return begin <= i && i < end; }
  int64_t size() const { return end - begin; }
};

// Sums of an output's items, `row` numbers each.
template <class T>
struct ItemSums {
  using F = Real<T>;
  T* out = nullptr;
  int64_t row = 0;
  Range items{0, 0};
  F* base = nullptr;

  int64_t size() const { return items.size() * row; }
  // Where an item's sums are; null where the sweep does not make them.
  F* at(int64_t item) const { return items.has(item) ? base + (item - items.begin) * row : nullptr; }
};

// All sums of one sweep, whose items are set before it begins.
template <class T>
class Sums {
  using F = Real<T>;

 public:
  static constexpr bool in_place = std::is_same_v<T, F>;
  explicit Sums(const Executor& executor) : executor_(executor) {}

  void begin(std::initializer_list<ItemSums<T>*> all) {
    int64_t total = 0;
    for (ItemSums<T>* sums : all) total += sums->size();
    if constexpr (!in_place) beside_.resize(total);
    F* next = beside_;
    for (ItemSums<T>* sums : all) {
      if constexpr (in_place)
        sums->base = sums->out + sums->items.begin * sums->row;
      else
        sums->base = next, next += sums->size();
      in_parts(sums->size(), [&](int64_t i) { sums->base[i] = 0; });
    }
  }
  void end(std::initializer_list<ItemSums<T>*> all) const {
    if constexpr (!in_place)
      for (const ItemSums<T>* sums : all) {
        T* to = sums->out + sums->items.begin * sums->row;
        in_parts(sums->size(), [&](int64_t i) { to[i] = narrow<T>(sums->base[i]); });
      }
  }

 private:
  template <class Body>
  void in_parts(int64_t count, Body body) const {
    constexpr int64_t part = 1 << 16;
    parallel_units(executor_, (count + part - 1) / part, [&](int64_t u, int64_t) {
      for (int64_t i = u * part, end = smaller(count, i + part); i < end; ++i) body(i);
    });
  }

  const Executor& executor_;
  Buffer<F> beside_;
};

// A side's items, and the numbers that the sums of one take.
struct SideSize {
  int64_t items, row;
};

// Calls sweep(items of one side, items of the other) so that every item is in one sweep, whose sums beside the outputs take no more
// than `most_bytes`: both sides at once, or one after the other, block by block.
template <class T, class Sweep>
void in_sweeps(SideSize one, SideSize other, int64_t most_bytes, Sweep sweep) {
  const int64_t most = most_bytes / int64_t(sizeof(Real<T>));
  if (Sums<T>::in_place || one.items * one.row + other.items * other.row <= most)
    return sweep(Range{0, one.items}, Range{0, other.items});
  const Range none{0, 0};
  const int64_t one_step = larger(1, most / larger(1, one.row)), other_step = larger(1, most / larger(1, other.row));
  for (int64_t i = 0; i < one.items; i += one_step) sweep(Range{i, smaller(one.items, i + one_step)}, none);
  for (int64_t i = 0; i < other.items; i += other_step) sweep(none, Range{i, smaller(other.items, i + other_step)});
}

// Windows of items, each with at most so many pairs, or one item. item_of(pair) is negative for a pair that does not count. A list
// is sorted window by window: the order in which its pairs are added up must not depend on how they were listed.
template <class ItemOf>
std::vector<Range> windows_of(int64_t items, int64_t pairs, int64_t most, ItemOf item_of) {
  std::vector<int64_t> count(items);
  for (int64_t p = 0; p < pairs; ++p)
    if (const int64_t item = item_of(p); item >= 0) ++count[item];
  std::vector<Range> windows;
  int64_t begin = 0, inside = 0;
  for (int64_t i = 0; i < items; ++i) {
    if (inside > 0 && inside + count[i] > most) {
      windows.push_back({begin, i});
      begin = i, inside = 0;
    }
    inside += count[i];
  }
  windows.push_back({begin, items});
  return windows;
}

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE
