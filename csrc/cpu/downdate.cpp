#include "cpu/downdate.h"

#include <cmath>
#include <limits>

#include "common/parallel.h"
#include "cpu/widest.h"

namespace infoslice::cpu {
namespace {

/// Rows and tiles of 8 columns of one register tile: as many accumulators as the registers hold.
template <int Bytes>
constexpr int kRows = Bytes == 64   ? 8
                      : Bytes == 32 ? 4
                                    : 2;
template <int Bytes>
constexpr int kTiles = Bytes == 64 ? 3 : 1;

template <int Bytes>
using Lanes = Vec<double, Bytes / 8>;

/// c -= left'right for `Rows` rows and `Tiles` tiles.
template <int Bytes, int Rows, int Tiles>
INFOSLICE_INLINE void register_tile(const double* left, const double* right, int64_t right_stride,
                                    int64_t terms, double* c, int64_t row_stride,
                                    int64_t tile_stride) {
  using V = Lanes<Bytes>;
  constexpr int L = Bytes / 8, each = kTile / L, width = Tiles * each;
  V sum[Rows][width] = {};
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {  // needed at the end: c may be larger than any cache
#pragma GCC unroll 4
    for (int t = 0; t < Tiles; ++t) __builtin_prefetch(c + i * row_stride + t * tile_stride, 1);
  }
  for (int64_t k = 0; k < terms; ++k) {
    V value[width];
#pragma GCC unroll 8
    for (int v = 0; v < width; ++v)
      value[v] = load<V>(right + v / each * right_stride + k * kTile + v % each * L);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const double multiplier = left[k * kTile + i];
#pragma GCC unroll 8
      for (int v = 0; v < width; ++v) sum[i][v] += value[v] * multiplier;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < width; ++v) {
      double* const to = c + i * row_stride + v / each * tile_stride + v % each * L;
      store(to, load<V>(to) - sum[i][v]);
    }
  }
}

/// The rows of one strip of columns, in register tiles of `Rows` rows and then of fewer.
template <int Bytes, int Rows, int Tiles>
INFOSLICE_INLINE void strip(const double* left, int64_t left_stride, const double* right,
                            int64_t right_stride, int64_t terms, int64_t from, int64_t rows,
                            double* c, int64_t row_stride, int64_t tile_stride) {
  int64_t i = from;
  for (; i + Rows <= rows; i += Rows) {
    register_tile<Bytes, Rows, Tiles>(left + i / kTile * left_stride + i % kTile, right,
                                      right_stride, terms, c + i * row_stride, row_stride,
                                      tile_stride);
  }
  if constexpr (Rows > 1) {
    strip<Bytes, Rows / 2, Tiles>(left, left_stride, right, right_stride, terms, i, rows, c,
                                  row_stride, tile_stride);
  }
}

template <int Bytes>
INFOSLICE_INLINE void subtract_product_body(const double* left, int64_t left_stride,
                                            const double* right, int64_t right_stride,
                                            int64_t terms, int64_t rows, int64_t columns, double* c,
                                            int64_t row_stride, int64_t tile_stride) {
  constexpr int64_t wide = kTiles<Bytes> * kTile;
  int64_t j = 0;
  for (; j + wide <= columns; j += wide) {
    strip<Bytes, kRows<Bytes>, kTiles<Bytes>>(left, left_stride, right + j / kTile * right_stride,
                                              right_stride, terms, 0, rows,
                                              c + j / kTile * tile_stride, row_stride, tile_stride);
  }
  for (; j < columns; j += kTile) {
    strip<Bytes, kRows<Bytes>, 1>(left, left_stride, right + j / kTile * right_stride, right_stride,
                                  terms, 0, rows, c + j / kTile * tile_stride, row_stride,
                                  tile_stride);
  }
}

template <int Bytes>
INFOSLICE_INLINE void subtract_from_diagonal_body(const double* left, const double* right,
                                                  int64_t stride, int64_t count, int64_t r,
                                                  int64_t tiles, double* diagonal) {
  using V = Lanes<Bytes>;
  constexpr int L = Bytes / 8;
  for (int64_t t = 0; t < tiles; ++t) {
    const double* const l = left + t * kTile * r;
    const double* const m = right + t * kTile * r;
    for (int64_t a = 0; a < r; ++a) {
      for (int64_t b = 0; b <= a; ++b, diagonal += kTile) {
        for (int64_t v = 0; v < kTile; v += L) {
          V sum = load<V>(diagonal + v);
          for (int64_t k = 0; k < count; ++k)
            sum -=
                load<V>(l + k * stride + a * kTile + v) * load<V>(m + k * stride + b * kTile + v);
          store(diagonal + v, sum);
        }
      }
    }
  }
}

template <int Bytes>
INFOSLICE_INLINE void solve_rows_body(const double* lower, const double* scale, int64_t r,
                                      int64_t columns, double* rows, int64_t stride) {
  using V = Lanes<Bytes>;
  for (int64_t j = 0; j < columns; j += Bytes / 8) {
    for (int64_t a = 0; a < r; ++a) {
      V value = load<V>(rows + a * stride + j);
      for (int64_t b = 0; b < a; ++b)
        value -= load<V>(rows + b * stride + j) * lower[packed(a, b) * kTile];
      store(rows + a * stride + j, value);
    }
    for (int64_t a = 0; a < r; ++a)
      store(rows + a * stride + j, load<V>(rows + a * stride + j) * scale[a]);
  }
}

}  // namespace

