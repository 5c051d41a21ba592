#include "cholesky.h"

#include <string>

#include "bindings/cuda_kernels.h"
#include "bindings/matrices.h"

namespace infoslice {
namespace {

template <class T>
void factor(Call& call, const Matrices& a) {
  const Tensor result = call.empty(a.values.dtype, a.values.sizes);
  const Tensor info = call.empty(Dtype::int32, a.batch);
  call.start();
  const T* from = a.values.as<const T>();
  if (call.on_cuda()) {
    call.check_launch(call.cuda_kernels().of<T>().cholesky(from, a.count, a.d, result.as<T>(),
                                                           info.as<int32_t>(), call.stream()));
  } else {
    cpu::cholesky(from, a.count, a.d, result.as<T>(), info.as<int32_t>(), call.threads());
  }
  call.give(result);
  call.give(info);
}

// What the kernels need for `count` matrices of order d in global memory: nothing on the CPU.
template <class T>
Tensor workspace_of(Call& call, int64_t count, int64_t d) {
  if (!call.on_cuda()) return {};
  const size_t bytes = call.cuda_kernels().of<T>().logdet_workspace(count, d);
  return call.empty(sizeof(T) == 4 ? Dtype::float32 : Dtype::float64,
                    {static_cast<int64_t>(bytes / sizeof(T))});
}

template <class T>
void determinant(Call& call, const Matrices& a) {
  const Tensor result = call.empty(a.values.dtype, a.batch);
  const Tensor info = call.empty(Dtype::int32, a.batch);
  const Tensor workspace = workspace_of<T>(call, a.count, a.d);
  call.start();
  const T* from = a.values.as<const T>();
  if (call.on_cuda()) {
    call.check_launch(call.cuda_kernels().of<T>().logdet(
        from, a.count, a.d, result.as<T>(), info.as<int32_t>(), workspace.data, call.stream()));
  } else {
    cpu::logdet(from, a.count, a.d, result.as<T>(), info.as<int32_t>(), call.threads());
  }
  call.give(result);
  call.give(info);
}

// The place of an index that is not in [0, n), "[2, 0]", or nothing.
std::string out_of_range(const Tensor& index, int64_t n) {
  const int64_t *values = index.as<const int64_t>(), count = index.elements();
  int64_t outside = 0;
  for (int64_t i = 0; i < count; ++i)
    outside += static_cast<uint64_t>(values[i]) >= static_cast<uint64_t>(n);
  if (outside == 0) return "";
  int64_t at = 0;
  while (values[at] >= 0 && values[at] < n) ++at;
  const std::string value = std::to_string(values[at]);
  Dims place = index.sizes;
  for (int i = index.dims() - 1; i >= 0; --i) {
    place[i] = at % index.sizes[i];
    at /= index.sizes[i];
  }
  return value + " at " + to_string(place);
}

template <class T>
void submatrix_determinants(Call& call, const Matrices& cov, const Tensor& index) {
  Dims batch;
  for (int i = 0; i + 1 < index.dims(); ++i) batch.push_back(index.sizes[i]);
  const Tensor result = call.empty(cov.values.dtype, batch);
  const Tensor info = call.empty(Dtype::int32, batch);
  const int64_t count = batch.product(), k = index.sizes[index.dims() - 1];
  const Tensor workspace = workspace_of<T>(call, count, k);
  call.start();
  const T* from = cov.values.as<const T>();
  const int64_t* sets = index.as<const int64_t>();
  if (call.on_cuda()) {
    call.check_launch(call.cuda_kernels().of<T>().submatrix_logdet(
        from, cov.d, sets, count, k, result.as<T>(), info.as<int32_t>(), workspace.data,
        call.stream()));
  } else {
    cpu::submatrix_logdet(from, cov.d, sets, count, k, result.as<T>(), info.as<int32_t>(),
                          call.threads());
  }
  call.give(result);
  call.give(info);
}

void submatrix_logdet(Call& call) {
  const Matrices cov = square_matrices(call, 0);
  if (cov.batch.size() != 0)
    call.value_error(0, "one square matrix [n, n]", "shape " + to_string(cov.values.sizes));
  call.check_dims(1, 1, "[..., k]");
  call.check_dtype(1, {Dtype::int64});
  const Tensor index = contiguous(call, 1);
  if (index.sizes[index.dims() - 1] == 0)
    call.value_error(1, "sets [..., k] with k >= 1", "shape " + to_string(index.sizes));
  // On CUDA the kernel tells by info: to look here would be to wait for the device.
  const std::string wrong = call.on_cuda() ? "" : out_of_range(index, cov.d);
  if (!wrong.empty()) call.value_error(1, "indices in [0, " + std::to_string(cov.d) + ")", wrong);
  cov.values.dtype == Dtype::float32 ? submatrix_determinants<float>(call, cov, index)
                                     : submatrix_determinants<double>(call, cov, index);
}

void cholesky(Call& call) {
  const Matrices a = square_matrices(call, 0);
  a.values.dtype == Dtype::float32 ? factor<float>(call, a) : factor<double>(call, a);
}

void logdet(Call& call) {
  const Matrices a = square_matrices(call, 0);
  a.values.dtype == Dtype::float32 ? determinant<float>(call, a) : determinant<double>(call, a);
}

const Op cholesky_op("cholesky(Tensor a) -> (Tensor, Tensor)", cholesky, Bodies::cpu_and_cuda);
const Op logdet_op("logdet(Tensor a) -> (Tensor, Tensor)", logdet, Bodies::cpu_and_cuda);
const Op submatrix_logdet_op("submatrix_logdet(Tensor cov, Tensor index) -> (Tensor, Tensor)",
                             submatrix_logdet, Bodies::cpu_and_cuda);

}  // namespace
}  // namespace infoslice
