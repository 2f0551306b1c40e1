#include "max_similarity/cpu/plan.h"

#include <algorithm>
#include <tuple>

namespace caan::max_similarity {
namespace {

int64_t padded(int64_t columns, int64_t lanes) { return (columns + lanes - 1) / lanes * lanes; }

// Cuts a block's queries into strips: one for each, or shared ones.
void cut_strips(Block& block, const Problem& problem, Limits limits, bool shared) {
  block.strips.clear();
  block.column.clear();
  block.columns = 0;
  for (int64_t q = 0; q < int64_t(block.queries.size()); ++q) {
    if (block.strips.empty() || !shared || block.strips.back().columns >= limits.strip_columns) {
      if (!block.strips.empty()) block.columns += padded(block.strips.back().columns, limits.lanes);
      block.strips.push_back({q, q, block.columns, 0});
    }
    Strip& strip = block.strips.back();
    block.column.push_back(strip.columns);
    strip.columns += problem.queries().row_count(block.queries[q]);
    strip.end = q + 1;
  }
  if (!block.strips.empty()) block.columns += padded(block.strips.back().columns, limits.lanes);
}

// Tasks of a block's entries, which are sorted by document and query.
void find_tasks(Block& block) {
  block.tasks.clear();
  int64_t query = 0, strip = 0;
  for (int64_t e = 0; e < int64_t(block.entries.size()); ++e) {
    const Entry& entry = block.entries[e];
    const bool next = e == 0 || block.entries[e - 1].document != entry.document;
    if (next) query = strip = 0;
    query = std::lower_bound(block.queries.begin() + query, block.queries.end(), entry.query) - block.queries.begin();
    strip = std::partition_point(block.strips.begin() + strip, block.strips.end(), [&](const Strip& x) { return x.end <= query; }) -
            block.strips.begin();
    if (next || block.tasks.back().strip != strip) block.tasks.push_back({entry.document, strip, e, e});
    block.tasks.back().end = e + 1;
  }
}

// Columns that all tasks multiply.
int64_t columns_of_tasks(const Block& block, int64_t lanes) {
  int64_t total = 0;
  for (const Task& task : block.tasks) total += padded(block.strips[task.strip].columns, lanes);
  return total;
}

// Sorts the tasks of every few documents by strip.
void order_shared(std::vector<Task>& tasks, int64_t documents) {
  for (size_t begin = 0, end = 0; begin < tasks.size(); begin = end) {
    for (int64_t found = 0; end < tasks.size(); ++end) {
      found += end == begin || tasks[end].document != tasks[end - 1].document;
      if (found > documents) break;
    }
    std::stable_sort(tasks.begin() + begin, tasks.begin() + end, [](const Task& a, const Task& b) { return a.strip < b.strip; });
  }
}

void find_tasks_of_fewest_columns(Block& block, const Problem& problem, Limits limits) {
  std::sort(block.entries.begin(), block.entries.end(), [](const Entry& a, const Entry& b) {
    return std::tie(a.document, a.query, a.out) < std::tie(b.document, b.query, b.out);
  });
  cut_strips(block, problem, limits, true);
  find_tasks(block);
  const int64_t together = columns_of_tasks(block, limits.lanes);
  cut_strips(block, problem, limits, false);
  find_tasks(block);
  if (columns_of_tasks(block, limits.lanes) <= together) return;
  cut_strips(block, problem, limits, true);
  find_tasks(block);
  order_shared(block.tasks, limits.documents);
}

} // namespace

Block plan_block(const Problem& problem, Limits limits, int64_t& next) {
  Block block;
  int64_t columns = 0;
  for (; next < problem.queries().count; ++next) {
    const int64_t rows = problem.queries().row_count(next);
    if (rows == 0) continue;
    if (!block.queries.empty() && columns + rows > limits.block_columns) break;
    block.queries.push_back(next);
    columns += rows;
  }
  cut_strips(block, problem, limits, true);
  return block;
}

std::vector<Task> tasks_of(const Problem& problem, const Block& block, int64_t begin, int64_t end, int64_t together) {
  std::vector<Task> tasks;
  for (int64_t first = begin; first < end; first += together)
    for (int64_t s = 0; s < int64_t(block.strips.size()); ++s)
      for (int64_t d = first; d < std::min(end, first + together); ++d)
        if (problem.documents().row_count(d) > 0) tasks.push_back({d, s, -1, -1});
  return tasks;
}

std::vector<Block> plan_list(const Problem& problem, std::vector<Entry> entries, Limits limits) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.query < b.query; });
  std::vector<Block> blocks;
  int64_t columns = 0;
  for (const Entry& entry : entries) {
    const bool known = !blocks.empty() && blocks.back().queries.back() == entry.query;
    const int64_t width = known ? 0 : padded(problem.queries().row_count(entry.query), limits.lanes);
    if (!known && (blocks.empty() || columns + width > limits.block_columns)) {
      blocks.emplace_back();
      columns = 0;
    }
    if (!known) blocks.back().queries.push_back(entry.query);
    blocks.back().entries.push_back(entry);
    columns += width;
  }
  for (Block& block : blocks) find_tasks_of_fewest_columns(block, problem, limits);
  return blocks;
}

} // namespace caan::max_similarity
