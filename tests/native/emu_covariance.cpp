#include "covariance.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>

#include "common/numeric.h"
#include "emu.h"

namespace infoslice {
namespace {

// Any strides, which NumPy counts in bytes; bfloat16 comes as uint16.
SampleBatch batch_of(const py::array& x, int channel, int batch_dims) {
  SampleBatch batch{};
  const auto axis = [&](int d) {
    return Samples::Axis{x.shape(d), x.strides(d) / static_cast<int64_t>(x.itemsize())};
  };
  batch.first.data = x.data();
  batch.first.variables = axis(channel).size;
  batch.first.stride = axis(channel).stride;
  for (int d = 0; d < x.ndim(); ++d) {
    if (d < batch_dims)
      batch.axes[batch.axes_count++] = axis(d);
    else if (d != channel)
      batch.first.axes[batch.first.axes_count++] = axis(d);
  }
  return batch;
}

template <class T, class Out>
py::tuple covariance_as(const py::array& x, const py::object& y, int channel, int batch_dims,
                        int64_t correction) {
  const bool cross = !y.is_none();
  const py::array other = cross ? y.cast<py::array>() : x;
  const SampleBatch left = batch_of(x, channel, batch_dims),
                    right = batch_of(other, channel, batch_dims);
  const int64_t rows = left.first.variables, columns = right.first.variables;
  Array<Out> cov({left.items(), rows, columns}), mean_x({left.items(), rows}),
      mean_y({left.items(), columns});
  std::fill_n(cov.mutable_data(), cov.size(), Out(-7));  // what is not written shows
  // Of the exact size, so that a sanitizer sees its end, and not initialised.
  const size_t bytes = cuda::covariance_workspace<T>(left, cross ? &right : nullptr);
  const std::unique_ptr<double[]> workspace(new double[(bytes + 7) / 8]);
  std::memset(workspace.get(), 0xff, bytes);
  check(cuda::covariance<T, Out>(left, cross ? &right : nullptr, correction, cov.mutable_data(),
                                 mean_x.mutable_data(), mean_y.mutable_data(), workspace.get(),
                                 nullptr));
  return py::make_tuple(cov, mean_x, mean_y, bytes);
}

py::tuple covariance(const py::array& x, const py::object& y, const std::string& dtype, bool wide,
                     int channel, int batch_dims, int64_t correction, uint64_t seed) {
  prepare(seed);
  const auto run = [&](auto element) {
    using T = decltype(element);
    return wide ? covariance_as<T, double>(x, y, channel, batch_dims, correction)
                : covariance_as<T, float>(x, y, channel, batch_dims, correction);
  };
  if (dtype == "float64") return run(double{});
  if (dtype == "float32") return run(float{});
  if (dtype == "bfloat16") return run(bfloat16{});
  return run(float16{});
}

}  // namespace

void bind_covariance(py::module_& module) { module.def("covariance", &covariance); }

}  // namespace infoslice
