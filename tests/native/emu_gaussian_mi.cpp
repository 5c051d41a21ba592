#include "gaussian_mi.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "emu.h"

namespace infoslice {
namespace {

// cov [batch, n, n] -> nats, info [batch, groups], bytes of the workspace.
template <class T>
py::tuple information(const std::string& name, const Array<T>& cov, const std::vector<int64_t>& x,
                      const std::vector<int64_t>& y, int64_t group_size, double noise_variance,
                      uint64_t seed) {
  prepare(seed);
  const int64_t batch = cov.shape(0), nx = static_cast<int64_t>(x.size());
  const MutualInformation of{
      x.data(), nx, y.data(), static_cast<int64_t>(y.size()), group_size, noise_variance};
  Array<T> nats({batch, nx / group_size});
  Array<int32_t> info({batch, nx / group_size});
  std::fill_n(nats.mutable_data(), nats.size(), T(-7));  // what is not written shows
  std::fill_n(info.mutable_data(), info.size(), -7);
  const auto run = [&](auto workspace_of, auto body) {
    // Of the exact size, so that a sanitizer sees its end, and not initialised.
    const size_t bytes = workspace_of(batch, of);
    const std::unique_ptr<double[]> workspace(new double[(bytes + 7) / 8]);
    std::memset(workspace.get(), 0xff, bytes);
    check(body(cov.data(), batch, cov.shape(1), of, nats.mutable_data(), info.mutable_data(),
               workspace.get(), nullptr));
    return py::make_tuple(nats, info, bytes);
  };
  if (name == "marginal_mi") return run(cuda::marginal_mi_workspace, cuda::marginal_mi<T>);
  if (name == "conditional_mi") return run(cuda::conditional_mi_workspace, cuda::conditional_mi<T>);
  return run(cuda::pairwise_mi_workspace, cuda::pairwise_mi<T>);
}

}  // namespace

void bind_gaussian_mi(py::module_& module) {
  module.def("information", &information<float>, py::arg(), py::arg().noconvert(), py::arg(),
             py::arg(), py::arg(), py::arg(), py::arg());
  module.def("information", &information<double>, py::arg(), py::arg().noconvert(), py::arg(),
             py::arg(), py::arg(), py::arg(), py::arg());
}

}  // namespace infoslice
