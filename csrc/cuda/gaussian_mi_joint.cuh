// The joint covariance behind Gaussian information: read out of cov in the order of an elimination,
// and gathered into the matrices that are eliminated.
#pragma once

#include "cuda/block.cuh"
#include "cuda/dense.h"

namespace infoslice::cuda {

/// S = cov + noise by place, where `order` tells the variable at a place.
template <class T>
struct Joint {
  const T* cov;  // [items, n, n], of which the lower triangles are read
  int64_t n;
  const int32_t* order;   // [places]
  int64_t places, y, ny;  // those of Y are [y, y + ny)
  double noise;
  const double* scales;  // [items, places], see scales_kernel; null where no constant is left out

  __device__ double covariance(int64_t item, int64_t i, int64_t j) const {
    const int64_t v = order[i], w = order[j];
    return static_cast<double>(cov[(item * n + (v > w ? v : w)) * n + (v > w ? w : v)]);
  }
  __device__ double variance(int64_t item, int64_t i) const {
    return covariance(item, i, i) + (i >= y && i < y + ny ? noise : 0.0);
  }
  __device__ bool is_constant(int64_t item, int64_t i) const {
    return scales != nullptr && scales[item * places + i] == 0;
  }
};

__device__ __forceinline__ bool usable_variance(double variance) {
  return variance > 0 && isfinite(variance);
}

/// As that of gaussian_mi.h, on the device.
__device__ __forceinline__ double rounding_floor(int64_t k) {
  return 4 * static_cast<double>(k) * 2.220446049250313e-16;
}

/// 1 / standard deviation of every place: 0 for a constant, NaN where the variance is no variance.
/// A warp to a place; only that of a zero variance reads its covariances.
template <class T>
__global__ void __launch_bounds__(kThreads)
    scales_kernel(const Joint<T> s, int64_t items, double* scales) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t first = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  for (int64_t item = blockIdx.y; item < items; item += gridDim.y) {
    for (int64_t i = first; i < s.places; i += gridDim.x * int64_t{kThreads / 32}) {
      const double variance = s.variance(item, i);
      bool varies = variance != 0;
      for (int64_t j = lane; j < s.places && !varies; j += 32)
        varies = s.covariance(item, i, j) != 0;
      varies = __any_sync(kAll, varies);
      if (lane == 0) {
        scales[item * s.places + i] = !varies                     ? 0.0
                                      : usable_variance(variance) ? 1 / sqrt(variance)
                                                                  : not_a_number<double>();
      }
    }
  }
}

/// tile[r][c] = covariance of the places row(r) and column(c), by all threads of a block. Threads
/// run along the rows of cov, which are its columns where the variables stand the other way round.
template <int kRows, int kColumns, class T, class Row, class Column>
__device__ void load_tile(const Joint<T>& s, int64_t item, int64_t rows, int64_t columns,
                          const Row& row, const Column& column,
                          double (&tile)[kRows][kColumns + 1]) {
  const bool turned = s.order[row(0)] < s.order[column(0)];
#pragma unroll 4
  for (int e = static_cast<int>(threadIdx.x); e < kRows * kColumns; e += kThreads) {
    const int r = turned ? e % kRows : e / kColumns, c = turned ? e / kRows : e % kColumns;
    if (r < rows && c < columns) tile[r][c] = s.covariance(item, row(r), column(c));
  }
}

/// The matrices number first, first + 1, ... of a list, `per_item` of them for every item: the k-th
/// of an item has columns at the places from base + k * size on. So have its rows, as far as
/// `lead`; behind it come the places from `tail` on, and from row `gathered` on an identity.
struct Places {
  int64_t first, per_item;
  int64_t base, size;
  int64_t lead, tail, gathered;
  int64_t before;  // variables counted before the first column, for the floors
};

/// Fills lower triangles and the rows below, with a constant as an identity row: it is eliminated to
/// no effect. floors [count, columns].
template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(const Joint<T> s, const Places from, const Batch<double> m, double* floors) {
  constexpr int kSide = 32;
  __shared__ double tile[kSide][kSide + 1];
  const int64_t across = (m.columns + kSide - 1) / kSide,
                tiles = (m.rows + kSide - 1) / kSide * across;
  for (int64_t b = blockIdx.y; b < m.count; b += gridDim.y) {
    const int64_t item = (from.first + b) / from.per_item,
                  base = from.base + (from.first + b) % from.per_item * from.size;
    for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
      const int64_t i0 = t / across * kSide, j0 = t % across * kSide;
      if (j0 >= i0 + kSide) continue;  // above the diagonal
      const auto row = [&](int64_t r) {
        return i0 + r < from.lead ? base + i0 + r : from.tail + i0 + r - from.lead;
      };
      __syncthreads();  // the tile before is done with
      if (i0 < from.gathered) {
        load_tile<kSide, kSide>(
            s, item, from.gathered - i0, m.columns - j0, row,
            [&](int64_t c) { return base + j0 + c; }, tile);
      }
      __syncthreads();
      for (int e = static_cast<int>(threadIdx.x); e < kSide * kSide; e += kThreads) {
        const int r = e / kSide, c = e % kSide;
        const int64_t i = i0 + r, j = j0 + c;
        if (i >= m.rows || j >= m.columns || j > i) continue;
        double value = i < from.gathered ? tile[r][c] : i - from.gathered == j ? 1.0 : 0.0;
        if (i == j) {
          const bool constant = s.is_constant(item, base + j);
          value = s.variance(item, base + j);
          floors[b * m.columns + j] = constant ? 0 : rounding_floor(from.before + j + 1) * value;
          if (constant) value = 1;
        }
        m.data[b * m.step + i * m.stride + j] = value;
      }
    }
  }
}

}  // namespace infoslice::cuda
