// What the CPU kernels of every operator are given beside plain pointers. Nothing here knows torch.
#pragma once

#include <cstdint>

namespace caan::cpu {

enum class Storage { float32, float64, bfloat16, float16 };
inline constexpr int storage_count = 4;

// Runs body(context, worker) for every worker in [0, workers), possibly at once.
struct Executor {
  using Body = void (*)(void* context, int64_t worker);
  int64_t threads;
  void (*run)(int64_t workers, Body body, void* context);
};

// items (batch, length, width) times weight (width, columns), for the rows that exist.
struct Projection {
  int64_t batch, length, width, columns;
  const void* items;
  const void* weight;
  const int64_t* lengths; // (batch,) or null
};

} // namespace caan::cpu
