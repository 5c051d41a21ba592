#include "slice_channels.h"

#include <algorithm>

#include "bindings/cuda_kernels.h"
#include "bindings/host.h"

namespace infoslice {
namespace {

// Dense strides for a result, as torch calls its memory formats: channels_last (N, *spatial, C in
// memory) where the source is so and is not contiguous as well, otherwise contiguous.
Dims result_strides(const Tensor& source, const Dims& sizes) {
  const int dims = source.dims();
  if (dims != 4 && dims != 5) return sizes.contiguous_strides();
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
  if (source.elements() > 0 && !matches(source.sizes.contiguous_strides()) &&
      matches(channels_last(source.sizes)))
    return channels_last(sizes);
  return sizes.contiguous_strides();
}

Dims sizes_of(const SliceJob::Axis* axes, int dims) {
  Dims sizes;
  for (int d = 0; d < dims; ++d) sizes.push_back(axes[d].size);
  return sizes;
}

Dims strides_of(const SliceJob::Axis* axes, int dims) {
  Dims strides;
  for (int d = 0; d < dims; ++d) strides.push_back(axes[d].target_stride);
  return strides;
}

// A list of kept indices, looked at once however many axes it cuts. Errors wait for an axis that
// uses it, since they name the tensor.
struct Keep {
  const int64_t* values;
  int64_t count;
  int64_t unsorted = 0;  // position of the first entry that is not above its predecessor; 0: none
};

std::vector<Keep> look_at(const std::vector<Tensor>& lists) {
  std::vector<Keep> keeps;
  keeps.reserve(lists.size());
  for (const Tensor& list : lists) {
    const bool usable = list.dtype == Dtype::int64 && list.dims() == 1 &&
                        (list.sizes[0] <= 1 || list.strides[0] == 1);
    Keep keep{list.as<int64_t>(), usable ? list.sizes[0] : -1};
    for (int64_t j = 1; j < keep.count && keep.unsorted == 0; ++j)
      if (keep.values[j] <= keep.values[j - 1]) keep.unsorted = j;
    keeps.push_back(keep);
  }
  return keeps;
}

[[noreturn]] void refuse_list(const Call& call, const std::string& where, const Tensor& list) {
  if (list.dtype != Dtype::int64)
    call.type_error(where, "int64 keep indices", dtype_name(list.dtype));
  call.value_error(where, "a contiguous array of keep indices with one dimension",
                   "shape " + to_string(list.sizes) + ", strides " + to_string(list.strides));
}

void check_keep(const Call& call, const std::string& where, const Keep& keep, int64_t size) {
  for (int64_t j = 0; j < keep.count; ++j)
    if (keep.values[j] < 0 || keep.values[j] >= size)
      call.value_error(where, "keep indices in [0, " + std::to_string(size) + ")",
                       std::to_string(keep.values[j]));
  call.value_error(where, "sorted and unique keep indices",
                   std::to_string(keep.values[keep.unsorted]) + " after " +
                       std::to_string(keep.values[keep.unsorted - 1]));
}

// Jobs without targets yet; the strides of the targets are dense (result_strides).
struct Jobs {
  std::vector<SliceJob> each;
  std::vector<SliceJob::Axis> axes;  // of all jobs
};

// tensors[i] is cut along axis_counts[i] axes. axes lists those of all tensors in a row, and choice
// the number of the list in keep by which each is cut.
Jobs checked_jobs(const Call& call) {
  const auto& tensors = call.tensors(0);
  const auto& axis_counts = call.integers(1);
  const auto& axes = call.integers(2);
  const auto& lists = call.tensors(3);
  const auto& choice = call.integers(4);

  int64_t total = 0;
  for (int64_t count : axis_counts) total += count;
  if (axis_counts.size() != tensors.size())
    call.value_error("dims",
                     "an entry for each of the " + std::to_string(tensors.size()) + " tensors",
                     std::to_string(axis_counts.size()));
  if (static_cast<size_t>(total) != axes.size() || axes.size() != choice.size())
    call.value_error("keep",
                     "one index array for each of the " + std::to_string(axes.size()) + " axes",
                     std::to_string(choice.size()));
  for (int64_t c : choice)
    if (c < 0 || c >= static_cast<int64_t>(lists.size()))
      call.value_error(4, "numbers of lists in keep", std::to_string(c));
  const std::vector<Keep> keeps = look_at(lists);

  Jobs jobs;
  jobs.each.reserve(tensors.size());
  size_t all_axes = 0;
  for (const Tensor& tensor : tensors) all_axes += static_cast<size_t>(tensor.dims());
  jobs.axes.reserve(all_axes);  // stays where it is: the jobs point into it
  size_t next = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const Tensor& source = tensors[i];
    const auto where = [i] { return "tensors[" + std::to_string(i) + "]"; };
    SliceJob::Axis* const own = jobs.axes.data() + jobs.axes.size();
    for (int d = 0; d < source.dims(); ++d)
      jobs.axes.push_back({source.sizes[d], source.strides[d], 0, nullptr});

    for (int64_t k = 0; k < axis_counts[i]; ++k, ++next) {
      const int64_t axis = axes[next] < 0 ? axes[next] + source.dims() : axes[next];
      if (axis < 0 || axis >= source.dims())
        call.value_error(where(),
                         "axes within its " + std::to_string(source.dims()) + " dimensions",
                         std::to_string(axes[next]));
      SliceJob::Axis& cut = own[axis];
      if (cut.keep)
        call.value_error(where(), "each axis once", "axis " + std::to_string(axis) + " twice");
      const size_t chosen = static_cast<size_t>(choice[next]);
      const Keep& keep = keeps[chosen];
      const auto place = [&] { return where() + ", axis " + std::to_string(axis); };
      if (keep.count < 0) refuse_list(call, place(), lists[chosen]);
      if (keep.unsorted ||
          (keep.count > 0 && (keep.values[0] < 0 || keep.values[keep.count - 1] >= cut.size)))
        check_keep(call, place(), keep, cut.size);
      cut.size = keep.count;
      static const int64_t none = 0;  // no entry of an empty list is read
      cut.keep = keep.count ? keep.values : &none;
    }
    const Dims strides = result_strides(source, sizes_of(own, source.dims()));
    for (int d = 0; d < source.dims(); ++d) own[d].target_stride = strides[d];
    jobs.each.push_back({source.data, nullptr, source.itemsize, own, source.dims()});
  }
  return jobs;
}

void run(Call& call, const std::vector<SliceJob>& jobs, bool in_place) {
  if (!call.on_cuda()) {
    call.start();
    return cpu::slice_channels(jobs, call.threads());
  }
  const SliceChannels& cuda = call.cuda_kernels().slice_channels;
  const cuda::SliceTable table = cuda.table(jobs, in_place, cuda::kSliceScratch);
  const auto words = static_cast<int64_t>(cuda.workspace(table) / sizeof(int64_t));
  const Tensor workspace = call.empty(Dtype::int64, {words});
  call.start();
  call.check_launch(cuda.run(table, workspace.data, call.stream()));
}

void slice_channels(Call& call) {
  Jobs jobs = checked_jobs(call);
  for (size_t i = 0; i < jobs.each.size(); ++i) {
    SliceJob& job = jobs.each[i];
    const Tensor result = call.empty_like(call.tensors(0)[i], sizes_of(job.axes, job.dims),
                                          strides_of(job.axes, job.dims));
    job.target = result.data;
    call.give(result);
  }
  run(call, jobs.each, false);
}

// Every tensor must fill a piece of memory without gaps, and no two may share any.
void check_in_place(const Call& call, const std::vector<SliceJob>& jobs) {
  struct Piece {
    const char *begin, *end;
    size_t tensor;
  };
  std::vector<Piece> pieces;
  pieces.reserve(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    const Tensor& tensor = call.tensors(0)[i];
    const Dims dense = result_strides(tensor, tensor.sizes);
    const int64_t elements = tensor.elements();
    for (int d = 0; elements && d < tensor.dims(); ++d)
      if (tensor.sizes[d] != 1 && tensor.strides[d] != dense[d])
        call.value_error(
            "tensors[" + std::to_string(i) + "]",
            "a contiguous or channels_last tensor to cut in place",
            "shape " + to_string(tensor.sizes) + ", strides " + to_string(tensor.strides));
    const char* begin = tensor.as<char>();
    if (elements) pieces.push_back({begin, begin + elements * tensor.itemsize, i});
  }
  std::sort(pieces.begin(), pieces.end(),
            [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
  const auto refuse = [&](const std::string& two) {
    call.value_error("tensors", "tensors that share no memory to cut in place", two + " that do");
  };
  const auto name = [](size_t tensor) { return "tensors[" + std::to_string(tensor) + "]"; };
  for (size_t i = 1; i < pieces.size(); ++i)
    if (pieces[i].begin < pieces[i - 1].end)
      refuse(name(pieces[i - 1].tensor) + " and " + name(pieces[i].tensor));
  for (const Tensor& list : call.tensors(3)) {
    const char* begin = list.as<char>();
    const auto piece =
        std::upper_bound(pieces.begin(), pieces.end(), begin,
                         [](const char* at, const Piece& other) { return at < other.end; });
    if (piece != pieces.end() && piece->begin < begin + list.elements() * list.itemsize)
      refuse(name(piece->tensor) + " and a keep list");
  }
}

// The result of a tensor lies at the beginning of its memory; torch tensors also take its shape.
void slice_channels_in_place(Call& call) {
  Jobs jobs = checked_jobs(call);
  check_in_place(call, jobs.each);
  for (size_t i = 0; i < jobs.each.size(); ++i) jobs.each[i].target = call.tensors(0)[i].data;
  // The new shapes come first: if torch refuses one, no value has moved yet.
  for (size_t i = 0; i < jobs.each.size(); ++i) {
    const SliceJob& job = jobs.each[i];
    call.resize(call.tensors(0)[i], sizes_of(job.axes, job.dims), strides_of(job.axes, job.dims));
  }
  run(call, jobs.each, true);
}

constexpr int kKeep = 3;  // read on the host, wherever the tensors are
const Op op(
    "slice_channels(Tensor[] tensors, int[] axis_counts, int[] axes, Tensor[] keep, int[] choice)"
    " -> Tensor[]",
    slice_channels, Bodies::cpu_and_cuda, kKeep);
const Op op_in_place(
    "slice_channels_(Tensor(a!)[] tensors, int[] axis_counts, int[] axes, Tensor[] keep,"
    " int[] choice) -> ()",
    slice_channels_in_place, Bodies::cpu_and_cuda, kKeep);

}  // namespace
}  // namespace infoslice