INFOSLICE_WIDEST(void, subtract_product,
                 (const double* left, int64_t left_stride, const double* right,
                  int64_t right_stride, int64_t terms, int64_t rows, int64_t columns, double* c,
                  int64_t row_stride, int64_t tile_stride),
                 subtract_product_body,
                 (left, left_stride, right, right_stride, terms, rows, columns, c, row_stride,
                  tile_stride))
INFOSLICE_WIDEST(void, solve_rows,
                 (const double* lower, const double* scale, int64_t r, int64_t columns,
                  double* rows, int64_t stride),
                 solve_rows_body, (lower, scale, r, columns, rows, stride))
INFOSLICE_WIDEST(void, subtract_from_diagonal,
                 (const double* left, const double* right, int64_t stride, int64_t count, int64_t r,
                  int64_t tiles, double* diagonal),
                 subtract_from_diagonal_body, (left, right, stride, count, r, tiles, diagonal))

Downdated::Downdated(int64_t slots, int64_t r, bool in_place)
    : r_(r),
      columns_(round_up(slots, kTile) * r),
      data_(in_place ? 0 : offset((columns_ + kBand - 1) / kBand)),
      diagonal_(zeros(round_up(slots, kTile) * packed(r, 0))),
      in_place_(in_place) {}

template <class T>
void Downdated::load(const MatrixView<T>& matrix, const std::vector<int64_t>& sources,
                     int threads) {
  for (int64_t slot = 0; slot < columns_ / r_; ++slot) {
    for (int64_t a = 0; a < r_; ++a) {
      const int64_t v = sources[static_cast<size_t>(place(slot, a, r_))];
      for (int64_t b = 0; b <= a && v >= 0; ++b)
        diagonal(slot)[packed(a, b) * kTile] =
            matrix(v, sources[static_cast<size_t>(place(slot, b, r_))]);
    }
  }
  if (!in_place_) return load_triangle(matrix, sources, threads);
  read_row_ = [matrix, sources](int64_t i, int64_t columns, double* to) {
    const int64_t v = sources[static_cast<size_t>(i)];
    for (int64_t j = 0; j < columns; ++j) {
      const int64_t w = sources[static_cast<size_t>(j)];
      to[j] = v < 0 || w < 0 ? 0.0 : matrix(v, w);
    }
  };
}

template <class T>
void Downdated::load_triangle(const MatrixView<T>& matrix, const std::vector<int64_t>& sources,
                              int threads) {
  const int64_t bands = (columns_ + kBand - 1) / kBand;
  const auto load_block = [&](int64_t band, int64_t i0, int64_t i1, int64_t j0) {
    const int64_t *const of_rows = sources.data() + i0, *const of_columns = sources.data() + j0;
    const auto [i_low, i_high] = std::minmax_element(of_rows, of_rows + (i1 - i0));
    const auto [j_low, j_high] = std::minmax_element(of_columns, of_columns + kTile);
    const bool lower = *j_high <= *i_low;  // the block as it stands, not its transpose
    const bool plain = *i_low >= 0 && *j_low >= 0 && (lower || *i_high <= *j_low);
    const int64_t i_step = lower ? matrix.row_stride : matrix.column_stride;
    const int64_t j_step = lower ? matrix.column_stride : matrix.row_stride;
    double* const to = tile(band, j0) + (i0 - band * kBand) * kTile;
    for (int64_t j = 0; j < kTile; ++j) {
      if (plain) {
        const T* const from = matrix.data + of_columns[j] * j_step;
        for (int64_t i = 0; i < i1 - i0; ++i)
          to[i * kTile + j] = static_cast<double>(from[of_rows[i] * i_step]);
      } else {
        for (int64_t i = 0; i < i1 - i0; ++i) {
          const bool padding = of_rows[i] < 0 || of_columns[j] < 0;
          to[i * kTile + j] = padding ? 0.0 : matrix(of_rows[i], of_columns[j]);
        }
      }
    }
  };
  const double nanoseconds = 0.5 * static_cast<double>(columns_) * static_cast<double>(columns_);
  parallel_for(threads_for(threads, nanoseconds), bands, [&](int64_t band) {
    const int64_t begin = band * kBand, end = std::min(begin + kBand, columns_);
    for (int64_t j = begin; j < columns_; j += kTile) {
      const int64_t rows = j < end ? 16 : kBand;  // on the diagonal, small blocks are on one side
      for (int64_t i = begin; i < end; i += rows) load_block(band, i, std::min(i + rows, end), j);
    }
  });
}

