// Symmetric matrices of order <= 32 in registers: D lanes of a warp to a matrix (D = 8, 16, 32), so
// that a warp has 32 / D of them at a time.
#pragma once

#include "cuda/rows.cuh"

namespace infoslice::cuda {

constexpr int kWarps = 4;  // of a block

/// Whether something holds for one of the D lanes of a matrix.
template <int D>
__device__ __forceinline__ bool lanes_any(bool predicate) {
  const int first = static_cast<int>(threadIdx.x) % 32 / D * D;
  return (__ballot_sync(kAll, predicate) >> first & (kAll >> (32 - D))) != 0;
}

/// What eliminate_columns needs in shared memory, per matrix.
template <class T, int D>
struct ColumnBuffer {
  alignas(16) T columns[2][D];
};

template <class T>
struct Pivots {
  T pivot, inverse;  // of this lane's column, and 1 / sqrt of it
  int failed;        // 0, or the 1-based number of the first pivot that is not positive and finite
};

/// Lane j holds column j from the diagonal down in v (what is above is ignored; behind the order of
/// the matrix: identity). It ends with column j of L times the root of its pivot. Calls visit(j,
/// 1 / root of pivot j, v of lane j in shared memory) on the way.
template <class T, int D, class Visit>
__device__ __forceinline__ Pivots<T> eliminate_columns(T (&v)[D], ColumnBuffer<T, D>& buffer,
                                                       const Visit& visit) {
  const int lane = static_cast<int>(threadIdx.x) % D;
  Pivots<T> own{T(1), T(1), 0};
#pragma unroll
  for (int j = 0; j < D; ++j) {
    T* const column = buffer.columns[j % 2];
    if (lane == j) {
#pragma unroll
      for (int i = j / kVector<T> * kVector<T>; i < D; i += kVector<T>) {
        Vector<T> part;
#pragma unroll
        for (int e = 0; e < kVector<T>; ++e) part.x[e] = v[i + e];
        *reinterpret_cast<Vector<T>*>(column + i) = part;
      }
    }
    __syncwarp();
    const T pivot = column[j];
    if (own.failed == 0 && !(pivot > T(0) && isfinite(pivot))) own.failed = j + 1;
    const T inverse = rsqrt(pivot);
    if (lane == j) own.pivot = pivot, own.inverse = inverse;
    const T factor = lane > j ? column[lane] * inverse * inverse : T(0);
#pragma unroll
    for (int i = j / kVector<T> * kVector<T>; i < D; i += kVector<T>) {
      const Vector<T> part = vector_at(column + i);
#pragma unroll
      for (int e = 0; e < kVector<T>; ++e) {
        if (i + e > j) v[i + e] -= factor * part.x[e];
      }
    }
    visit(j, inverse, column);
  }
  return own;
}

}  // namespace infoslice::cuda
