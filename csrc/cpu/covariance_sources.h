// How covariance reads its input: a reader gives lines of samples of one variable, or rows of
// variables of one sample. Everything is inlined into the packing functions of
// covariance_packing.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "common/simd.h"
#include "covariance.h"

namespace infoslice::cpu {

template <class T>
INFOSLICE_INLINE void copy_run(const T* from, int64_t stride, int64_t count, T* to) {
  if (stride == 1) {
    // By hand: most runs are shorter than a call is worth.
    for (int64_t k = 0; k < count; ++k) to[k] = from[k];
  } else {
    for (int64_t k = 0; k < count; ++k) to[k] = from[k * stride];
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

  // Samples [begin, begin + count) of one variable, side by side: where they are if they are so,
  // otherwise copied to `scratch`.
  INFOSLICE_INLINE const T* line(int64_t variable, int64_t begin, int64_t count, T* scratch) const {
    const T* base = static_cast<const T*>(samples_.data) + variable * samples_.stride;
    for (int64_t done = 0; done < count;) {
      int64_t offset, length;
      locate(begin + done, offset, length);
      if (done == 0 && length >= count && inner().stride == 1) return base + offset;
      length = std::min(length, count - done);
      copy_run(base + offset, inner().stride, length, scratch + done);
      done += length;
    }
    return scratch;
  }

  // The address of sample k's variables, how many samples follow in the same run, and their stride.
  INFOSLICE_INLINE const T* row(int64_t k, int64_t& length, int64_t& stride) const {
    int64_t offset;
    locate(k, offset, length);
    stride = inner().stride;
    return static_cast<const T*>(samples_.data) + offset;
  }

  // How many samples follow each other in memory before a line breaks off.
  int64_t run() const { return inner().size; }

  // Where the v-th of `variables` equal parts of the samples [begin, begin + count) starts: if not
  // each line is in one piece, they are taken to be dense together.
  const T* part(int64_t v, int64_t begin, int64_t count) const {
    int64_t length, stride;
    const T* first = row(begin, length, stride);
    if (by_rows() || length < count) return first + v * count;
    return first + v * samples_.stride;
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
  int64_t run() const { return p_.out[1]; }
  const T* part(int64_t, int64_t, int64_t) const { return nullptr; }

  INFOSLICE_INLINE const T* line(int64_t variable, int64_t begin, int64_t count, T* scratch) const {
    const int64_t kw = variable % p_.kernel[1], kh = variable / p_.kernel[1] % p_.kernel[0];
    const int64_t channel = variable / (p_.kernel[0] * p_.kernel[1]);
    const T* base = static_cast<const T*>(p_.data) + channel * p_.channel_stride;
    // Output columns [low, high) see a pixel, the others padding.
    const int64_t shift = kw * p_.dilation[1] - p_.padding[1];  // iw = ow * step + shift
    const int64_t step = p_.step[1], width = p_.out[1];
    const int64_t low = shift < 0 ? (-shift + step - 1) / step : 0;
    const int64_t high = p_.size[1] > shift ? (p_.size[1] - 1 - shift) / step + 1 : 0;
    int64_t ow = begin % width, oh = begin / width % p_.out[0], image = begin / width / p_.out[0];
    for (int64_t done = 0; done < count;) {
      const int64_t length = std::min(width - ow, count - done);
      const int64_t ih = oh * p_.step[0] + kh * p_.dilation[0] - p_.padding[0];
      const bool inside = ih >= 0 && ih < p_.size[0];
      const int64_t from = inside ? std::min(std::max(low, ow), ow + length) : ow + length;
      const int64_t upto = inside ? std::max(std::min(high, ow + length), from) : from;
      T* out = scratch + done - ow;
      for (int64_t k = ow; k < from; ++k) out[k] = T{};
      if (upto > from) {
        const T* pixels = base + image * p_.image_stride + ih * p_.pixel_stride[0];
        copy_run(pixels + (from * step + shift) * p_.pixel_stride[1], step * p_.pixel_stride[1],
                 upto - from, out + from);
      }
      for (int64_t k = upto; k < ow + length; ++k) out[k] = T{};
      done += length;
      ow = 0;
      if (++oh == p_.out[0]) oh = 0, ++image;
    }
    return scratch;
  }

 private:
  Patches p_;
};

}  // namespace infoslice::cpu
