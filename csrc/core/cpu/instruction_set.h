// The instruction set whose kernels run on this processor. Every operator's kernels are compiled once for each.
#pragma once

#include <string>

namespace caan::cpu {

// Of the best instruction set that this processor has, or that CAAN_CPU_ISA names: generic, avx2 or avx512.
// Throws std::runtime_error when CAAN_CPU_ISA names one that cannot run here.
const std::string& instruction_set();

} // namespace caan::cpu

// Declares an operator's tables of kernels, one for each instruction set, and chosen_table(), the one in use. TYPE is that of an
// entry.
#if defined(__x86_64__) && !defined(CAAN_GENERIC_ONLY)
#define CAAN_TABLES(TYPE)                                                                      \
  namespace generic {                                                                          \
  extern const TYPE table[cpu::storage_count];                                                 \
  }                                                                                            \
  namespace avx2 {                                                                             \
  extern const TYPE table[cpu::storage_count];                                                 \
  }                                                                                            \
  namespace avx512 {                                                                           \
  extern const TYPE table[cpu::storage_count];                                                 \
  }                                                                                            \
  inline const TYPE* chosen_table() {                                                          \
    static const TYPE* const chosen = [](const std::string& name) {                            \
      return name == "avx512" ? avx512::table : name == "avx2" ? avx2::table : generic::table; \
    }(cpu::instruction_set());                                                                 \
    return chosen;                                                                             \
  }
#else
#define CAAN_TABLES(TYPE)                      \
  namespace generic {                          \
  extern const TYPE table[cpu::storage_count]; \
  }                                            \
  inline const TYPE* chosen_table() {          \
    cpu::instruction_set();                    \
    return generic::table;                     \
  }
#endif
