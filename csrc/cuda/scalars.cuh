// Element types on the device.
#pragma once

#include "common/numeric.h"
#include "cuda/panel.cuh"

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

}  // namespace infoslice::cuda
