// covariance of bfloat16 and float16 on Hopper's own instructions; built for 9.0a alone, a stub where
// that is not among the architectures.
#pragma once

#include <cuda_runtime.h>

#include "covariance.h"
#include "cuda/covariance_finish.cuh"

namespace infoslice::cuda {

// No device has run hopper.cu, so covariance() does not use it; covariance_hopper() does.
constexpr bool kHopperVerified = false;

constexpr int kHopperTile = 128;  // what Plan::tile must be

/// From the pilots: which tiles of variables have others than zero (parts.shifted); and the products
/// and sums of the tiles of a symmetric plan between those that have not. cudaErrorNotSupported, and
/// nothing done, if the current device or the strides of x do not allow it.
#ifdef INFOSLICE_HOPPER
template <class T>
cudaError_t hopper_products(const SampleBatch& x, const Plan& plan, const Parts<float>& parts,
                            void* stream);
#else
template <class T>
cudaError_t hopper_products(const SampleBatch&, const Plan&, const Parts<float>&, void*) {
  return cudaErrorNotSupported;
}
#endif

}  // namespace infoslice::cuda
