// Module _cuda: the CUDA bodies as a table of function pointers. Knows neither torch nor arrays:
// checks, allocation, device guard and stream are the host functions' (in _core).
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

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
                                      cuda::obs_elimination<T>};

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
    {cuda::slice_table, cuda::slice_channels_workspace, cuda::slice_channels}};

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
  module.attr("runtime_version") = CUDART_VERSION;
}
