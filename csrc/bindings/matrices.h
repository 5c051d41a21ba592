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

// Argument i as indices in [0, n) without repetition, disjoint from those that are marked in `taken`
// [n] already; marks them.
void check_indices(const Call& call, int i, int64_t n, std::vector<char>& taken);

// Argument i, made contiguous where it is not.
Tensor contiguous(Call& call, int i);

}  // namespace infoslice
