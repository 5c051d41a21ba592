#include "greedy.h"

#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <vector>

#include "emu.h"

namespace infoslice {
namespace {

template <class T>
MatrixView<T> view(const py::array& x) {  // any strides, which NumPy counts in bytes
  const auto size = static_cast<int64_t>(sizeof(T));
  return {static_cast<const T*>(x.data()), x.strides(0) / size, x.strides(1) / size};
}

// Results and a workspace in which all that is not written shows.
struct Run {
  Run(int64_t count, size_t bytes)
      : order(count), values(count), info(1), workspace(new double[(bytes + 7) / 8]) {
    std::fill_n(order.mutable_data(), count, -7);
    std::fill_n(values.mutable_data(), count, -7);
    info.mutable_data()[0] = -7;
    std::memset(workspace.get(), 0xff, bytes);
  }
  Choice choice() {
    return {order.size(), order.mutable_data(), values.mutable_data(), info.mutable_data()};
  }
  py::tuple results() const { return py::make_tuple(order, values, info); }

  Array<int64_t> order;
  Array<double> values;
  Array<int32_t> info;
  std::unique_ptr<double[]> workspace;
};

template <class T>
py::tuple forward_as(const py::array& cov, const MutualInformation& of,
                     const std::vector<int64_t>& start, int64_t count) {
  Run run(count, cuda::forward_selection_workspace(of));
  check(
      cuda::forward_selection(view<T>(cov), of, start, run.choice(), run.workspace.get(), nullptr));
  return run.results();
}

py::tuple forward(const py::array& cov, const std::vector<int64_t>& x,
                  const std::vector<int64_t>& y, int64_t count, int64_t group_size,
                  const std::vector<int64_t>& start, double noise_variance, uint64_t seed) {
  prepare(seed);
  const MutualInformation of{x.data(),   static_cast<int64_t>(x.size()),
                             y.data(),   static_cast<int64_t>(y.size()),
                             group_size, noise_variance};
  return cov.itemsize() == 4 ? forward_as<float>(cov, of, start, count)
                             : forward_as<double>(cov, of, start, count);
}

template <class T>
py::tuple eliminate_as(bool obs, const std::vector<py::array>& first,
                       const std::vector<py::array>& second, int64_t count,
                       const std::vector<int64_t>& sizes, const std::vector<int64_t>& keep) {
  std::vector<LayerPair<T>> layers;
  for (size_t l = 0; l < first.size(); ++l)
    layers.push_back({view<T>(first[l]), view<T>(second[l]), sizes[l]});
  const int64_t channels = first[0].shape(0) / sizes[0],
                open = channels - static_cast<int64_t>(keep.size());
  Run run(count, cuda::elimination_workspace(sizes, open));
  const auto body = obs ? cuda::obs_elimination<T> : cuda::backward_elimination<T>;
  check(body(layers, channels, keep, run.choice(), run.workspace.get(), nullptr));
  return run.results();
}

py::tuple eliminate(bool obs, const std::vector<py::array>& first,
                    const std::vector<py::array>& second, int64_t count,
                    const std::vector<int64_t>& sizes, const std::vector<int64_t>& keep,
                    uint64_t seed) {
  prepare(seed);
  return first[0].itemsize() == 4 ? eliminate_as<float>(obs, first, second, count, sizes, keep)
                                  : eliminate_as<double>(obs, first, second, count, sizes, keep);
}

}  // namespace

void bind_greedy(py::module_& module) {
  module.def("forward_selection", &forward);
  module.def("greedy_elimination", &eliminate);
}

}  // namespace infoslice
