// The covariance of X given Y: [S_yy | S_xy'] for `eliminate` (cuda/dense.h), constants in y left
// out.
#pragma once

#include "cuda/greedy_matrix.cuh"

namespace infoslice::cuda {

/// What is gathered, row-major: row v of S_yy, then the rows of S_xy.
struct GivenY {
  double* rows;     // [ny + nx][ny]
  double* floors;   // [ny] of the pivots
  int32_t* varies;  // [ny] 0: a constant
  const int64_t* x;
  const int64_t* y;
  int64_t nx, ny;
  double noise_variance;
};

template <class T>
__global__ void __launch_bounds__(kGreedyThreads) gather_kernel(MatrixView<T> cov, GivenY of) {
  const int64_t step = int64_t{gridDim.x} * kGreedyThreads;
  for (int64_t e = int64_t{blockIdx.x} * kGreedyThreads + threadIdx.x; e < (of.ny + of.nx) * of.ny;
       e += step) {
    const int64_t i = e / of.ny, j = e % of.ny;
    const double value = read(cov, i < of.ny ? of.y[i] : of.x[i - of.ny], of.y[j]);
    of.rows[e] = i == j ? value + of.noise_variance : value;
  }
}

/// A constant becomes a variable of variance 1 that nothing depends on.
__global__ void __launch_bounds__(kGreedyThreads) constants_kernel(GivenY of) {
  for (int64_t j = blockIdx.x; j < of.ny; j += gridDim.x) {
    bool varies = of.noise_variance != 0;
    for (int64_t i = threadIdx.x; i < of.ny + of.nx && !varies; i += kGreedyThreads)
      varies = of.rows[i * of.ny + j] != 0;
    varies = __syncthreads_or(varies) != 0;
    if (threadIdx.x != 0) continue;
    of.varies[j] = varies;
    if (!varies) of.rows[j * of.ny + j] = 1;
  }
}

/// One block: the floor of a pivot is `limit` times their number times its variance.
__global__ void __launch_bounds__(kGreedyThreads) floors_kernel(GivenY of, double limit) {
  __shared__ int counts[kGreedyThreads];
  const int thread = static_cast<int>(threadIdx.x);
  int count = 0;
  for (int64_t j = thread; j < of.ny; j += kGreedyThreads) count += of.varies[j];
  counts[thread] = count;
  __syncthreads();
  count = 0;
  for (int t = 0; t < kGreedyThreads; ++t) count += counts[t];
  for (int64_t j = thread; j < of.ny; j += kGreedyThreads) {
    const double variance = of.rows[j * of.ny + j];
    of.floors[j] = variance >= 0 ? limit * count * variance : nan("");
  }
}

}  // namespace infoslice::cuda
