#include "cholesky.h"

#include <vector>

#include "emu.h"

namespace infoslice {
namespace {

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

template <class T>
py::tuple submatrix_logdet(const Array<T>& cov, const Array<int64_t>& index, uint64_t seed,
                           size_t shared_memory_limit) {
  prepare(seed, shared_memory_limit);
  const int64_t count = index.shape(0), k = index.shape(1);
  Array<T> value(count);
  Array<int32_t> info(count);
  std::vector<char> workspace(cuda::logdet_workspace<T>(count, k));
  check(cuda::submatrix_logdet(cov.data(), cov.shape(0), index.data(), count, k,
                               value.mutable_data(), info.mutable_data(), workspace.data(),
                               nullptr));
  return py::make_tuple(value, info);
}

}  // namespace

void bind_cholesky(py::module_& module) {
  module.def("cholesky", &cholesky<float>);
  module.def("cholesky", &cholesky<double>);
  module.def("logdet", &logdet<float>);
  module.def("logdet", &logdet<double>);
  module.def("submatrix_logdet", &submatrix_logdet<float>);
  module.def("submatrix_logdet", &submatrix_logdet<double>);
}

}  // namespace infoslice