template void Downdated::load(const MatrixView<float>&, const std::vector<int64_t>&, int);
template void Downdated::load(const MatrixView<double>&, const std::vector<int64_t>&, int);

void Downdated::copy(const Downdated& from) {
  read_row_ = from.read_row_;
  if (!in_place_)
    std::copy(from.data_.get(), from.data_.get() + offset((columns_ + kBand - 1) / kBand),
              data_.get());
  std::copy(from.diagonal(), from.diagonal() + columns_ / r_ * packed(r_, 0), diagonal());
}

std::vector<double> Downdated::variances() const {
  std::vector<double> result(static_cast<size_t>(columns_));
  for (int64_t slot = 0; slot < columns_ / r_; ++slot) {
    for (int64_t a = 0; a < r_; ++a) {
      const double variance = diagonal(slot)[packed(a, a) * kTile];
      result[static_cast<size_t>(place(slot, a, r_))] =
          std::isfinite(variance) ? variance : std::numeric_limits<double>::quiet_NaN();
    }
  }
  return result;
}

void Downdated::gather(int64_t slot, int64_t columns, double* rows, int64_t stride) const {
  for (int64_t a = 0; a < r_; ++a) {
    const int64_t i = place(slot, a, r_), own = i / kBand;
    double* const to = rows + a * stride;
    if (in_place_) {
      read_row_(i, columns, to);
      continue;
    }
    for (int64_t band = 0; band < own; ++band) {
      const double* const column = &at(band * kBand, i);
      for (int64_t k = 0; k < kBand; ++k) to[band * kBand + k] = column[k * kTile];
    }
    const double* from = &at(i, own * kBand);
    for (int64_t j = own * kBand; j < columns; j += kTile, from += kBand * kTile)
      copy_tile_row(from, to + j);
  }
}

void Downdated::move(int64_t from, int64_t to, int64_t columns, double* rows,
                     int64_t stride) const {
  gather(from, columns, rows, stride);
  for (int64_t a = 0; a < r_; ++a) {
    double* const values = rows + a * stride;
    for (int64_t b = 0; b < r_; ++b) values[place(to, b, r_)] = values[place(from, b, r_)];
    const int64_t i = place(to, a, r_), own = i / kBand;
    for (int64_t band = 0; band <= own; ++band) {  // in its own band both halves of the square
      double* const column = &at(band * kBand, i);
      for (int64_t k = 0; k < std::min(kBand, columns - band * kBand); ++k)
        column[k * kTile] = values[band * kBand + k];
    }
    double* row = &at(i, own * kBand);
    for (int64_t j = own * kBand; j < columns; j += kTile, row += kBand * kTile)
      copy_tile_row(values + j, row);
  }
  for (int64_t e = 0; e < packed(r_, 0); ++e) diagonal(to)[e * kTile] = diagonal(from)[e * kTile];
}

void Downdated::form_rows(int64_t slot, const Terms& terms, int64_t filled, int64_t columns,
                          double* rows, int64_t stride) const {
  gather(slot, columns, rows, stride);
  if (filled == 0) return;
  const Workspace<double> multipliers(round_up(r_, kTile) * filled);
  for (const Term& term : terms) {
    for (int64_t a = 0; a < r_; ++a) {
      double* const to = multipliers.get() + a / kTile * filled * kTile + a % kTile;
      const int64_t i = place(slot, a, r_);
      for (int64_t k = 0; k < filled; ++k) to[k * kTile] = term.left->at(k, i);
    }
    subtract_product(multipliers.get(), filled * kTile, term.right->tile(0), term.right->stride(),
                     filled, r_, columns, rows, stride, kTile);
  }
}

void Downdated::downdate(int64_t band, const Terms& terms, int64_t filled, int64_t columns) const {
  const int64_t begin = band * kBand, end = std::min(begin + kBand, columns);
  for (const Term& term : terms) {
    subtract_product(term.left->tile(begin), term.left->stride(), term.right->tile(begin),
                     term.right->stride(), filled, end - begin, columns - begin, tile(band, begin),
                     kTile, kTile * kBand);
  }
}

}  // namespace infoslice::cpu
