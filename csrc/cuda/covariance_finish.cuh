// What the kernels of covariance leave to each other, and the one that puts it together.
#pragma once

#include "cuda/block.cuh"

namespace infoslice::cuda {

/// How a call is cut into tasks and where their results lie.
struct Plan {
  int64_t samples, items, variables[2];  // [2]: of x, of y
  int64_t tiles, tile_columns;
  int64_t splits, length;   // samples of a split
  int tile, rows, columns;  // edge of a tile, and what of it is stored
  bool symmetric;

  __host__ __device__ int64_t tasks() const { return tiles * splits * items; }
  __host__ __device__ int64_t tile_size() const { return int64_t{rows} * columns; }
  /// Of the sums of a split of an item: entry (first variable) of side 0 or 1.
  __host__ __device__ int64_t sums_at(int side, int64_t part) const {
    return side * items * splits * variables[0] + part * variables[side];
  }
  __host__ __device__ int64_t pilots_at(int side, int64_t item) const {
    return side * items * variables[0] + item * variables[side];
  }
  int64_t all_variables() const { return variables[0] + (symmetric ? 0 : variables[1]); }
};

struct Sums {
  double sum, magnitude;
};

/// The workspace.
template <class A>
struct Parts {
  Sums* sums;      // [side][item][split][variable]
  double* pilots;  // [side][item][variable]
  A* products;     // [item][split][tile][row][column]
  // [item][tile of variables]: whether it has a pilot other than zero; null if nobody told.
  int* shifted;

  /// Whether both tiles are known to have no pilot but zero.
  __device__ bool unshifted(const Plan& plan, int64_t item, int64_t i, int64_t j) const {
    if (shifted == nullptr) return false;
    const int* of_item = shifted + item * plan.tile_columns;
    return (of_item[i] | of_item[j]) == 0;
  }
};

__device__ inline void tile_at(const Plan& plan, int64_t tile, int64_t* i, int64_t* j) {
  *i = plan.symmetric ? tile_row(tile) : tile / plan.tile_columns;
  *j = tile - (plan.symmetric ? *i * (*i + 1) / 2 : *i * plan.tile_columns);
}

template <class Out>
__device__ __forceinline__ Out held(double value) {  // or NaN if Out cannot hold it
  const Out result = static_cast<Out>(value);
  return isfinite(result) ? result : not_a_number<Out>();
}

/// The result in squares, a block for each in the lower triangle. Where squares are small, several
/// threads share the splits of a cell.
template <class A, class Out, int kSquare>
__global__ void __launch_bounds__(kThreads, 2)
    finish_kernel(const __grid_constant__ Plan plan, Parts<A> parts, int64_t correction, Out* cov,
                  Out* mean_x, Out* mean_y) {
  constexpr int kCells = kSquare * kSquare, kSharers = kCells < kThreads ? kThreads / kCells : 1;
  constexpr int kSumSharers = kThreads / (2 * kSquare);
  constexpr double kLeast = sizeof(A) == 8 ? 1e-150 : 1e-15, kMost = 1 / kLeast;
  __shared__ Sums shares[kSumSharers][2 * kSquare];
  __shared__ double rank_one[2][kSquare];  // sums and their means; NaN for what cannot be given
  __shared__ double cells[kSharers][kCells];
  __shared__ Out square[kSquare][kSquare + 1];
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t rows = plan.variables[0], columns = plan.variables[1];
  const unsigned across = static_cast<unsigned>((columns + kSquare - 1) / kSquare);
  const unsigned which = blockIdx.x;
  const int64_t si = plan.symmetric ? tile_row(which) : which / across;
  const int64_t sj = which - (plan.symmetric ? si * (si + 1) / 2 : si * across);
  const int64_t i0 = si * kSquare, j0 = sj * kSquare;
  const unsigned to_tile = static_cast<unsigned>(plan.tile / kSquare);
  const int64_t ti = static_cast<unsigned>(si) / to_tile, tj = static_cast<unsigned>(sj) / to_tile;
  const int64_t tile = (plan.symmetric ? ti * (ti + 1) / 2 : ti * plan.tile_columns) + tj;
  const double each = 1.0 / static_cast<double>(plan.samples);
  const double scale = 1.0 / static_cast<double>(plan.samples - correction);
  for (int64_t item = blockIdx.y; item < plan.items; item += gridDim.y) {
    const int64_t part = item * plan.splits;  // the first
    const int own = thread % (2 * kSquare), side = own / kSquare;
    const int of = plan.symmetric ? 0 : side;  // whose sums
    const int64_t v = (side == 0 ? i0 : j0) + own % kSquare;
    Sums share{0, 0};
    if (v < plan.variables[of]) {
      const Sums* from = parts.sums + plan.sums_at(of, part) + v;
#pragma unroll 4
      for (int64_t s = thread / (2 * kSquare); s < plan.splits; s += kSumSharers) {
        share.sum += from[s * plan.variables[of]].sum;
        share.magnitude += from[s * plan.variables[of]].magnitude;
      }
    }
    shares[thread / (2 * kSquare)][own] = share;
#pragma unroll 1
    for (int cell = thread % kCells; cell < kCells; cell += kThreads) {
      const int64_t i = i0 + cell / kSquare, j = j0 + cell % kSquare;
      double sum = 0;
      if (i < rows && j < columns && !(plan.symmetric && j > i)) {
        const A* from = parts.products + (part * plan.tiles + tile) * plan.tile_size() +
                        (i - ti * plan.tile) * plan.columns + (j - tj * plan.tile);
#pragma unroll 4
        for (int64_t s = thread / kCells; s < plan.splits; s += kSharers)
          sum += static_cast<double>(from[s * plan.tiles * plan.tile_size()]);
      }
      cells[thread / kCells][cell] = sum;
    }
    __syncthreads();
    if (thread < 2 * kSquare) {
      Sums all{0, 0};
      for (int s = 0; s < kSumSharers; ++s) {
        all.sum += shares[s][own].sum;
        all.magnitude += shares[s][own].magnitude;
      }
      if (v < plan.variables[of] && (side == 0 ? sj == 0 : !plan.symmetric && si == 0))
        (side == 0 ? mean_x : mean_y)[item * plan.variables[of] + v] =
            held<Out>(parts.pilots[plan.pilots_at(of, item) + v] + all.sum * each);
      const double average = all.magnitude * each;
      const bool usable = average == 0 || (average >= kLeast && average <= kMost);
      rank_one[side][own % kSquare] =
          usable ? all.sum * (side == 0 ? 1.0 : each) : not_a_number<double>();
    }
    __syncthreads();
    Out* const to = cov + item * rows * columns;
    for (int cell = thread; cell < kCells; cell += kThreads) {
      const int row = cell / kSquare, column = cell % kSquare;
      double sum = 0;
      for (int s = 0; s < kSharers; ++s) sum += cells[s][cell];
      sum -= rank_one[0][row] * rank_one[1][column];
      const Out value = held<Out>(sum * scale);
      square[row][column] = value;
      const int64_t i = i0 + row, j = j0 + column;
      if (i < rows && j < columns && !(plan.symmetric && j > i)) to[i * columns + j] = value;
    }
    __syncthreads();
    for (int cell = thread; plan.symmetric && cell < kCells; cell += kThreads) {  // mirrored
      const int row = cell / kSquare, column = cell % kSquare;
      const int64_t i = j0 + row, j = i0 + column;
      if (j < columns && i < j) to[i * columns + j] = square[column][row];
    }
    __syncthreads();
  }
}

}  // namespace infoslice::cuda
