// Two paths by the order d of the matrices, both in double:
//   d <= 32  in registers, 8, 16 or 32 lanes to a matrix: lane j eliminates column j of A and row j
//            of the identity together
//   larger   [A; I] in the workspace, eliminated to [L; W'] (dense.h), then sums over rows of W'
#include "precision.h"

#include <algorithm>

#include "cuda/dense.h"
#include "cuda/grid.h"
#include "cuda/warps.cuh"

namespace infoslice::cuda {
namespace {

// ---- in registers -------------------------------------------------------------------------------

/// Matrices from `first` on, as many as the grid has room for.
template <class T, int D>
__global__ void __launch_bounds__(kWarps * 32)
    warp_kernel(const T* a, int64_t first, int64_t batch, int d, int block, T* blocks,
                int32_t* info) {
  constexpr int kMatrices = kWarps * 32 / D;  // of a CUDA block
  __shared__ ColumnBuffer<double, D> buffers[kMatrices];
  __shared__ double inverses[kMatrices][D][D + 1];  // W'
  const int matrix = static_cast<int>(threadIdx.x) / D, lane = static_cast<int>(threadIdx.x) % D;
  double (*const w)[D + 1] = inverses[matrix];
  const int64_t b = first + int64_t{blockIdx.x} * kMatrices + matrix;
  const bool exists = b < batch;
  const T* from = a + b * d * d + lane;
  double v[D], x[D];
#pragma unroll
  for (int i = 0; i < D; ++i, from += d) {
    x[i] = i == lane ? 1.0 : 0.0;
    v[i] = exists && i < d && lane <= i ? static_cast<double>(*from) : x[i];
  }
  const int failed =
      eliminate_columns(v, buffers[matrix], [&](int j, double inverse, const double* column) {
        x[j] *= inverse;
        const double factor = x[j] * inverse;
#pragma unroll
        for (int i = 0; i < D; ++i) {
          if (i > j) x[i] -= factor * column[i];
        }
      }).failed;
#pragma unroll
  for (int i = 0; i < D; ++i) w[lane][i] = x[i];
  __syncwarp();
  T* const to = blocks + b * d * block;
  const int values = exists ? d * block : 0;
  bool overflow = false;
  for (int e = lane; e < values; e += D) {
    const int i = e / block, j = i / block * block + e % block;
    double sum = 0;
    for (int k = i > j ? i : j; k < d; ++k) sum += w[i][k] * w[j][k];
    to[e] = static_cast<T>(sum);
    overflow |= !isfinite(to[e]);
  }
  overflow = lanes_any<D>(overflow);
  if (failed != 0 || overflow) {
    for (int e = lane; e < values; e += D) to[e] = not_a_number<T>();
  }
  if (exists && lane == 0) info[b] = failed != 0 ? failed : overflow ? d + 1 : 0;
}

// ---- global memory ------------------------------------------------------------------------------

/// m <- [A; I], without what is above the diagonal of A.
template <class T>
__global__ void __launch_bounds__(kThreads)
    build_kernel(const T* a, int64_t count, int64_t d, double* m) {
  for (int64_t b = blockIdx.y; b < count; b += gridDim.y) {
    for (int64_t i = blockIdx.x; i < d; i += gridDim.x) {
      const T* const from = a + (b * d + i) * d;
      double *const to = m + (2 * b * d + i) * d, *const unit = to + d * d;
      for (int64_t j = threadIdx.x; j < d; j += kThreads) {
        if (j <= i) to[j] = static_cast<double>(from[j]);
        unit[j] = i == j ? 1.0 : 0.0;
      }
    }
  }
}

/// An element of a result; info becomes d + 1 where it does not fit, unless the matrix failed before.
template <class T>
__device__ __forceinline__ T rounded(double value, int64_t d, int32_t* info) {
  const T result = static_cast<T>(value);
  if (!isfinite(result)) atomicCAS(info, 0, static_cast<int32_t>(d) + 1);
  return result;
}

/// Sums of the squares of the rows of W', a warp to a row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    norms_kernel(const double* m, int64_t count, int64_t d, T* diagonal, int32_t* info) {
  constexpr int kRows = kThreads / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t b = blockIdx.y; b < count; b += gridDim.y) {
    for (int64_t i = int64_t{blockIdx.x} * kRows + threadIdx.x / 32; i < d;
         i += int64_t{gridDim.x} * kRows) {
      const double* const row = m + ((2 * b + 1) * d + i) * d;
      double sum = 0;
#pragma unroll 4
      for (int64_t k = i + lane; k < d; k += 32) sum += row[k] * row[k];
      sum = warp_sum(sum);
      if (lane == 0) diagonal[b * d + i] = rounded<T>(sum, d, info + b);
    }
  }
}

/// A stretch of variables whose blocks are computed together: one block, or as many as make 64.
__host__ __device__ inline int64_t stretch(int64_t block) {
  return block < kColumns ? kColumns / block * block : block;
}

