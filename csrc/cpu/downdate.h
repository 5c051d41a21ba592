// A symmetric matrix that loses channel after channel, each by a downdate of low rank.
//
// M = stale - sum of left'right over the terms: the rows of the panels are collected, and only the
// diagonal blocks are kept up to date. What else is needed of M, the rows of the next channel, is
// formed on demand. When the panels are full one product of matrices brings the stale part up to
// date, for the channels that are still there (the scheme of LAPACK's pstrf, for blocks and for
// two matrices in lock-step).
//
// Layout: channels stand in slots; a tile is 8 neighbouring slots, and within a tile the variable
// of a channel is the slow index: variable a of slot s is column s / 8 * 8 r + 8 a + s % 8. So the
// same variable of 8 channels is one vector. Panels, and the triangle in bands of 64 rows, are stored
// in tiles of 8 columns, [column / 8][row][8]: panels serve as both operands of the product as they
// are, and a column of a band is one stream in memory, as cheap to read as a row.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "cpu/dense.h"
#include "greedy.h"

namespace infoslice::cpu {

constexpr int64_t kTile = 8;
constexpr int64_t kBand = 64;

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

/// The column of variable a of the channel in `slot`, of r variables each.
inline int64_t place(int64_t slot, int64_t a, int64_t r) {
  return slot / kTile * kTile * r + a * kTile + slot % kTile;
}

/// Entry (a, b), b <= a, of a packed lower triangle.
inline int64_t packed(int64_t a, int64_t b) { return a * (a + 1) / 2 + b; }

/// Zeroed memory.
inline Workspace<double> zeros(int64_t count) {
  Workspace<double> memory(count);
  std::fill(memory.get(), memory.get() + count, 0.0);
  return memory;
}

inline void copy_tile_row(const double* from, double* to) {
  std::memcpy(to, from, kTile * sizeof(double));  // of constant size: no call
}

/// `capacity` rows of `columns` columns (a multiple of 8), in tiles.
class Panel {
 public:
  Panel(int64_t capacity, int64_t columns) : stride_(capacity * kTile), data_(capacity * columns) {}
  int64_t stride() const { return stride_; }  ///< between tiles
  double* tile(int64_t column) const { return data_.get() + column / kTile * stride_; }
  double& at(int64_t row, int64_t column) const {
    return tile(column)[row * kTile + column % kTile];
  }
  void put(int64_t row, const double* values, int64_t columns) const {
    for (int64_t c = 0; c < columns; c += kTile) copy_tile_row(values + c, tile(c) + row * kTile);
  }

 private:
  int64_t stride_;
  Workspace<double> data_;
};

/// left'right, summed over the rows of the panels; the sum over all terms must be symmetric.
struct Term {
  const Panel* left;
  const Panel* right;
};
using Terms = std::vector<Term>;

/// Memory: 4 columns^2 bytes, the upper triangle in bands; none if it is read in place, because the
/// panels have room for all that will ever be eliminated.
class Downdated {
 public:
  Downdated(int64_t slots, int64_t r, bool in_place);

  /// The block of `matrix` at the variables `sources`, by column; -1 stands for zeros.
  template <class T>
  void load(const MatrixView<T>& matrix, const std::vector<int64_t>& sources, int threads);
  void copy(const Downdated& from);

  /// The diagonal blocks as they are now: [slot / 8][packed(a, b)][8].
  double* diagonal() const { return diagonal_.get(); }
  double* diagonal(int64_t slot) const {
    return diagonal() + slot / kTile * packed(r_, 0) * kTile + slot % kTile;
  }
  std::vector<double> variances() const;  ///< the diagonal, by column; NaN where not finite

  /// The rows of a channel as they are now, r of `columns` each; the terms have `filled` rows.
  void form_rows(int64_t slot, const Terms& terms, int64_t filled, int64_t columns, double* rows,
                 int64_t stride) const;
  /// Brings band `band` of the first `columns` columns up to date.
  void downdate(int64_t band, const Terms& terms, int64_t filled, int64_t columns) const;
  /// Puts the channel of slot `from` into slot `to`.
  void move(int64_t from, int64_t to, int64_t columns, double* rows, int64_t stride) const;

 private:
  int64_t offset(int64_t band) const {
    return kBand * (band * round_up(columns_, kBand) - kBand * (band * (band - 1) / 2));
  }
  /// Of the stale part, for columns j from the band of row i on.
  double& at(int64_t i, int64_t j) const {
    return tile(i / kBand, j)[i % kBand * kTile + j % kTile];
  }
  /// The tile of a band that holds a column.
  double* tile(int64_t band, int64_t column) const {
    return data_.get() + offset(band) + (column - band * kBand) / kTile * kTile * kBand;
  }
  void gather(int64_t slot, int64_t columns, double* rows, int64_t stride) const;

  template <class T>
  void load_triangle(const MatrixView<T>& matrix, const std::vector<int64_t>& sources, int threads);

  int64_t r_, columns_;
  Workspace<double> data_, diagonal_;
  std::function<void(int64_t, int64_t, double*)> read_row_;  ///< row, columns, to; if in place
  bool in_place_;
};

/// c -= left'right for c of rows x columns (columns a multiple of 8) and operands of `terms` rows, all
/// in tiles: left [rows / 8][terms][8], right [columns / 8][terms][8], with these strides between the
/// tiles and, of c, between rows.
void subtract_product(const double* left, int64_t left_stride, const double* right,
                      int64_t right_stride, int64_t terms, int64_t rows, int64_t columns, double* c,
                      int64_t row_stride, int64_t tile_stride);

/// rows <- scale L^-1 rows for r rows; entry (a, b) of the unit lower L is lower[8 packed(a, b)].
void solve_rows(const double* lower, const double* scale, int64_t r, int64_t columns, double* rows,
                int64_t stride);

/// Diagonal blocks -= left'right of `count` plain rows, for the first `tiles`.
void subtract_from_diagonal(const double* left, const double* right, int64_t stride, int64_t count,
                            int64_t r, int64_t tiles, double* diagonal);

}  // namespace infoslice::cpu
