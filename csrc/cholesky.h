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
// submatrix_logdet takes the log-determinants of principal submatrices of one matrix without copying
// them out:
//
// cov     [n, n]         row-major, contiguous; only the lower triangle is read: element (i, j) of
//                        a submatrix is that of the lower triangle at its two variables
// index   [count, k]     the variables of each submatrix, in [0, n), in any order; one that stands
//                        there twice makes the leading minor up to its second place singular, and
//                        info says so whatever rounding would make of that pivot
// logdet, info  [count]  as above, info in the order of the index
//
// Factorisation in T. The log-determinant multiplies the pivots in double with the exponents summed
// apart, so it needs one logarithm, and neither overflows nor underflows; rounded to T at the end.
// Peak extra memory: for each thread one matrix and 192 of its rows, or up to order 192 the lower
// triangles of 2 to 16 matrices in lanes, 32 d^2 + 700 d bytes (175 KB at order 64, 1.3 MB at 192),
// whatever the number of matrices; and a copy of an argument that is not contiguous.
// On CUDA: up to order 32 in the registers of 8, 16 or 32 lanes; while the lower triangle fits into
// a block's shared memory (order 290 in float, 189 in double on an H100) a block per matrix; above
// by cuda/dense.h in device memory. All right-looking, with reciprocal roots (2 units in the last
// place) in the place of square roots and divisions. The log-determinant sums the logarithms of the
// pivots in double, in an order of its own: the same bits at every run. Extra memory:
// logdet_workspace; nothing is allocated.
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

template <class T>
void submatrix_logdet(const T* cov, int64_t n, const int64_t* index, int64_t count, int64_t k,
                      T* logdet, int32_t* info, int threads);

}  // namespace cpu

namespace cuda {

// All pointers are device memory of the current device, `stream` is a cudaStream_t of it. Work is
// only enqueued: the functions never synchronise. They return a cudaError_t (0 = success) and do
// nothing where batch or d is 0.

template <class T>
int cholesky(const T* a, int64_t batch, int64_t d, T* factor, int32_t* info, void* stream);

// Bytes of device scratch memory that logdet and submatrix_logdet (batch sets of d variables) need:
// 0 while a matrix fits into a block's shared memory, else for 2^26 elements or one matrix at most.
template <class T>
size_t logdet_workspace(int64_t batch, int64_t d);

template <class T>
int logdet(const T* a, int64_t batch, int64_t d, T* logdet, int32_t* info, void* workspace,
           void* stream);

// `index` is device memory too, so an index out of [0, n) cannot be refused without waiting for the
// device: that set has info -1 and a log-determinant of NaN.
template <class T>
int submatrix_logdet(const T* cov, int64_t n, const int64_t* index, int64_t count, int64_t k,
                     T* logdet, int32_t* info, void* workspace, void* stream);

}  // namespace cuda
}  // namespace infoslice
