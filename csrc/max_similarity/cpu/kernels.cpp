// The operator's CPU kernels for one instruction set; compiled once for each (core/cpu/target.h).
#include "max_similarity/cpu/kernels.h"
#include "max_similarity/cpu/gradients.h"
#include "max_similarity/cpu/scores.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

using namespace caan::max_similarity;

template <class T>
constexpr Kernels kernels() {
  Kernels k{};
  k.scores = [](const Problem& problem, void* out, const Executor& executor) {
    scores<T>(problem, static_cast<Real<T>*>(out), executor);
  };
  k.scores_backward = [](const Problem& problem, const void* grad_scores, const Gradients& gradients, const Executor& executor) {
    Differentiator<T>(problem, static_cast<const Real<T>*>(grad_scores), gradients, executor).run();
  };
  return k;
}

} // namespace
} // namespace caan::cpu::CAAN_NAMESPACE

namespace caan::max_similarity::CAAN_NAMESPACE {

// A constant: an initialiser that ran when the library is loaded would use this instruction set on processors that lack it.
constinit const Kernels table[cpu::storage_count] = {
    cpu::CAAN_NAMESPACE::kernels<float>(),
    cpu::CAAN_NAMESPACE::kernels<double>(),
    cpu::CAAN_NAMESPACE::kernels<cpu::CAAN_NAMESPACE::BFloat16>(),
    cpu::CAAN_NAMESPACE::kernels<cpu::CAAN_NAMESPACE::Float16>(),
};

} // namespace caan::max_similarity::CAAN_NAMESPACE