/// Products of rows of W' of the same block. A tile is 64 x 64 of the lower triangle of a stretch.
template <class T>
__global__ void __launch_bounds__(kThreads, 2)
    blocks_kernel(const double* m, int64_t count, int64_t d, int64_t block, int64_t tiles,
                  T* blocks, int32_t* info) {
  __shared__ Operands<double> operands;
  const int64_t variables = stretch(block), rows = (variables + kColumns - 1) / kColumns;
  const int64_t triangle = rows * (rows + 1) / 2;
  for (int64_t b = blockIdx.y; b < count; b += gridDim.y) {
    const double* const w = m + (2 * b + 1) * d * d;
    for (int64_t n = blockIdx.x; n < tiles; n += gridDim.x) {
      const int64_t begin = n / triangle * variables, t = n % triangle, ti = tile_row(t);
      const int64_t end = begin + variables < d ? begin + variables : d;
      const int64_t i0 = begin + ti * kColumns, j0 = begin + (t - ti * (ti + 1) / 2) * kColumns;
      const auto rows_from = [&](int64_t first) {  // row i begins with i zeros
        return
            [=](int r, int64_t k) { return first + r < end ? w[(first + r) * d + i0 + k] : 0.0; };
      };
      Tile<double> tile;
      tile.multiply(d - i0, operands, rows_from(i0), rows_from(j0));
      tile.store([&](int r, int c, double sum) {
        const int64_t i = i0 + r, j = j0 + c, of = i / block * block;
        if (i >= end || j > i || j < of) return;
        const T value = rounded<T>(sum, d, info + b);
        T* const to = blocks + (b * d + of) * block;
        to[(i - of) * block + j - of] = to[(j - of) * block + i - of] = value;
      });
    }
  }
}

/// NaN for the matrices that failed.
template <class T>
__global__ void __launch_bounds__(kThreads)
    refuse_kernel(int64_t count, int64_t values, T* blocks, const int32_t* info) {
  for (int64_t b = blockIdx.x; b < count; b += gridDim.x) {
    if (info[b] == 0) continue;
    for (int64_t e = threadIdx.x; e < values; e += kThreads)
      blocks[b * values + e] = not_a_number<T>();
  }
}

// ---- host ---------------------------------------------------------------------------------------

/// Matrices that are worked on together in global memory.
int64_t chunk(int64_t batch, int64_t d) {
  constexpr int64_t kElements = int64_t{1} << 26;
  return std::max<int64_t>(std::min({batch, kElements / (2 * d * d), kMaxGrid}), 1);
}

template <class T, int D>
cudaError_t run_warps(const T* a, int64_t batch, int64_t d, int64_t block, T* blocks, int32_t* info,
                      void* stream) {
  constexpr int kMatrices = kWarps * 32 / D;
  const auto precision_in_warps = warp_kernel<T, D>;
  cudaError_t error = cudaSuccess;
  for (int64_t first = 0; first < batch && error == cudaSuccess; first += kMaxGrid * kMatrices) {
    INFOSLICE_LAUNCH(precision_in_warps, grid(divide_up(batch - first, kMatrices)), kWarps * 32, 0,
                     stream, a, first, batch, static_cast<int>(d), static_cast<int>(block), blocks,
                     info);
    error = cudaGetLastError();
  }
  return error;
}

template <class T>
cudaError_t run_global(const T* a, int64_t count, int64_t d, int64_t block, T* blocks,
                       int32_t* info, double* m, void* stream) {
  const auto build = build_kernel<T>;
  INFOSLICE_LAUNCH(build, dim3(grid(d), grid(count)), kThreads, 0, stream, a, count, d, m);
  cudaError_t error = cudaGetLastError();
  const Batch<double> matrices{m, count, 2 * d, d, d, d, 2 * d * d, d};
  if (error == cudaSuccess)
    error = static_cast<cudaError_t>(eliminate<double>(matrices, nullptr, info, stream));
  if (error != cudaSuccess) return error;
  if (block == 1) {
    const auto sum_squares = norms_kernel<T>;
    INFOSLICE_LAUNCH(sum_squares, dim3(grid(divide_up(d, kThreads / 32)), grid(count)), kThreads, 0,
                     stream, m, count, d, blocks, info);
  } else {
    const auto multiply_rows = blocks_kernel<T>;
    const int64_t rows = divide_up(stretch(block), kColumns);
    const int64_t tiles = divide_up(d, stretch(block)) * (rows * (rows + 1) / 2);
    INFOSLICE_LAUNCH(multiply_rows, dim3(grid(tiles), grid(count)), kThreads, 0, stream, m, count,
                     d, block, tiles, blocks, info);
  }
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  const auto refuse = refuse_kernel<T>;
  INFOSLICE_LAUNCH(refuse, grid(count), kThreads, 0, stream, count, d * block, blocks, info);
  return cudaGetLastError();
}

}  // namespace

size_t precision_workspace(int64_t batch, int64_t d) {
  if (batch == 0 || d <= 32) return 0;
  return static_cast<size_t>(chunk(batch, d) * 2 * d * d) * sizeof(double);
}

template <class T>
int precision_blocks(const T* a, int64_t batch, int64_t d, int64_t block, T* blocks, int32_t* info,
                     void* workspace, void* stream) {
  if (batch == 0 || d == 0) return cudaSuccess;
  if (d <= 8) return run_warps<T, 8>(a, batch, d, block, blocks, info, stream);
  if (d <= 16) return run_warps<T, 16>(a, batch, d, block, blocks, info, stream);
  if (d <= 32) return run_warps<T, 32>(a, batch, d, block, blocks, info, stream);
  cudaError_t error = cudaSuccess;
  const int64_t step = chunk(batch, d);
  for (int64_t first = 0; first < batch && error == cudaSuccess; first += step)
    error = run_global(a + first * d * d, std::min(step, batch - first), d, block,
                       blocks + first * d * block, info + first, static_cast<double*>(workspace),
                       stream);
  return error;
}

template int precision_blocks(const float*, int64_t, int64_t, int64_t, float*, int32_t*, void*,
                              void*);
template int precision_blocks(const double*, int64_t, int64_t, int64_t, double*, int32_t*, void*,
                              void*);

}  // namespace infoslice::cuda
