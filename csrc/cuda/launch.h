// The two constructs of CUDA C++ that a host compiler cannot parse, so that every .cu file also
// compiles against csrc/cuda/emulation: the launch and the declaration of dynamic shared memory.
#pragma once

#include <cuda_runtime.h>

#ifdef INFOSLICE_EMULATION

#define INFOSLICE_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                      \
  ::infoslice::emulation::launch(#kernel, reinterpret_cast<const void*>(kernel), grid, block, \
                                 shared_bytes, stream, [&] { (kernel)(__VA_ARGS__); })

#define INFOSLICE_DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::infoslice::emulation::dynamic_shared())

#else

#define INFOSLICE_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  (kernel)<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)

// One untyped array: two instantiations of a template may not declare one name with two types.
#define INFOSLICE_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char infoslice_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(infoslice_dynamic_shared)

#endif
