// Host bytes into device memory by way of kernel parameters: nothing is synchronised, the host's
// memory may go at once, and a CUDA graph keeps the bytes it was captured with.
#pragma once

#include <cstddef>
#include <cstring>

#include "cuda/launch.h"

namespace infoslice::cuda {

template <int kWords>
struct Parcel {
  uint32_t words[kWords];
};

template <int kWords>
__global__ void __launch_bounds__(256)
    upload_kernel(const __grid_constant__ Parcel<kWords> parcel, int words, uint32_t* to) {
  for (int w = static_cast<int>(threadIdx.x); w < words; w += 256) to[w] = parcel.words[w];
}

template <int kWords>
cudaError_t upload_parcel(const char* from, size_t bytes, uint32_t* to, void* stream) {
  Parcel<kWords> parcel{};
  std::memcpy(parcel.words, from, bytes);
  const auto upload = upload_kernel<kWords>;
  INFOSLICE_LAUNCH(upload, 1, 256, 0, stream, parcel, static_cast<int>((bytes + 3) / 4), to);
  return cudaGetLastError();
}

/// `to`: device memory, 4-byte aligned, of `bytes` rounded up to 4.
inline cudaError_t upload(const void* from, size_t bytes, void* to, void* stream) {
  constexpr size_t kSmall = 4000, kLarge = 32000;  // parameters of a kernel: at most 32764 bytes
  cudaError_t error = cudaSuccess;
  for (size_t done = 0; done < bytes && error == cudaSuccess;) {
    const char* const begin = static_cast<const char*>(from) + done;
    uint32_t* const target = static_cast<uint32_t*>(to) + done / 4;
    const size_t left = bytes - done, now = left < kLarge ? left : kLarge;
    error = left <= kSmall ? upload_parcel<kSmall / 4>(begin, now, target, stream)
                           : upload_parcel<kLarge / 4>(begin, now, target, stream);
    done += now;
  }
  return error;
}

}  // namespace infoslice::cuda
