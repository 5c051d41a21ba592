// The Cholesky factor and the log-determinant of a matrix by a block, in its shared memory:
// right-looking in panels of 64 columns, whose diagonal block is factored in registers (rows.cuh).
#pragma once

#include "cuda/rows.cuh"

namespace infoslice::cuda {

constexpr int kOutside = -1;  // info where an index is out of range

/// `count` matrices of order d: a [count, d, d], or those of cov [n, n] at index [count, d].
template <class T>
struct Source {
  const T* values;
  int64_t count, d;
  const int64_t* index;  // null: a batch
  int64_t n;

  __device__ __forceinline__ T gathered(int64_t i, int64_t j) const {
    return values[i > j ? i * n + j : j * n + i];
  }
  /// A variable of set b, and a valid one in the place of one that is out of range.
  __device__ __forceinline__ int variable(int64_t b, int64_t i, bool* outside) const {
    const int64_t value = index[b * d + i];
    if (value >= 0 && value < n) return static_cast<int>(value);
    *outside = true;
    return 0;
  }
};

/// Null where it is not asked for.
template <class T>
struct Results {
  T* factor;
  T* logdet;
  int32_t* info;
};

/// A lower triangle in shared memory: strips of 64 rows, each as wide as its last row and padded for
/// Tile.
template <class T>
struct Strips {
  T* data;

