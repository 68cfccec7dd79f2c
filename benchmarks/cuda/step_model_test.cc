// Checks step_model.h on a machine without a GPU: g++ -std=c++17 -o /tmp/t step_model_test.cc && /tmp/t
// Where nothing is lost by alignment the model must be a truncated exact sum; elsewhere known cases are pinned.
#include "step_model.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

using namespace step_model;

static int failures = 0;

static void expect(const char *what, float got, float want) {
  if (bits(got) == bits(want)) return;
  std::printf("FAIL %s: got %a, want %a\n", what, got, want);
  failures++;
}

// Truncation of an exactly representable double to float32.
static float toward_zero(double x) {
  float f = float(x);
  if (std::fabs(double(f)) > std::fabs(x)) f = std::nextafter(f, 0.0f);
  return f;
}

int main() {
  const Unit hopper = unit_of(9, 0), ampere = unit_of(8, 0);
  uint16_t a[16] = {}, b[16] = {};
  auto one = [](float x) { return float_to_bf16(x); };

  expect("all zero", chain(hopper, a, b, 16, 3.25f), 3.25f);
  expect("negative zero", chain(hopper, a, b, 16, -0.0f), 0.0f);
  expect("subnormal accumulator", chain(hopper, a, b, 16, from_bits(1)), from_bits(1));

  // 1 + 2^-25: kept by 25 fractional bits before the sum, lost by the truncation to float32; twice it is 2^-24.
  a[0] = b[0] = one(1);
  a[1] = one(std::ldexp(1.0f, -13)), b[1] = one(std::ldexp(1.0f, -12));
  expect("1 + 2^-25", chain(hopper, a, b, 16, 0.0f), 1.0f);
  expect("1 + 2^-25 - 1", chain(hopper, a, b, 16, -1.0f), std::ldexp(1.0f, -25));
  expect("the same with 24 bits", chain(ampere, a, b, 16, -1.0f), 0.0f);
  // Truncation is toward zero on both sides.
  a[1] = one(-std::ldexp(1.0f, -13));
  expect("1 - 2^-25", chain(hopper, a, b, 16, 0.0f), std::nextafter(1.0f, 0.0f));
  a[0] = one(-1), a[1] = one(std::ldexp(1.0f, -13));
  expect("-1 + 2^-25", chain(hopper, a, b, 16, 0.0f), -std::nextafter(1.0f, 0.0f));

  // Values on one grid of small integers: no bit is lost, so the order and the unit do not matter.
  std::mt19937 random(1);
  for (int round = 0; round < 200000; round++) {
    double exact = 0;
    float c = float(int(random() % 2001) - 1000) / 64;
    for (int i = 0; i < 16; i++) {
      int x = int(random() % 255) - 127, y = int(random() % 255) - 127;
      a[i] = one(float(x) / 8), b[i] = one(float(y) / 8);
      exact += double(x) * y / 64;
    }
    float want = toward_zero(exact + double(c));
    expect("grid, 16 at once", chain(hopper, a, b, 16, c), want);
    expect("grid, 8 and 8", chain(ampere, a, b, 16, c), want);
    if (failures > 5) break;
  }

  // Subnormal results: 2^-130 * 3 has its last bit well above 2^-149, half of 2^-149 has not.
  for (int i = 0; i < 16; i++) a[i] = b[i] = 0;
  a[0] = one(std::ldexp(3.0f, -70)), b[0] = one(std::ldexp(1.0f, -60));
  expect("subnormal sum", chain(hopper, a, b, 16, 0.0f), std::ldexp(3.0f, -130));
  a[0] = one(std::ldexp(1.0f, -75)), b[0] = one(std::ldexp(1.0f, -75));
  expect("below the smallest", chain(hopper, a, b, 16, 0.0f), 0.0f);
  a[0] = one(std::ldexp(1.0f, 100)), b[0] = one(std::ldexp(1.0f, 100));
  expect("overflow", chain(hopper, a, b, 16, 0.0f), from_bits(0x7f800000));

  std::printf("%s\n", failures ? "FAIL" : "PASS step_model");
  return failures ? 1 : 0;
}
