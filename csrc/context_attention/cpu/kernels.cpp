// The operator's CPU kernels for one instruction set; compiled once for each (core/cpu/target.h).
#include "context_attention/cpu/kernels.h"
#include "context_attention/cpu/gradients.h"
#include "context_attention/cpu/scores.h"
#include "core/cpu/projection.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

using namespace caan::context_attention;

template <class T>
constexpr Kernels kernels() {
  using F = Real<T>;
  Kernels k{};
  k.project = project<T>;
  k.project_backward = project_backward<T>;
  k.scores = [](const Problem& problem, void* out, const Maps* maps, const Executor& executor) {
    Scorer<T>(problem, static_cast<F*>(out), maps, executor).run();
  };
  k.scores_backward = [](const Problem& problem, const void* grad_scores, const Gradients& gradients, const Executor& executor) {
    Differentiator<T>(problem, static_cast<const F*>(grad_scores), gradients, executor).run();
  };
  return k;
}

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE

namespace caan::context_attention::CAAN_NAMESPACE {

// A constant: an initialiser that ran when the library is loaded would use this instruction set on processors that lack it.
constinit const Kernels table[cpu::storage_count] = {
    cpu::CAAN_NAMESPACE::kernels<float>(),
    cpu::CAAN_NAMESPACE::kernels<double>(),
    cpu::CAAN_NAMESPACE::kernels<cpu::CAAN_NAMESPACE::BFloat16>(),
    cpu::CAAN_NAMESPACE::kernels<cpu::CAAN_NAMESPACE::Float16>(),
};

} // namespace caan::context_attention::CAAN_NAMESPACE
