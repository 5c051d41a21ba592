// Dense building blocks of the linear-algebra kernels: everything here is one row-major
// factorisation.
//
// Let A be symmetric positive definite, A = U'U with U upper triangular (U' is the lower Cholesky
// factor). Eliminating the rows of [A | B] gives [U | U'^-1 B], so one routine yields
//   B absent        the Cholesky factor and the log-determinant
//   B = S_yx        the triangular solve behind marginal information
//   B = I           the triangular inverse W = U'^-1, whose column norms are the diagonal of A^-1
// and with finished rows P placed above A it factors the Schur complement A - P'P instead.
// Rows are vectors in the direction of the columns, so no operand is packed or transposed.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "common/workspace.h"

namespace infoslice::cpu {

/// Row stride for the matrices below: an odd number of cache lines, so that the rows of a column
/// strip are spread over all cache sets.
template <class T>
constexpr int64_t padded_stride(int64_t columns) {
  constexpr int64_t line = 64 / sizeof(T);
  return ((columns + line - 1) / line | 1) * line;
}

/// What eliminate() works on: `prior + rows` rows of `columns` columns, row stride `stride` =
/// padded_stride or more.
template <class T>
struct Rows {
  T* data;
  int64_t prior;    ///< finished rows P above A
  int64_t rows;     ///< order of A; its diagonal starts at row `prior`, column 0, only its upper
                    ///< triangle is read
  int64_t columns;  ///< >= rows; columns behind A are B
  int64_t stride;
  int64_t identity;  ///< first column of B that is an identity block (column identity + r is unit
                     ///< vector r of the rows of A), so that its leading zeros are skipped;
                     ///< `columns` where there is none
  const T* next = nullptr;  ///< contiguous matrix of the order of A, or null: its lower triangle is
                            ///< brought to L2 meanwhile
};

/// [P; A | B] -> [P; U | U'^-1 (B - P'P_B)] with U'U = A - P'P, in place. Padding columns must be
/// initialised, the strict lower triangle of A holds garbage afterwards. Returns 0, or k > 0 where
/// the k-th pivot is not a positive finite number (NaN included); rows from the k-th on are then
/// undefined. Extra memory: 192 times the rows, none up to 192. Up to `threads` threads share large
/// matrices, with the same result for every number.
int64_t eliminate(const Rows<float>& m, int threads = 1);
int64_t eliminate(const Rows<double>& m, int threads = 1);

/// c = b'b for b of `rows` x `columns`; both row-major with strides from padded_stride, padding
/// initialised. Fills the upper triangle of c (and some of the lower) including its padding
/// columns.
void gram(const double* b, int64_t rows, int64_t columns, int64_t stride, double* c,
          int64_t c_stride);

}  // namespace infoslice::cpu
