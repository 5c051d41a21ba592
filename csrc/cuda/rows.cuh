// 64 rows of 64 columns in the registers of a block, four threads to a row: the factorisation of a
// symmetric block and the solve of rows with it.
#pragma once

#include "cuda/launch.h"

namespace infoslice::cuda {

constexpr int kColumns = 64;      // and rows
constexpr int kRowThreads = 256;  // of a block

/// What Row::factor needs in shared memory.
template <class T>
struct FactorBuffer {
  alignas(16) T columns[2][kColumns];  // the column eliminated now and the one before
  T floors[kColumns];                  // of the pivots
};

/// A lower triangular matrix in shared memory, column by column.
template <class T>
struct Triangle {
  alignas(16) T columns[kColumns][kColumns + 16 / sizeof(T)];
  T inverse[kColumns];  // of the diagonal

  /// By all threads; barriers are the caller's. at(i, j) is asked for j <= i only.
  template <class At>
  __device__ void load(const At& at) {
#pragma unroll 4
    for (int e = static_cast<int>(threadIdx.x); e < kColumns * kColumns; e += kRowThreads) {
      const int i = e / kColumns, j = e % kColumns;
      if (j > i) continue;
      const T value = at(i, j);
      columns[j][i] = value;
      if (i == j) inverse[i] = T(1) / value;
    }
  }
};

/// A thread's part of row threadIdx.x / 4: of every 16 columns, the four that begin at 4 * lane.
template <class T>
class Row {
 public:
  __device__ Row()
      : row_(static_cast<int>(threadIdx.x) / 4), lane_(static_cast<int>(threadIdx.x) % 4) {}

  /// x <- at(row, column)
  template <class At>
  __device__ __forceinline__ void load(const At& at) {
#pragma unroll
    for (int v = 0; v < 16; ++v) x_[v] = at(row_, column(v));
  }

  /// put(row, column, x)
  template <class Put>
  __device__ __forceinline__ void store(const Put& put) const {
#pragma unroll
    for (int v = 0; v < 16; ++v) put(row_, column(v), x_[v]);
  }

  /// The rows become the Cholesky factor of the symmetric matrix whose lower triangle they are.
  /// Returns, to all threads, 0 or the 1-based number of the first pivot that is not a finite number
  /// above its floor. All threads of the block take part; barriers around it are the caller's.
  __device__ int factor(FactorBuffer<T>& buffer) {
    int failed = 0;
    eliminate([&](int j, bool owner, T& mine) {
      T* const column = buffer.columns[j % 2];
      if (owner) column[row_] = mine;
      __syncthreads();
      const T pivot = column[j];
      if (failed == 0 && !(pivot > buffer.floors[j] && isfinite(pivot))) failed = j + 1;
      const T inverse = rsqrt(pivot), value = column[row_] * inverse;
      if (owner) mine = value;
      return Step{value * inverse, column};
    });
    return failed;
  }

  /// x <- x L^-T
  __device__ void solve(const Triangle<T>& triangle) {
    eliminate([&](int j, bool owner, T& mine) {
      const T value = __shfl_sync(0xffffffffu, mine * triangle.inverse[j], j / 4, 4);
      if (owner) mine = value;
      return Step{value, triangle.columns[j]};
    });
  }

 private:
  struct Step {
    T factor;
    const T* column;
  };

  __device__ __forceinline__ int column(int v) const { return v / 4 * 16 + 4 * lane_ + v % 4; }

  /// For each column j, in turn: step(j, whether it is this thread's, its element), then
  /// x[c] -= factor * column[c] for the columns c > j.
  template <class StepOf>
  __device__ __forceinline__ void eliminate(const StepOf& step) {
#pragma unroll
    for (int u = 0; u < 16; u += 4) {
#pragma unroll 1
      for (int lane = 0; lane < 4; ++lane) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const auto [factor, column] = step(4 * u + 4 * lane + e, lane == lane_, x_[u + e]);
#pragma unroll
          for (int v = u; v < 16; ++v) {
            const bool right = v >= u + 4 || lane_ > lane || (lane_ == lane && v > u + e);
            if (right) x_[v] -= factor * column[v / 4 * 16 + 4 * lane_ + v % 4];
          }
        }
      }
    }
  }

  int row_, lane_;
  T x_[16];
};

}  // namespace infoslice::cuda
