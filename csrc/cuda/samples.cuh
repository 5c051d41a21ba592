// How the covariance kernels read an input: any strides, in 16-byte vectors where they allow it.
#pragma once

#include "covariance.h"
#include "cuda/launch.h"
#include "cuda/scalars.cuh"

namespace infoslice::cuda {

/// A batch of inputs as a kernel parameter.
struct View {
  SampleBatch inputs;
  bool vectors;  // whole vectors lie in memory one after the other and aligned
};

/// N elements that are read 16 bytes at a time, or all at once where they are fewer.
template <class T, int N>
struct __align__(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T at[N];
};

/// Divides by 32 bits where that is all there is: several times faster on the device.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0)
    return static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
  return a / b;
}

__device__ inline int64_t offset_along(const Samples::Axis* axes, int count, int64_t index) {
  int64_t offset = 0;
  for (int a = count - 1; a > 0; --a) {
    const int64_t rest = divide(index, axes[a].size);
    offset += (index - rest * axes[a].size) * axes[a].stride;
    index = rest;
  }
  return count > 0 ? offset + index * axes[0].stride : 0;
}

__device__ __forceinline__ int64_t offset_of_sample(const View& view, int64_t k) {
  return offset_along(view.inputs.first.axes, view.inputs.first.axes_count, k);
}

template <class T>
__device__ __forceinline__ const T* item_of(const View& view, int64_t item) {
  return static_cast<const T*>(view.inputs.first.data) +
         offset_along(view.inputs.axes, view.inputs.axes_count, item);
}

/// Reads tiles of kTile variables by kDepth samples into the registers of a block: kPasses vectors
/// of kVector elements a thread, which run along the samples or along the variables.
template <class T, int kTile, int kDepth, int kVector, bool kAlongSamples>
struct Loader {
  static constexpr int kAcross = (kAlongSamples ? kDepth : kTile) / kVector;
  static constexpr int kPasses = kTile * kDepth / (kThreads * kVector);
  static_assert(kPasses >= 1 && kThreads % kAcross == 0);
  T values[kPasses][kVector];

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
      if (vectors && v < variables && k < samples) {
        const auto pack = *reinterpret_cast<const Pack<T, kVector>*>(own + offsets[k]);
#pragma unroll
        for (int e = 0; e < kVector; ++e) values[pass][e] = pack.at[e];
      } else {
#pragma unroll
        for (int e = 0; e < kVector; ++e) {
          const int ev = kAlongSamples ? 0 : e, ek = kAlongSamples ? e : 0;
          values[pass][e] = v + ev < variables && k + ek < samples
                                ? own[ev * stride + offsets[k + ek]]
                                : pilots[v + ev];
        }
      }
    }
  }
};

/// Sums of the deviations and of their magnitudes that one thread has loaded.
template <class A, int N>
struct ColumnSums {
  A sum[N], magnitude[N];
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < N; ++i) sum[i] = magnitude[i] = A(0);
  }
  __device__ __forceinline__ void add(int i, A deviation) {
    sum[i] += deviation;
    magnitude[i] += deviation < A(0) ? -deviation : deviation;
  }
};

}  // namespace infoslice::cuda