  __host__ __device__ static int64_t stride(int64_t i) {
    return (i / kColumns + 1) * kColumns + kVector<T>;
  }
  __host__ __device__ static int64_t offset(int64_t i) {  // of row i
    const int64_t strip = i / kColumns;
    return kColumns * (kColumns * (strip * (strip + 1) / 2) + strip * kVector<T>)+i % kColumns *
           stride(i);
  }
  __device__ __forceinline__ T* row(int i) const { return data + static_cast<int>(offset(i)); }
};

/// Dynamic shared memory of block_kernel, whose parts follow one another.
template <class T>
struct BlockLayout {
  __host__ __device__ explicit BlockLayout(int64_t d)
      : buffer((Strips<T>::offset(d) * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16),
        triangle(buffer + static_cast<int64_t>(sizeof(FactorBuffer<T>))),
        variables(triangle + (d > kColumns ? static_cast<int64_t>(sizeof(Triangle<T>)) : 0)),
        bytes(variables + d * static_cast<int64_t>(sizeof(int))) {}
  int64_t buffer, triangle, variables, bytes;
};

/// Brings the lower triangle of matrix b to shared memory, and whether an index is out of range to
/// all threads. Begins and ends with a barrier.
template <class T>
__device__ bool load_triangle(const Source<T>& source, int64_t b, const Strips<T>& m,
                              int* variables) {
  const int d = static_cast<int>(source.d), thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32, lane = thread % 32;
  bool outside = false;
  __syncthreads();
  if (source.index != nullptr) {
    for (int i = thread; i < d; i += kThreads) variables[i] = source.variable(b, i, &outside);
    outside = __syncthreads_or(outside) != 0;
  }
  for (int i = warp; i < d; i += kThreads / 32) {
    T* const row = m.row(i);
    if (source.index == nullptr) {
      const T* const from = source.values + (b * d + i) * d;
#pragma unroll 4
      for (int j = lane; j <= i; j += 32) row[j] = from[j];
    } else {
      const int own = variables[i];
      bool repeated = false;
      for (int j = lane; j <= i; j += 32) {
        repeated |= j < i && variables[j] == own;
        row[j] = source.gathered(own, variables[j]);
      }
      repeated = __any_sync(kAll, repeated);
      if (repeated && lane == i % 32) row[i] = not_a_number<T>();
    }
  }
  __syncthreads();
  return outside;
}

/// What the factored panel at p does to the rows below it. Ends with a barrier.
template <class T>
__device__ void apply_panel(const Strips<T>& m, const Triangle<T>& triangle, int p, int d) {
  const int q = p + kColumns;
  for (int i0 = q; i0 < d; i0 += kColumns) {
    Row<T> row;
    row.load([&](int i, int j) { return i0 + i < d ? m.row(i0 + i)[p + j] : T(0); });
    row.solve(triangle, kColumns);
    row.store([&](int i, int j, T value) {
      if (i0 + i < d) m.row(i0 + i)[p + j] = value;
    });
  }
  __syncthreads();
  for (int i0 = q; i0 < d; i0 += kColumns) {
    for (int j0 = q; j0 <= i0; j0 += kColumns) {
      const auto rows_from = [&](int first, int r) {  // rows behind the last one repeat it
        return m.row(first + r < d ? first + r : d - 1) + p;
      };
      Tile<T> tile;
      tile.multiply(
          kColumns, [&](int s) { return rows_from(i0, Tile<T>::row(s)); },
          [&](int c) { return rows_from(j0, Tile<T>::column(c)); });
      tile.store([&](int r, int c, T sum) {
        const int i = i0 + r, j = j0 + c;
        if (i < d && j <= i) m.row(i)[j] -= sum;
      });
    }
  }
  __syncthreads();
}

/// Blocks that share a multiprocessor: fewer registers will do for one panel.
template <class T, bool kPanels>
constexpr int kResident = kPanels          ? 1
                          : sizeof(T) == 4 ? 4
                                           : 2;

/// kPanels: whether there is more than one.
template <class T, bool kPanels>
__global__ void __launch_bounds__(kThreads, kResident<T, kPanels>)
    block_kernel(const Source<T> source, Results<T> to) {
  INFOSLICE_DYNAMIC_SHARED(unsigned char, shared);
  const int d = static_cast<int>(source.d), thread = static_cast<int>(threadIdx.x);
  const BlockLayout<T> layout(d);
  const Strips<T> m{reinterpret_cast<T*>(shared)};
  auto& buffer = *reinterpret_cast<FactorBuffer<T>*>(shared + layout.buffer);
  auto& triangle = *reinterpret_cast<Triangle<T>*>(shared + layout.triangle);
  if (thread < kColumns) buffer.floors[thread] = 0;
  for (int64_t b = blockIdx.x; b < source.count; b += gridDim.x) {
    const bool outside =
        load_triangle(source, b, m, reinterpret_cast<int*>(shared + layout.variables));
    int failed = outside ? kOutside : 0;
    double logs = 0;
    for (int p = 0; p < d && failed == 0; p += kColumns) {
      const int width = d - p < kColumns ? d - p : kColumns;
      const bool last = !kPanels || p + kColumns >= d;
      Row<T> row;
      row.load([&](int i, int j) {
        return i < width && j <= i ? m.row(p + i)[p + j] : i == j ? T(1) : T(0);
      });
      failed = row.factor(buffer, width);
      row.store([&](int i, int j, T value) {
        if (i < width && j <= i) {
          m.row(p + i)[p + j] = value;
          if (!last) triangle.put(i, j, value);
        }
      });
      __syncthreads();
      if (failed != 0) {
        failed += p;
      } else {
        if (thread < width) logs += log(static_cast<double>(buffer.pivots[thread]));
        if (!last) apply_panel(m, triangle, p, d);
      }
    }
    if (to.logdet != nullptr) {
      const double sum = block_sum(logs);
      if (thread == 0) to.logdet[b] = failed ? not_a_number<T>() : static_cast<T>(sum);
    }
    if (to.factor != nullptr) {
      for (int i = thread / 32; i < d; i += kThreads / 32) {
        T* const row = to.factor + (b * d + i) * d;
        for (int j = thread % 32; j < d; j += 32)
          row[j] = j > i ? T(0) : failed ? not_a_number<T>() : m.row(i)[j];
      }
    }
    if (thread == 0) to.info[b] = failed;
  }
}

}  // namespace infoslice::cuda
