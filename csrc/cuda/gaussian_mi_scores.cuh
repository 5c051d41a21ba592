// What becomes of eliminated matrices: sums over rows and diagonals, a warp to each score.
#pragma once

#include "cuda/gaussian_mi_joint.cuh"

namespace infoslice::cuda {

/// For all threads of a warp.
__device__ __forceinline__ double row_squares(const double* row, int64_t begin, int64_t end,
                                              int lane) {
  double sum = 0;
#pragma unroll 4
  for (int64_t k = begin + lane; k < end; k += 32) sum += row[k] * row[k];
  return warp_sum(sum);
}

template <class T>
struct Scores {
  T* nats;
  int32_t* info;
  __device__ void give(int64_t at, double value, int64_t failed) const {
    nats[at] = failed != 0 ? not_a_number<T>() : static_cast<T>(value);
    info[at] = static_cast<int32_t>(failed);
  }
};

/// Marginal scores of single variables: the rows of S_xy L^-T, from row ny on.
template <class T>
__global__ void __launch_bounds__(kThreads)
    single_marginal_kernel(const Joint<T> s, const Batch<double> m, const int32_t* info,
                           const Scores<T> scores) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t nx = m.rows - m.columns, step = gridDim.x * int64_t{kThreads / 32};
  for (int64_t c = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32; c < m.count * nx;
       c += step) {
    const int64_t item = c / nx, place = m.columns + c % nx;
    const double* const row = m.data + item * m.step + place * m.stride;
    const double explained = row_squares(row, 0, m.columns, lane);
    if (lane != 0) continue;
    const double variance = s.variance(item, place), r2 = explained / variance;
    const int64_t k = m.columns + 1;
    if (info[item] != 0) {
      scores.give(c, 0, info[item]);
    } else if (s.is_constant(item, place)) {
      scores.give(c, 0, 0);
    } else {
      const bool good = usable_variance(variance) && 1 - r2 > rounding_floor(k);
      scores.give(c, -0.5 * log1p(-r2), good ? 0 : k);
    }
  }
}

/// Conditional scores of single variables: the rows of L^-T.
template <class T>
__global__ void __launch_bounds__(kThreads)
    single_conditional_kernel(const Batch<double> m, int64_t nx, const int32_t* info,
                              const Scores<T> scores) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t step = gridDim.x * int64_t{kThreads / 32};
  for (int64_t c = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32; c < m.count * nx;
       c += step) {
    const int64_t item = c / nx, i = c % nx;
    const double* const row = m.data + item * m.step + (m.columns + i) * m.stride;
    const double own = row_squares(row, i, nx, lane);
    const double gain = row_squares(row, nx, m.columns, lane);
    if (lane != 0) continue;
    const double nats = 0.5 * log1p(gain / own);
    const int64_t failed = info[item] != 0 ? info[item] : isfinite(nats) ? 0 : m.columns + 1;
    scores.give(c, nats, failed);
  }
}

/// Scores of groups: sign times the sum of the logarithms of the diagonal. info of the joint
/// matrices [items], of the groups' [2, count].
template <class T>
__global__ void __launch_bounds__(kThreads)
    group_kernel(const Batch<double> m, int64_t first, int64_t per_item, double sign,
                 int64_t before, const int32_t* joint_info, const int32_t* group_info,
                 const Scores<T> scores) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t step = gridDim.x * int64_t{kThreads / 32};
  for (int64_t b = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32; b < m.count; b += step) {
    const double* const matrix = m.data + b * m.step;
    double sum = 0;
    for (int64_t i = lane; i < m.columns; i += 32) sum += log(matrix[i * (m.stride + 1)]);
    sum = warp_sum(sum);
    if (lane != 0) continue;
    const int32_t whole = joint_info[(first + b) / per_item];
    const int32_t own = group_info[b] != 0 ? group_info[b] : group_info[m.count + b];
    scores.give(first + b, 0.0 + sign * sum, whole != 0 ? whole : own != 0 ? before + own : 0);
  }
}

// ---- pairwise -----------------------------------------------------------------------------------

