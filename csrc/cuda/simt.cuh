// Products of two staged tiles by ordinary multiply-adds.
#pragma once

#include <type_traits>

#include "cuda/samples.cuh"

namespace infoslice::cuda {

/// kTile x kTile sums in the registers of a block of 256 threads: 16 x 16 threads, of each
/// kTile / 16 squared. float sums are promoted to a second set every kPromote samples: the error of
/// a sum grows with the number of its terms, so two short sums are closer than a long one.
template <class T, int kEdge, bool kAlong>
struct Simt {
  using Element = T;
  using Accumulator = std::conditional_t<std::is_same_v<T, double>, double, float>;
  using A = Accumulator;
  static constexpr bool kAlongSamples = kAlong;  // how it wants to be given its vectors
  static constexpr int kTile = kEdge;
  static constexpr int kDepth = 16;
  static constexpr int kVector = sizeof(T) == 8 ? 2 : 4;
  // Of a multiprocessor at once, as far as registers go.
  static constexpr int kBlocks = kEdge == 64 && sizeof(T) < 8 ? 2 : 1;
  static constexpr int kPromote = 64;  // samples
  static constexpr bool kPromotes = !std::is_same_v<A, double>;
  static constexpr bool kPrefersZero = false;  // of pilots

  struct Stage {
    A at[kDepth][kTile + 4];  // a row of variables for each sample
  };

  /// Writes the deviations of a vector whose first element is this variable and sample. The last
  /// argument and the result are TensorCores' affair.
  static __device__ __forceinline__ bool put(Stage& stage, int variable, int sample,
                                             const Pack<T, kVector>& values, const T* pilots,
                                             bool /*shifted*/) {
    Pack<A, kVector> pack;
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      pack.at[e] = widened(values.at[e]) - widened(pilots[kAlong ? 0 : e]);
      if (kAlong) stage.at[sample + e][variable] = pack.at[e];
    }
    if (!kAlong) *reinterpret_cast<Pack<A, kVector>*>(&stage.at[sample][variable]) = pack;
    return false;
  }

  /// Adds the deviations of a variable and their magnitudes.
  static __device__ __forceinline__ void sum(const Stage& stage, int variable, bool /*parted*/,
                                             A* total, A* magnitude) {
#pragma unroll 8
    for (int k = 0; k < kDepth; ++k) {
      const A deviation = stage.at[k][variable];
      *total += deviation;
      *magnitude += fabs(deviation);
    }
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int r = 0; r < kOwn; ++r) {
#pragma unroll
      for (int c = 0; c < kOwn; ++c) sums_[r][c] = promoted_[r][c] = A(0);
    }
  }

  __device__ __forceinline__ void multiply(const Stage& left, const Stage& right, bool /*parted*/) {
#pragma unroll 2
    for (int k = 0; k < kDepth; ++k) {
      A l[kOwn], r[kOwn];
#pragma unroll
      for (int part = 0; part < kOwn; part += 4) {
        const auto a = *reinterpret_cast<const Pack<A, 4>*>(&left.at[k][row(part)]);
        const auto b = *reinterpret_cast<const Pack<A, 4>*>(&right.at[k][column(part)]);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          l[part + e] = a.at[e];
          r[part + e] = b.at[e];
        }
      }
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) sums_[i][j] += l[i] * r[j];
      }
    }
  }

  __device__ __forceinline__ void promote() {
    if constexpr (kPromotes) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
          promoted_[i][j] += sums_[i][j];
          sums_[i][j] = A(0);
        }
      }
    }
  }

  /// f(row, column, sum) for all sums of this thread.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j)
        f(row(i), column(j), kPromotes ? promoted_[i][j] : sums_[i][j]);
    }
  }

 private:
  static constexpr int kOwn = kTile / 16;

  // A warp is 4 x 8 threads, whose rows of 16 bytes meet no bank twice.
  static __device__ __forceinline__ int row(int i) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    return i / 4 * 64 + (warp / 2 * 4 + lane / 8) * 4 + i % 4;
  }
  static __device__ __forceinline__ int column(int j) {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    return j / 4 * 64 + (warp % 2 * 8 + lane % 8) * 4 + j % 4;
  }

  A sums_[kOwn][kOwn], promoted_[kOwn][kOwn];
};

}  // namespace infoslice::cuda
