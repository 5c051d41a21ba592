// How the covariance kernels read an input: any strides, in 16-byte vectors where they allow it.
#pragma once

#include "covariance.h"
#include "cuda/matrix.cuh"

namespace infoslice::cuda {

constexpr int kProductThreads = 128;  // of a block that multiplies

/// Axes that an index runs through, the last one fastest.
struct Axes {
  Axes(const Samples::Axis* from, int number) : count(number) {
    for (int a = 0; a < number; ++a) {
      axes[a] = from[a];
      inverse[a] = 1.0 / static_cast<double>(from[a].size);
    }
  }

  /// f(axis, place on it) for all axes. No integer division: one of 64 bits is a function call on
  /// the device. The quotient of an index below 2^53 comes out right or one off.
  template <class F>
  __device__ __forceinline__ void take_apart(int64_t index, const F& f) const {
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
      f(a, rest);
      index = quotient;
    }
    if (count > 0) f(0, index);
  }
  /// Where in memory.
  __device__ __forceinline__ int64_t offset(int64_t index) const {
    int64_t offset = 0;
    take_apart(index, [&](int a, int64_t at) { offset += at * axes[a].stride; });
    return offset;
  }

  Samples::Axis axes[12];
  double inverse[12];
  int count;
};

/// A source tells where variables and samples are; an element lies at the sum of both.
/// Samples in any strides, a batch of them.
struct Strided {
  struct Place {
    int64_t offset;
  };
  Strided(const SampleBatch& batch, bool in_vectors)
      : data(batch.first.data),
        stride(batch.first.stride),
        samples(batch.first.axes, batch.first.axes_count),
        items(batch.axes, batch.axes_count),
        vectors(in_vectors) {}
  __device__ __forceinline__ int64_t item(int64_t i) const { return items.offset(i); }
  __device__ __forceinline__ Place variable(int64_t v) const { return {v * stride}; }
  __device__ __forceinline__ Place sample(int64_t k) const { return {samples.offset(k)}; }
  template <class T>
  __device__ __forceinline__ T read(const T* from, Place variable, Place sample) const {
    return from[variable.offset + sample.offset];
  }
  __device__ __forceinline__ bool in_vectors() const { return vectors; }

  const void* data;
  int64_t stride;  // of variables
  Axes samples, items;
  bool vectors;  // whole vectors lie in memory one after the other and aligned
};

/// Receptive fields: a place is a pixel too, and outside of the image is zero.
struct Unfolded {
  struct Place {
    int64_t offset, row, column;
  };
  explicit Unfolded(const Patches& p)
      : data(p.data),
        variables(along(p.channels, p.channel_stride, p.kernel, p.dilation, p), 3),
        samples(along(p.images, p.image_stride, p.out, p.step, p), 3),
        size{p.size[0], p.size[1]},
        dilation{p.dilation[0], p.dilation[1]},
        step{p.step[0], p.step[1]},
        padding{p.padding[0], p.padding[1]},
        origin(-p.padding[0] * p.pixel_stride[0] - p.padding[1] * p.pixel_stride[1]) {}
  __device__ __forceinline__ int64_t item(int64_t) const { return 0; }
  __device__ __forceinline__ Place variable(int64_t v) const {
    Place place{0, 0, 0};
    variables.take_apart(v, [&](int a, int64_t at) { move(&place, variables, dilation, a, at); });
    return place;
  }
  __device__ __forceinline__ Place sample(int64_t k) const {
    Place place{origin, -padding[0], -padding[1]};
    samples.take_apart(k, [&](int a, int64_t at) { move(&place, samples, step, a, at); });
    return place;
  }
  template <class T>
  __device__ __forceinline__ T read(const T* from, Place variable, Place sample) const {
    const auto row = static_cast<uint64_t>(variable.row + sample.row);
    const auto column = static_cast<uint64_t>(variable.column + sample.column);
    const bool inside =
        row < static_cast<uint64_t>(size[0]) && column < static_cast<uint64_t>(size[1]);
    return inside ? from[variable.offset + sample.offset] : T{};
  }
  __device__ __forceinline__ bool in_vectors() const { return false; }

  const void* data;
  Axes variables, samples;
  int64_t size[2], dilation[2], step[2], padding[2], origin;

