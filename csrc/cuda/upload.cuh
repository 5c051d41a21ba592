// Host bytes into device memory by way of kernel parameters: nothing is synchronised, the host's
// memory may go at once, and a CUDA graph keeps the bytes it was captured with. Parameters of more
// than 4 KB need CUDA 12.1, driver 530 and compute capability 7.0.
#pragma once

#include <cstddef>
#include <cstring>

#include "cuda/grid.h"
#include "cuda/launch.h"

namespace infoslice::cuda {

template <int kWords>
struct Parcel {
  uint32_t words[kWords];
};

// A word per thread: the lanes of a warp read their words one after the other, so many small blocks
// read them on many multiprocessors at once.
template <int kWords>
__global__ void __launch_bounds__(256)
    upload_kernel(const __grid_constant__ Parcel<kWords> parcel, unsigned words, uint32_t* to) {
  for (unsigned w = blockIdx.x * 256 + threadIdx.x; w < words; w += gridDim.x * 256)
    to[w] = parcel.words[w];
}

template <int kWords>
cudaError_t upload_parcel(const char* from, size_t bytes, uint32_t* to, void* stream) {
  const unsigned words = static_cast<unsigned>((bytes + 3) / 4);
  Parcel<kWords> parcel;
  parcel.words[words - 1] = 0;  // behind the last byte
  std::memcpy(parcel.words, from, bytes);
  const auto upload = upload_kernel<kWords>;
  INFOSLICE_LAUNCH(upload, grid(divide_up(words, 256)), 256, 0, stream, parcel, words, to);
  return cudaGetLastError();
}

/// `to`: device memory, 4-byte aligned, of `bytes` rounded up to 4. Some microseconds for every
/// 32000 bytes.
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
