// The table of slice_channels on a device: what its kernels read, and how the host builds it. A plain
// C++ header: the building is run for every call, so it allocates little and sees every list once.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <utility>
#include <vector>

#include "slice_channels.h"

namespace infoslice::cuda {

// A target is dense, so it is a line of units: powers of two of bytes, as wide as the alignment and
// the runs of bytes that stay together allow. Its axes, innermost first, say where a unit is from.
struct SliceAxis {
  int64_t stride;              // of the source, in bytes
  int64_t size;                // of the target
  int64_t within;              // units of the target for one step of this axis
  uint32_t list;               // word of the table where its kept indices begin, or kWhole
  uint32_t entry_words;        // of a kept index: 1, or 2 for those that need more than 32 bits
  uint32_t multiplier, shift;  // n / size = (high word of n * multiplier + n) >> shift
};
constexpr uint32_t kWhole = ~0u;  // all indices
constexpr uint32_t kLong = 32;    // shift of an axis too long for the division

struct SliceEntry {
  const char* source;
  char* target;
  int64_t bytes;         // of the target
  uint32_t axes, count;  // its first axis in the table, and how many: 2 at least
  uint32_t unit;         // bytes: 1, 2, 4, 8 or 16
};

constexpr int kSliceChunk = 32 << 10;  // bytes of a target that a block writes at a time
constexpr int kSliceAxes = 24;  // a cut axis becomes two at most: kept blocks and their inside

// n / size for n < 2^31 without a division (Granlund and Montgomery, 1994).
inline void set_division(SliceAxis& axis) {
  if (axis.size > int64_t{1} << 30) {
    axis.multiplier = 0, axis.shift = kLong;
    return;
  }
  const auto size = static_cast<uint64_t>(axis.size);
  uint64_t shift = 0;
  while (uint64_t{1} << shift < size) ++shift;
  axis.multiplier =
      static_cast<uint32_t>((uint64_t{1} << 32) * ((uint64_t{1} << shift) - size) / size + 1);
  axis.shift = static_cast<uint32_t>(shift);
}

class SliceTableBuilder {
 public:
  SliceTableBuilder(size_t jobs, bool in_place) : in_place_(in_place) {
    entries_.reserve(jobs);
    first_chunk_.reserve(jobs + 1);
    axes_.reserve(3 * jobs);
  }

  void add(const SliceJob& job) {
    SliceEntry entry{
        static_cast<const char*>(job.source), static_cast<char*>(job.target), 0, 0, 0, 0};
    Axis axes[kSliceAxes];
    int count = 0;
    uint64_t run = static_cast<uint64_t>(job.itemsize);
    if (!take_axes(job, entry.source, axes, count)) return;
    if (count && axes[count - 1].cut == nullptr && axes[count - 1].stride == job.itemsize)
      run *= static_cast<uint64_t>(axes[--count].size);
    if (in_place_ && count == 0 && entry.source == entry.target) return;  // nothing moves

    uint64_t places = run | address(entry.source) | address(entry.target) | 16;
    for (int a = 0; a < count; ++a)
      places |= static_cast<uint64_t>(axes[a].stride) * (axes[a].cut ? axes[a].cut->places : 1);
    const uint64_t unit = places & (~places + 1);
    entry.unit = static_cast<uint32_t>(unit);
    entry.axes = static_cast<uint32_t>(axes_.size());
    int64_t within = 1;
    const auto push = [&](int64_t size, int64_t stride, const Cut* cut) {
      SliceAxis axis{stride, size, within, kWhole, 1, 0, 0};
      if (cut) axis.list = cut->list, axis.entry_words = cut->entry_words;
      set_division(axis);
      if (axis.shift == kLong || axis.entry_words > 1) wide_ = true;
      axes_.push_back(axis);
      within *= size;
      ++entry.count;
    };
    if (run > unit) push(static_cast<int64_t>(run / unit), static_cast<int64_t>(unit), nullptr);
    for (int a = count; a-- > 0;) push(axes[a].size, axes[a].stride, axes[a].cut);
    while (entry.count < 2) push(1, 0, nullptr);
    entry.bytes = within * static_cast<int64_t>(unit);
    first_chunk_.push_back(static_cast<uint32_t>(chunks_));
    chunks_ += (entry.bytes + kSliceChunk - 1) / kSliceChunk;
    entries_.push_back(entry);
  }

