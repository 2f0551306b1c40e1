// The emulator's special functions err as far as PTX allows, and no further; tests/test_emulated.py compiles and runs it.
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
  for (const float x : {INFINITY, -INFINITY}) failed |= rough_tanh(x) != std::copysign(1.0f, x) || quick_inverse(x) != 0;
  failed |= !std::isnan(rough_tanh(NAN)) || quick_inverse_root(0) != INFINITY || quick_exp(-INFINITY) != 0 || rough_tanh(0) != 0;
  if (!failed) std::puts("as PTX promises");
  return failed;
}
