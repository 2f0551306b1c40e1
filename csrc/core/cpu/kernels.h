// Kernels of no operator.
#pragma once

#include <cstdint>

#include "core/cpu/instruction_set.h"
#include "core/cpu/types.h"

namespace caan::cpu {

struct Kernels {
  // In place over count numbers of the arithmetic type; the benchmark's measure of the tanh rate, and the tests' of its error.
  void (*tanh)(void* values, int64_t count);
};

CAAN_TABLES(Kernels)

// Throws std::runtime_error when CAAN_CPU_ISA names an instruction set that cannot run here.
inline const Kernels& kernels_for(Storage storage) { return chosen_table()[static_cast<int>(storage)]; }

} // namespace caan::cpu
