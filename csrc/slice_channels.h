// slice_channels: keeps the named indices of the named axes of many tensors, in one call.
//
//   target[j_0, ..., j_{d-1}] = source[k_0[j_0], ..., k_{d-1}[j_{d-1}]]
//
// where k_a is the keep list of axis a, ascending, or the identity where the axis is not named. All
// axes of a tensor are cut in one pass. Elements are copied as bytes, so the dtype is of no concern
// beyond its size. Sources may have any strides; targets are dense.
//
// In place (slice_channels_) the target is the source itself, which then is dense too, in the order
// of axes of the target. As every k_a ascends, an element is never written behind the place where
// it is read, so going front to back reads all before it is overwritten. What was behind the result
// is left as it comes.
//
// Nothing can fail here: the caller has checked that every k_a is within the source and ascends
// (csrc/bindings does). Extra memory: one bit for each element of a row of the source.
#pragma once

#include <cstdint>
#include <vector>

namespace infoslice {

struct SliceJob {
  struct Axis {
    int64_t size;                          // of the target
    int64_t source_stride, target_stride;  // in elements
    const int64_t* keep;                   // `size` indices into the source, or null: all
  };
  const void* source;
  void* target;      // does not overlap the source, or is the source
  int64_t itemsize;  // bytes
  const Axis* axes;
  int dims;  // at most 12
};

namespace cpu {
void slice_channels(const std::vector<SliceJob>& jobs, int threads);
}

}  // namespace infoslice
