#include "slice_channels.h"

#include <algorithm>
#include <cstring>
#include <memory>

#include "common/parallel.h"
#include "cpu/compress.h"

namespace infoslice::cpu {
namespace {

using Axis = SliceJob::Axis;
constexpr int kMaxDims = 12;

struct Block16 {
  uint64_t halves[2];
};

// The compression of the latest keep list: coupled tensors are cut by the same one.
class Compressions {
 public:
  // For so many rows; null where none is to be had, or making one would take longer than it saves.
  std::shared_ptr<const Compression> of(const Axis& axis, int64_t block, int64_t rows) {
    if (axis.keep != keep_ || axis.size != size_ || block != block_) {
      keep_ = axis.keep, size_ = axis.size, block_ = block;
      rows_ = 0;
      latest_ = nullptr;
    }
    rows_ += rows;
    if (!latest_ && rows_ > 2)
      latest_ = std::make_shared<const Compression>(compression_of(keep_, size_, block_));
    return latest_ && *latest_ ? latest_ : nullptr;
  }

 private:
  const int64_t* keep_ = nullptr;
  int64_t size_ = 0, block_ = 0, rows_ = 0;
  std::shared_ptr<const Compression> latest_;
};

// A job brought to the form that is run: for every combination of the outer axes a block of
// contiguous bytes, or, gathered along the inner axis, a row of them. Strides are in bytes.
class Plan {
 public:
  Plan(const SliceJob& job, Compressions& compressions);
  int64_t rows() const { return rows_; }  // 0: nothing to do
  int64_t row_bytes() const { return block_ * inner_.size; }
  void run(int64_t begin, int64_t end) const;

 private:
  void take_axes(const SliceJob& job);
  void choose_inner(Compressions& compressions);
  void copy_row(const char* source, char* target, const char* limit) const;

