#include "slice_channels.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <optional>

#include "cuda/slice_table.h"
#include "cuda/upload.cuh"
#include "emu.h"

namespace infoslice {
namespace {

// Targets are arrays of any dense strides, or for all tensors the front of the source's memory.
// keep[i][d] is null for an axis that is not cut.
py::tuple slice_channels(const std::vector<py::array>& sources, std::vector<py::array> targets,
                         const std::vector<std::vector<std::optional<Array<int64_t>>>>& keep,
                         bool in_place, int64_t scratch, uint64_t seed) {
  prepare(seed);
  std::vector<SliceJob> jobs;
  std::vector<std::vector<SliceJob::Axis>> axes(sources.size());
  for (size_t i = 0; i < sources.size(); ++i) {
    const py::array &from = sources[i], &to = targets[i];
    const int64_t itemsize = from.itemsize();
    for (py::ssize_t d = 0; d < from.ndim(); ++d) {
      const auto& list = keep[i][static_cast<size_t>(d)];
      axes[i].push_back({to.shape(d), from.strides(d) / itemsize, to.strides(d) / itemsize,
                         list ? list->data() : nullptr});
    }
    jobs.push_back({from.data(), targets[i].mutable_data(), itemsize, axes[i].data(),
                    static_cast<int>(from.ndim())});
  }
  const cuda::SliceTable table = cuda::slice_table(jobs, in_place, scratch);
  const size_t bytes = cuda::slice_channels_workspace(table);
  const std::unique_ptr<uint64_t[]> workspace(new uint64_t[bytes / 8]);
  std::fill_n(workspace.get(), bytes / 8, ~uint64_t{0});
  check(cuda::slice_channels(table, workspace.get(), nullptr));
  const auto* entries =
      reinterpret_cast<const cuda::SliceEntry*>(table.words.data() + table.entries_at);
  std::vector<uint32_t> units;
  for (int64_t e = 0; e < table.entries; ++e) units.push_back(entries[e].unit);
  return py::make_tuple(table.entries, table.chunks, table.words.size(), table.scratch_chunks,
                        units);
}

// What arrives, with eight bytes behind it.
Array<uint8_t> upload(const Array<uint8_t>& bytes, uint64_t seed) {
  prepare(seed);
  const size_t size = static_cast<size_t>(bytes.size()), words = (size + 3) / 4 + 2;
  std::vector<uint32_t> to(words, ~0u);
  check(cuda::upload(bytes.data(), size, to.data(), nullptr));
  return Array<uint8_t>(static_cast<py::ssize_t>(words * 4),
                        reinterpret_cast<const uint8_t*>(to.data()));
}

}  // namespace

void bind_slice_channels(py::module_& module) {
  module.def("slice_channels", &slice_channels);
  module.def("upload", &upload);
}

}  // namespace infoslice
