#include "core/cpu/instruction_set.h"

#include <cstdlib>
#include <stdexcept>

namespace caan::cpu {

namespace {

std::string choose() {
  const char* requested = std::getenv("CAAN_CPU_ISA");
  const std::string wanted = requested ? requested : "";
#if defined(__x86_64__) && !defined(CAAN_GENERIC_ONLY)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (has_avx512 && (wanted.empty() || wanted == "avx512")) return "avx512";
  if (has_avx2 && (wanted.empty() || wanted == "avx2")) return "avx2";
#endif
  if (wanted.empty() || wanted == "generic") return "generic";
  throw std::runtime_error("CAAN_CPU_ISA: expected avx512, avx2 or generic, and one that this processor has; got '" + wanted + "'");
}

} // namespace

const std::string& instruction_set() {
  static const std::string chosen = choose();
  return chosen;
}

} // namespace caan::cpu
