// Products of two staged tiles of 16-bit elements by the tensor cores.
#pragma once

#include "cuda/matrix.cuh"
#include "cuda/samples.cuh"

namespace infoslice::cuda {

/// As Simt, for bfloat16 and float16: products of two of them are exact in float.
///
/// Deviations from a pilot must stay exact too. Where both are within a factor of two, the deviation
/// is a number of the same type (Sterbenz); where it is not, it is kept in two parts, the sample and
/// minus the pilot, neither more than twice the deviation. A stage with such samples costs four
/// products instead of one. Variables whose mean is within two standard deviations keep zero as
/// their pilot and cost nothing: what that loses is a factor of five.
///
/// Sums are promoted every kPromote samples: the tensor cores truncate where they add.
template <class T, int kEdge, bool kAlong>
struct TensorCores {
  using Element = T;
  using Accumulator = float;
  static constexpr bool kAlongSamples = kAlong;
  static constexpr int kTile = kEdge;
  static constexpr int kDepth = 32;
  static constexpr int kVector = 8;
  static constexpr int kBlocks = kEdge == 64 ? 2 : 1;
  static constexpr int kPromote = 32;
  static constexpr bool kPrefersZero = true;

  // [sample or first part, minus the pilot], and rows of the axis along which vectors run; padded
  // so that eight rows of 16 bytes meet no bank twice.
  struct __align__(16) Stage {
    T at[2][kAlong ? kTile : kDepth][(kAlong ? kDepth : kTile) + 8];
  };

  /// Whether a second part had to be written. Without `shifted` all pilots are zero.
  static __device__ __forceinline__ bool put(Stage& stage, int variable, int sample,
                                             const Pack<T, kVector>& values, const T* pilots,
                                             bool shifted) {
    const int row = kAlong ? variable : sample, column = kAlong ? sample : variable;
    Pack<T, kVector> first = values, second;
    bool parted = false;
    if (shifted) {
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        const T pilot = pilots[kAlong ? 0 : e];
        const float deviation = widened(values.at[e]) - widened(pilot);
        const T narrow = narrowed<T>(deviation);
        const bool exact = widened(narrow) == deviation;  // not if it is NaN
        first.at[e].bits = exact ? narrow.bits : values.at[e].bits;
        second.at[e].bits = exact ? uint16_t{0} : static_cast<uint16_t>(pilot.bits ^ 0x8000u);
        parted |= !exact;
      }
      *reinterpret_cast<Pack<T, kVector>*>(&stage.at[1][row][column]) = second;
    }
    *reinterpret_cast<Pack<T, kVector>*>(&stage.at[0][row][column]) = first;
    return parted;
  }

  /// Adds the deviations of a variable and their magnitudes.
  static __device__ __forceinline__ void sum(const Stage& stage, int variable, bool parted,
                                             float* total, float* magnitude) {
#pragma unroll 8
    for (int k = 0; k < kDepth; ++k) {
      const int row = kAlong ? variable : k, column = kAlong ? k : variable;
      float deviation = widened(stage.at[0][row][column]);
      if (parted) deviation += widened(stage.at[1][row][column]);
      *total += deviation;
      *magnitude += fabs(deviation);
    }
  }

  __device__ __forceinline__ void clear() {
    for_each_register([&](float& sum, float& promoted) { sum = promoted = 0; });
  }
  __device__ __forceinline__ void promote() {
    for_each_register([&](float& sum, float& promoted) {
      promoted += sum;
      sum = 0;
    });
  }

  __device__ __forceinline__ void multiply(const Stage& left, const Stage& right, bool parted) {
#pragma unroll 1
    for (int parts = 0; parts < (parted ? 4 : 1); ++parts)
      multiply_parts(left, parts / 2, right, parts % 2);
  }

  /// f(row, column, sum) for all sums of this thread.
  template <class F>
  __device__ __forceinline__ void for_each(const F& f) const {
    const int g = lane() / 4, t = lane() % 4;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          f(row() + 16 * i + g + e / 2 * 8, column() + 8 * j + 2 * t + e % 2, promoted_[i][j][e]);
      }
    }
  }

 private:
  // Warps are 2 x 4, of kRows x kColumns products of 16 x 8.
  static constexpr int kRows = kTile / 32, kColumns = kTile / 32;
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ __forceinline__ int row() {
    return static_cast<int>(threadIdx.x) / 128 * (kTile / 2);
  }
  static __device__ __forceinline__ int column() {
    return static_cast<int>(threadIdx.x) / 32 % 4 * (kTile / 4);
  }

  template <class F>
  __device__ __forceinline__ void for_each_register(const F& f) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) f(sums_[i][j][e], promoted_[i][j][e]);
      }
    }
  }

  /// The 8 x 8 matrices of variables by samples at (v, k), (v + 8, k), (v, k + 8), (v + 8, k + 8),
  /// or with the second and third exchanged.
  static __device__ __forceinline__ void load(uint32_t (&to)[4], const Stage& stage, int part,
                                              int v, int k, bool samples_first) {
    const int matrix = lane() / 8, r = lane() % 8;
    const int dv = (samples_first ? matrix / 2 : matrix % 2) * 8;
    const int dk = (samples_first ? matrix % 2 : matrix / 2) * 8;
    load_matrices<!kAlong>(
        to, kAlong ? &stage.at[part][v + dv + r][k + dk] : &stage.at[part][k + dk + r][v + dv]);
  }

  __device__ __forceinline__ void multiply_parts(const Stage& left, int left_part,
                                                 const Stage& right, int right_part) {
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t l[kRows][4], r[kColumns / 2][4];
#pragma unroll
      for (int i = 0; i < kRows; ++i) load(l[i], left, left_part, row() + 16 * i, k, false);
#pragma unroll
      for (int j = 0; j < kColumns / 2; ++j)
        load(r[j], right, right_part, column() + 16 * j, k, true);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) multiply_add<T>(sums_[i][j], l[i], &r[j / 2][j % 2 * 2]);
      }
    }
  }

  float sums_[kRows][kColumns][4], promoted_[kRows][kColumns][4];
};

}  // namespace infoslice::cuda
