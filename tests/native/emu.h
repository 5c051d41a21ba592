// Module _emu: the CUDA kernels on the emulation, as functions of NumPy arrays; for the tests only.
// emu_<op>.cpp binds one op.
#pragma once

#include <cuda_runtime.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

namespace py = pybind11;

namespace infoslice {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

// The order of threads and blocks, and the shared memory of a block (as on an H100 unless told).
inline void prepare(uint64_t seed, size_t shared_memory_limit = 232448) {
  emulation::set_seed(seed);
  emulation::set_shared_memory_limit(shared_memory_limit);
}

inline void check(int error) {
  const std::string report = emulation::report();
  if (error != cudaSuccess) throw std::runtime_error(report);
}

void bind_cholesky(py::module_& module);
void bind_covariance(py::module_& module);
void bind_dense(py::module_& module);
void bind_precision(py::module_& module);
void bind_greedy(py::module_& module);
void bind_gaussian_mi(py::module_& module);
void bind_slice_channels(py::module_& module);
void bind_spanning_tree(py::module_& module);

}  // namespace infoslice
