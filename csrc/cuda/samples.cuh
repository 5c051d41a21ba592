// How the covariance kernels read an input: any strides, in 16-byte vectors where they allow it.
#pragma once

#include "covariance.h"
#include "cuda/launch.h"
#include "cuda/scalars.cuh"

namespace infoslice::cuda {

/// Axes that an index runs through, the last one fastest.
struct Axes {
  Axes(const Samples::Axis* from, int number) : count(number) {
    for (int a = 0; a < number; ++a) {
      axes[a] = from[a];
      inverse[a] = 1.0 / static_cast<double>(from[a].size);
    }
  }

  /// Where in memory. No integer division: one of 64 bits is a function call on the device. The
  /// quotient of an index below 2^53 comes out right or one off.
  __device__ __forceinline__ int64_t offset(int64_t index) const {
    int64_t offset = 0;
    for (int a = count - 1; a > 0; --a) {
      auto quotient = static_cast<int64_t>(static_cast<double>(index) * inverse[a]);
      int64_t rest = index - quotient * axes[a].size;
      if (rest < 0) {
        --quotient;
        rest += axes[a].size;
      } else if (rest >= axes[a].size) {
        ++quotient;
        rest -= axes[a].size;
      }
      offset += rest * axes[a].stride;
      index = quotient;
    }
    return count > 0 ? offset + index * axes[0].stride : 0;
  }

  Samples::Axis axes[12];
  double inverse[12];
  int count;
};

/// A batch of inputs as a kernel parameter.
struct View {
  View(const SampleBatch& batch, bool in_vectors)
      : data(batch.first.data),
        stride(batch.first.stride),
        samples(batch.first.axes, batch.first.axes_count),
        items(batch.axes, batch.axes_count),
        vectors(in_vectors) {}
  const void* data;
  int64_t stride;  // of variables
  Axes samples, items;
  bool vectors;  // whole vectors lie in memory one after the other and aligned
};

/// N elements that are read 16 bytes at a time, or all at once where they are fewer.
template <class T, int N>
struct __align__(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T at[N];
};

/// Reads tiles of kTile variables by kDepth samples into the registers of a block: kPasses vectors
/// of kVector elements a thread, which run along the samples or along the variables.
template <class T, int kTile, int kDepth, int kVector, bool kAlongSamples>
struct Loader {
  static constexpr int kAcross = (kAlongSamples ? kDepth : kTile) / kVector;
  static constexpr int kPasses = kTile * kDepth / (kThreads * kVector);
  static_assert(kPasses >= 1 && kThreads % kAcross == 0);

  // Kept as words: 16-bit elements would take a register each.
  using Vector = Pack<T, kVector>;
  uint32_t words[kPasses][sizeof(Vector) / 4];
  __device__ __forceinline__ Vector vector(int pass) const {
    Vector result;
    memcpy(&result, words[pass], sizeof(Vector));
    return result;
  }

  // Where the vector of a pass begins in the tile.
  static __device__ __forceinline__ int variable(int pass) {
    const int vector = static_cast<int>(threadIdx.x) + pass * kThreads;
    return kAlongSamples ? vector / kAcross : vector % kAcross * kVector;
  }
  static __device__ __forceinline__ int sample(int pass) {
    const int vector = static_cast<int>(threadIdx.x) + pass * kThreads;
    return kAlongSamples ? vector % kAcross * kVector : vector / kAcross;
  }

  /// `from` is the tile's first variable, offsets[k] where its sample k lies. What is not one of
  /// the first `variables` and `samples` takes the pilot's value, so that its deviation is zero;
  /// with vectors both are multiples of kVector.
  __device__ __forceinline__ void load(const T* from, int64_t stride, bool vectors, int variables,
                                       int samples, const int64_t* offsets, const T* pilots) {
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      const int v = variable(pass), k = sample(pass);
      const T* own = from + v * stride;
      Vector read;
      if (vectors && v < variables && k < samples) {
        read = *reinterpret_cast<const Vector*>(own + offsets[k]);
      } else {
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
          const int ev = kAlongSamples ? 0 : e, ek = kAlongSamples ? e : 0;
          read.at[e] = v + ev < variables && k + ek < samples ? own[ev * stride + offsets[k + ek]]
                                                              : pilots[v + ev];
        }
      }
      memcpy(words[pass], &read, sizeof(Vector));
    }
  }
};

}  // namespace infoslice::cuda
