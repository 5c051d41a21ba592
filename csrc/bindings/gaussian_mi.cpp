#include "gaussian_mi.h"

#include <cmath>

#include "bindings/cuda_kernels.h"
#include "bindings/matrices.h"

namespace infoslice {
namespace {

// Arguments: cov, x, y, then group_size (all but gaussian_mi), then noise_variance.
using Body = void (*)(Call&, const Matrices&, const MutualInformation&, const Tensor&,
                      const Tensor&);

Tensor workspace_of(Call& call, size_t bytes) {
  return call.empty(Dtype::float64, {static_cast<int64_t>((bytes + 7) / 8)});
}

template <Body float32, Body float64>
void host(Call& call) {
  const bool grouped = call.op.parameters.size() == 5;
  const Matrices cov = square_matrices(call, 0);
  std::vector<char> taken(static_cast<size_t>(cov.d), 0);
  for (int i : {1, 2}) {
    if (call.integers(i).empty()) call.value_error(i, "at least one index", "none");
    check_indices(call, i, cov.d, taken);
  }
  const std::vector<int64_t>&x = call.integers(1), &y = call.integers(2);
  const int64_t nx = static_cast<int64_t>(x.size()), ny = static_cast<int64_t>(y.size());
  const int64_t group = grouped ? call.integer(3) : nx;
  if (group < 1 || nx % group != 0) {
    call.value_error(3, "a divisor of the " + std::to_string(nx) + " entries of x",
                     std::to_string(group));
  }
  const int last = grouped ? 4 : 3;
  const double noise = call.real(last);
  if (!(noise >= 0 && std::isfinite(noise))) {
    call.value_error(last, "a finite variance >= 0", std::to_string(noise));
  }
  Dims sizes = cov.batch;
  if (grouped) sizes.push_back(nx / group);
  const Tensor nats = call.empty(cov.values.dtype, sizes);
  const Tensor info = call.empty(Dtype::int32, sizes);
  const MutualInformation of{x.data(), nx, y.data(), ny, group, noise};
  (cov.values.dtype == Dtype::float32 ? float32 : float64)(call, cov, of, nats, info);
  call.give(nats);
  call.give(info);
}

#define INFOSLICE_BODY(name)                                                                    \
  template <class T>                                                                            \
  void name(Call& call, const Matrices& cov, const MutualInformation& of, const Tensor& nats,   \
            const Tensor& info) {                                                               \
    const T* const from = cov.values.as<const T>();                                             \
    if (call.on_cuda()) {                                                                       \
      const CudaKernels& cuda = call.cuda_kernels();                                            \
      const Tensor workspace = workspace_of(call, cuda.name##_workspace(cov.count, of));        \
      call.start();                                                                             \
      call.check_launch(cuda.information_of<T>().name(from, cov.count, cov.d, of, nats.as<T>(), \
                                                      info.as<int32_t>(), workspace.data,       \
                                                      call.stream()));                          \
    } else {                                                                                    \
      call.start();                                                                             \
      cpu::name(from, cov.count, cov.d, of, nats.as<T>(), info.as<int32_t>(), call.threads());  \
    }                                                                                           \
  }
INFOSLICE_BODY(marginal_mi)
INFOSLICE_BODY(conditional_mi)
INFOSLICE_BODY(pairwise_mi)
#undef INFOSLICE_BODY

const Op gaussian_op(
    "gaussian_mi(Tensor cov, int[] x, int[] y, float noise_variance) -> (Tensor, Tensor)",
    host<marginal_mi<float>, marginal_mi<double>>, Bodies::cpu_and_cuda);
const Op marginal_op(
    "marginal_mi(Tensor cov, int[] x, int[] y, int group_size, float noise_variance) "
    "-> (Tensor, Tensor)",
    host<marginal_mi<float>, marginal_mi<double>>, Bodies::cpu_and_cuda);
const Op conditional_op(
    "conditional_mi(Tensor cov, int[] x, int[] y, int group_size, float noise_variance) "
    "-> (Tensor, Tensor)",
    host<conditional_mi<float>, conditional_mi<double>>, Bodies::cpu_and_cuda);
const Op pairwise_op(
    "pairwise_mi(Tensor cov, int[] x, int[] y, int group_size, float noise_variance) "
    "-> (Tensor, Tensor)",
    host<pairwise_mi<float>, pairwise_mi<double>>, Bodies::cpu_and_cuda);

}  // namespace
}  // namespace infoslice
