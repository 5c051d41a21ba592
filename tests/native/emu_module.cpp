// Module _emu: the CUDA kernels on the emulation, as functions of NumPy arrays; for the tests only.
#include <cuda_runtime.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <memory>

#include "cholesky.h"
#include "common/numeric.h"
#include "covariance.h"
#include "model_kernels.h"

namespace py = pybind11;

namespace infoslice {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

void prepare(uint64_t seed, size_t shared_memory_limit) {
  emulation::set_seed(seed);
  emulation::set_shared_memory_limit(shared_memory_limit);
}

void check(int error) {
  const std::string report = emulation::report();
  if (error != cudaSuccess) throw std::runtime_error(report);
}

template <class T>
py::tuple cholesky(const Array<T>& a, uint64_t seed, size_t shared_memory_limit) {
  prepare(seed, shared_memory_limit);
  Array<T> factor({a.shape(0), a.shape(1), a.shape(2)});
  Array<int32_t> info(a.shape(0));
  check(cuda::cholesky(a.data(), a.shape(0), a.shape(1), factor.mutable_data(), info.mutable_data(),
                       nullptr));
  return py::make_tuple(factor, info);
}

template <class T>
py::tuple logdet(const Array<T>& a, uint64_t seed, size_t shared_memory_limit) {
  prepare(seed, shared_memory_limit);
  Array<T> value(a.shape(0));
  Array<int32_t> info(a.shape(0));
  const size_t bytes = cuda::logdet_workspace<T>(a.shape(0), a.shape(1));
  std::vector<char> workspace(bytes);
  check(cuda::logdet(a.data(), a.shape(0), a.shape(1), value.mutable_data(), info.mutable_data(),
                     workspace.data(), nullptr));
  return py::make_tuple(value, info, bytes);
}

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
  prepare(seed, 232448);
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
}  // namespace infoslice

PYBIND11_MODULE(_emu, module) {
  using namespace infoslice;
  module.def("cholesky", &cholesky<float>);
  module.def("cholesky", &cholesky<double>);
  module.def("logdet", &logdet<float>);
  module.def("logdet", &logdet<double>);
  module.def("covariance", &covariance);
  module.def("model", [](const std::string& name, int threads, uint64_t seed) {
    const model::Outcome outcome = model::run(name, threads, seed);
    return py::make_tuple(outcome.error, outcome.report, outcome.values);
  });
}
