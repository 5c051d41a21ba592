// Element types of the inputs and the types in which they are accumulated.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/simd.h"

namespace infoslice {

// Storage types of 16 bits; arithmetic is done after conversion.
struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

INFOSLICE_INLINE float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Exact conversions to the arithmetic type, free of branches so that loops over them vectorise.
INFOSLICE_INLINE double widen(double value) { return value; }
INFOSLICE_INLINE float widen(float value) { return value; }
INFOSLICE_INLINE float widen(bfloat16 value) {
  return bits_to_float(static_cast<uint32_t>(value.bits) << 16);
}
INFOSLICE_INLINE float widen(float16 value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t body = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
  const uint32_t exponent = body & 0x0f800000u;
  // Rebias 15 -> 127; Inf and NaN keep an all-ones exponent; subnormals are rebuilt by subtraction.
  const uint32_t normal = body + (112u << 23) + (exponent == 0x0f800000u ? 112u << 23 : 0u);
  const float subnormal = bits_to_float(body + (113u << 23)) - bits_to_float(113u << 23);
  uint32_t subnormal_bits;
  std::memcpy(&subnormal_bits, &subnormal, sizeof(subnormal));
  return bits_to_float(sign | (exponent == 0u ? subnormal_bits : normal));
}

// The same for N numbers in one vector of their bits.
template <int N>
INFOSLICE_INLINE Vec<float, N> widen(const Vec<uint16_t, N>& bits, bfloat16) {
  return (Vec<float, N>)(__builtin_convertvector(bits, Vec<uint32_t, N>) << 16);
}
template <int N>
INFOSLICE_INLINE Vec<float, N> widen(const Vec<uint16_t, N>& bits, float16) {
  using Bits = Vec<uint32_t, N>;
  const Bits wide = __builtin_convertvector(bits, Bits);
  const Bits sign = (wide & 0x8000u) << 16, body = (wide & 0x7fffu) << 13;
  const Bits exponent = body & 0x0f800000u;
  const Bits normal = body + (112u << 23) + ((Bits)(exponent == 0x0f800000u) & (112u << 23));
  const Vec<float, N> subnormal = (Vec<float, N>)(body + (113u << 23)) - bits_to_float(113u << 23);
  const Bits small = (Bits)(exponent == 0u);
  return (Vec<float, N>)(sign | ((Bits)subnormal & small) | (normal & ~small));
}

}  // namespace infoslice