  // Lists, then entries, axes and the number of the first chunk of each entry.
  SliceTable finish(int64_t scratch) {
    SliceTable table{};
    table.entries = static_cast<int64_t>(entries_.size());
    table.chunks = chunks_;
    table.wide = wide_;
    if (lists_.size() % 2) lists_.push_back(0);
    table.entries_at = static_cast<int64_t>(lists_.size());
    append(entries_);
    table.axes_at = static_cast<int64_t>(lists_.size());
    append(axes_);
    table.first_chunk_at = static_cast<int64_t>(lists_.size());
    append(first_chunk_);
    while (lists_.size() % 4) lists_.push_back(0);  // what follows is aligned to 16 bytes
    table.words = std::move(lists_);
    if (in_place_) {
      const int64_t most = scratch / kSliceChunk;
      table.scratch_chunks = chunks_ < most || chunks_ == 0 ? chunks_ : most < 1 ? 1 : most;
    }
    return table;
  }

 private:
  // A keep list: blocks of neighbours, all of one length.
  struct Cut {
    int64_t first, block;
    uint64_t places;  // the distances between blocks, or-ed: their alignment
    uint32_t list, entry_words;
  };
  struct Axis {
    int64_t size, stride;
    const Cut* cut;
  };

  static uint64_t address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

  template <class T>
  void append(const std::vector<T>& items) {
    const size_t at = lists_.size(), bytes = items.size() * sizeof(T);
    lists_.resize(at + bytes / 4);
    if (bytes) std::memcpy(lists_.data() + at, items.data(), bytes);
  }

  static int64_t greatest_divisor(int64_t a, int64_t b) {
    while (b != 0) a = std::exchange(b, a % b);
    return a;
  }

  const Cut& cut_of(const int64_t* keep, int64_t count) {
    const auto [place, is_new] = cuts_.try_emplace({keep, count});
    Cut& cut = place->second;
    if (!is_new) return cut;
    cut.first = keep[0];
    cut.block = count;
    for (int64_t j = 1; j < count && cut.block > 1; ++j)
      if (keep[j] != keep[j - 1] + 1) cut.block = greatest_divisor(cut.block, j);
    const int64_t blocks = count / cut.block;
    cut.entry_words = (keep[count - 1] - cut.first) >> 32 != 0 ? 2 : 1;
    const size_t at = lists_.size();
    lists_.resize(at + static_cast<size_t>(blocks) * cut.entry_words);
    cut.list = static_cast<uint32_t>(at);
    cut.places = 0;
    uint32_t* to = lists_.data() + at;
    for (int64_t b = 0; b < blocks; ++b) {
      const auto value = static_cast<uint64_t>(keep[b * cut.block] - cut.first);
      cut.places |= value;
      *to++ = static_cast<uint32_t>(value);
      if (cut.entry_words == 2) *to++ = static_cast<uint32_t>(value >> 32);
    }
    return cut;
  }

  // The axes in the order in which the dense target lies in memory, outermost first; neighbours
  // that are one line of the source made one. False: nothing to write.
  bool take_axes(const SliceJob& job, const char*& source, Axis* axes, int& count) {
    const SliceJob::Axis* sorted[12];
    int dims = 0;
    for (int d = 0; d < job.dims; ++d) {
      const SliceJob::Axis& axis = job.axes[d];
      if (axis.size == 0) return false;
      if (axis.size == 1) {  // its place among the axes is of no concern
        if (axis.keep) source += axis.keep[0] * axis.source_stride * job.itemsize;
        continue;
      }
      int at = dims++;
      for (; at > 0 && sorted[at - 1]->target_stride < axis.target_stride; --at)
        sorted[at] = sorted[at - 1];
      sorted[at] = &axis;
    }
    const auto push_whole = [&](int64_t size, int64_t stride) {
      Axis* before = count ? &axes[count - 1] : nullptr;
      if (before && before->cut == nullptr && before->stride == size * stride)
        *before = {before->size * size, stride, nullptr};
      else
        axes[count++] = {size, stride, nullptr};
    };
    for (int d = 0; d < dims; ++d) {
      const int64_t size = sorted[d]->size, stride = sorted[d]->source_stride * job.itemsize;
      if (sorted[d]->keep == nullptr) {
        push_whole(size, stride);
        continue;
      }
      const Cut& cut = cut_of(sorted[d]->keep, size);
      source += cut.first * stride;
      if (size > cut.block) axes[count++] = {size / cut.block, stride, &cut};
      if (cut.block > 1) push_whole(cut.block, stride);
    }
    return true;
  }

  bool in_place_, wide_ = false;
  int64_t chunks_ = 0;
  std::vector<uint32_t> lists_;
  std::map<std::pair<const int64_t*, int64_t>, Cut> cuts_;
  std::vector<SliceEntry> entries_;
  std::vector<SliceAxis> axes_;
  std::vector<uint32_t> first_chunk_;
};

}  // namespace infoslice::cuda
