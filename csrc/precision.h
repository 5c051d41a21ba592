// Diagonal and diagonal blocks of the inverse of a batch of symmetric positive definite matrices.
//
//   A = L L',  W = L^-1 (lower triangular):   A^-1 = W' W,
//   (A^-1)_ii = sum_{j >= i} W_ji^2,          (A^-1)_PP = W_:P' W_:P  for a block P of columns.
// The inverse itself is never formed: cost 2/3 d^3 instead of d^3, plus d^2 b for the blocks.
//
// If A is a covariance, 1 / (A^-1)_ii is the variance of variable i that all the others do not
// explain.
//
// a         [batch, d, d]         row-major, contiguous; only the lower triangle is read
// blocks    [batch, d / b, b, b]  block g belongs to the variables g b .. g b + b - 1; symmetric
//                                 to the last bit. b divides d. With b = 1: the diagonal,
//                                 [batch, d].
// info      [batch]               0, or k > 0: the leading minor of order k is not positive
//                                 definite (NaN and Inf end here too); k = d + 1: a result is
//                                 beyond the range of T. Then all values of this matrix are NaN.
//
// Peak extra memory of a thread: 2 d^2 + 192 d doubles, with b > 1 another d b + b^2 + 192 d.
//
// On CUDA: up to order 32 in the registers of 8, 16 or 32 lanes, where A and the identity are
// eliminated together; above, [A; I] in a workspace of precision_workspace bytes is eliminated to
// [L; W'] (cuda/dense.h), and the sums run over rows of W' from their diagonals on.
//
// Computed in double, rounded to T at the end. Relative error: c d eps cond(A), eps that of double.
// Source: Higham, Accuracy and Stability, 14.2 (triangular inversion).
#pragma once

#include <cstddef>
#include <cstdint>

namespace infoslice {

namespace cpu {

template <class T>  // float, double
void precision_blocks(const T* a, int64_t batch, int64_t d, int64_t block, T* blocks, int32_t* info,
                      int threads);

}  // namespace cpu

namespace cuda {

// All pointers are device memory of the current device, `stream` is a cudaStream_t of it; work is
// only enqueued. Returns a cudaError_t (0 = success); does nothing where batch or d is 0.

// Bytes of device scratch memory: 0 up to order 32, else [A; I] in double for as many matrices as
// 2^26 elements hold, one at least.
size_t precision_workspace(int64_t batch, int64_t d);

template <class T>
int precision_blocks(const T* a, int64_t batch, int64_t d, int64_t block, T* blocks, int32_t* info,
                     void* workspace, void* stream);

}  // namespace cuda
}  // namespace infoslice
