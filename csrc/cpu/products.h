// Products of many positive numbers that neither overflow nor underflow, one per lane of a register,
// and their logarithms.
#pragma once

#include <cstdint>
#include <limits>

#include "common/transposes.h"

namespace infoslice::cpu {

/// Mantissas and exponents apart, in double. All by arithmetic on values and bits: comparisons of
/// vectors GCC takes apart into single lanes before it knows the register width.
template <int Bytes, class T>
class Products {
  static constexpr int kLanes = Bytes / static_cast<int>(sizeof(T));
  static constexpr int kParts = 8 / static_cast<int>(sizeof(T));  // registers of doubles
  static constexpr int N = kLanes / kParts;
  using V = Vec<T, kLanes>;
  using D = Vec<double, N>;
  using U = Vec<uint64_t, N>;
  using I = Vec<int64_t, N>;

 public:
  INFOSLICE_INLINE Products() {
    for (int p = 0; p < kParts; ++p) mantissa_[p] = D{} + 1.0, exponent_[p] = I{};
  }
  INFOSLICE_INLINE void multiply(const V& factor) {
    if constexpr (kParts == 2) {
      mantissa_[0] *= __builtin_convertvector((half<0, float, kLanes>(factor)), D);
      mantissa_[1] *= __builtin_convertvector((half<1, float, kLanes>(factor)), D);
    } else {
      // A subnormal has no implicit leading one: scale it into the normal range first.
      const U subnormal = ((reinterpret_cast<U>(factor) >> 52) - 1) >> 63;
      const U shift = (0 - subnormal) & 54;
      D scaled = factor * reinterpret_cast<D>((shift + 1023) << 52);
      exponent_[0] -= reinterpret_cast<I>(shift);
      split(scaled, exponent_[0]);
      mantissa_[0] *= scaled;
    }
  }
  /// To be called before 7 floats, or 1000 doubles, can overflow.
  INFOSLICE_INLINE void normalise() {
    for (int p = 0; p < kParts; ++p) split(mantissa_[p], exponent_[p]);
  }
  INFOSLICE_INLINE V log() {
    normalise();
    if constexpr (kParts == 2) {
      using F = Vec<float, N>;
      return join<float, N>(__builtin_convertvector(log(mantissa_[0], exponent_[0]), F),
                            __builtin_convertvector(log(mantissa_[1], exponent_[1]), F));
    } else {
      return log(mantissa_[0], exponent_[0]);
    }
  }

 private:
  // value = mantissa * 2^exponent with a mantissa in [sqrt 1/2, sqrt 2).
  INFOSLICE_INLINE static void split(D& value, I& exponent) {
    constexpr uint64_t one = 0x3ff0000000000000u, root_half = 0x3fe6a09e00000000u;
    const U bits = reinterpret_cast<U>(value) + (one - root_half);
    exponent += reinterpret_cast<I>(bits >> 52) - 1023;
    value = reinterpret_cast<D>((bits & 0x000fffffffffffffu) + root_half);
  }
  // log m = 2 artanh s with s = (m - 1) / (m + 1), |s| < 0.172.
  INFOSLICE_INLINE static D log(const D& m, const I& exponent) {
    const D s = (m - 1) / (m + 1), square = s * s;
    D sum = D{} + 1.0 / 21;
#pragma GCC unroll 9
    for (int k = 19; k >= 3; k -= 2) sum = sum * square + 1.0 / k;
    const D log_m = 2 * s + 2 * s * (square * sum);
    return log_m + __builtin_convertvector(exponent, D) * 0.69314718055994530942;
  }

  D mantissa_[kParts];
  I exponent_[kParts];
};

}  // namespace infoslice::cpu
