// The floating-point state of a thread: what it makes of denormal numbers, and how it rounds.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace caan::cpu {

// While it lives, this thread computes in IEEE 754's default state. torch.set_flush_denormal and libraries built with -ffast-math
// set the state of the calling thread alone: with that state, a number's bits would depend on the thread that happens to find it.
class DefaultFloatState {
 public:
  DefaultFloatState() : before_(read()) { write(by_default); }
  ~DefaultFloatState() { write(before_); }
  DefaultFloatState(const DefaultFloatState&) = delete;
  DefaultFloatState& operator=(const DefaultFloatState&) = delete;

 private:
#if defined(__x86_64__)
  using Register = uint32_t;
  static constexpr Register by_default = 0x1f80; // every exception masked
  static Register read() { return _mm_getcsr(); }
  static void write(Register state) { _mm_setcsr(state); }
#elif defined(__aarch64__)
  using Register = uint64_t;
  static constexpr Register by_default = 0;
  static Register read() {
    Register state;
    __asm__ __volatile__("mrs %0, fpcr" : "=r"(state));
    return state;
  }
  static void write(Register state) { __asm__ __volatile__("msr fpcr, %0" : : "r"(state) : "memory"); }
#else
  using Register = int;
  static constexpr Register by_default = 0;
  static Register read() { return by_default; }
  static void write(Register) {}
#endif

  Register before_;
};

} // namespace caan::cpu
