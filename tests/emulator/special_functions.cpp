// The emulator's special functions err as far as PTX allows, and no further; its TF32 is what docs/cuda.md says;
// tests/test_emulated.py compiles and runs it.
#include <cmath>
#include <cstdio>
#include <vector>

#include "core/cuda/device.h"

namespace {

using namespace caan::cuda;

bool failed = false;

// Errors relative to `unit(exact)`, over numbers that float holds.
template <typename Found, typename Exact, typename Unit>
void check(const char* name, float first, float last, Found found, Exact exact, Unit unit, double most) {
  double highest = 0, lowest = 0;
  for (int i = 0; i <= 20000; ++i) {
    const float x = first + (last - first) * float(i) / 20000;
    const double error = (double(found(x)) - exact(x)) / unit(exact(x));
    highest = std::fmax(highest, error), lowest = std::fmin(lowest, error);
  }
  if (highest > most || -lowest > most || highest < 0.7 * most || lowest > -0.7 * most) {
    std::printf("%s: expected errors up to %g both ways, got %g and %g\n", name, most, lowest, highest);
    failed = true;
  }
}

// Of factors 19 bits are read, and of terms what lies more than 24 bits below the largest is cut off.
void check_tf32() {
  const auto product = [](float left, float right, float sum) {
    float found = 0;
    emulate(1, WARP, 0, [&] {
      const uint32_t of = bits_of(left);
      float sums[4] = {sum, sum, sum, sum};
      multiply_add(sums, {of, of, of, of}, bits_of(right), bits_of(right), float{});
      if (threadIdx.x == 0) found = sums[3];
    });
    return found;
  };
  failed |= product(1 + 0x1p-10f, 1, 0) != 8 + 0x1p-7f || product(1 + 0x1p-11f, 1, 0) != 8;
  failed |= product(0x1p-12f, 0x1p-11f, 1) != 1 + 0x1p-20f || product(0x1p-12f, 0x1p-11f, 2) != 2;
  failed |=
      product(INFINITY, 1, 0) != INFINITY || !std::isnan(product(INFINITY, 0, 0)) || product(0x1p-120f, 0x1p-20f, 0) != 0x1p-137f;
}

} // namespace

int main() {
  const auto itself = [](double y) { return std::fabs(y); };
  const auto last_place = [](double y) { return std::ldexp(1.0, std::ilogb(y) - 23); };
  // Rounding to some bits errs by half as much near 1 as near 1/2.
  check("tanh", 1.5f, 9, rough_tanh, [](float x) { return std::tanh(double(x)); }, itself, 0x1p-11);
  check("tanh", -1.5f, -0.01f, rough_tanh, [](float x) { return std::tanh(double(x)); }, itself, 0x1p-11);
  check("1/x", 0.1f, 50, quick_inverse, [](float x) { return 1 / double(x); }, last_place, 1);
  check("1/sqrt(x)", 0.1f, 50, quick_inverse_root, [](float x) { return 1 / std::sqrt(double(x)); }, itself, std::exp2(-22.9));
  // The argument of ex2 is rounded, too.
  check("exp", -0.5f, 0.5f, quick_exp, [](float x) { return std::exp2(double(x * 1.44269504f)); }, itself, 0x1p-22);
  check("tanh of float32", 0.1f, 10, close_tanh, [](float x) { return std::tanh(double(x)); }, last_place, 3.8);
  for (const float x : {INFINITY, -INFINITY}) failed |= rough_tanh(x) != std::copysign(1.0f, x) || quick_inverse(x) != 0;
  failed |= !std::isnan(rough_tanh(NAN)) || quick_inverse_root(0) != INFINITY || quick_exp(-INFINITY) != 0 || rough_tanh(0) != 0;
  check_tf32();
  if (!failed) std::puts("as PTX promises");
  return failed;
}
