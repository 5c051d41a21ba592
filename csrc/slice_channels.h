// slice_channels: keeps the named indices of the named axes of many tensors, in one call.
//
//   target[j_0, ..., j_{d-1}] = source[k_0[j_0], ..., k_{d-1}[j_{d-1}]]
//
// where k_a is the keep list of axis a, or the identity where the axis is not named. All axes of a
// tensor are cut in one pass. Elements are copied as bytes, so the dtype is of no concern beyond
// its size. Sources may have any strides; targets are dense and do not overlap the sources. Nothing
// can fail here: the caller has checked that every k_a is within the source (csrc/bindings does).
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
  void* target;
  int64_t itemsize;  // bytes
  std::vector<Axis> axes;
};

namespace cpu {
void slice_channels(const std::vector<SliceJob>& jobs, int threads);
}

}  // namespace infoslice
