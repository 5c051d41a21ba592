#include "precision.h"

#include "bindings/cuda_kernels.h"
#include "bindings/matrices.h"

namespace infoslice {
namespace {

template <class T>
void run(Call& call, const Matrices& a, int64_t block, const Dims& sizes) {
  const Tensor blocks = call.empty(a.values.dtype, sizes);
  const Tensor info = call.empty(Dtype::int32, a.batch);
  const T* from = a.values.as<const T>();
  if (call.on_cuda()) {
    const CudaKernels& cuda = call.cuda_kernels();
    const size_t bytes = cuda.precision_workspace(a.count, a.d);
    const Tensor workspace =
        call.empty(Dtype::float64, {static_cast<int64_t>(bytes / sizeof(double))});
    call.start();
    call.check_launch(cuda.of<T>().precision_blocks(from, a.count, a.d, block, blocks.as<T>(),
                                                    info.as<int32_t>(), workspace.data,
                                                    call.stream()));
  } else {
    call.start();
    cpu::precision_blocks(from, a.count, a.d, block, blocks.as<T>(), info.as<int32_t>(),
                          call.threads());
  }
  call.give(blocks);
  call.give(info);
}

void choose(Call& call, const Matrices& a, int64_t block, const Dims& sizes) {
  a.values.dtype == Dtype::float32 ? run<float>(call, a, block, sizes)
                                   : run<double>(call, a, block, sizes);
}

void precision_diagonal(Call& call) {
  const Matrices a = square_matrices(call, 0);
  Dims sizes = a.batch;
  sizes.push_back(a.d);
  choose(call, a, 1, sizes);
}

void precision_blocks(Call& call) {
  const Matrices a = square_matrices(call, 0);
  const int64_t block = call.integer(1);
  if (block < 1 || a.d % block != 0) {
    call.value_error(1, "a divisor of the order " + std::to_string(a.d), std::to_string(block));
  }
  Dims sizes = a.batch;
  for (int64_t size : {a.d / block, block, block}) sizes.push_back(size);
  choose(call, a, block, sizes);
}

const Op diagonal_op("precision_diagonal(Tensor a) -> (Tensor, Tensor)", precision_diagonal,
                     Bodies::cpu_and_cuda);
const Op blocks_op("precision_blocks(Tensor a, int block_size) -> (Tensor, Tensor)",
                   precision_blocks, Bodies::cpu_and_cuda);

}  // namespace
}  // namespace infoslice
