// What the kernels' blocks have in common: their size, sums over a warp and over a
// block, and the tiles of a triangle.
#pragma once

#include "cuda/launch.h"

namespace infoslice::cuda {

constexpr unsigned kAll = 0xffffffffu;  // the lanes of a warp
constexpr int kThreads = 256;           // of a block, where nothing else is said

template <class T>
__device__ __forceinline__ T not_a_number() {
  return static_cast<T>(nan(""));
}

/// Sum over `width` neighbouring lanes, a power of two, for each of them; in an order that does not
/// depend on the lane.
template <int width = 32>
__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int offset = width / 2; offset > 0; offset /= 2)
    value += __shfl_xor_sync(kAll, value, offset);
  return value;
}

/// Sum over the kThreads threads of a block, for each of them.
__device__ inline double block_sum(double value) {
  __shared__ double partial[kThreads / 32];
  value = warp_sum(value);
  __syncthreads();  // the sum before is done with
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) sum += partial[w];
  return sum;
}

/// The tile row of the n-th tile of a lower triangle of tiles counted row by row.
__device__ __forceinline__ int64_t tile_row(int64_t n) {
  int64_t row = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(n) + 1.0) - 1.0) / 2.0);
  while (row * (row + 1) / 2 > n) --row;  // the root may be off by one
  while ((row + 1) * (row + 2) / 2 <= n) ++row;
  return row;
}

}  // namespace infoslice::cuda
