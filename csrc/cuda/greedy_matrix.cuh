// Symmetric matrices under elimination in device memory: what cpu/downdate.h is on the CPU, with
// every variable where it was at the beginning.
//
// A matrix is its lower triangle in tiles of 64 x 64, row of tiles after row of tiles (those on the
// diagonal are whole), as it was before the variables of the panel were eliminated: now it is
// tiles - left'right. A row of it is read from the tiles beside and below the diagonal in runs of
// 512 bytes and of lines 512 bytes apart.
#pragma once

#include "cuda/launch.h"
#include "greedy.h"

namespace infoslice::cuda {

constexpr int kSide = 64;  // of a tile
constexpr int kGreedyThreads = 256;

struct Triangle {
  double* data;

  static int64_t size(int64_t n) {
    const int64_t tiles = (n + kSide - 1) / kSide;
    return tiles * (tiles + 1) / 2 * kSide * kSide;
  }
  __device__ double* tile(int64_t row, int64_t column) const {
    return data + (row * (row + 1) / 2 + column) * kSide * kSide;
  }
  __device__ double read(int64_t i, int64_t j) const {
    const int64_t low = i < j ? j : i, high = i < j ? i : j;
    return tile(low / kSide, high / kSide)[low % kSide * kSide + high % kSide];
  }
};

template <class T>
__device__ __forceinline__ double read(const MatrixView<T>& m, int64_t i, int64_t j) {
  const int64_t low = i < j ? j : i, high = i < j ? i : j;
  return static_cast<double>(m.data[low * m.row_stride + high * m.column_stride]);
}

/// Variable i of a matrix under elimination is variable table[i / r] r + i % r of the caller's.
struct Sources {
  const int64_t* table;
  int64_t r;
  __device__ int64_t operator()(int64_t i) const { return table[i / r] * r + i % r; }
};

/// Calls with (row, column) of each tile of the lower triangle that is this block's.
template <class Function>
__device__ __forceinline__ void for_each_tile(int64_t n, const Function& function) {
  const int64_t tiles = (n + kSide - 1) / kSide;
  for (int64_t row = blockIdx.y; row < tiles; row += gridDim.y) {
    for (int64_t column = blockIdx.x; column <= row; column += gridDim.x) function(row, column);
  }
}

template <class T>
__global__ void __launch_bounds__(kGreedyThreads)
    load_kernel(MatrixView<T> matrix, Sources sources, int64_t n, Triangle to) {
  for_each_tile(n, [&](int64_t row, int64_t column) {
    double* const tile = to.tile(row, column);
    for (int e = static_cast<int>(threadIdx.x); e < kSide * kSide; e += kGreedyThreads) {
      const int64_t i = row * kSide + e / kSide, j = column * kSide + e % kSide;
      tile[e] = i < n && j < n ? read(matrix, sources(i), sources(j)) : 0.0;
    }
  });
}

/// Rows of two panels, which may be one: entry (k, j) is that of row k at variable j.
struct Panels {
  const double *left, *right;
  int64_t rows, row_stride, column_stride;
};

/// tiles -= left'right, and right'left besides where the panels are two: each thread sums up 4 x 4
/// entries of a tile. Nothing after a failure.
__global__ void __launch_bounds__(kGreedyThreads)
    downdate_kernel(Triangle matrix, int64_t n, Panels panels, const int32_t* failed) {
  constexpr int kDepth = 32;  // rows of the panels in shared memory at a time
  __shared__ double shared_left[kDepth][kSide], shared_right[kDepth][kSide];
  if (*failed != 0) return;  // the same for all threads
  const int x = static_cast<int>(threadIdx.x) % 16, y = static_cast<int>(threadIdx.x) / 16;
  const int64_t rows = panels.rows;
  const auto fetch = [&](const double* panel, int64_t first_row, int64_t first, auto& to) {
    for (int e = static_cast<int>(threadIdx.x); e < kDepth * kSide; e += kGreedyThreads) {
      const int64_t k = first_row + e / kSide, j = first + e % kSide;
      to[e / kSide][e % kSide] =
          k < rows && j < n ? panel[k * panels.row_stride + j * panels.column_stride] : 0.0;
    }
  };
  for_each_tile(n, [&](int64_t row, int64_t column) {
    double sum[4][4] = {};
    const int terms = panels.left == panels.right ? 1 : 2;
    for (int term = 0; term < terms; ++term) {
      const double* const left = term == 0 ? panels.left : panels.right;
      const double* const right = term == 0 ? panels.right : panels.left;
      for (int64_t k0 = 0; k0 < rows; k0 += kDepth) {
        fetch(left, k0, row * kSide, shared_left);
        fetch(right, k0, column * kSide, shared_right);
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < kDepth; ++k) {
#pragma unroll
          for (int s = 0; s < 4; ++s) {
#pragma unroll
            for (int t = 0; t < 4; ++t)
              sum[s][t] += shared_left[k][y + 16 * s] * shared_right[k][x + 16 * t];
          }
        }
        __syncthreads();
      }
    }
    double* const tile = matrix.tile(row, column);
#pragma unroll
    for (int s = 0; s < 4; ++s) {
#pragma unroll
      for (int t = 0; t < 4; ++t) tile[(y + 16 * s) * kSide + x + 16 * t] -= sum[s][t];
    }
  });
}

/// Entry (a, b), b <= a, of a packed lower triangle.
__device__ __forceinline__ int64_t packed(int64_t a, int64_t b) { return a * (a + 1) / 2 + b; }

/// The diagonal blocks [channel][packed] as they stand in the tiles, and the diagonal, NaN where it
/// is not finite; either may be null.
__global__ void __launch_bounds__(kGreedyThreads)
    diagonal_kernel(Triangle matrix, int64_t channels, int64_t r, double* blocks,
                    double* variances) {
  const int64_t step = int64_t{gridDim.x} * kGreedyThreads;
  for (int64_t e = int64_t{blockIdx.x} * kGreedyThreads + threadIdx.x; e < channels * r * r;
       e += step) {
    const int64_t c = e / (r * r), a = e / r % r, b = e % r;
    if (b > a) continue;
    const double value = matrix.read(c * r + a, c * r + b);
    if (blocks != nullptr) blocks[c * packed(r, 0) + packed(a, b)] = value;
    if (variances != nullptr && a == b) variances[c * r + a] = isfinite(value) ? value : nan("");
  }
}

}  // namespace infoslice::cuda
