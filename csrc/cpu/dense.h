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
#include <memory>
#include <new>

namespace infoslice::cpu {

/// Uninitialised memory aligned for the widest register; contents are trivially destroyed.
template <class T>
class Workspace {
 public:
  explicit Workspace(int64_t count)
      : data_(static_cast<T*>(::operator new(static_cast<size_t>(count > 0 ? count : 1) * sizeof(T),
                                             std::align_val_t{64}))) {}
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
};

/// Row stride for the matrices below: whole column strips and an odd number of cache lines, so that
/// the rows of a strip are spread over all cache sets.
template <class T>
constexpr int64_t padded_stride(int64_t columns) {
  constexpr int64_t line = 64 / sizeof(T), strip = 2 * line;
  return (columns + strip - 1) / strip * strip + line;
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
};

/// [P; A | B] -> [P; U | U'^-1 (B - P'P_B)] with U'U = A - P'P, in place. Padding columns must be
/// initialised, the strict lower triangle of A holds garbage afterwards. Returns 0, or k > 0 where
/// the k-th pivot is not a positive finite number (NaN included); rows from the k-th on are then
/// undefined.
int64_t eliminate(const Rows<float>& m);
int64_t eliminate(const Rows<double>& m);

/// c = b'b for b of `rows` x `columns`; both row-major with strides from padded_stride, padding
/// initialised. Fills the upper triangle of c (and some of the lower) including its padding
/// columns.
void gram(const double* b, int64_t rows, int64_t columns, int64_t stride, double* c,
          int64_t c_stride);

/// c -= u'u on the upper triangle of c for u of `rows` x `columns`, rows few (a block of 32 ... 128
/// downdates); both row-major with strides from padded_stride, padding initialised. Changes some of
/// the lower triangle and the padding columns too. Extra memory: 192 columns of u.
void subtract_gram(const double* u, int64_t rows, int64_t columns, int64_t stride, double* c,
                   int64_t c_stride);

/// destination[j][i] = source[i][j] for a rows x columns source.
template <class T>
void transpose(const T* source, int64_t rows, int64_t columns, int64_t source_stride,
               T* destination, int64_t destination_stride) {
  constexpr int64_t tile = 16;  // keeps both sides within a few cache lines per row
  for (int64_t i0 = 0; i0 < rows; i0 += tile) {
    for (int64_t j0 = 0; j0 < columns; j0 += tile) {
      for (int64_t i = i0; i < std::min(i0 + tile, rows); ++i) {
        for (int64_t j = j0; j < std::min(j0 + tile, columns); ++j) {
          destination[j * destination_stride + i] = source[i * source_stride + j];
        }
      }
    }
  }
}

/// Copies the upper triangle of the d x d matrix `upper`, transposed, to the lower triangle of
/// `lower`, and touches nothing else there.
template <class T>
void transpose_upper(const T* upper, int64_t d, int64_t stride, T* lower, int64_t lower_stride) {
  constexpr int64_t tile = 16;
  for (int64_t i0 = 0; i0 < d; i0 += tile) {
    for (int64_t j0 = 0; j0 <= i0; j0 += tile) {
      for (int64_t i = i0; i < std::min(i0 + tile, d); ++i) {
        for (int64_t j = j0; j < std::min(j0 + tile, i + 1); ++j) {
          lower[i * lower_stride + j] = upper[j * stride + i];
        }
      }
    }
  }
}

/// Writes the lower triangle of a row-major d x d matrix as the upper triangle of `m`, zeros in all
/// other places of its first `columns` columns. The upper triangle of the source is never read.
template <class Source, class T>
void load_upper(const Source* lower, int64_t d, T* m, int64_t stride, int64_t columns) {
  constexpr int64_t tile = 16;
  for (int64_t i = 0; i < d; ++i) std::fill(m + i * stride, m + i * stride + columns, T(0));
  for (int64_t i0 = 0; i0 < d; i0 += tile) {
    for (int64_t j0 = 0; j0 <= i0; j0 += tile) {
      for (int64_t i = i0; i < std::min(i0 + tile, d); ++i) {
        for (int64_t j = j0; j < std::min(j0 + tile, i + 1); ++j) {
          m[j * stride + i] = static_cast<T>(lower[i * d + j]);
        }
      }
    }
  }
}

}  // namespace infoslice::cpu
