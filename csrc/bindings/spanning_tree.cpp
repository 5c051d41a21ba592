#include "spanning_tree.h"

#include <limits>

#include "bindings/cuda_kernels.h"
#include "bindings/matrices.h"

namespace infoslice {
namespace {

template <class T>
void run(Call& call, const Tensor& points, const Tensor& base, const Dims& batch, int64_t n,
         int64_t d) {
  Dims of_edges = batch, of_lengths = batch;
  of_edges.push_back(n - 1);
  of_edges.push_back(2);
  of_lengths.push_back(n - 1);
  const Tensor edges = call.empty(Dtype::int64, of_edges);
  const Tensor lengths = call.empty(points.dtype, of_lengths);
  const Tensor info = call.empty(Dtype::int32, batch);
  const int64_t count = batch.product();
  const T* const shared = base.elements() == 0 ? nullptr : base.as<const T>();
  if (call.on_cuda()) {
    const CudaKernels& cuda = call.cuda_kernels();
    const size_t bytes = cuda.spanning_tree_workspace(count, n);
    const Tensor workspace =
        call.empty(Dtype::float64, {static_cast<int64_t>(bytes / sizeof(double))});
    call.start();
    call.check_launch(cuda.of<T>().spanning_tree(
        points.as<const T>(), shared, count, n, d, edges.as<int64_t>(), lengths.as<T>(),
        info.as<int32_t>(), workspace.data, call.stream()));
  } else {
    call.start();
    cpu::spanning_tree(points.as<const T>(), shared, count, n, d, edges.as<int64_t>(),
                       lengths.as<T>(), info.as<int32_t>(), call.threads());
  }
  call.give(edges);
  call.give(lengths);
  call.give(info);
}

void spanning_tree(Call& call) {
  call.check_dims(0, 2, "[..., n, d]");
  call.check_dtype(0, {Dtype::float32, Dtype::float64});
  const Tensor& x = call.tensor(0);
  const int64_t n = x.sizes[x.dims() - 2], d = x.sizes[x.dims() - 1];
  if (n < 1 || n > std::numeric_limits<int32_t>::max())
    call.value_error(0, "1 to 2^31 - 1 points [..., n, d]", "shape " + to_string(x.sizes));
  const Tensor& y = call.tensor(1);
  const std::string order = std::to_string(n);
  if (!(y.sizes == Dims{n, n} || y.sizes == Dims{0, 0}))
    call.value_error(1, "squared distances [" + order + ", " + order + "] of the points",
                     "shape " + to_string(y.sizes));
  if (y.dtype != x.dtype) call.type_error(1, dtype_name(x.dtype), dtype_name(y.dtype));
  Dims batch;
  for (int k = 0; k < x.dims() - 2; ++k) batch.push_back(x.sizes[k]);
  const Tensor points = contiguous(call, 0), base = contiguous(call, 1);
  x.dtype == Dtype::float32 ? run<float>(call, points, base, batch, n, d)
                            : run<double>(call, points, base, batch, n, d);
}

// base of shape [0, 0]: none.
const Op op("spanning_tree(Tensor points, Tensor base) -> (Tensor, Tensor, Tensor)", spanning_tree,
            Bodies::cpu_and_cuda);

}  // namespace
}  // namespace infoslice
