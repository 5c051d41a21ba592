// Device functions behind the Cholesky kernels: a panel of 32 columns, its factorisation by a warp,
// its use by a block.
#pragma once

#include "cuda/launch.h"

namespace infoslice::cuda {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kPanel = 32;     // columns of a panel: the lanes of a warp
constexpr int kThreads = 256;  // of a block, where a matrix has more than a warp
constexpr int kTile = 4;       // rows and columns of a thread's part of an update

template <class T>
__device__ __forceinline__ bool usable_pivot(T pivot) {
  return pivot > T(0) && isfinite(pivot);
}

template <class T>
__device__ __forceinline__ T not_a_number() {
  return static_cast<T>(nan(""));
}

__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAll, value, offset);
  return value;
}

/// Factors a D x D matrix held as a row per lane (lanes and columns behind the matrix: identity).
/// Lane i ends with row i of L in row[0..i]. Returns, to all lanes, 0 or the first order whose
/// leading minor is not positive.
template <class T, int D>
__device__ __forceinline__ int warp_factor(T (&row)[D], int lane) {
  int info = 0;
#pragma unroll
  for (int j = 0; j < D; ++j) {
    const T pivot = __shfl_sync(kAll, row[j], j);
    if (info == 0 && !usable_pivot(pivot)) info = j + 1;
    const T root = sqrt(pivot);
    const T inverse = T(1) / root;
    row[j] = lane > j ? row[j] * inverse : lane == j ? root : T(0);
#pragma unroll
    for (int k = j + 1; k < D; ++k) row[k] -= row[j] * __shfl_sync(kAll, row[j], k);
  }
  return info;
}

/// Where the elements of a lower triangle lie.
template <class T>
struct Packed {  // row after row without the upper part
  T* data;
  __device__ T& at(int64_t i, int64_t j) const { return data[i * (i + 1) / 2 + j]; }
};
template <class T>
struct Square {
  T* data;
  int64_t d;
  __device__ T& at(int64_t i, int64_t j) const { return data[i * d + j]; }
};

/// One warp factors the diagonal block of the panel at p (n <= 32 columns) in place.
template <class T, class Matrix>
__device__ int factor_diagonal(const Matrix& m, int64_t p, int n, int lane) {
  T row[kPanel];
#pragma unroll
  for (int k = 0; k < kPanel; ++k) {
    row[k] = lane < n && k <= lane ? m.at(p + lane, p + k) : lane == k ? T(1) : T(0);
  }
  const int failed = warp_factor<T, kPanel>(row, lane);
#pragma unroll
  for (int k = 0; k < kPanel; ++k) {
    if (lane < n && k <= lane) m.at(p + lane, p + k) = row[k];
  }
  return failed == 0 ? 0 : static_cast<int>(p) + failed;
}

/// Row i of the panel at p: x <- x L^-T with the factored diagonal block, whose element (j, k) is
/// diagonal(j, k).
template <class T, class Matrix, class Diagonal>
__device__ __forceinline__ void solve_row(const Matrix& m, int64_t i, int64_t p,
                                          const Diagonal& diagonal) {
  T x[kPanel];
#pragma unroll
  for (int j = 0; j < kPanel; ++j) {
    T value = m.at(i, p + j);
#pragma unroll
    for (int k = 0; k < j; ++k) value -= x[k] * diagonal(j, k);
    x[j] = value / diagonal(j, j);
  }
#pragma unroll
  for (int j = 0; j < kPanel; ++j) m.at(i, p + j) = x[j];
}

/// acc[s][t] += sum over the columns k of the panel of left(s, k) * right(t, k).
template <class T, class Rows>
__device__ __forceinline__ void multiply_tile(T (&acc)[kTile][kTile], const Rows& left,
                                              const Rows& right) {
#pragma unroll 4
  for (int k = 0; k < kPanel; ++k) {
    T l[kTile], r[kTile];
#pragma unroll
    for (int s = 0; s < kTile; ++s) {
      l[s] = left(s, k);
      r[s] = right(s, k);
    }
#pragma unroll
    for (int s = 0; s < kTile; ++s) {
#pragma unroll
      for (int t = 0; t < kTile; ++t) acc[s][t] += l[s] * r[t];
    }
  }
}

/// The tile row of the n-th tile of a lower triangle of tiles counted row by row.
__device__ __forceinline__ int64_t tile_row(int64_t n) {
  int64_t row = static_cast<int64_t>((sqrt(8.0 * static_cast<double>(n) + 1.0) - 1.0) / 2.0);
  while (row * (row + 1) / 2 > n) --row;  // the root may be off by one
  while ((row + 1) * (row + 2) / 2 <= n) ++row;
  return row;
}

/// Sum over the threads of a block, in an order that does not depend on the scheduling; for thread
/// 0.
__device__ inline double block_sum(double value) {
  __shared__ double partial[kThreads / 32];
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
    for (int w = 0; w < kThreads / 32; ++w) sum += partial[w];
  }
  __syncthreads();
  return sum;
}

/// What a block does when its matrix is factored: log-determinant, or the factor with its upper
/// triangle cleared.
template <class T, class Matrix>
__device__ void finish(const Matrix& m, int64_t d, int failed, T* factor, T* logdet) {
  if (logdet != nullptr) {
    double mine = 0;
    for (int64_t i = threadIdx.x; i < d && !failed; i += kThreads)
      mine += log(static_cast<double>(m.at(i, i)));
    const double sum = block_sum(mine);
    if (threadIdx.x == 0) *logdet = failed ? not_a_number<T>() : static_cast<T>(2 * sum);
  }
  if (factor != nullptr) {
    for (int64_t e = threadIdx.x; e < d * d; e += kThreads) {
      const int64_t i = e / d, j = e % d;
      factor[e] = j > i ? T(0) : failed ? not_a_number<T>() : m.at(i, j);
    }
  }
}

}  // namespace infoslice::cuda
