// Elimination of the leading variables of a batch of symmetric matrices in device memory: the
// counterpart of cpu/dense.h.
//
//   [ A  .  ]    [ L               .            ]
//   [ B  C  ] -> [ B L^-T    C - B A^-1 B'      ]    A = L L' of order `pivots`, in place.
//   [ D  E  ]    [ D L^-T    E - D A^-1 B'      ]
//
// Rows of A, B and C are those of a symmetric matrix of order `columns`, of which only the lower
// triangle is read and written; D | E are further rows, all of whose columns are. So one routine
// yields
//   rows = columns = pivots  the Cholesky factor and the log-determinant
//   D = S_xy                 the triangular solve behind marginal information
//   D = I                    D L^-T = (L^-1)', whose row norms are the diagonal of A^-1
//   columns > pivots         the Schur complement: a covariance given the first variables
#pragma once

#include <cstddef>
#include <cstdint>

namespace infoslice::cuda {

/// A batch of row-major matrices.
template <class T>
struct Batch {
  T* data;
  int64_t count;
  int64_t rows, columns, pivots;  // rows >= columns >= pivots
  int64_t stride;                 // between rows, >= columns
  int64_t step;                   // between matrices
  int64_t identity;  // the first row of D that begins an identity block (row identity + r is unit
                     // vector r, and they are the last rows), so that its leading zeros are
                     // skipped; `rows` where there is none
};

/// Only enqueues: two kernels for every 64 pivots, whatever the number of matrices. floors: [count,
/// pivots] or null (zeros): a pivot that is not a finite number above its floor ends the matrix.
/// info: [count], written: 0, or the 1-based number of that pivot; the matrix is then undefined and
/// the others are not touched by it. Nothing is written above the diagonal, nor outside the columns.
/// Extra memory: none. Without pivots or matrices nothing happens, to info neither. Returns a
/// cudaError_t.
template <class T>  // float, double
int eliminate(const Batch<T>& m, const T* floors, int32_t* info, void* stream);

}  // namespace infoslice::cuda
