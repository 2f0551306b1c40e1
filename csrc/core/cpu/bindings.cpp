// What the CPU backend tells of itself, as torch ops (caan_kernels/core/cpu.py).
#include <algorithm>
#include <string>

#include "core/arguments.h"
#include "core/checks.h"
#include "core/cpu/kernels.h"
#include "core/cpu/threads.h"

namespace {

using namespace caan;

std::string cpu_isa(Arguments&) { return cpu::instruction_set(); }

void tanh_(Arguments& in) {
  const Tensor values = in.next<Tensor>();
  STD_TORCH_CHECK(values.scalar_type() == ScalarType::Float || values.scalar_type() == ScalarType::Double,
                  "values: expected dtype float32 or float64, got ", text_of(values.scalar_type()));
  check_contiguous(values, "values");
  struct Slice {
    const cpu::Kernels& kernels;
    char* data;
    int64_t count, workers, size;
  } slice{cpu::kernels_for(storage_of(values, "values")), static_cast<char*>(values.mutable_data_ptr()), values.numel(),
          std::max<int64_t>(1, torch::stable::get_num_threads()), values.scalar_type() == ScalarType::Double ? 8 : 4};
  cpu::run_on_torch_threads(
      slice.workers,
      [](void* context, int64_t worker) {
        const Slice& s = *static_cast<Slice*>(context);
        const int64_t begin = s.count * worker / s.workers, end = s.count * (worker + 1) / s.workers;
        s.kernels.tanh(s.data + begin * s.size, end - begin);
      },
      &slice);
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(caan_kernels, CPU, m) { m.impl("tanh_", &boxed<tanh_>); }

STABLE_TORCH_LIBRARY_IMPL(caan_kernels, CompositeExplicitAutograd, m) { m.impl("cpu_isa", &boxed<cpu_isa>); }
