#include "cholesky.h"

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

template <class T>
void determinant(Call& call, const Matrices& a) {
  const Tensor result = call.empty(a.values.dtype, a.batch);
  const Tensor info = call.empty(Dtype::int32, a.batch);
  const T* from = a.values.as<const T>();
  if (call.on_cuda()) {
    const auto& cuda = call.cuda_kernels().of<T>();
    const size_t bytes = cuda.logdet_workspace(a.count, a.d);
    const Tensor workspace = call.empty(a.values.dtype, {static_cast<int64_t>(bytes / sizeof(T))});
    call.start();
    call.check_launch(cuda.logdet(from, a.count, a.d, result.as<T>(), info.as<int32_t>(),
                                  workspace.data, call.stream()));
  } else {
    call.start();
    cpu::logdet(from, a.count, a.d, result.as<T>(), info.as<int32_t>(), call.threads());
  }
  call.give(result);
  call.give(info);
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

}  // namespace
}  // namespace infoslice
