// Cholesky factors and log-determinants of many matrices of one order, one matrix per lane of a
// register: no shuffles, no tails and no short loops in the factorisation, whatever the order.
//
// A = u'u, u upper triangular, is made from the left in panels of R columns. A panel holds all its
// rows down to the diagonal, R vectors a row, one panel behind the other: half the memory of the
// square, and while a panel is made in the first-level cache, those before it are read in the order
// in which they lie. An order that is not a multiple of R has a border of the identity.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "common/transposes.h"
#include "cpu/products.h"

namespace infoslice::cpu {

/// Matrices of one order and where their results go.
template <class T>
struct Batch {
  const T* a;  // [count, d, d], or [n, n] of which they are principal submatrices
  int64_t count;
  int64_t d;
  T* factor;  // null where only the log-determinant is wanted
  T* logdet;  // null where only the factor is wanted
  int32_t* info;
  const int64_t* index = nullptr;  // [count, d] variables of the submatrices, null for matrices
  int64_t n = 0;

  Batch part(int64_t begin, int64_t end) const {
    return {index ? a : a + begin * d * d,
            end - begin,
            d,
            factor ? factor + begin * d * d : nullptr,
            logdet ? logdet + begin : nullptr,
            info + begin,
            index ? index + begin * d : nullptr,
            n};
  }
};

/// Element (i, j) of a principal submatrix as an offset into the lower triangle of [n, n]: the
/// larger variable is the row, which the larger sum finds without asking which one it is.
INFOSLICE_INLINE int64_t lower_offset(int64_t row_i, int64_t i, int64_t row_j, int64_t j) {
  return std::max(row_i + j, row_j + i);
}

template <int Bytes, int R, class T>
class Interleaved {
  static constexpr int L = Bytes / static_cast<int>(sizeof(T));
  static constexpr int K = kPiece<T>;
  static constexpr int kHalf = L == 16 ? 8 : L;
  static constexpr int64_t kLine = 64 / sizeof(T);
  using V = Vec<T, L>;

 public:
  INFOSLICE_INLINE Interleaved(const Batch<T>& batch, T* workspace)
      : batch_(batch),
        d_(batch.d),
        u_(reinterpret_cast<V*>(workspace)),
        scale_(panel((d_ + R - 1) / R * R)),
        pivot_(scale_ + d_ + R),
        variable_(reinterpret_cast<int64_t*>(pivot_ + d_ + R)),
        row_(variable_ + d_ * L) {}

  INFOSLICE_INLINE void run() {
    for (int64_t begin = 0; begin < batch_.count; begin += L)
      run(begin, static_cast<int>(std::min<int64_t>(L, batch_.count - begin)));
  }

 private:
  /// Matrices begin..begin + lanes of the batch.
  INFOSLICE_INLINE void run(int64_t begin, int lanes) {
    // Idle lanes repeat the last matrix, and its result.
    const T* first = batch_.index ? batch_.a : batch_.a + begin * d_ * d_;
    const int64_t stride = batch_.index ? 0 : d_ * d_;
    ahead_ = d_ <= 16 && begin + 3 * L <= batch_.count ? first + 2 * L * stride : nullptr;
    for (int l = 0; l < L; ++l) source_[l] = first + std::min(l, lanes - 1) * stride;
    for (int l = 0; l < L && batch_.factor; ++l)
      target_[l] = batch_.factor + (begin + std::min(l, lanes - 1)) * d_ * d_;
    for (int l = 0; l < L && batch_.index; ++l) {
      const int64_t* index = batch_.index + (begin + std::min(l, lanes - 1)) * d_;
      for (int64_t i = 0; i < d_; ++i) {
        variable_[i * L + l] = index[i];
        row_[i * L + l] = index[i] * batch_.n;
      }
    }
    factor();
    if (batch_.factor) store_factor();
    Products<Bytes, T> product;
    V roots = {};  // their sum is NaN exactly where a pivot is not a positive finite number
    for (int64_t c = 0; c < d_; c += R) {
#pragma GCC unroll 4
      for (int64_t i = c; i < c + R; ++i) {
        product.multiply(pivot_[i]);
        roots += pivot_[i] * scale_[i];
      }
      product.normalise();
    }
    if (batch_.logdet) {
      const V logdet = product.log() + (roots - roots);
      std::memcpy(batch_.logdet + begin, &logdet, static_cast<size_t>(lanes) * sizeof(T));
    }
    T sum[L];
    store(sum, roots);
    for (int l = 0; l < lanes; ++l) {
      const bool good = sum[l] == sum[l];
      batch_.info[begin + l] = good ? 0 : first_bad(l);
      if (!good && batch_.factor) {
        for (int64_t i = 0; i < d_; ++i)
          std::fill_n(target_[l] + i * d_, i + 1, std::numeric_limits<T>::quiet_NaN());
      }
    }
  }

  /// Panel of columns c..c + R: element (r, c + j) of u at [r * R + j].
  INFOSLICE_INLINE V* panel(int64_t c) const { return u_ + c * (c + R) / 2; }

