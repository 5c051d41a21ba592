// Products of two staged tiles by the tensor cores.
#pragma once

#include "cuda/covariance_finish.cuh"
#include "cuda/samples.cuh"

namespace infoslice::cuda {

/// kTile x kTile sums in the registers of a block, a quarter for each of four warps. What happens to
/// the deviations from the pilots depends on the type.
///
/// bfloat16, float16: products of two of them are exact in float, and deviations must stay exact too.
/// Where sample and pilot are within a factor of two, the deviation is a number of the same type
/// (Sterbenz); where it is not, it is kept in two parts, the sample and minus the pilot, neither more
/// than twice the deviation. A stage with such samples costs four products instead of one. Variables
/// whose mean is within two standard deviations keep zero as their pilot and cost nothing: what that
/// loses is a factor of five.
///
/// float: a deviation is split into two tf32 numbers of 11 bits, of which the larger is the nearest
/// (3xTF32). Three of the four products are summed, the small ones first.
///
/// double: fused multiply-adds, rounded to nearest.
///
/// The tensor cores truncate where they add floats, so their sums begin at zero for every 32 samples
/// (16-bit types) or 8 (float), and are added to the others by ordinary arithmetic. csrc/covariance.h
/// tells what is lost.
template <class T, int kEdge, bool kAlong>
struct TensorCores {
  using Element = T;
  using Accumulator = std::conditional_t<sizeof(T) == 8, double, float>;
  using A = Accumulator;
  static constexpr bool kAlongSamples = kAlong;  // how vectors run
  static constexpr int kTile = kEdge;
  static constexpr int kDepth = sizeof(T) == 2 ? 32 : 16;
  static constexpr int kVector = 16 / sizeof(T);
  static constexpr int kBlocks = kEdge == 128 ? 2 : 3;         // of a multiprocessor
  static constexpr int kFlush = sizeof(T) == 4 ? 2048 : 4096;  // samples until sums go to memory
  static constexpr bool kParts = sizeof(T) == 2;
  static constexpr bool kPrefersZero = kParts;  // of pilots

  // Rows of the axis along which vectors run, padded so that the loads of a warp meet no bank twice.
  struct __align__(16) Stage {
    static constexpr int kPad = sizeof(T) == 2 || (sizeof(T) == 4 && !kAlong) ? 8 : 4;
    T at[kAlong ? kTile : kDepth][(kAlong ? kDepth : kTile) + kPad];
    __device__ __forceinline__ T* of(int variable, int sample) {
      return &at[kAlong ? variable : sample][kAlong ? sample : variable];
    }
    __device__ __forceinline__ const T* of(int variable, int sample) const {
      return &at[kAlong ? variable : sample][kAlong ? sample : variable];
    }
  };
  using Vector = Pack<T, kVector>;

  /// Makes deviations of the vector at this variable and sample. Whether a second part is not zero.
  static __device__ __forceinline__ bool settle(Stage& stage, Stage& second, int variable,
                                                int sample, const T* pilots) {
    Vector* const at = reinterpret_cast<Vector*>(stage.of(variable, sample));
    Vector first = *at;
    bool parted = false;
    if constexpr (kParts) {
      Vector rest;
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        const T pilot = pilots[kAlong ? 0 : e];
        const float deviation = widened(first.at[e]) - widened(pilot);
        const T narrow = narrowed<T>(deviation);
        const bool exact = widened(narrow) == deviation;  // not if it is NaN
        if (exact) first.at[e].bits = narrow.bits;
        rest.at[e].bits = exact ? uint16_t{0} : static_cast<uint16_t>(pilot.bits ^ 0x8000u);
        parted |= !exact;
      }
      *reinterpret_cast<Vector*>(second.of(variable, sample)) = rest;
    } else {
#pragma unroll
      for (int e = 0; e < kVector; ++e) first.at[e] -= pilots[kAlong ? 0 : e];
    }
    *at = first;
    return parted;
  }