/// What a lane knows of its pairs: adds y number j, which shares `share` of its variance.
struct Pairs {
  double nats;
  int32_t failed;  // the first j + 1 that X_g determines
  __device__ void add(double share, int64_t j, int64_t size) {
    if (1 - share > rounding_floor(size + j + 1)) {
      nats -= 0.5 * log1p(-share);
    } else if (failed == 0 || j + 1 < failed) {
      failed = static_cast<int32_t>(j) + 1;
    }
  }
  __device__ void join_lanes() {
    nats = warp_sum(nats);
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) {
      const int32_t other = __shfl_xor_sync(kAll, failed, offset);
      if (failed == 0 || (other != 0 && other < failed)) failed = other;
    }
  }
};

/// Single variables, in the order x, y; a warp to each.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    pairs_kernel(const Joint<T> s, int64_t items, const Scores<T> scores) {
  constexpr int kRows = kThreads / 32, kColumns = 128;
  __shared__ double tile[kRows][kColumns + 1];
  const int lane = static_cast<int>(threadIdx.x) % 32, r = static_cast<int>(threadIdx.x) / 32;
  const int64_t nx = s.y;
  for (int64_t item = blockIdx.y; item < items; item += gridDim.y) {
    const double* const scales = s.scales + item * s.places;
    for (int64_t i0 = int64_t{blockIdx.x} * kRows; i0 < nx; i0 += int64_t{gridDim.x} * kRows) {
      const int64_t i = i0 + r;
      const double scale = i < nx ? scales[i] : 0.0;
      Pairs pairs{};
      for (int64_t j0 = 0; j0 < s.ny; j0 += kColumns) {
        __syncthreads();  // the tile before is done with
        load_tile<kRows, kColumns>(
            s, item, nx - i0, s.ny - j0, [&](int64_t k) { return i0 + k; },
            [&](int64_t c) { return nx + j0 + c; }, tile);
        __syncthreads();
        if (i >= nx) continue;
        for (int c = lane; c < kColumns && j0 + c < s.ny; c += 32) {
          const double root = tile[r][c] * (scales[nx + j0 + c] * scale);
          pairs.add(root * root, j0 + c, 1);
        }
      }
      pairs.join_lanes();
      if (i >= nx || lane != 0) continue;
      if (scale == 0) {
        scores.give(item * nx + i, 0, 0);
      } else if (!usable_variance(scale)) {
        scores.give(item * nx + i, 0, 1);
      } else {
        scores.give(item * nx + i, pairs.nats, pairs.failed == 0 ? 0 : 1 + pairs.failed);
      }
    }
  }
}

/// Groups: the shares are the row sums of squares of S_yg C^-T, from row `size` on. A warp to each
/// group, 2^shift lanes to a row.
template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    group_pairs_kernel(const Joint<T> s, const Batch<double> m, int64_t first, int64_t per_item,
                       int shift, const int32_t* info, const Scores<T> scores) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int width = 1 << shift;
  const int64_t step = gridDim.x * int64_t{kThreads / 32}, size = m.columns;
  for (int64_t b = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32; b < m.count; b += step) {
    const int64_t item = (first + b) / per_item, base = (first + b - item * per_item) * size;
    const double* const scales = s.scales + item * s.places;
    bool varies = false;
    for (int64_t i = lane; i < size; i += 32) varies = varies || scales[base + i] != 0;
    varies = __any_sync(kAll, varies);
    Pairs pairs{};
    for (int64_t j0 = 0; j0 < s.ny; j0 += 32 >> shift) {
      const int64_t j = j0 + (lane >> shift);
      double share = 0;
      if (j < s.ny) {
        const double* const row = m.data + b * m.step + (size + j) * m.stride;
        const double scale = scales[s.y + j];
        for (int64_t i = lane & (width - 1); i < size; i += width) {
          const double root = row[i] * scale;
          share += root * root;
        }
      }
      for (int offset = width / 2; offset > 0; offset /= 2)
        share += __shfl_xor_sync(kAll, share, offset);
      if (j < s.ny && (lane & (width - 1)) == 0) pairs.add(share, j, size);
    }
    pairs.join_lanes();
    if (lane != 0) continue;
    if (!varies || info[b] != 0) {
      scores.give(first + b, 0, info[b]);
    } else {
      scores.give(first + b, pairs.nats, pairs.failed == 0 ? 0 : size + pairs.failed);
    }
  }
}

}  // namespace infoslice::cuda
