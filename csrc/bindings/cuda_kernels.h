// The table of CUDA bodies that module _cuda hands to module _core when the first CUDA tensor
// comes. A function pointer per body keeps _core free of CUDA objects; decltype keeps the
// signatures those of csrc/<op>.h.
#pragma once

#include <type_traits>

#include "cholesky.h"

namespace infoslice {

template <class T>
struct CudaKernelsOf {  // bodies for elements of type T
  decltype(&cuda::cholesky<T>) cholesky;
  decltype(&cuda::logdet_workspace<T>) logdet_workspace;
  decltype(&cuda::logdet<T>) logdet;
};

struct CudaKernels {
  const char* (*error_string)(int cuda_error);
  CudaKernelsOf<float> float32;
  CudaKernelsOf<double> float64;

  template <class T>
  const CudaKernelsOf<T>& of() const {
    if constexpr (std::is_same_v<T, float>) {
      return float32;
    } else {
      return float64;
    }
  }
};

// The name of the capsule attribute of _cuda and of the capsule itself.
constexpr const char* kCudaKernelsCapsule = "infoslice._cuda.kernels";

}  // namespace infoslice
