// Three paths by the order d of the matrices, all right-looking in panels of 32 columns whose
// diagonal block one warp factors in registers, a row per lane:
//   d <= 32                          a warp per matrix, nothing but registers
//   lower triangle fits into shared  a block per matrix
//   larger                           many blocks per matrix, in global memory (dense.h)
// Batch indices and offsets are 64 bits wide; grids that the device limits are walked in strides.
#include "cholesky.h"

#include "cuda/dense.h"
#include "cuda/grid.h"
#include "cuda/panel.cuh"

namespace infoslice::cuda {
namespace {

constexpr int kWarps = 4;  // of a block that factors a matrix per warp

// ---- a warp per matrix --------------------------------------------------------------------------

template <class T, int D>
__global__ void __launch_bounds__(kWarps * 32)
    warp_kernel(const T* a, int64_t batch, int d, T* factor, T* logdet, int32_t* info) {
  INFOSLICE_DYNAMIC_SHARED(T, tiles);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int stride = d | 1;  // odd: rows of a tile start in different banks
  T* tile = tiles + warp * d * stride;
  for (int64_t b = int64_t{blockIdx.x} * kWarps + warp; b < batch;
       b += int64_t{gridDim.x} * kWarps) {
    const T* source = a + b * d * d;
    for (int e = lane; e < d * d; e += 32) tile[e / d * stride + e % d] = source[e];
    __syncwarp();
    T row[D];
#pragma unroll
    for (int k = 0; k < D; ++k)
      row[k] = lane < d && k <= lane ? tile[lane * stride + k] : lane == k ? T(1) : T(0);
    const int failed = warp_factor<T, D>(row, lane);
    if (lane == 0) info[b] = failed;
    if (logdet != nullptr) {
      double mine = 0;
#pragma unroll
      for (int k = 0; k < D; ++k)
        mine = k == lane && k < d ? log(static_cast<double>(row[k])) : mine;
      const double sum = warp_sum(mine);
      if (lane == 0) logdet[b] = failed ? not_a_number<T>() : static_cast<T>(2 * sum);
    }
    __syncwarp();  // all lanes have read the tile
    if (factor != nullptr) {
#pragma unroll
      for (int k = 0; k < D; ++k) {
        if (lane < d && k < d)
          tile[lane * stride + k] = k > lane ? T(0) : failed ? not_a_number<T>() : row[k];
      }
      __syncwarp();
      T* target = factor + b * d * d;
      for (int e = lane; e < d * d; e += 32) target[e] = tile[e / d * stride + e % d];
    }
  }
}

// ---- a block per matrix, in shared memory -------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads)
    block_kernel(const T* a, int64_t batch, int64_t d, T* factor, T* logdet, int32_t* info) {
  INFOSLICE_DYNAMIC_SHARED(T, triangle);
  __shared__ int failed;
  const Packed<T> m{triangle};
  for (int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
    for (int64_t e = threadIdx.x; e < d * d; e += kThreads) {
      const int64_t i = e / d, j = e % d;
      if (j <= i) m.at(i, j) = a[b * d * d + e];
    }
    if (threadIdx.x == 0) failed = 0;
    __syncthreads();
    for (int64_t p = 0; p < d; p += kPanel) {
      const int n = static_cast<int>(d - p < kPanel ? d - p : kPanel);
      if (threadIdx.x < 32) {
        const int here = factor_diagonal<T>(m, p, n, static_cast<int>(threadIdx.x));
        if (threadIdx.x == 0) failed = here;
      }
      __syncthreads();
      if (failed != 0) break;  // the same for all threads
      const int64_t below = p + kPanel;
      const auto diagonal = [&](int j, int k) { return m.at(p + j, p + k); };
      for (int64_t i = below + threadIdx.x; i < d; i += kThreads) solve_row<T>(m, i, p, diagonal);
      __syncthreads();
      const int64_t tiles = below < d ? (d - below + kTile - 1) / kTile : 0;
      for (int64_t t = threadIdx.x; t < tiles * (tiles + 1) / 2; t += kThreads) {
        const int64_t ti = tile_row(t), tj = t - ti * (ti + 1) / 2;
        const int64_t i0 = below + ti * kTile, j0 = below + tj * kTile;
        T acc[kTile][kTile] = {};
        const auto rows_from =
            [&](int64_t first) {  // rows behind the last one repeat it and are not stored
              return [&m, first, d, p](int s, int k) {
                return m.at(first + s < d ? first + s : d - 1, p + k);
              };
            };
        multiply_tile<T>(acc, rows_from(i0), rows_from(j0));
        for (int s = 0; s < kTile; ++s) {
          for (int c = 0; c < kTile; ++c) {
            if (i0 + s < d && j0 + c <= i0 + s) m.at(i0 + s, j0 + c) -= acc[s][c];
          }
        }
      }
      __syncthreads();
    }
    finish(m, d, failed, factor == nullptr ? nullptr : factor + b * d * d,
           logdet == nullptr ? nullptr : logdet + b);
    if (threadIdx.x == 0) info[b] = failed;
    __syncthreads();  // the next matrix overwrites this one
  }
}

// ---- global memory ------------------------------------------------------------------------------

template <class T>
__global__ void __launch_bounds__(kThreads)
    copy_lower_kernel(const T* a, int64_t batch, int64_t d, T* m) {
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x,
                step = int64_t{gridDim.x} * kThreads;
  for (int64_t e = first; e < batch * d * d; e += step) {
    if (e % d <= e / d % d) m[e] = a[e];
  }
}

/// `factor` is m itself, or null where only the log-determinant is wanted.
template <class T>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(int64_t batch, int64_t d, T* m, T* factor, T* logdet, const int32_t* info) {
  for (int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
    finish(Square<T>{m + b * d * d, d}, d, info[b],
           factor == nullptr ? nullptr : factor + b * d * d,
           logdet == nullptr ? nullptr : logdet + b);
  }
}

// ---- host ---------------------------------------------------------------------------------------

template <class T>
int64_t triangle_bytes(int64_t d) {
  return d * (d + 1) / 2 * static_cast<int64_t>(sizeof(T));
}

/// Bytes of dynamic shared memory a block of block_kernel may have.
cudaError_t shared_memory_limit(int64_t* bytes) {
  int device = 0, limit = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  *bytes = limit - 128;  // what the kernel declares statically
  return error;
}

template <class T, int D>
cudaError_t run_warps(const T* a, int64_t batch, int64_t d, T* factor, T* logdet, int32_t* info,
                      void* stream) {
  const size_t bytes = static_cast<size_t>(kWarps * d * (d | 1)) * sizeof(T);
  const auto cholesky_in_warps = warp_kernel<T, D>;
  INFOSLICE_LAUNCH(cholesky_in_warps, grid(divide_up(batch, kWarps)), kWarps * 32, bytes, stream, a,
                   batch, static_cast<int>(d), factor, logdet, info);
  return cudaGetLastError();
}

template <class T>
cudaError_t run_blocks(const T* a, int64_t batch, int64_t d, T* factor, T* logdet, int32_t* info,
                       void* stream) {
  const auto cholesky_in_blocks = block_kernel<T>;
  const int64_t bytes = triangle_bytes<T>(d);
  const cudaError_t error = cudaFuncSetAttribute(
      cholesky_in_blocks, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  INFOSLICE_LAUNCH(cholesky_in_blocks, grid(batch), kThreads, static_cast<size_t>(bytes), stream, a,
                   batch, d, factor, logdet, info);
  return cudaGetLastError();
}

template <class T>
cudaError_t run_global(const T* a, int64_t batch, int64_t d, T* m, T* factor, T* logdet,
                       int32_t* info, void* stream) {
  const auto copy_lower = copy_lower_kernel<T>;
  const auto finish_matrices = finish_kernel<T>;
  INFOSLICE_LAUNCH(copy_lower, grid(divide_up(batch * d * d, kThreads)), kThreads, 0, stream, a,
                   batch, d, m);
  cudaError_t error = cudaGetLastError();
  const Batch<T> matrices{m, batch, d, d, d, d, d * d, d};
  if (error == cudaSuccess)
    error = static_cast<cudaError_t>(eliminate<T>(matrices, nullptr, info, stream));
  if (error != cudaSuccess) return error;
  INFOSLICE_LAUNCH(finish_matrices, grid(batch), kThreads, 0, stream, batch, d, m, factor, logdet,
                   info);
  return cudaGetLastError();
}

template <class T>
int run(const T* a, int64_t batch, int64_t d, T* factor, T* logdet, int32_t* info, T* workspace,
        void* stream) {
  if (batch == 0 || d == 0) return cudaSuccess;
  if (d <= 8) return run_warps<T, 8>(a, batch, d, factor, logdet, info, stream);
  if (d <= 16) return run_warps<T, 16>(a, batch, d, factor, logdet, info, stream);
  if (d <= 32) return run_warps<T, 32>(a, batch, d, factor, logdet, info, stream);
  int64_t limit = 0;
  const cudaError_t error = shared_memory_limit(&limit);
  if (error != cudaSuccess) return error;
  if (triangle_bytes<T>(d) <= limit) return run_blocks(a, batch, d, factor, logdet, info, stream);
  return run_global(a, batch, d, factor == nullptr ? workspace : factor, factor, logdet, info,
                    stream);
}

}  // namespace

template <class T>
int cholesky(const T* a, int64_t batch, int64_t d, T* factor, int32_t* info, void* stream) {
  return run<T>(a, batch, d, factor, nullptr, info, nullptr, stream);
}

template <class T>
size_t logdet_workspace(int64_t batch, int64_t d) {
  int64_t limit = 0;
  if (d <= kPanel || shared_memory_limit(&limit) != cudaSuccess || triangle_bytes<T>(d) <= limit)
    return 0;
  return static_cast<size_t>(batch * d * d) * sizeof(T);
}

template <class T>
int logdet(const T* a, int64_t batch, int64_t d, T* logdet, int32_t* info, void* workspace,
           void* stream) {
  return run<T>(a, batch, d, nullptr, logdet, info, static_cast<T*>(workspace), stream);
}

#define INFOSLICE_INSTANTIATE(T)                                          \
  template int cholesky(const T*, int64_t, int64_t, T*, int32_t*, void*); \
  template size_t logdet_workspace<T>(int64_t, int64_t);                  \
  template int logdet(const T*, int64_t, int64_t, T*, int32_t*, void*, void*);
INFOSLICE_INSTANTIATE(float)
INFOSLICE_INSTANTIATE(double)
#undef INFOSLICE_INSTANTIATE

}  // namespace infoslice::cuda