  // Of row i of the matrices in lanes lane..lane + H, columns j..j + N K to to[column * R].
  template <int H, int N>
  INFOSLICE_INLINE void load_pieces_of_row(int lane, int64_t i, int64_t j, V* to) {
    Vec<T, H> v[N][K];
#pragma GCC unroll 4
    for (int q = 0; q < K; ++q)
#pragma GCC unroll 4
      for (int p = 0; p < N; ++p)
        v[p][q] = load_pieces<H>(source_ + lane + q, K, i * d_ + j + p * K);
#pragma GCC unroll 4
    for (int p = 0; p < N; ++p) {
      transpose_pieces<H, T>(v[p]);
#pragma GCC unroll 4
      for (int e = 0; e < K; ++e) store(lanes(to + (j + p * K + e) * R) + lane, v[p][e]);
    }
  }
  // Columns 0..i of it, and some behind, none of them behind the row.
  template <int H>
  INFOSLICE_INLINE void load_row(int lane, int64_t i, V* to) {
    const int64_t whole = std::min(i + K, d_) / K * K;
    int64_t j = 0;
    for (; j + 4 * K <= whole; j += 4 * K) load_pieces_of_row<H, 4>(lane, i, j, to);
    if (j + 2 * K <= whole) {
      load_pieces_of_row<H, 2>(lane, i, j, to);
      j += 2 * K;
    }
    if (j < whole) load_pieces_of_row<H, 1>(lane, i, j, to);
    if (whole <= i) load_pieces_of_row<H, 1>(lane, i, d_ - K, to);
  }
  INFOSLICE_INLINE void load_row(int64_t i, V* to) {
    if (d_ < K) {
      for (int64_t j = 0; j <= i; ++j)
        for (int l = 0; l < L; ++l) lanes(to + j * R)[l] = source_[l][i * d_ + j];
    } else if (L == 16 && d_ % 32 == 0 && d_ <= 64) {
      // Rows of 16 matrices that are multiples of 4 KiB apart compete for the 8 places of their
      // cache set.
      load_row<kHalf>(0, i, to);
      load_row<kHalf>(kHalf, i, to);
    } else {
      load_row<L>(0, i, to);
    }
  }
  INFOSLICE_INLINE void gather_row(int64_t i, V* to) {
    const int64_t *variable = variable_ + i * L, *row = row_ + i * L;
    int64_t repeats[L] = {};
    for (int64_t j = 0; j <= i; ++j) {
      const int64_t *other = variable_ + j * L, *other_row = row_ + j * L;
      int64_t offset[L];
      for (int l = 0; l < L; ++l) {
        offset[l] = lower_offset(row[l], variable[l], other_row[l], other[l]);
        repeats[l] += variable[l] == other[l];
      }
      for (int l = 0; l < L; ++l) lanes(to + j * R)[l] = batch_.a[offset[l]];
    }
    for (int l = 0; l < L; ++l)  // once by itself
      if (repeats[l] > 1) lanes(to + i * R)[l] = std::numeric_limits<T>::quiet_NaN();
  }
  // The i-th of d parts of the matrices after the next ones. Small orders wait for memory: rows of
  // so many matrices are too many streams for the hardware to follow.
  INFOSLICE_INLINE void fetch_ahead(int64_t i) const {
    const T* from = ahead_ + i * L * d_;
    if (d_ * d_ * Bytes <= 8192) {  // into the first level
      for (int64_t e = 0; e < L * d_; e += kLine) __builtin_prefetch(from + e, 0, 3);
    } else {
      for (int64_t e = 0; e < L * d_; e += kLine) __builtin_prefetch(from + e, 0, 2);
    }
  }
  // While a panel is made from tiles, the rows of the next one come: a line of each matrix a tile.
  INFOSLICE_INLINE void fetch_next_panel(int64_t c, int64_t tile) const {
    for (int64_t line = tile * 16 / kLine; line < (tile + 1) * 16 / kLine; ++line) {
      const int64_t row = c + line % R, column = line / R * kLine;
      if (row >= d_ || column > row) continue;
      for (int l = 0; l < L; ++l) __builtin_prefetch(source_[l] + row * d_ + column, 0, 2);
    }
  }
  INFOSLICE_INLINE void load_panel(int64_t c) {
    for (int64_t i = c; i < c + R; ++i) {
      V* to = panel(c) + (i - c);
      if (i >= d_) {
        for (int64_t j = 0; j <= i; ++j) to[j * R] = V{} + (i == j ? T(1) : T(0));
      } else if (batch_.index) {
        gather_row(i, to);
      } else {
        load_row(i, to);
        if (ahead_) fetch_ahead(i);
      }
    }
  }

