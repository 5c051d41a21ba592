// Module _emu: the CUDA kernels on the emulation, as functions of NumPy arrays; for the tests only.
#include <cuda_runtime.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cholesky.h"
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

}  // namespace
}  // namespace infoslice

PYBIND11_MODULE(_emu, module) {
  using namespace infoslice;
  module.def("cholesky", &cholesky<float>);
  module.def("cholesky", &cholesky<double>);
  module.def("logdet", &logdet<float>);
  module.def("logdet", &logdet<double>);
  module.def("model", [](const std::string& name, int threads, uint64_t seed) {
    const model::Outcome outcome = model::run(name, threads, seed);
    return py::make_tuple(outcome.error, outcome.report, outcome.values);
  });
}
