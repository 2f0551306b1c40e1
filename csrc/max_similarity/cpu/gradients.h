// Gradients of the pairs that have one. Nothing was kept from the forward pass: the place of every query row's largest product is
// searched again. A row of a query then receives g times the document row at that place, and that row g times the query's.
//
// Rows receive their terms in one order, on any number of threads: a document's of its queries one after the other, a query's of
// its documents. Places are kept for a round of pairs at a time.
#pragma once

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "core/cpu/sums.h"
#include "max_similarity/cpu/scores.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

using namespace caan::max_similarity;

// Of the 256 MiB that backward may take: float32 sums of narrower gradients, and the places of a round.
inline constexpr int64_t sums_bytes = int64_t(128) << 20;
inline constexpr int64_t places_bytes = int64_t(48) << 20;
// Pairs of a list that are sorted at one time, 8 bytes each.
inline constexpr int64_t sorted_pairs = int64_t(1) << 21;

// to += g from, both of `width` numbers.
template <class T>
CAAN_INLINE void add_row(Real<T>* to, Real<T> g, const T* from, int64_t width) {
  using F = Real<T>;
  int64_t d = 0;
  for (; d + lanes<F> <= width; d += lanes<F>) store(to + d, load(to + d) + g * load_wide(from + d));
  for (; d < width; ++d) to[d] += g * widen(from[d]);
}

template <class T>
class Differentiator {
  using F = Real<T>;

 public:
  Differentiator(const Problem& problem, const F* grad_scores, const Gradients& gradients, const Executor& executor)
      : problem_(problem), grad_scores_(grad_scores), executor_(executor), searcher_(problem, executor), sums_(executor) {
    void* const of_documents = problem.options.over_regions ? gradients.words : gradients.regions;
    void* const of_queries = problem.options.over_regions ? gradients.regions : gradients.words;
    documents_.out = static_cast<T*>(of_documents);
    queries_.out = static_cast<T*>(of_queries);
    documents_.row = problem.documents().rows * problem.width;
    queries_.row = problem.queries().rows * problem.width;
  }

  void run() {
    if (problem_.pairs)
      windows_ = windows_of(problem_.documents().count, problem_.pair_count, sorted_pairs, [&](int64_t p) {
        return has_gradient(p, problem_.document(p), problem_.query(p)) ? problem_.document(p) : -1;
      });
    // No sums of a side whose gradient is not wanted.
    const auto size = [](const ItemSums<T>& sums, int64_t items) { return SideSize{sums.out ? items : 0, sums.row}; };
    in_sweeps<T>(size(documents_, problem_.documents().count), size(queries_, problem_.queries().count), sums_bytes,
                 [&](Range documents, Range queries) { sweep(documents, queries); });
  }

 private:
  // A pair with a gradient, and where its places begin.
  struct Pending {
    int64_t document, query, place;
    F gradient;
  };

  // Pairs of a window in the order in which they count, which does not depend on how they were listed.
  std::vector<int64_t> sorted_list(Range window) const {
    std::vector<int64_t> listed;
    for (int64_t p = 0; p < problem_.pair_count; ++p)
      if (window.has(problem_.document(p)) && has_gradient(p, problem_.document(p), problem_.query(p))) listed.push_back(p);
    // By bits, not by value: a NaN must not upset the sort.
    const auto key = [&](int64_t p) {
      std::conditional_t<sizeof(F) == 8, int64_t, int32_t> bits;
      std::memcpy(&bits, &grad_scores_[p], sizeof bits);
      return std::make_tuple(problem_.document(p), problem_.query(p), bits);
    };
    std::sort(listed.begin(), listed.end(), [&](int64_t a, int64_t b) { return key(a) < key(b); });
    return listed;
  }
  bool has_gradient(int64_t score, int64_t document, int64_t query) const {
    return grad_scores_[score] != 0 && problem_.has_rows(document, query);
  }

