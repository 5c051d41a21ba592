// Element types on the device.
#pragma once

#include <type_traits>

#include "common/numeric.h"
#include "cuda/block.cuh"

#ifdef INFOSLICE_EMULATION
#include "cuda/emulation/matrix.h"
#endif

namespace infoslice::cuda {

__device__ __forceinline__ double widened(double value) { return value; }
__device__ __forceinline__ float widened(float value) { return value; }
__device__ __forceinline__ float widened(bfloat16 value) {
  const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
  float result;
  memcpy(&result, &bits, sizeof(result));
  return result;
}
__device__ __forceinline__ float widened(float16 value) {
#ifdef INFOSLICE_EMULATION
  return widen(value);
#else
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#endif
}

/// The nearest value of the 16-bit type T, ties to even.
template <class T>
__device__ __forceinline__ T narrowed(float value) {
  T result;
#ifdef INFOSLICE_EMULATION
  if constexpr (std::is_same_v<T, bfloat16>) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    result.bits = static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    if (value != value) result.bits = 0x7fff;
  } else {
    result.bits = emulation::float16_bits(value);
  }
#else
  if constexpr (std::is_same_v<T, bfloat16>)
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
#endif
  return result;
}

/// A value of the type T that was widened to double.
template <class T>
__device__ __forceinline__ T exact(double value) {
  if constexpr (sizeof(T) == 2) {
    return narrowed<T>(static_cast<float>(value));
  } else {
    return static_cast<T>(value);
  }
}

}  // namespace infoslice::cuda
