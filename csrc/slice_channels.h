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
// (csrc/bindings does). Extra memory on the CPU: one bit for each element of a row of the source.
//
// CUDA: the host turns the jobs into a table (slice_table: axes merged, runs of bytes and aligned
// blocks of kept neighbours found, a keep list that cuts many tensors stored once, as 32-bit numbers
// unless they need more), which travels in kernel parameters of 32000 bytes; then one launch copies
// everything. Every target is cut into chunks of 32 KiB, a block takes one and finds its job by
// bisection; a thread writes 16 bytes at a time where runs and alignment allow, else 8 or 4, put
// together from elements that a warp reads near each other. Sources whose innermost axis is not
// that of the target are right, but not coalesced. Index arithmetic is 32 bits wide unless an axis
// has more than 2^30 steps. Workspace: the table, 40 bytes and more for each axis and 4 for
// each entry of a keep list.
//
// In place on CUDA: blocks run at once, so some chunks (32 MiB of targets) are gathered to scratch
// memory and copied to their places by a second launch, then the next. They are taken front to back,
// so none overwrites what a later one reads. Launches: two for every 32 MiB; tensors of which nothing
// moves are left out. Workspace: the table and, for every 32 KiB or smaller piece that moves, 32 KiB,
// at most 32 MiB in all.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace infoslice {

struct SliceJob {
  struct Axis {
    int64_t size;                          // of the target
    int64_t source_stride, target_stride;  // in elements
    const int64_t* keep;                   // `size` indices into the source, or null: all
  };
  const void* source;  // on the device for cuda::, but the lists in `axes` are on the host
  void* target;        // does not overlap the source, or is the source
  int64_t itemsize;    // bytes
  const Axis* axes;
  int dims;  // at most 12
};

namespace cpu {
void slice_channels(const std::vector<SliceJob>& jobs, int threads);
}

namespace cuda {
struct SliceTable {
  std::vector<uint32_t> words;                  // what goes to the device
  int64_t entries_at, axes_at, first_chunk_at;  // its parts
  int64_t entries, chunks;
  int64_t scratch_chunks;  // 0: not in place
  bool wide;               // an axis of more than 2^30 steps, or an index of more than 32 bits
};
constexpr int64_t kSliceScratch = 32 << 20;
/// The keep lists are not needed afterwards. `scratch`: bytes, for in_place.
SliceTable slice_table(const std::vector<SliceJob>& jobs, bool in_place, int64_t scratch);
size_t slice_channels_workspace(const SliceTable& table);
/// `workspace`: 16-byte aligned. The table is not needed afterwards.
int slice_channels(const SliceTable& table, void* workspace, void* stream);
}  // namespace cuda

}  // namespace infoslice