  void sweep(Range documents, Range queries) {
    documents_.items = documents, queries_.items = queries;
    sums_.begin({&documents_, &queries_});
    places_ = 0;
    const auto add = [&](int64_t score, int64_t document, int64_t query) {
      if (documents.has(document) || queries.has(query)) add_pair(score, document, query);
    };
    if (problem_.pairs) {
      for (const Range& window : windows_)
        for (int64_t p : sorted_list(window)) add(p, problem_.document(p), problem_.query(p));
    } else {
      for (int64_t d = 0; d < problem_.documents().count; ++d)
        for (int64_t q = 0; q < problem_.queries().count; ++q)
          if (has_gradient(problem_.score(d, q), d, q)) add(problem_.score(d, q), d, q);
    }
    run_round();
    sums_.end({&documents_, &queries_});
  }

  void add_pair(int64_t score, int64_t document, int64_t query) {
    const int64_t rows = problem_.queries().row_count(query);
    const F gradient = problem_.options.mean ? grad_scores_[score] / F(rows) : grad_scores_[score];
    round_.push_back({document, query, places_, gradient});
    places_ += rows;
    if (int64_t(round_.size()) == planned_pairs || places_ * int64_t(sizeof(Place<F>)) >= places_bytes) run_round();
  }

  void run_round() {
    find_places();
    // By document they are sorted.
    std::vector<int64_t> order(round_.size());
    for (size_t i = 0; i < order.size(); ++i) order[i] = int64_t(i);
    const Items &documents = problem_.documents(), &queries = problem_.queries();
    for_runs(order, documents_, &Pending::document, [&](const Pending& pair) {
      const T* rows = features(queries, pair.query);
      F* to = documents_.at(pair.document);
      for (int64_t r = 0; r < queries.row_count(pair.query); ++r)
        add_row(to + place_[pair.place + r] * problem_.width, pair.gradient, rows + r * problem_.width, problem_.width);
    });
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return round_[a].query < round_[b].query; });
    for_runs(order, queries_, &Pending::query, [&](const Pending& pair) {
      const T* rows = features(documents, pair.document);
      F* to = queries_.at(pair.query);
      for (int64_t r = 0; r < queries.row_count(pair.query); ++r)
        add_row(to + r * problem_.width, pair.gradient, rows + place_[pair.place + r] * problem_.width, problem_.width);
    });
    round_.clear();
    places_ = 0;
  }

  const T* features(const Items& items, int64_t item) const {
    return static_cast<const T*>(items.features) + item * items.rows * problem_.width;
  }

  void find_places() {
    place_.resize(places_);
    std::vector<Entry> entries;
    for (int64_t i = 0; i < int64_t(round_.size()); ++i) entries.push_back({round_[i].document, round_[i].query, i});
    for (const Block& block : plan_list(problem_, std::move(entries), searcher_.limits(problem_))) {
      searcher_.load_queries(block);
      searcher_.run(block, block.tasks, [&](const Task& task, const Best<F>& best) {
        for_entries(block, task, [&](const Entry& entry, int64_t query) {
          const Place<F>* found = best.place + block.column[query];
          std::copy_n(found, problem_.queries().row_count(entry.query), place_ + round_[entry.out].place);
        });
      });
    }
  }

  // Calls body(pair) for the pairs of the round whose item the sweep sums up, those of one item one after the other.
  template <class Body>
  void for_runs(const std::vector<int64_t>& order, const ItemSums<T>& sums, int64_t Pending::* item, Body body) {
    std::vector<int64_t> begins;
    for (int64_t i = 0; i < int64_t(order.size()); ++i)
      if (i == 0 || round_[order[i]].*item != round_[order[i - 1]].*item) begins.push_back(i);
    begins.push_back(int64_t(order.size()));
    parallel_units(executor_, int64_t(begins.size()) - 1, [&](int64_t u, int64_t) {
      if (!sums.items.has(round_[order[begins[u]]].*item)) return;
      for (int64_t i = begins[u]; i < begins[u + 1]; ++i) body(round_[order[i]]);
    });
  }

  const Problem& problem_;
  const F* grad_scores_;
  const Executor& executor_;
  Searcher<T, true> searcher_;
  std::vector<Range> windows_;
  Sums<T> sums_;
  ItemSums<T> documents_, queries_;
  std::vector<Pending> round_;
  int64_t places_ = 0;
  Buffer<Place<F>> place_;
};

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE
