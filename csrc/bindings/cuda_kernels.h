// The table of CUDA bodies that module _cuda hands to module _core when the first CUDA tensor
// comes. A function pointer per body keeps _core free of CUDA objects; decltype keeps the
// signatures those of csrc/<op>.h.
#pragma once

namespace infoslice {

struct CudaKernels {
  const char* (*error_string)(int cuda_error);
};

// The name of the capsule attribute of _cuda and of the capsule itself.
constexpr const char* kCudaKernelsCapsule = "infoslice._cuda.kernels";

}  // namespace infoslice
