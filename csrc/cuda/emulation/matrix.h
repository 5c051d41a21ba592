// The warp's matrix instructions for the emulation, and the conversion to float16. Who holds which element is the instructions',
// and so is the rounding as far as it is known: products are exact, and a sum of 8 of them and the
// accumulator is truncated, not rounded, to float.
#pragma once

#include <algorithm>
#include <cmath>

#include "cuda_runtime.h"

namespace infoslice::emulation {

inline float truncated(double value) {
  const float nearest = static_cast<float>(value);
  return std::fabs(static_cast<double>(nearest)) > std::fabs(value) && std::isfinite(nearest)
             ? std::nextafter(nearest, 0.0f)
             : nearest;
}

/// The nearest float16, ties to even.
inline uint16_t float16_bits(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  if (!(magnitude < 65520.0f)) return sign | (magnitude == magnitude ? 0x7c00 : 0x7fff);
  if (magnitude == 0) return sign;
  // Rounded to a multiple of 2^-24, or to 11 significant bits.
  int exponent = 0;
  std::frexp(magnitude, &exponent);
  const int unit = std::max(exponent - 11, -24);
  const auto count = static_cast<int>(std::nearbyint(std::ldexp(magnitude, -unit)));
  // The leading bit, and a carry, run into the exponent, as they should.
  return static_cast<uint16_t>(sign | (((unit + 24) << 10) + count));
}

inline void load_matrices(Place place, uint32_t (&to)[4], const void* row, bool transposed) {
  const uint64_t* rows =
      exchange(Collective::matrix, 0xffffffffu, reinterpret_cast<uintptr_t>(row), place);
  const int g = lane() / 4, t = lane() % 4;
  for (int m = 0; m < 4; ++m) {
    uint16_t pair[2];
    for (int e = 0; e < 2; ++e) {
      const int r = transposed ? 2 * t + e : g, column = transposed ? g : 2 * t + e;
      pair[e] = reinterpret_cast<const uint16_t*>(static_cast<uintptr_t>(rows[8 * m + r]))[column];
    }
    to[m] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}

template <class Widen>
void multiply_add(Place place, float (&sums)[4], const uint32_t (&left)[4], const uint32_t* right,
                  const Widen& widen) {
  const auto pack = [](uint32_t low, uint32_t high) {
    return low | static_cast<uint64_t>(high) << 32;
  };
  // Rows 0 - 7 and rows 8 - 15 of the left matrix and the columns of the right one, each with its
  // elements 0 - 7 in the low words and 8 - 15 in the high ones.
  const uint64_t* top = exchange(Collective::matrix, 0xffffffffu, pack(left[0], left[2]), place,
                                 pack(left[1], left[3]), pack(right[0], right[1]));
  const uint64_t *bottom = top + 32, *columns = top + 64;
  // Row or column g of a gathered matrix: two elements to a word, four words.
  const auto unpack = [&](const uint64_t* all, int g, double (&elements)[16]) {
    for (int k = 0; k < 16; ++k) {
      const uint64_t word = all[4 * g + k % 8 / 2] >> (k / 8 * 32);
      elements[k] = static_cast<double>(widen(static_cast<uint16_t>(word >> (k % 2 * 16))));
    }
  };
  double rows[2][16], of[2][16];
  unpack(top, lane() / 4, rows[0]);
  unpack(bottom, lane() / 4, rows[1]);
  unpack(columns, lane() % 4 * 2, of[0]);
  unpack(columns, lane() % 4 * 2 + 1, of[1]);
  for (int c = 0; c < 4; ++c) {
    for (int k0 = 0; k0 < 16; k0 += 8) {
      double sum = static_cast<double>(sums[c]);
      for (int k = k0; k < k0 + 8; ++k) sum += rows[c / 2][k] * of[c % 2][k];
      sums[c] = truncated(sum);
    }
  }
}

}  // namespace infoslice::emulation