  INFOSLICE_INLINE void factor() {
    for (int64_t c = 0; c < d_; c += R) {
      load_panel(c);
      V* own = panel(c);
      for (int64_t k = 0; k < c; k += R) {
        if (!batch_.index && d_ > 32) fetch_next_panel(c + R, k / R);
        solve_tile(panel(k), k, own);
      }
      V acc[R][R];
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
        for (int j = i; j < R; ++j) acc[i][j] = own[(c + i) * R + j];
      for (int64_t r = 0; r < c; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
          for (int j = i; j < R; ++j) acc[i][j] -= own[r * R + i] * own[r * R + j];
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        V scale{};
        for (int l = 0; l < L; ++l) scale[l] = T(1) / std::sqrt(acc[i][i][l]);
        pivot_[c + i] = acc[i][i];
        scale_[c + i] = scale;
#pragma GCC unroll 4
        for (int j = i; j < R; ++j) {
          acc[i][j] *= scale;
          own[(c + i) * R + j] = acc[i][j];
        }
#pragma GCC unroll 4
        for (int t = i + 1; t < R; ++t)
#pragma GCC unroll 4
          for (int j = t; j < R; ++j) acc[t][j] -= acc[i][t] * acc[i][j];
      }
    }
  }
  /// Rows k..k + R of panel `own`, from those above and the finished panel `left` of columns k.
  INFOSLICE_INLINE void solve_tile(const V* left, int64_t k, V* own) {
    V acc[R][R];
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j) acc[i][j] = own[(k + i) * R + j];
    for (int64_t r = 0; r < k; ++r) {
      V row[R];
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j) row[j] = own[r * R + j];
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        const V multiplier = left[r * R + i];
#pragma GCC unroll 4
        for (int j = 0; j < R; ++j) acc[i][j] -= multiplier * row[j];
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < R; ++i) {
#pragma GCC unroll 4
      for (int t = 0; t < i; ++t)
#pragma GCC unroll 4
        for (int j = 0; j < R; ++j) acc[i][j] -= left[(k + t) * R + i] * acc[t][j];
#pragma GCC unroll 4
      for (int j = 0; j < R; ++j) {
        acc[i][j] *= scale_[k + i];
        own[(k + i) * R + j] = acc[i][j];
      }
    }
  }
  INFOSLICE_INLINE int32_t first_bad(int lane) const {
    int64_t k = 0;
    while (!std::isnan(lanes(pivot_ + k)[lane] * lanes(scale_ + k)[lane])) ++k;
    return static_cast<int32_t>(k + 1);
  }

  // Columns j..j + N K of row i of the factors from from[column * R].
  template <int N>
  INFOSLICE_INLINE void store_pieces_of_row(int64_t i, int64_t j, const V* from) {
    V v[N][K];
#pragma GCC unroll 4
    for (int p = 0; p < N; ++p) {
#pragma GCC unroll 4
      for (int e = 0; e < K; ++e) {
        const int64_t column = j + p * K + e;
        v[p][e] = column <= i ? from[column * R] : V{};
      }
      transpose_pieces<L, T>(v[p]);
    }
#pragma GCC unroll 4
    for (int q = 0; q < K; ++q)
#pragma GCC unroll 4
      for (int p = 0; p < N; ++p) store_pieces<L>(target_ + q, K, i * d_ + j + p * K, v[p][q]);
  }
  INFOSLICE_INLINE void store_factor() {
    for (int64_t i = 0; i < d_; ++i) {
      const V* from = panel(i / R * R) + i % R;
      if (d_ < K) {
        for (int64_t j = 0; j < d_; ++j)
          for (int l = 0; l < L; ++l)
            target_[l][i * d_ + j] = j <= i ? lanes(from + j * R)[l] : T(0);
        continue;
      }
      int64_t j = 0;
      for (; j + 4 * K <= d_; j += 4 * K) store_pieces_of_row<4>(i, j, from);
      for (; j < d_; j += K) store_pieces_of_row<1>(i, std::min(j, d_ - K), from);
    }
  }

  static T* lanes(V* v) { return reinterpret_cast<T*>(v); }
  static const T* lanes(const V* v) { return reinterpret_cast<const T*>(v); }

  const Batch<T>& batch_;
  int64_t d_;
  V *u_, *scale_, *pivot_;  // u_ii = sqrt pivot, scale = 1 / u_ii
  const T* source_[L];
  T* target_[L];
  const T* ahead_;            // null where nothing is fetched ahead
  int64_t *variable_, *row_;  // of submatrices: [d, L] variables and where their rows start
};

/// Bytes of workspace for interleaved(): the panels, what stands behind them, at any register width.
constexpr int64_t interleaved_workspace(int64_t d, bool submatrices) {
  const int64_t order = d + 3;
  return (order * (order + 4) / 2 + 2 * order + 8) * 64 + (submatrices ? 2 * d * 16 * 8 : 0);
}

template <int Bytes, class T>
INFOSLICE_INLINE void interleaved_body(const Batch<T>& batch, T* workspace) {
  // R x R accumulators fill 16 of 32 registers. Where there are 16, 3 x 3 leave some for operands,
  // but of small orders most is loading and pivots, and whole tiles count for more.
  if constexpr (Bytes == 64 || !INFOSLICE_MULTIVERSION) {
    Interleaved<Bytes, 4, T>(batch, workspace).run();
  } else if (batch.d <= 16) {
    Interleaved<Bytes, 4, T>(batch, workspace).run();
  } else {
    Interleaved<Bytes, 3, T>(batch, workspace).run();
  }
}

}  // namespace infoslice::cpu
