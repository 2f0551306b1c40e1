// All pairs, or a list of them: every query's largest products, added up in an order that depends on their number alone.
#pragma once

#include <algorithm>

#include "max_similarity/cpu/search.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

using namespace caan::max_similarity;

// Pairs of a list that are planned together, and documents against strips where all pairs are scored.
inline constexpr int64_t planned_pairs = int64_t(1) << 18;
inline constexpr int64_t planned_tasks = int64_t(1) << 16;

template <class F>
CAAN_INLINE F score_of(const F* best, int64_t count, bool mean) {
  Vec<F> total{};
  int64_t c = 0;
  for (; c + lanes<F> <= count; c += lanes<F>) total += load(best + c);
  if (c < count) total += load_head(best + c, count - c);
  const F score = mean ? sum<F>(total) / F(count) : sum<F>(total);
  // One NaN for all of them: which one comes out of a sum depends on the order of its operands.
  return score == score ? score : std::numeric_limits<F>::quiet_NaN();
}

// Calls body(entry, position of its query in the block) for the pairs of a task.
template <class Body>
void for_entries(const Block& block, const Task& task, Body body) {
  int64_t query = block.strips[task.strip].begin;
  for (int64_t e = task.begin; e < task.end; ++e) {
    query = std::lower_bound(block.queries.begin() + query, block.queries.end(), block.entries[e].query) - block.queries.begin();
    body(block.entries[e], query);
  }
}

template <class T>
void scores(const Problem& problem, Real<T>* out, const Executor& executor) {
  using F = Real<T>;
  const bool mean = problem.options.mean;
  Searcher<T, false> searcher(problem, executor);
  const Limits limits = searcher.limits(problem);
  const auto put = [&](const Block& block, int64_t query, const Best<F>& best, int64_t place) {
    out[place] = score_of(best.value + block.column[query], problem.queries().row_count(block.queries[query]), mean);
  };
  for (int64_t i = 0; i < problem.score_count(); ++i) out[i] = 0;
  if (!problem.pairs) {
    for (int64_t next = 0; next < problem.queries().count;) {
      const Block block = plan_block(problem, limits, next);
      if (block.queries.empty()) break;
      searcher.load_queries(block);
      const int64_t step = larger(limits.documents, planned_tasks / int64_t(block.strips.size()));
      for (int64_t begin = 0; begin < problem.documents().count; begin += step) {
        const auto tasks = tasks_of(problem, block, begin, smaller(problem.documents().count, begin + step), limits.documents);
        searcher.run(block, tasks, [&](const Task& task, const Best<F>& best) {
          const Strip& strip = block.strips[task.strip];
          for (int64_t q = strip.begin; q < strip.end; ++q) put(block, q, best, problem.score(task.document, block.queries[q]));
        });
      }
    }
    return;
  }
  for (int64_t begin = 0; begin < problem.pair_count; begin += planned_pairs) {
    std::vector<Entry> entries;
    for (int64_t p = begin; p < smaller(problem.pair_count, begin + planned_pairs); ++p)
      if (problem.has_rows(problem.document(p), problem.query(p))) entries.push_back({problem.document(p), problem.query(p), p});
    for (const Block& block : plan_list(problem, std::move(entries), limits)) {
      searcher.load_queries(block);
      searcher.run(block, block.tasks, [&](const Task& task, const Best<F>& best) {
        for_entries(block, task, [&](const Entry& entry, int64_t query) { put(block, query, best, entry.out); });
      });
    }
  }
}

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE
