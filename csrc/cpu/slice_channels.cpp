#include "slice_channels.h"

#include <algorithm>
#include <cstring>

#include "common/parallel.h"

namespace infoslice::cpu {
namespace {

using Axis = SliceJob::Axis;

struct Block16 {
  uint64_t halves[2];
};

// A job brought to the form that is run: blocks of contiguous bytes, gathered along the inner axis,
// for every combination of the outer axes. Strides are in bytes.
struct Plan {
  const char* source;
  char* target;
  int64_t block;  // bytes copied at once
  Axis inner;
  std::vector<Axis> outer;
  int64_t rows;  // product of the outer sizes
  int64_t row_bytes() const { return block * inner.size; }
};

Plan plan_of(const SliceJob& job) {
  std::vector<Axis> axes;
  for (const Axis& axis : job.axes)
    if (axis.size != 1 || axis.keep) axes.push_back(axis);
  // Targets are dense: in the order of their strides they are written front to back.
  std::stable_sort(axes.begin(), axes.end(),
                   [](const Axis& a, const Axis& b) { return a.target_stride > b.target_stride; });
  std::vector<Axis> merged;
  for (const Axis& axis : axes) {
    if (!merged.empty() && !merged.back().keep && !axis.keep &&
        merged.back().source_stride == axis.size * axis.source_stride &&
        merged.back().target_stride == axis.size * axis.target_stride) {
      merged.back() = {merged.back().size * axis.size, axis.source_stride, axis.target_stride,
                       nullptr};
    } else {
      merged.push_back(axis);
    }
  }
  Plan plan{static_cast<const char*>(job.source),
            static_cast<char*>(job.target),
            job.itemsize,
            {1, 0, 0, nullptr},
            {},
            1};
  if (!merged.empty() && !merged.back().keep && merged.back().source_stride == 1) {
    plan.block *= merged.back().size;
    merged.pop_back();
  }
  for (Axis& axis : merged) {
    axis.source_stride *= job.itemsize;
    axis.target_stride *= job.itemsize;
  }
  if (!merged.empty()) {
    plan.inner = merged.back();
    merged.pop_back();
  }
  plan.outer = std::move(merged);
  for (const Axis& axis : plan.outer) plan.rows *= axis.size;
  return plan;
}

template <class T>
void copy_row(const char* source, char* target, const Axis& axis) {
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

void copy_blocks(const char* source, char* target, const Axis& axis, int64_t block) {
  switch (block) {
    case 1:
      return copy_row<uint8_t>(source, target, axis);
    case 2:
      return copy_row<uint16_t>(source, target, axis);
    case 4:
      return copy_row<uint32_t>(source, target, axis);
    case 8:
      return copy_row<uint64_t>(source, target, axis);
    case 16:
      return copy_row<Block16>(source, target, axis);
    default:
      for (int64_t j = 0; j < axis.size; ++j) {
        const int64_t from = axis.keep ? axis.keep[j] : j;
        std::memcpy(target + j * axis.target_stride, source + from * axis.source_stride,
                    static_cast<size_t>(block));
      }
  }
}

void run(const Plan& plan, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const char* source = plan.source;
    char* target = plan.target;
    int64_t rest = row;
    for (size_t a = plan.outer.size(); a-- > 0;) {
      const Axis& axis = plan.outer[a];
      const int64_t j = rest % axis.size;
      rest /= axis.size;
      source += (axis.keep ? axis.keep[j] : j) * axis.source_stride;
      target += j * axis.target_stride;
    }
    copy_blocks(source, target, plan.inner, plan.block);
  }
}

}  // namespace

void slice_channels(const std::vector<SliceJob>& jobs, int threads) {
  struct Task {
    size_t plan;
    int64_t begin, end;
  };
  constexpr int64_t kTaskBytes = 1 << 20;  // small enough to balance, large enough to stream
  std::vector<Plan> plans;
  std::vector<Task> tasks;
  int64_t bytes = 0;
  for (const SliceJob& job : jobs) {
    int64_t elements = 1;
    for (const Axis& axis : job.axes) elements *= axis.size;
    if (elements == 0) continue;
    plans.push_back(plan_of(job));
    const Plan& plan = plans.back();
    const int64_t step = std::max<int64_t>(1, kTaskBytes / plan.row_bytes());
    for (int64_t begin = 0; begin < plan.rows; begin += step)
      tasks.push_back({plans.size() - 1, begin, std::min(plan.rows, begin + step)});
    bytes += elements * job.itemsize;
  }
  // One thread moves some 5 bytes a nanosecond.
  parallel_for(threads_for(threads, static_cast<double>(bytes) / 5),
               static_cast<int64_t>(tasks.size()), [&](int64_t i) {
                 const Task& task = tasks[static_cast<size_t>(i)];
                 run(plans[task.plan], task.begin, task.end);
               });
}

}  // namespace infoslice::cpu
