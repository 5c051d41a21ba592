#include "slice_channels.h"

#include "bindings/host.h"

namespace infoslice {
namespace {

// Dense strides for a result, as torch calls its memory formats: channels_last (N, *spatial, C in
// memory) where the source is so and is not contiguous as well, otherwise contiguous.
Dims result_strides(const Tensor& source, const Dims& sizes) {
  const int dims = source.dims();
  const auto channels_last = [dims](const Dims& of) {
    Dims strides = of;
    int64_t stride = 1;
    strides[1] = stride;
    stride *= of[1];
    for (int d = dims - 1; d >= 2; --d) {
      strides[d] = stride;
      stride *= of[d];
    }
    strides[0] = stride;
    return strides;
  };
  const auto matches = [&](const Dims& strides) {
    for (int d = 0; d < dims; ++d)
      if (source.sizes[d] != 1 && source.strides[d] != strides[d]) return false;
    return true;
  };
  if ((dims == 4 || dims == 5) && source.elements() > 0 &&
      !matches(source.sizes.contiguous_strides()) && matches(channels_last(source.sizes)))
    return channels_last(sizes);
  return sizes.contiguous_strides();
}

// tensors[i] is cut along axis_counts[i] axes; axes and keep list those of all tensors in a row.
void slice_channels(Call& call) {
  const auto& tensors = call.tensors(0);
  const auto& axis_counts = call.integers(1);
  const auto& axes = call.integers(2);
  const auto& keep = call.tensors(3);

  int64_t total = 0;
  for (int64_t count : axis_counts) total += count;
  if (axis_counts.size() != tensors.size())
    call.value_error("dims",
                     "an entry for each of the " + std::to_string(tensors.size()) + " tensors",
                     std::to_string(axis_counts.size()));
  if (static_cast<size_t>(total) != axes.size() || axes.size() != keep.size())
    call.value_error("keep",
                     "one index array for each of the " + std::to_string(axes.size()) + " axes",
                     std::to_string(keep.size()));

  std::vector<SliceJob> jobs;
  jobs.reserve(tensors.size());
  size_t next = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& source = tensors[i];
    const std::string where = "tensors[" + std::to_string(i) + "]";
    SliceJob job{source.data, nullptr, source.itemsize, {}};
    for (int d = 0; d < source.dims(); ++d)
      job.axes.push_back({source.sizes[d], source.strides[d], 0, nullptr});

    for (int64_t k = 0; k < axis_counts[i]; ++k, ++next) {
      const int64_t axis = axes[next] < 0 ? axes[next] + source.dims() : axes[next];
      if (axis < 0 || axis >= source.dims())
        call.value_error(where, "axes within its " + std::to_string(source.dims()) + " dimensions",
                         std::to_string(axes[next]));
      SliceJob::Axis& cut = job.axes[static_cast<size_t>(axis)];
      if (cut.keep)
        call.value_error(where, "each axis once", "axis " + std::to_string(axis) + " twice");
      const std::string list = where + ", axis " + std::to_string(axis);
      const Tensor& indices = keep[next];
      if (indices.dtype != Dtype::int64)
        call.type_error(list, "int64 keep indices", dtype_name(indices.dtype));
      if (indices.dims() != 1 || (indices.sizes[0] > 1 && indices.strides[0] != 1))
        call.value_error(
            list, "a contiguous array of keep indices with one dimension",
            "shape " + to_string(indices.sizes) + ", strides " + to_string(indices.strides));
      const int64_t* values = indices.as<int64_t>();
      const int64_t count = indices.sizes[0];
      for (int64_t j = 0; j < count; ++j) {
        if (values[j] < 0 || values[j] >= cut.size)
          call.value_error(list, "keep indices in [0, " + std::to_string(cut.size) + ")",
                           std::to_string(values[j]));
        if (j > 0 && values[j] <= values[j - 1])
          call.value_error(list, "sorted and unique keep indices",
                           std::to_string(values[j]) + " after " + std::to_string(values[j - 1]));
      }
      cut.size = count;
      cut.keep = values ? values : reinterpret_cast<const int64_t*>(&cut);  // empty: never read
    }
    jobs.push_back(std::move(job));
  }

  for (size_t i = 0; i < tensors.size(); ++i) {
    Dims sizes;
    for (const SliceJob::Axis& axis : jobs[i].axes) sizes.push_back(axis.size);
    const Dims strides = result_strides(tensors[i], sizes);
    for (int d = 0; d < sizes.size(); ++d)
      jobs[i].axes[static_cast<size_t>(d)].target_stride = strides[d];
    const Tensor result = call.empty_like(tensors[i], sizes, strides);
    jobs[i].target = result.data;
    call.give(result);
  }
  call.start();
  cpu::slice_channels(jobs, call.threads());
}

const Op op(
    "slice_channels(Tensor[] tensors, int[] axis_counts, int[] axes, Tensor[] keep) -> Tensor[]",
    slice_channels);

}  // namespace
}  // namespace infoslice
