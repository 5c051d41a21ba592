// Square matrices as arguments, shared by the host functions of the linear algebra.
#pragma once

#include "bindings/host.h"

namespace infoslice {

struct Matrices {
  Tensor values;  // contiguous
  Dims batch;     // leading dimensions
  int64_t count;  // their product
  int64_t d;      // order
};

// Argument i as [..., d, d] float32 or float64, d >= 1, made contiguous where it is not. (On CUDA
// the wrapper has done that.)
Matrices square_matrices(Call& call, int i);

}  // namespace infoslice
