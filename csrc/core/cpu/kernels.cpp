// Kernels of no operator for one instruction set; compiled once for each (core/cpu/target.h).
#include "core/cpu/kernels.h"

#include "core/cpu/simd.h"

namespace caan::cpu::CAAN_NAMESPACE {
namespace {

template <class F>
void tanh_in_place(void* values, int64_t count) {
  F* v = static_cast<F*>(values);
  int64_t i = 0;
  for (; i + lanes<F> <= count; i += lanes<F>) store(v + i, tanh(load(v + i)));
  if (i < count) {
    F tail[lanes<F>];
    store(tail, tanh(load_head(v + i, count - i)));
    for (int64_t l = 0; i < count; ++i, ++l) v[i] = tail[l];
  }
}

} // namespace

// A constant: an initialiser that ran when the library is loaded would use this instruction set on processors that lack it.
constinit const Kernels table[storage_count] = {
    {tanh_in_place<float>},
    {tanh_in_place<double>},
    {tanh_in_place<float>},
    {tanh_in_place<float>},
};

} // namespace caan::cpu::CAAN_NAMESPACE
