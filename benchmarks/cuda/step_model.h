// A model in integers of what one tensor-core step computes for bfloat16 inputs and a float32 accumulator.
//
// Products are exact. Products and accumulator are aligned to the largest exponent among them, each is
// truncated to F fractional bits, they are summed exactly, and the sum is truncated (toward zero) to float32.
// An input's exponent is that of its leading bit, -126 for subnormals and zeros; a product's is the sum of
// its factors', not normalised. (arXiv 2511.10909, checked there bit for bit against eight architectures;
// arXiv 2512.07004 finds the same by other means.)
//
// Only host code, and only finite values: what overflows becomes infinite.
#pragma once
#include <cstdint>
#include <cstring>

namespace step_model {

// Unit is a chip's dot product: a step of 16 products is summed `group` at a time, each sum with `fraction`
// bits, and the sums are chained.
struct Unit {
  int group, fraction;
};

// What the papers found, by compute capability. {0, 0} where nothing was published.
inline Unit unit_of(int major, int minor) {
  (void)minor;
  switch (major) {
    case 8: return {8, 24};
    case 9: return {16, 25};
    case 12: return {16, 25};
    default: return {0, 0};
  }
}

inline uint32_t bits(float x) {
  uint32_t u;
  std::memcpy(&u, &x, 4);
  return u;
}

inline float from_bits(uint32_t u) {
  float x;
  std::memcpy(&x, &u, 4);
  return x;
}

inline float bf16_to_float(uint16_t h) { return from_bits(uint32_t(h) << 16); }

// Round to nearest even; finite values only.
inline uint16_t float_to_bf16(float x) {
  uint32_t u = bits(x);
  return uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// One addend: the value is significand * 2^(exponent - fraction_bits).
struct Term {
  int64_t significand;
  int exponent;
};

// Significand (with 23 fractional bits) and exponent of a float32.
inline Term split(uint32_t u) {
  int e = int(u >> 23 & 0xff);
  int64_t s = u & 0x7fffff;
  if (e != 0) s |= 0x800000; else e = 1;
  if (s == 0) e = 1;  // a zero counts with the smallest exponent
  return {u >> 31 ? -s : s, e - 127};
}

// Shift toward zero: right shifts drop bits of the magnitude.
inline int64_t scale(int64_t s, int left) {
  if (left >= 0) return s * (int64_t(1) << left);
  int right = -left;
  if (right > 62) return 0;
  return s < 0 ? -(-s >> right) : s >> right;
}

// sum * 2^exponent, truncated to float32.
inline float truncate(int64_t sum, int exponent) {
  if (sum == 0) return 0.0f;
  uint32_t sign = sum < 0 ? 0x80000000u : 0;
  uint64_t m = sum < 0 ? uint64_t(-sum) : uint64_t(sum);
  int top = 63 - __builtin_clzll(m);  // the value lies in [2^(top+exponent), 2^(top+exponent+1))
  int e = top + exponent;
  if (e > 127) return from_bits(sign | 0x7f800000u);
  int lowest = (e < -126 ? -126 : e) - 23;  // weight of the result's last bit
  m = uint64_t(scale(int64_t(m), exponent - lowest));
  if (e < -126) return from_bits(sign | uint32_t(m));
  return from_bits(sign | uint32_t(e + 127) << 23 | (uint32_t(m) & 0x7fffff));
}

// One sum of `n` products and an accumulator.
inline float fused(const uint16_t *a, const uint16_t *b, int n, float c, int fraction) {
  Term terms[17];
  int largest = -1000;
  for (int i = 0; i < n; i++) {
    Term x = split(uint32_t(a[i]) << 16), y = split(uint32_t(b[i]) << 16);
    // 8 significant bits each: the product has 14 fractional bits.
    terms[i] = {(x.significand >> 16) * (y.significand >> 16), x.exponent + y.exponent};
    if (terms[i].exponent > largest) largest = terms[i].exponent;
  }
  Term acc = split(bits(c));
  if (acc.exponent > largest) largest = acc.exponent;
  int64_t sum = scale(acc.significand, fraction - 23 + acc.exponent - largest);
  for (int i = 0; i < n; i++) sum += scale(terms[i].significand, fraction - 14 + terms[i].exponent - largest);
  return truncate(sum, largest - fraction);
}

// c plus the dot product of a and b over k products, k a multiple of 16, in steps of 16.
inline float chain(Unit unit, const uint16_t *a, const uint16_t *b, int k, float c) {
  for (int i = 0; i < k; i += unit.group) c = fused(a + i, b + i, unit.group, c, unit.fraction);
  return c;
}

}  // namespace step_model
