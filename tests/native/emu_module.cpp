#include <pybind11/stl.h>

#include "emu.h"
#include "model_kernels.h"

PYBIND11_MODULE(_emu, module) {
  using namespace infoslice;
  bind_cholesky(module);
  bind_covariance(module);
  bind_dense(module);
  bind_precision(module);
  bind_greedy(module);
  bind_gaussian_mi(module);
  bind_slice_channels(module);
  bind_spanning_tree(module);
  module.def("model", [](const std::string& name, int threads, uint64_t seed) {
    const model::Outcome outcome = model::run(name, threads, seed);
    return py::make_tuple(outcome.error, outcome.report, outcome.values);
  });
}