 private:
  struct Three {
    Samples::Axis axes[3];
    operator const Samples::Axis*() const { return axes; }
  };
  static Three along(int64_t outer, int64_t stride, const int64_t (&inner)[2],
                     const int64_t (&pixels)[2], const Patches& p) {
    return {{{outer, stride},
             {inner[0], pixels[0] * p.pixel_stride[0]},
             {inner[1], pixels[1] * p.pixel_stride[1]}}};
  }
  static __device__ __forceinline__ void move(Place* place, const Axes& axes,
                                              const int64_t (&pixels)[2], int a, int64_t at) {
    place->offset += at * axes.axes[a].stride;
    if (a == 1) place->row += at * pixels[0];
    if (a == 2) place->column += at * pixels[1];
  }
};

/// N elements that are read 16 bytes at a time, or all at once where they are fewer.
template <class T, int N>
struct __align__(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Pack {
  T at[N];
};

/// threadIdx.x, not kept in registers between the uses: those are for the sums.
__device__ __forceinline__ int thread_anew() {
#ifdef INFOSLICE_EMULATION
  return static_cast<int>(threadIdx.x);
#else
  int thread;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(thread));
  return thread;
#endif
}

/// Of a block's tile of variables by samples, the vectors that a thread copies and settles.
template <class Math>
struct Vectors {
  using T = typename Math::Element;
  using Vector = Pack<T, Math::kVector>;
  static constexpr int kTile = Math::kTile, kDepth = Math::kDepth, kVector = Math::kVector;
  static constexpr bool kAlong = Math::kAlongSamples;
  static constexpr int kAcross = (kAlong ? kDepth : kTile) / kVector;
  static constexpr int kPasses = kTile * kDepth / (kProductThreads * kVector);
  static_assert(kPasses >= 1 && kProductThreads % kAcross == 0);

  // Where the vector of a pass begins.
  static __device__ __forceinline__ int variable(int thread, int pass) {
    const int vector = thread + pass * kProductThreads;
    return kAlong ? vector / kAcross : vector % kAcross * kVector;
  }
  static __device__ __forceinline__ int sample(int thread, int pass) {
    const int vector = thread + pass * kProductThreads;
    return kAlong ? vector % kAcross * kVector : vector / kAcross;
  }

  /// Begins to copy a tile. What is not one of the first `variables` and `samples` of these places
  /// takes the pilot's value, so that its deviation is zero; where vectors are whole in memory both
  /// numbers are multiples of kVector.
  template <class Source>
  static __device__ __forceinline__ void copy(typename Math::Stage& stage, const Source& source,
                                              const typename Source::Place* variable_places,
                                              int variables,
                                              const typename Source::Place* sample_places,
                                              int samples, const T* pilots) {
    const int thread = thread_anew();
    const T* const from = static_cast<const T*>(source.data);
    const auto inside = [&](int v, int k) { return v < variables && k < samples; };
    if (source.in_vectors()) {
#pragma unroll
      for (int pass = 0; pass < kPasses; ++pass) {
        const int v = variable(thread, pass), k = sample(thread, pass);
        if (inside(v, k))
          copy_vector(stage.of(v, k), from + variable_places[v].offset + sample_places[k].offset);
        else
          fill(stage, v, k, [&](int ev, int) { return pilots[ev]; });
      }
    } else {
#pragma unroll 1
      for (int pass = 0; pass < kPasses; ++pass)
        fill(stage, variable(thread, pass), sample(thread, pass), [&](int v, int k) {
          return inside(v, k) ? source.read(from, variable_places[v], sample_places[k]) : pilots[v];
        });
    }
  }

  static __device__ __forceinline__ bool settle(typename Math::Stage& stage,
                                                typename Math::Stage& second, const T* pilots) {
    const int thread = thread_anew();
    bool parted = false;
#pragma unroll 1
    for (int pass = 0; pass < kPasses; ++pass)
      parted |= Math::settle(stage, second, variable(thread, pass), sample(thread, pass),
                             pilots + variable(thread, pass));
    return parted;
  }

 private:
  template <class F>
  static __device__ __forceinline__ void fill(typename Math::Stage& stage, int v, int k,
                                              const F& element) {
    Vector vector;
#pragma unroll
    for (int e = 0; e < kVector; ++e)
      vector.at[e] = element(v + (kAlong ? 0 : e), k + (kAlong ? e : 0));
    *reinterpret_cast<Vector*>(stage.of(v, k)) = vector;
  }
};

}  // namespace infoslice::cuda
