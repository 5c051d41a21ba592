#include "precision.h"

#include "bindings/matrices.h"

namespace infoslice {
namespace {

void run(Call& call, const Matrices& a, int64_t block, const Dims& sizes) {
  const Tensor blocks = call.empty(a.values.dtype, sizes);
  const Tensor info = call.empty(Dtype::int32, a.batch);
  call.start();
  if (a.values.dtype == Dtype::float32) {
    cpu::precision_blocks(a.values.as<const float>(), a.count, a.d, block, blocks.as<float>(),
                          info.as<int32_t>(), call.threads());
  } else {
    cpu::precision_blocks(a.values.as<const double>(), a.count, a.d, block, blocks.as<double>(),
                          info.as<int32_t>(), call.threads());
  }
  call.give(blocks);
  call.give(info);
}

void precision_diagonal(Call& call) {
  const Matrices a = square_matrices(call, 0);
  Dims sizes = a.batch;
  sizes.push_back(a.d);
  run(call, a, 1, sizes);
}

void precision_blocks(Call& call) {
  const Matrices a = square_matrices(call, 0);
  const int64_t block = call.integer(1);
  if (block < 1 || a.d % block != 0) {
    call.value_error(1, "a divisor of the order " + std::to_string(a.d), std::to_string(block));
  }
  Dims sizes = a.batch;
  for (int64_t size : {a.d / block, block, block}) sizes.push_back(size);
  run(call, a, block, sizes);
}

const Op diagonal_op("precision_diagonal(Tensor a) -> (Tensor, Tensor)", precision_diagonal);
const Op blocks_op("precision_blocks(Tensor a, int block_size) -> (Tensor, Tensor)",
                   precision_blocks);

}  // namespace
}  // namespace infoslice
