// torch's threads, as kernels are run on them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "core/cpu/float_state.h"
#include "core/cpu/types.h"

namespace caan::cpu {

inline void run_on_torch_threads(int64_t workers, Executor::Body body, void* context) {
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    const DefaultFloatState state;
    for (int64_t worker = begin; worker < end; ++worker) body(context, worker);
  });
}

// While it lives, the calling thread has the default floating-point state, too.
struct TorchThreads : Executor {
  TorchThreads() : Executor{int64_t(torch::stable::get_num_threads()), run_on_torch_threads} {}
  const DefaultFloatState state{};
};

} // namespace caan::cpu