  /// Adds the deviations of a variable and their magnitudes.
  static __device__ __forceinline__ void sum(const Stage& stage, const Stage& second, bool parted,
                                             int variable, Sums* sums) {
    A total = 0, magnitude = 0;
#pragma unroll 2
    for (int k = 0; k < kDepth; k += kVector) {
      Vector first, rest{};
      if (kAlong) {
        first = *reinterpret_cast<const Vector*>(stage.of(variable, k));
        if (parted) rest = *reinterpret_cast<const Vector*>(second.of(variable, k));
      }
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        if (!kAlong) {
          first.at[e] = *stage.of(variable, k + e);
          if (parted) rest.at[e] = *second.of(variable, k + e);
        }
        A deviation = widened(first.at[e]);
        if constexpr (kParts) deviation += widened(rest.at[e]);
        total += deviation;
        magnitude += fabs(deviation);
      }
    }
    sums->sum += total;
    sums->magnitude += magnitude;
  }

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
#pragma unroll
        for (int e = 0; e < kOwn; ++e) sums_[i][j][e] = 0;
      }
    }
  }

  /// The quarter of a thread's warp begins here.
  static __device__ __forceinline__ int row(int thread) { return thread / 64 * (kTile / 2); }
  static __device__ __forceinline__ int column(int thread) { return thread / 32 % 2 * (kTile / 2); }

  /// Puts the sums where they belong, or adds them to what is there. Many at a time: the memory is
  /// far away.
  __device__ __forceinline__ void give(A* to, int rows, int columns, bool adds) const {
    const int thread = thread_anew(), g = thread % 32 / 4, t = thread % 4;
#pragma unroll
    for (int half = 0; half < kRows * kOwn / 2; ++half) {  // a row of an instruction's sums
      const int i = half * 2 / kOwn, r = row(thread) + 8 * half + g;
      const auto each = [&](const auto& f) {
#pragma unroll
        for (int e = 0; e < 2 * kColumns; ++e) {
          const int c = column(thread) + e / 2 * 8 + 2 * t + e % 2;
          if (r < rows && c < columns) f(to + r * columns + c, e);
        }
      };
      A given[2 * kColumns] = {};
      if (adds) each([&](const A* at, int e) { given[e] = *at; });
      each([&](A* at, int e) { *at = given[e] + sums_[i][e / 2][(half * 2 + e % 2) % kOwn]; });
    }
  }

  __device__ __forceinline__ void multiply(const Stage& left, const Stage& right) {
    if constexpr (sizeof(T) == 2) {
      multiply_halves(left, right);
    } else if constexpr (sizeof(T) == 4) {
      multiply_floats(left, right);
    } else {
      multiply_doubles(left, right);
    }
  }

 private:
  static constexpr int kHeight = sizeof(T) == 8 ? 8 : 16;  // of an instruction's left matrix
  static constexpr int kOwn = kHeight / 4;                 // of its sums, in a thread
  static constexpr int kRows = kTile / 2 / kHeight, kColumns = kTile / 2 / 8;

  __device__ __forceinline__ void add(int j, const float (&chunk)[kRows][4]) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums_[i][j][e] += chunk[i][e];
    }
  }

  /// Four 8 x 8 matrices of variables by samples, each where its eight lanes say.
  static __device__ __forceinline__ void load(uint32_t (&to)[4], const Stage& stage, int v, int k,
                                              int r) {
    load_matrices<!kAlong>(to, kAlong ? stage.of(v + r, k) : stage.of(v, k + r));
  }

  __device__ __forceinline__ void multiply_halves(const Stage& left, const Stage& right) {
    const int thread = thread_anew(), matrix = thread % 32 / 8;
    uint32_t l[2][kRows][4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < kRows; ++i)
        load(l[half][i], left, row(thread) + 16 * i + matrix % 2 * 8, 16 * half + matrix / 2 * 8,
             thread % 8);
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      uint32_t r[4];
      load(r, right, column(thread) + 8 * j, matrix * 8, thread % 8);
      float chunk[kRows][4] = {};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < kRows; ++i) multiply_add<T>(chunk[i], l[half][i], r + 2 * half);
      }
      add(j, chunk);
      if (j % 2 == 1) __syncwarp();  // do not load everything at once
    }
  }

  /// Two tf32 numbers whose sum is the value but for at most 2^-22 of it.
  template <int N>
  struct Split {
    uint32_t large[N], small[N];
    __device__ __forceinline__ void set(int e, float value) {
      constexpr uint32_t kKept = 0xffffe000u;
      uint32_t bits;
      memcpy(&bits, &value, sizeof(bits));
      large[e] = (bits + 0x1000u) & kKept;  // the nearest
      float nearest;
      memcpy(&nearest, &large[e], sizeof(nearest));
      const float rest = value - nearest;
      memcpy(&bits, &rest, sizeof(bits));
      small[e] = bits & kKept;
    }
  };

  __device__ __forceinline__ void multiply_floats(const Stage& left, const Stage& right) {
    const int thread = thread_anew(), g = thread % 32 / 4, t = thread % 4;
#pragma unroll 1
    for (int k = 0; k < kDepth; k += 8) {
      Split<4> l[kRows];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          l[i].set(e, *left.of(row(thread) + 16 * i + g + e % 2 * 8, k + t + e / 2 * 4));
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        Split<2> r;
#pragma unroll
        for (int e = 0; e < 2; ++e) r.set(e, *right.of(column(thread) + 8 * j + g, k + t + 4 * e));
        float chunk[kRows][4] = {};
#pragma unroll
        for (int i = 0; i < kRows; ++i) multiply_add<T>(chunk[i], l[i].small, r.large);
#pragma unroll
        for (int i = 0; i < kRows; ++i) multiply_add<T>(chunk[i], l[i].large, r.small);
#pragma unroll
        for (int i = 0; i < kRows; ++i) multiply_add<T>(chunk[i], l[i].large, r.large);
        add(j, chunk);
        if (j % 2 == 1) __syncwarp();  // do not load everything at once
      }
    }
  }

  __device__ __forceinline__ void multiply_doubles(const Stage& left, const Stage& right) {
    const int thread = thread_anew(), g = thread % 32 / 4, t = thread % 4;
#pragma unroll
    for (int k = 0; k < kDepth; k += 4) {
      double l[kRows], r[kColumns];
#pragma unroll
      for (int i = 0; i < kRows; ++i) l[i] = *left.of(row(thread) + 8 * i + g, k + t);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) r[j] = *right.of(column(thread) + 8 * j + g, k + t);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) multiply_add(sums_[i][j], l[i], r[j]);
      }
    }
  }

  A sums_[kRows][kColumns][kOwn];
};

}  // namespace infoslice::cuda
