// Module _cuda: the CUDA bodies as a table of function pointers. Knows neither torch nor arrays:
// checks, allocation, device guard and stream are the host functions' (in _core).
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "bindings/cuda_kernels.h"

namespace py = pybind11;

namespace infoslice {
namespace {

const char* error_string(int cuda_error) {
  return cudaGetErrorString(static_cast<cudaError_t>(cuda_error));
}

template <class T>
constexpr CudaKernelsOf<T> kernels_of{cuda::cholesky<T>,
                                      cuda::logdet_workspace<T>,
                                      cuda::logdet<T>,
                                      cuda::submatrix_logdet<T>,
                                      cuda::precision_blocks<T>,
                                      cuda::forward_selection<T>,
                                      cuda::backward_elimination<T>,
                                      cuda::obs_elimination<T>,
                                      cuda::spanning_tree<T>};

template <class T>
constexpr CovarianceOf<T> covariance_of{
    cuda::covariance_workspace<T>,    cuda::covariance<T, float>,
    cuda::covariance<T, double>,      cuda::patch_covariance_workspace<T>,
    cuda::patch_covariance<T, float>, cuda::patch_covariance<T, double>};

template <class T>
constexpr InformationOf<T> information_of{cuda::marginal_mi<T>, cuda::conditional_mi<T>,
                                          cuda::pairwise_mi<T>};

const CudaKernels kernels{
    error_string,
    cuda::precision_workspace,
    kernels_of<float>,
    kernels_of<double>,
    {covariance_of<double>, covariance_of<float>, covariance_of<bfloat16>, covariance_of<float16>},
    cuda::forward_selection_workspace,
    cuda::elimination_workspace,
    {information_of<float>, information_of<double>},
    cuda::marginal_mi_workspace,
    cuda::conditional_mi_workspace,
    cuda::pairwise_mi_workspace,
    {cuda::slice_table, cuda::slice_channels_workspace, cuda::slice_channels},
    cuda::spanning_tree_workspace};

// covariance_hopper, which no op calls yet, for tests and benchmarks to call on raw addresses. Axes are
// (size, stride in elements), outer ones first.
using Axes = std::vector<std::pair<int64_t, int64_t>>;

template <class F>
auto with_hopper(const std::string& dtype, uintptr_t x, std::pair<int64_t, int64_t> variables,
                 const Axes& samples, const Axes& batch, const F& f) {
  if (samples.size() > 12 || batch.size() > 12 || (dtype != "bfloat16" && dtype != "float16"))
    throw py::value_error("expected dtype bfloat16 or float16 and at most 12 axes");
  SampleBatch to{
      {reinterpret_cast<const void*>(x), variables.first, variables.second, {}, 0}, {}, 0};
  for (const auto& [size, stride] : samples) to.first.axes[to.first.axes_count++] = {size, stride};
  for (const auto& [size, stride] : batch) to.axes[to.axes_count++] = {size, stride};
  return dtype == "bfloat16" ? f(to, bfloat16{}) : f(to, float16{});
}

size_t hopper_workspace(const std::string& dtype, uintptr_t x,
                        std::pair<int64_t, int64_t> variables, const Axes& samples,
                        const Axes& batch) {
  return with_hopper(dtype, x, variables, samples, batch, [](const auto& from, auto element) {
    return cuda::covariance_workspace<decltype(element)>(from, nullptr);
  });
}

int hopper_covariance(const std::string& dtype, uintptr_t x, std::pair<int64_t, int64_t> variables,
                      const Axes& samples, const Axes& batch, int64_t correction, uintptr_t cov,
                      uintptr_t mean, uintptr_t workspace, uintptr_t stream) {
  return with_hopper(dtype, x, variables, samples, batch, [&](const auto& from, auto element) {
    return cuda::covariance_hopper<decltype(element), float>(
        from, correction, reinterpret_cast<float*>(cov), reinterpret_cast<float*>(mean),
        reinterpret_cast<void*>(workspace), reinterpret_cast<void*>(stream));
  });
}

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

}  // namespace
}  // namespace infoslice

PYBIND11_MODULE(_cuda, module) {
  using namespace infoslice;
  module.doc() = "CUDA bodies of infoslice's ops; imports without a driver.";
  module.attr("kernels") = py::capsule(&kernels, kCudaKernelsCapsule);
  module.def("device_count", &device_count,
             "CUDA devices that the runtime sees; 0 without a driver.");
  module.def("hopper_workspace", &hopper_workspace, py::arg("dtype"), py::arg("x"),
             py::arg("variables"), py::arg("samples"), py::arg("batch"),
             "Bytes of the workspace of hopper_covariance.");
  module.def(
      "hopper_covariance", &hopper_covariance, py::arg("dtype"), py::arg("x"), py::arg("variables"),
      py::arg("samples"), py::arg("batch"), py::arg("correction"), py::arg("cov"), py::arg("mean"),
      py::arg("workspace"), py::arg("stream"),
      "Covariance by TMA and wgmma on the current device; returns a cudaError_t, 801 if the\n"
      "device or the layout does not allow it. cov and mean are float32.");
  module.attr("runtime_version") = CUDART_VERSION;
}
