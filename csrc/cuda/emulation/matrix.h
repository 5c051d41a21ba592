// The warp's matrix instructions for the emulation, asynchronous copies, and the conversion to
// float16. Who holds which element is the instructions', and so is the rounding as far as it is known
// (Fasi, Higham, Mikaitis and Pranesh 2021): products are exact, and sums of a few of them and the
// accumulator are truncated, not rounded. Later devices have a bit more.
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

/// A float as the tensor cores read a tf32: the last 13 bits do not count.
inline float tf32(uint32_t bits) {
  bits &= 0xffffe000u;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

/// A sum of floats as compute capability 8 gives it: all are cut off 24 bits below the leading bit of
/// the largest, and the sum is cut off to float.
template <int kCount>
float truncated_sum(const double (&addends)[kCount]) {
  double largest = 0, exact = 0;
  for (double addend : addends) {
    largest = std::max(largest, std::fabs(addend));
    exact += addend;
  }
  if (!(largest > 0) || !std::isfinite(exact)) return static_cast<float>(exact);
  const double unit = std::ldexp(1.0, std::ilogb(largest) - 24), units = 1 / unit;
  double sum = 0;
  for (double addend : addends) sum += static_cast<double>(static_cast<int64_t>(addend * units));
  return truncated(sum * unit);
}

/// kPerWord elements to a word, of which kTogether are summed at a time.
template <int kPerWord, int kTogether, class Widen>
void multiply_add(Place place, float (&sums)[4], const uint32_t (&left)[4], const uint32_t* right,
                  const Widen& widen) {
  const auto pack = [](uint32_t low, uint32_t high) {
    return low | static_cast<uint64_t>(high) << 32;
  };
  // Rows 0 - 7 and rows 8 - 15 of the left matrix and the columns of the right one, each with its
  // words 0 - 3 in the low halves and 4 - 7 in the high ones.
  const uint64_t* top = exchange(Collective::matrix, 0xffffffffu, pack(left[0], left[2]), place,
                                 pack(left[1], left[3]), pack(right[0], right[1]));
  const uint64_t *bottom = top + 32, *columns = top + 64;
  constexpr int kElements = 8 * kPerWord;
  const auto unpack = [&](const uint64_t* all, int g, double (&elements)[kElements]) {
    for (int word = 0; word < 8; ++word) {
      const auto bits = static_cast<uint32_t>(all[4 * g + word % 4] >> (word / 4 * 32));
      for (int e = 0; e < kPerWord; ++e)
        elements[kPerWord * word + e] = static_cast<double>(widen(bits >> (16 * e)));
    }
  };
  double rows[2][kElements], of[2][kElements];
  unpack(top, lane() / 4, rows[0]);
  unpack(bottom, lane() / 4, rows[1]);
  unpack(columns, lane() % 4 * 2, of[0]);
  unpack(columns, lane() % 4 * 2 + 1, of[1]);
  for (int c = 0; c < 4; ++c) {
    for (int k0 = 0; k0 < kElements; k0 += kTogether) {
      double addends[kTogether + 1] = {static_cast<double>(sums[c])};
      for (int k = 0; k < kTogether; ++k) addends[k + 1] = rows[c / 2][k0 + k] * of[c % 2][k0 + k];
      sums[c] = truncated_sum(addends);
    }
  }
}

/// The product in double: fused multiply-adds.
inline void multiply_add(Place place, double (&sums)[2], double left, double right) {
  uint64_t bits[2];
  std::memcpy(&bits[0], &left, sizeof(left));
  std::memcpy(&bits[1], &right, sizeof(right));
  const uint64_t* lefts = exchange(Collective::matrix, 0xffffffffu, bits[0], place, bits[1]);
  const auto at = [&](int matrix, int g, int t) {
    double value;
    std::memcpy(&value, &lefts[32 * matrix + 4 * g + t], sizeof(value));
    return value;
  };
  for (int c = 0; c < 2; ++c) {
    for (int k = 0; k < 4; ++k)
      sums[c] = std::fma(at(0, lane() / 4, k), at(1, lane() % 4 * 2 + c, k), sums[c]);
  }
}

// Copies from global to shared memory that nobody waits for happen as late as they may, when their
// thread waits for their group; until then there is poison at their place.
void copy_async(void* to, const void* from, size_t bytes);
void commit_copies();
void wait_copies(size_t groups_left);

}  // namespace infoslice::emulation