  const char* source_;
  char* target_;
  bool in_place_;
  int64_t block_;
  Axis inner_{1, 0, 0, nullptr};
  std::shared_ptr<const Compression> compression_;  // of the inner axis
  Axis outer_[kMaxDims];
  int outers_ = 0;
  int64_t rows_ = 1;
};

Plan::Plan(const SliceJob& job, Compressions& compressions)
    : source_(static_cast<const char*>(job.source)),
      target_(static_cast<char*>(job.target)),
      in_place_(job.source == job.target),
      block_(job.itemsize) {
  take_axes(job);
  for (int a = 0; a < outers_; ++a) rows_ *= outer_[a].size;
  if (rows_ > 0) choose_inner(compressions);
}

// The axes in the order in which the dense target is written front to back, neighbours that are
// contiguous made one.
void Plan::take_axes(const SliceJob& job) {
  Axis axes[kMaxDims];
  int count = 0;
  for (int d = 0; d < job.dims; ++d) {
    Axis axis = job.axes[d];
    axis.source_stride *= job.itemsize;
    axis.target_stride *= job.itemsize;
    // A list without gaps is all of an axis that begins elsewhere.
    if (axis.keep && axis.size > 0 && axis.keep[axis.size - 1] - axis.keep[0] == axis.size - 1) {
      source_ += axis.keep[0] * axis.source_stride;
      axis.keep = nullptr;
    }
    if (axis.size == 1) continue;
    int at = count++;
    for (; at > 0 && axes[at - 1].target_stride < axis.target_stride; --at) axes[at] = axes[at - 1];
    axes[at] = axis;
  }
  for (int a = 0; a < count; ++a) {
    const Axis& axis = axes[a];
    Axis* before = outers_ ? &outer_[outers_ - 1] : nullptr;
    if (before && !before->keep && !axis.keep &&
        before->source_stride == axis.size * axis.source_stride &&
        before->target_stride == axis.size * axis.target_stride)
      *before = {before->size * axis.size, axis.source_stride, axis.target_stride, nullptr};
    else
      outer_[outers_++] = axis;
  }
}

void Plan::choose_inner(Compressions& compressions) {
  if (outers_ && !outer_[outers_ - 1].keep && outer_[outers_ - 1].source_stride == block_) {
    const int64_t size = outer_[--outers_].size;
    block_ *= size;
    rows_ /= size;
  }
  if (outers_ == 0) return;
  const Axis& last = outer_[outers_ - 1];
  bool gather = block_ == 1 || block_ == 2 || block_ == 4 || block_ == 8 || block_ == 16;
  if (last.keep && last.source_stride == block_ && last.target_stride == block_) {
    // To read all of a row beats jumping between its blocks up to some twice the bytes: the
    // prefetchers see one stream. Jumping, a block costs its cache lines.
    const int64_t all = (last.keep[last.size - 1] - last.keep[0] + 1) * block_;
    if (block_ <= 256 && all <= 2 * last.size * (block_ + 64))
      compression_ = compressions.of(last, block_, rows_ / last.size);
    gather = gather || compression_;
  }
  if (!gather) return;
  inner_ = last;
  rows_ /= inner_.size;
  --outers_;
  if (compression_) source_ += inner_.keep[0] * block_;
}

template <class T>
void gather(const char* source, char* target, const Axis& axis) {
  const int64_t count = axis.size, from = axis.source_stride, to = axis.target_stride;
  const int64_t* keep = axis.keep;
  constexpr int64_t kBytes = sizeof(T);
  if (keep && from == kBytes && to == kBytes) {
    for (int64_t j = 0; j < count; ++j)
      std::memcpy(target + j * kBytes, source + keep[j] * kBytes, sizeof(T));
  } else if (keep) {
    for (int64_t j = 0; j < count; ++j)
      std::memcpy(target + j * to, source + keep[j] * from, sizeof(T));
  } else {
    for (int64_t j = 0; j < count; ++j) std::memcpy(target + j * to, source + j * from, sizeof(T));
  }
}

// What lies between the end of the row and the limit is written later.
void Plan::copy_row(const char* source, char* target, const char* limit) const {
  if (compression_) return compress_row(*compression_, source, target, limit);
  switch (block_) {
    case 1:
      return gather<uint8_t>(source, target, inner_);
    case 2:
      return gather<uint16_t>(source, target, inner_);
    case 4:
      return gather<uint32_t>(source, target, inner_);
    case 8:
      return gather<uint64_t>(source, target, inner_);
    default:
      return gather<Block16>(source, target, inner_);
  }
}

// The prefetchers of the CPU notice a new place only after some lines of it.
void prefetch(const char* from, int64_t bytes) {
  for (int64_t line = 0; line < std::min<int64_t>(bytes, 512); line += 64)
    __builtin_prefetch(from + line);
}

// Rows [begin, end) front to back.
void Plan::run(int64_t begin, int64_t end) const {
  const Axis whole{1, 0, 0, nullptr};
  const Axis& last = outers_ ? outer_[outers_ - 1] : whole;
  for (int64_t row = begin; row < end;) {
    const char* source = source_;
    char* target = target_;
    int64_t rest = row / last.size;
    for (int a = outers_ - 1; a-- > 0;) {
      const Axis& axis = outer_[a];
      const int64_t j = rest % axis.size;
      rest /= axis.size;
      source += (axis.keep ? axis.keep[j] : j) * axis.source_stride;
      target += j * axis.target_stride;
    }
    int64_t j = row % last.size;
    const int64_t stop = std::min(last.size, j + end - row);
    row += stop - j;
    const auto kept = [&last](int64_t i) { return last.keep ? last.keep[i] : i; };
    if (inner_.size > 1) {
      for (; j < stop; ++j) {
        char* to = target + j * last.target_stride;
        const char* limit = to + row_bytes();
        if (j + 1 < stop) {
          const char* ahead = source + kept(j + 1) * last.source_stride;
          prefetch(ahead, row_bytes());
          limit = in_place_ ? std::min(limit + row_bytes(), ahead) : limit + row_bytes();
        }
        copy_row(source + kept(j) * last.source_stride, to, limit);
      }
      continue;
    }
    const bool contiguous = last.source_stride == block_ && last.target_stride == block_;
    while (j < stop) {
      int64_t next = j + 1;  // as many blocks as follow each other
      while (contiguous && next < stop && kept(next) == kept(next - 1) + 1) ++next;
      const char* from = source + kept(j) * last.source_stride;
      char* to = target + j * last.target_stride;
      if (next < stop) prefetch(source + kept(next) * last.source_stride, block_);
      if (from != to) std::memmove(to, from, static_cast<size_t>((next - j) * block_));
      j = next;
    }
  }
}

int64_t bytes_of(const SliceJob& job) {
  int64_t bytes = job.itemsize;
  for (int d = 0; d < job.dims; ++d) bytes *= job.axes[d].size;
  return bytes;
}

}  // namespace

void slice_channels(const std::vector<SliceJob>& jobs, int threads) {
  int64_t bytes = 0;
  for (const SliceJob& job : jobs) bytes += bytes_of(job);
  // One thread moves some 5 bytes a nanosecond.
  threads = threads_for(threads, static_cast<double>(bytes) / 5);
  Compressions compressions;
  if (threads == 1) {
    for (const SliceJob& job : jobs) {
      const Plan plan(job, compressions);
      plan.run(0, plan.rows());
    }
    return;
  }
  struct Task {
    size_t plan;
    int64_t begin, end;
  };
  constexpr int64_t kTaskBytes = 1 << 20;  // small enough to balance, large enough to stream
  std::vector<Plan> plans;
  std::vector<Task> tasks;
  plans.reserve(jobs.size());
  for (const SliceJob& job : jobs) {
    plans.emplace_back(job, compressions);
    const Plan& plan = plans.back();
    if (plan.rows() == 0) continue;
    // In place the order matters: a tensor is one task.
    const int64_t step = job.source == job.target
                             ? plan.rows()
                             : std::max<int64_t>(1, kTaskBytes / plan.row_bytes());
    for (int64_t begin = 0; begin < plan.rows(); begin += step)
      tasks.push_back({plans.size() - 1, begin, std::min(plan.rows(), begin + step)});
  }
  parallel_for(threads, static_cast<int64_t>(tasks.size()), [&](int64_t i) {
    const Task& task = tasks[static_cast<size_t>(i)];
    plans[task.plan].run(task.begin, task.end);
  });
}

}  // namespace infoslice::cpu
