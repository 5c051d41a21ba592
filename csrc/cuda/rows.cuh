// 64 rows of 64 columns by a block: in registers, four threads to a row, the factorisation of a
// symmetric block and the solve of rows with it; and products of 64 rows with 64 others.
#pragma once

#include "cuda/block.cuh"

namespace infoslice::cuda {

constexpr int kColumns = 64;  // and rows

template <class T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));

/// Neighbours that are moved at once.
template <class T>
struct alignas(16) Vector {
  T x[kVector<T>];
};
template <class T>
__device__ __forceinline__ const Vector<T>& vector_at(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}

// ---- rows in registers --------------------------------------------------------------------------

/// What Row::factor needs in shared memory.
template <class T>
struct FactorBuffer {
  alignas(16) T columns[2][kColumns];  // the column that is eliminated, and the one before
  T floors[kColumns];                  // set by the caller
  T pivots[kColumns];                  // result
};

/// A lower triangular matrix in shared memory, column by column.
template <class T>
struct Triangle {
  alignas(16) T columns[kColumns][kColumns + kVector<T>];
  T inverse[kColumns];  // of the diagonal

  __device__ __forceinline__ void put(int i, int j, T value) {
    columns[j][i] = value;
    if (i == j) inverse[i] = T(1) / value;
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

  /// The rows, of a symmetric matrix of order `width` in the lower triangle and of the identity
  /// behind it, become its Cholesky factor. Returns, to all threads, 0 or the 1-based number of the
  /// first pivot that is not a finite number above its floor. All threads of the block take part;
  /// barriers before and after are the caller's.
  __device__ int factor(FactorBuffer<T>& buffer, int width) {
    int failed = 0;
    const int last_row = row_ | 7;  // of the warp: right of it nothing is needed
    eliminate(width, last_row < width ? last_row : width - 1, [&](int j, bool owner, T& mine) {
      T* const column = buffer.columns[j % 2];
      if (owner) column[row_] = mine;
      __syncthreads();
      const T pivot = column[j];
      if (failed == 0 && !(pivot > buffer.floors[j] && isfinite(pivot))) failed = j + 1;
      const T inverse = rsqrt(pivot), value = column[row_] * inverse;
      if (owner) {
        mine = value;
        if (row_ == j) buffer.pivots[j] = pivot;
      }
      return Step{value * inverse, column};
    });
    return failed;
  }

  /// x <- x L^-T, L of order `width` and the identity behind it.
  __device__ void solve(const Triangle<T>& triangle, int width) {
    eliminate(width, width - 1, [&](int j, bool owner, T& mine) {
      const T value = __shfl_sync(kAll, mine * triangle.inverse[j], j / 4, 4);
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

  /// For each column j < width, in turn: step(j, whether it is this thread's, its element), then
  /// x[c] -= factor * column[c] for the columns j < c <= last, of 16 all or none.
  template <class StepOf>
  __device__ __forceinline__ void eliminate(int width, int last, const StepOf& step) {
#pragma unroll
    for (int u = 0; u < 16; u += 4) {
#pragma unroll 1
      for (int lane = 0; lane < 4 && 4 * (u + lane) < width; ++lane) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const auto [factor, column] = step(4 * (u + lane) + e, lane == lane_, x_[u + e]);
#pragma unroll
          for (int v = u; v < 16; v += 4) {
            if (4 * v > last) continue;  // the same for all threads of a warp
            const T* const from = column + 4 * v + 4 * lane_;
#pragma unroll
            for (int f = 0; f < 4; f += kVector<T>) {
              const Vector<T> part = vector_at(from + f);
#pragma unroll
              for (int g = 0; g < kVector<T>; ++g) {
                if (v > u || lane_ > lane || (lane_ == lane && f + g > e))
                  x_[v + f + g] -= factor * part.x[g];
              }
            }
          }
        }
      }
    }
  }

  int row_, lane_;
  T x_[16];
};

// ---- products -----------------------------------------------------------------------------------

constexpr int kDepth = 32;  // columns that are multiplied between two barriers

template <class T>
struct Operands {  // padded, so that 16 rows are read without bank conflicts
  alignas(16) T left[kColumns][kDepth + kVector<T>], right[kColumns][kDepth + kVector<T>];
};

/// What a thread has of a tile of 64 x 64: sums[s][c] is element (row(s), column(c)).
template <class T>
struct Tile {
  T sums[4][4] = {};

  __device__ static int row(int s) { return static_cast<int>(threadIdx.x) / 16 + 16 * s; }
  __device__ static int column(int c) { return static_cast<int>(threadIdx.x) % 16 + 16 * c; }

  /// Adds the products of the first `depth` (a multiple of 4) elements of rows in shared memory:
  /// left(s) and right(c) point to those of row(s) and column(c), 16-byte aligned.
  template <class Left, class Right>
  __device__ __forceinline__ void multiply(int depth, const Left& left, const Right& right) {
    const T *l[4], *r[4];
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      l[s] = left(s);
      r[s] = right(s);
    }
#pragma unroll 2
    for (int k = 0; k < depth; k += kVector<T>) {
      Vector<T> lefts[4], rights[4];
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        lefts[s] = vector_at(l[s] + k);
        rights[s] = vector_at(r[s] + k);
      }
#pragma unroll
      for (int v = 0; v < kVector<T>; ++v) {
#pragma unroll
        for (int s = 0; s < 4; ++s) {
#pragma unroll
          for (int c = 0; c < 4; ++c) sums[s][c] += lefts[s].x[v] * rights[c].x[v];
        }
      }
    }
  }

  /// The same for rows in global memory: left(r, k) and right(r, k) give the elements k < depth of
  /// the 64 rows of each side. All threads of the block take part; begins with a barrier.
  template <class Left, class Right>
  __device__ __forceinline__ void multiply(int64_t depth, Operands<T>& shared, const Left& left,
                                           const Right& right) {
    for (int64_t from = 0; from < depth; from += kDepth) {
      __syncthreads();  // the operands before are done with
#pragma unroll 4
      for (int e = static_cast<int>(threadIdx.x); e < kColumns * kDepth; e += kThreads) {
        const int r = e / kDepth, k = e % kDepth;
        const bool within = from + k < depth;
        shared.left[r][k] = within ? left(r, from + k) : T(0);
        shared.right[r][k] = within ? right(r, from + k) : T(0);
      }
      __syncthreads();
      multiply(
          kDepth, [&](int s) { return shared.left[row(s)]; },
          [&](int c) { return shared.right[column(c)]; });
    }
  }

  /// put(row, column, sum)
  template <class Put>
  __device__ __forceinline__ void store(const Put& put) const {
#pragma unroll
    for (int s = 0; s < 4; ++s) {
#pragma unroll
      for (int c = 0; c < 4; ++c) put(row(s), column(c), sums[s][c]);
    }
  }
};

}  // namespace infoslice::cuda
