// How covariance reads its input: a reader gives runs of samples of one variable, widened to the
// working type. Everything is inlined into the packing functions of covariance_tiles.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/numeric.h"
#include "common/simd.h"
#include "covariance.h"

namespace infoslice::cpu {

template <class T, class A>
INFOSLICE_INLINE void widen_run(const T* from, int64_t stride, int64_t count, A* to) {
  if (stride == 1) {
    // The next chunk of this variable: one of many short runs far apart, so the hardware does not
    // see it.
    for (int64_t k = 0; k < count; k += 64 / sizeof(T)) __builtin_prefetch(from + count + k);
    for (int64_t k = 0; k < count; ++k) to[k] = static_cast<A>(widen(from[k]));
  } else {
    for (int64_t k = 0; k < count; ++k) to[k] = static_cast<A>(widen(from[k * stride]));
  }
}

template <class Type>
class SampleReader {
 public:
  using T = Type;
  explicit SampleReader(const Samples& samples) : samples_(samples) {}
  int64_t variables() const { return samples_.variables; }
  int64_t count() const { return samples_.count(); }

  // Whether neighbouring variables are neighbours in memory: then rows of them are read at once.
  bool by_rows() const { return samples_.stride == 1; }

  // Samples [begin, begin + count) of one variable.
  template <class A>
  INFOSLICE_INLINE void read(int64_t variable, int64_t begin, int64_t count, A* to) const {
    const T* base = static_cast<const T*>(samples_.data) + variable * samples_.stride;
    for (int64_t done = 0; done < count;) {
      int64_t offset, length;
      locate(begin + done, offset, length);
      length = std::min(length, count - done);
      widen_run(base + offset, inner().stride, length, to + done);
      done += length;
    }
  }

  // The address of sample k's variables, how many samples follow in the same run, and their stride.
  INFOSLICE_INLINE const T* row(int64_t k, int64_t& length, int64_t& stride) const {
    int64_t offset;
    locate(k, offset, length);
    stride = inner().stride;
    return static_cast<const T*>(samples_.data) + offset;
  }

 private:
  const Samples::Axis& inner() const { return samples_.axes[samples_.axes_count - 1]; }

  INFOSLICE_INLINE void locate(int64_t k, int64_t& offset, int64_t& length) const {
    const int64_t at = k % inner().size;
    int64_t rest = k / inner().size;
    offset = at * inner().stride;
    length = inner().size - at;
    for (int a = samples_.axes_count - 2; a >= 0; --a) {
      offset += rest % samples_.axes[a].size * samples_.axes[a].stride;
      rest /= samples_.axes[a].size;
    }
  }

  Samples samples_;
};

template <class Type>
class PatchReader {
 public:
  using T = Type;
  explicit PatchReader(const Patches& patches) : p_(patches) {}
  int64_t variables() const { return p_.variables(); }
  int64_t count() const { return p_.count(); }
  bool by_rows() const { return false; }
  INFOSLICE_INLINE const T* row(int64_t, int64_t&, int64_t&) const { return nullptr; }

  template <class A>
  INFOSLICE_INLINE void read(int64_t variable, int64_t begin, int64_t count, A* to) const {
    const int64_t kw = variable % p_.kernel[1], kh = variable / p_.kernel[1] % p_.kernel[0];
    const int64_t channel = variable / (p_.kernel[0] * p_.kernel[1]);
    const T* base = static_cast<const T*>(p_.data) + channel * p_.channel_stride;
    // Output columns [low, high) see a pixel, the others padding.
    const int64_t shift = kw * p_.dilation[1] - p_.padding[1];  // iw = ow * step + shift
    const int64_t step = p_.step[1], width = p_.out[1];
    const int64_t low = shift < 0 ? (-shift + step - 1) / step : 0;
    const int64_t high = p_.size[1] > shift ? (p_.size[1] - 1 - shift) / step + 1 : 0;
    for (int64_t done = 0; done < count;) {
      const int64_t ow = (begin + done) % width, row = (begin + done) / width;
      const int64_t ih = row % p_.out[0] * p_.step[0] + kh * p_.dilation[0] - p_.padding[0];
      const int64_t length = std::min(width - ow, count - done);
      const bool inside = ih >= 0 && ih < p_.size[0];
      const int64_t from = inside ? std::min(std::max(low, ow), ow + length) : ow + length;
      const int64_t upto = inside ? std::max(std::min(high, ow + length), from) : from;
      A* out = to + done - ow;
      for (int64_t k = ow; k < from; ++k) out[k] = 0;
      if (upto > from) {
        const T* line = base + row / p_.out[0] * p_.image_stride + ih * p_.pixel_stride[0];
        widen_run(line + (from * step + shift) * p_.pixel_stride[1], step * p_.pixel_stride[1],
                  upto - from, out + from);
      }
      for (int64_t k = upto; k < ow + length; ++k) out[k] = 0;
      done += length;
    }
  }

 private:
  Patches p_;
};

}  // namespace infoslice::cpu
