// One instruction set's kernels. The including file sets CAAN_NAMESPACE, CAAN_VECTOR_BYTES and CAAN_REGISTERS.
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels.h"
#include "plan.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

#include "simd.h"

#include "matmul.h"

#include "pair.h"

#include "scores.h"

#include "gradients.h"

#include "projections.h"

template <class T>
constexpr Kernels kernels(const char* name) {
  using F = Real<T>;
  Kernels k{};
  k.name = name;
  k.project = project<T>;
  k.project_backward = project_backward<T>;
  k.scores = [](const Problem& problem, void* out, const Maps* maps, const Executor& executor) {
    Scorer<T>(problem, static_cast<F*>(out), maps, executor).run();
  };
  k.scores_backward = [](const Problem& problem, const void* grad_scores, const Gradients& gradients, const Executor& executor) {
    Differentiator<T>(problem, static_cast<const F*>(grad_scores), gradients, executor).run();
  };
  k.tanh = [](void* values, int64_t count) {
    F* v = static_cast<F*>(values);
    int64_t i = 0;
    for (; i + lanes<F> <= count; i += lanes<F>) store(v + i, tanh(load(v + i)));
    if (i < count) {
      F tail[lanes<F>];
      store(tail, tanh(load_head(v + i, count - i)));
      for (int64_t l = 0; i < count; ++i, ++l) v[i] = tail[l];
    }
  };
  return k;
}

} // namespace

// A constant: an initialiser that ran when the library is loaded would use this instruction set on processors that lack it.
extern const Kernels table[storage_count];
constinit const Kernels table[storage_count] = {
    kernels<float>(CAAN_ISA_NAME),
    kernels<double>(CAAN_ISA_NAME),
    kernels<BFloat16>(CAAN_ISA_NAME),
    kernels<Float16>(CAAN_ISA_NAME),
};

} // namespace caan::cpu::CAAN_NAMESPACE
