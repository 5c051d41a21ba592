// Three paths by the order d of the matrices:
//   d <= 32                           in registers, 8, 16 or 32 lanes to a matrix (warps.cuh)
//   lower triangle fits into shared   a block per matrix (cholesky_block.cuh)
//   larger                            many blocks per matrix, in global memory (dense.h)
// A matrix is read by rows, only its lower triangle, out of a batch or gathered by an index.
#include "cholesky.h"

#include <algorithm>

#include "cuda/cholesky_block.cuh"
#include "cuda/dense.h"
#include "cuda/grid.h"
#include "cuda/warps.cuh"

namespace infoslice::cuda {
namespace {

// ---- in registers -------------------------------------------------------------------------------

/// Matrices from `first` on. A launch for every 65535 blocks instead of a loop here: it would keep
/// what the lanes compare with in registers.
template <class T, int D>
__global__ void __launch_bounds__(kWarps * 32)
    warp_kernel(const Source<T> source, int64_t first, Results<T> to) {
  constexpr int kMatrices = kWarps * 32 / D;  // of a block
  __shared__ ColumnBuffer<T, D> buffers[kMatrices];
  const int matrix = static_cast<int>(threadIdx.x) / D, lane = static_cast<int>(threadIdx.x) % D;
  const int d = static_cast<int>(source.d);
  const int64_t b = first + int64_t{blockIdx.x} * kMatrices + matrix;
  const bool exists = b < source.count, used = exists && lane < d;
  bool outside = false, repeated = false;
  T v[D];
  if (source.index == nullptr) {
    const T* from = source.values + b * d * d + lane;
#pragma unroll
    for (int i = 0; i < D; ++i, from += d)
      v[i] = exists && i < d && lane <= i ? *from : i == lane ? T(1) : T(0);
  } else {
    const int own = used ? source.variable(b, lane, &outside) : 0;
#pragma unroll
    for (int i = 0; i < D; ++i) {
      const int other = __shfl_sync(kAll, own, i, D);
      repeated |= i < lane && used && other == own;
      v[i] = used && i < d && lane <= i ? source.gathered(other, own) : i == lane ? T(1) : T(0);
    }
    // The second place of a variable ends its matrix, whatever rounding would make of that pivot.
#pragma unroll
    for (int i = 0; i < D; ++i) v[i] = i == lane && repeated ? not_a_number<T>() : v[i];
    outside = lanes_any<D>(outside);
  }
  const Pivots<T> own = eliminate_columns(v, buffers[matrix], [](int, T, const T*) {});
  const int failed = outside ? kOutside : own.failed;
  if (exists && lane == 0) to.info[b] = failed;
  if (to.logdet != nullptr) {
    const double sum = warp_sum<D>(log(static_cast<double>(own.pivot)));
    if (exists && lane == 0) to.logdet[b] = failed ? not_a_number<T>() : static_cast<T>(sum);
  }
  if (to.factor != nullptr && used) {
    T* row = to.factor + b * d * d + lane;
#pragma unroll
    for (int i = 0; i < D; ++i, row += d) {
      if (i < d) *row = lane > i ? T(0) : failed ? not_a_number<T>() : v[i] * own.inverse;
    }
  }
}

// ---- global memory ------------------------------------------------------------------------------

/// The lower triangles of the matrices from `first` on, zeros above them if asked for.
template <class T>
__global__ void __launch_bounds__(kThreads)
    copy_kernel(const Source<T> source, int64_t first, int64_t count, bool zeros, T* m) {
  const int64_t d = source.d;
  for (int64_t b = blockIdx.y; b < count; b += gridDim.y) {
    for (int64_t i = blockIdx.x; i < d; i += gridDim.x) {
      T* const row = m + (b * d + i) * d;
      if (source.index == nullptr) {
        const T* const from = source.values + ((first + b) * d + i) * d;
        for (int64_t j = threadIdx.x; j <= i; j += kThreads) row[j] = from[j];
      } else {
        bool outside = false, repeated = false;
        const int own = source.variable(first + b, i, &outside);
        for (int64_t j = threadIdx.x; j <= i; j += kThreads) {
          const int other = source.variable(first + b, j, &outside);
          repeated |= j < i && other == own;
          row[j] = source.gathered(own, other);
        }
        if (__syncthreads_or(repeated) != 0 && threadIdx.x == 0) row[i] = not_a_number<T>();
      }
      for (int64_t j = i + 1 + threadIdx.x; zeros && j < d; j += kThreads) row[j] = T(0);
    }
  }
}

/// Log-determinants of the matrices from `first` on, and info where an index is out of range.
template <class T>
__global__ void __launch_bounds__(kThreads)
    logdet_kernel(const Source<T> source, int64_t first, int64_t count, const T* m, Results<T> to) {
  const int64_t d = source.d;
  for (int64_t b = blockIdx.x; b < count; b += gridDim.x) {
    bool outside = false;
    double logs = 0;
    for (int64_t i = threadIdx.x; i < d; i += kThreads) {
      if (source.index != nullptr) source.variable(first + b, i, &outside);
      logs += log(static_cast<double>(m[(b * d + i) * d + i]));
    }
    logs = block_sum(logs);
    outside = __syncthreads_or(outside) != 0;
    if (threadIdx.x != 0) continue;
    if (outside) to.info[first + b] = kOutside;
    to.logdet[first + b] = to.info[first + b] != 0 ? not_a_number<T>() : static_cast<T>(2 * logs);
  }
}

/// NaN for the factors of matrices that failed.
template <class T>
__global__ void __launch_bounds__(kThreads)
    refuse_kernel(int64_t count, int64_t d, T* factor, const int32_t* info) {
  for (int64_t b = blockIdx.y; b < count; b += gridDim.y) {
    if (info[b] == 0) continue;
    for (int64_t i = blockIdx.x; i < d; i += gridDim.x) {
      for (int64_t j = threadIdx.x; j <= i; j += kThreads)
        factor[(b * d + i) * d + j] = not_a_number<T>();
    }
  }
}

// ---- host ---------------------------------------------------------------------------------------

/// Bytes of dynamic shared memory a block of block_kernel may have.
cudaError_t shared_memory_limit(int64_t* bytes) {
  int device = 0, limit = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  *bytes = limit - 128;  // what the kernel declares statically
  return error;
}

/// Matrices that are worked on together in global memory.
int64_t chunk(int64_t count, int64_t d) {
  constexpr int64_t kElements = int64_t{1} << 26;
  return std::max<int64_t>(std::min({count, kElements / (d * d), kMaxGrid}), 1);
}

template <class T, int D>
cudaError_t run_warps(const Source<T>& source, const Results<T>& to, void* stream) {
  constexpr int kMatrices = kWarps * 32 / D;
  const auto cholesky_in_warps = warp_kernel<T, D>;
  cudaError_t error = cudaSuccess;
  for (int64_t first = 0; first < source.count && error == cudaSuccess;
       first += kMaxGrid * kMatrices) {
    INFOSLICE_LAUNCH(cholesky_in_warps, grid(divide_up(source.count - first, kMatrices)),
                     kWarps * 32, 0, stream, source, first, to);
    error = cudaGetLastError();
  }
  return error;
}

template <class T, bool kPanels>
cudaError_t run_blocks(const Source<T>& source, const Results<T>& to, void* stream) {
  const auto cholesky_in_blocks = block_kernel<T, kPanels>;
  const int64_t bytes = BlockLayout<T>(source.d).bytes;
  const cudaError_t error = cudaFuncSetAttribute(
      cholesky_in_blocks, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (error != cudaSuccess) return error;
  INFOSLICE_LAUNCH(cholesky_in_blocks, grid(source.count), kThreads, static_cast<size_t>(bytes),
                   stream, source, to);
  return cudaGetLastError();
}

/// Matrices [first, first + count) in m.
template <class T>
cudaError_t run_global(const Source<T>& source, int64_t first, int64_t count, T* m,
                       const Results<T>& to, void* stream) {
  const int64_t d = source.d;
  const dim3 rows(grid(d), grid(count));
  const auto copy = copy_kernel<T>;
  INFOSLICE_LAUNCH(copy, rows, kThreads, 0, stream, source, first, count, to.factor != nullptr, m);
  cudaError_t error = cudaGetLastError();
  const Batch<T> matrices{m, count, d, d, d, d, d * d, d};
  if (error == cudaSuccess)
    error = static_cast<cudaError_t>(eliminate<T>(matrices, nullptr, to.info + first, stream));
  if (error != cudaSuccess) return error;
  if (to.logdet != nullptr) {
    const auto sum_logarithms = logdet_kernel<T>;
    INFOSLICE_LAUNCH(sum_logarithms, grid(count), kThreads, 0, stream, source, first, count, m, to);
  } else {
    const auto refuse = refuse_kernel<T>;
    INFOSLICE_LAUNCH(refuse, rows, kThreads, 0, stream, count, d, m, to.info + first);
  }
  return cudaGetLastError();
}

template <class T>
int run(const Source<T>& source, const Results<T>& to, void* workspace, void* stream) {
  const int64_t d = source.d;
  if (source.count == 0 || d == 0) return cudaSuccess;
  if (d <= 8) return run_warps<T, 8>(source, to, stream);
  if (d <= 16) return run_warps<T, 16>(source, to, stream);
  if (d <= 32) return run_warps<T, 32>(source, to, stream);
  int64_t limit = 0;
  cudaError_t error = shared_memory_limit(&limit);
  if (error != cudaSuccess) return error;
  if (BlockLayout<T>(d).bytes <= limit)
    return d <= kColumns ? run_blocks<T, false>(source, to, stream)
                         : run_blocks<T, true>(source, to, stream);
  if (to.factor != nullptr) return run_global(source, 0, source.count, to.factor, to, stream);
  const int64_t step = chunk(source.count, d);
  for (int64_t first = 0; first < source.count && error == cudaSuccess; first += step)
    error = run_global(source, first, std::min(step, source.count - first),
                       static_cast<T*>(workspace), to, stream);
  return error;
}

}  // namespace

template <class T>
int cholesky(const T* a, int64_t batch, int64_t d, T* factor, int32_t* info, void* stream) {
  return run<T>({a, batch, d, nullptr, 0}, {factor, nullptr, info}, nullptr, stream);
}

template <class T>
size_t logdet_workspace(int64_t batch, int64_t d) {
  int64_t limit = 0;
  if (batch == 0 || d <= 32 || shared_memory_limit(&limit) != cudaSuccess ||
      BlockLayout<T>(d).bytes <= limit)
    return 0;
  return static_cast<size_t>(chunk(batch, d) * d * d) * sizeof(T);
}

template <class T>
int logdet(const T* a, int64_t batch, int64_t d, T* logdet, int32_t* info, void* workspace,
           void* stream) {
  return run<T>({a, batch, d, nullptr, 0}, {nullptr, logdet, info}, workspace, stream);
}

template <class T>
int submatrix_logdet(const T* cov, int64_t n, const int64_t* index, int64_t count, int64_t k,
                     T* logdet, int32_t* info, void* workspace, void* stream) {
  return run<T>({cov, count, k, index, n}, {nullptr, logdet, info}, workspace, stream);
}

#define INFOSLICE_INSTANTIATE(T)                                                                   \
  template int cholesky(const T*, int64_t, int64_t, T*, int32_t*, void*);                          \
  template size_t logdet_workspace<T>(int64_t, int64_t);                                           \
  template int logdet(const T*, int64_t, int64_t, T*, int32_t*, void*, void*);                     \
  template int submatrix_logdet(const T*, int64_t, const int64_t*, int64_t, int64_t, T*, int32_t*, \
                                void*, void*);
INFOSLICE_INSTANTIATE(float)
INFOSLICE_INSTANTIATE(double)
#undef INFOSLICE_INSTANTIATE

}  // namespace infoslice::cuda
