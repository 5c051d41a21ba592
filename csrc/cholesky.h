// Cholesky factor and log-determinant of a batch of symmetric positive definite matrices.
//
//   A = L L',  L lower triangular;   logdet A = 2 sum_i log L_ii = sum_i log p_i,  natural
//   logarithm, with p_i the i-th pivot: the variance of variable i that the variables before it do
//   not explain.
//
// a       [batch, d, d]  row-major, contiguous; only the lower triangle is read (the strict upper
//                        one may hold anything, NaN too)
// factor  [batch, d, d]  L, strict upper triangle zero
// logdet  [batch]
// info    [batch]        0, or k > 0: the leading minor of order k is not positive definite (its
//                        pivot is not a positive finite number; a NaN or Inf anywhere in the lower
//                        triangle ends here). Then the lower triangle of the factor and the
//                        log-determinant of this matrix are NaN; the other matrices of the batch
//                        are not touched by it.
//
// Factorisation in T. The log-determinant multiplies the pivots in double with the exponents summed
// apart, so it needs one logarithm, and neither overflows nor underflows; rounded to T at the end.
// Error: |L L' - A| <= c d eps max A_ii; logdet: c d eps cond(A), both with c of order 1.
// Source: Golub & Van Loan, Matrix Computations, 4th ed., 4.2; error bounds: Higham, Accuracy and
// Stability, 10.1.
#pragma once

#include <cstddef>
#include <cstdint>

namespace infoslice {

namespace cpu {

template <class T>  // float, double
void cholesky(const T* a, int64_t batch, int64_t d, T* factor, int32_t* info, int threads);

template <class T>
void logdet(const T* a, int64_t batch, int64_t d, T* logdet, int32_t* info, int threads);

}  // namespace cpu

namespace cuda {

// All pointers are device memory of the current device, `stream` is a cudaStream_t of it. Work is
// only enqueued: the functions never synchronise. They return a cudaError_t (0 = success) and do
// nothing where batch or d is 0.

template <class T>
int cholesky(const T* a, int64_t batch, int64_t d, T* factor, int32_t* info, void* stream);

// Bytes of device scratch memory that logdet needs: 0 while a matrix fits into a block's shared
// memory.
template <class T>
size_t logdet_workspace(int64_t batch, int64_t d);

template <class T>
int logdet(const T* a, int64_t batch, int64_t d, T* logdet, int32_t* info, void* workspace,
           void* stream);

}  // namespace cuda
}  // namespace infoslice
