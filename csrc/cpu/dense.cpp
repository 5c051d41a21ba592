#include "cpu/dense.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "cpu/widest.h"

namespace infoslice::cpu {
namespace {

constexpr int kVectors = 2;        // registers per column strip
constexpr int64_t kRowBlock = 64;  // rows finished together: their slab of multipliers stays in L2

template <class T, int Bytes>
constexpr int kLanes = Bytes / static_cast<int>(sizeof(T));
template <class T, int Bytes>
using Lanes = Vec<T, kLanes<T, Bytes>>;

/// Rows that share one pass over the finished rows: as many accumulators as the register file
/// holds.
template <int Bytes>
constexpr int kGroup = Bytes == 64 ? 8 : 4;

/// acc[i][:] += sign * sum_{first <= j < last} left[j][i] * right[j][:], the inner loop of
/// everything.
template <class T, int Bytes, int Group, int Sign>
INFOSLICE_INLINE void accumulate(Lanes<T, Bytes> (&acc)[Group][kVectors], const T* left,
                                 const T* right, int64_t stride, int64_t first, int64_t last) {
  using V = Lanes<T, Bytes>;
  constexpr int L = kLanes<T, Bytes>;
  for (int64_t j = first; j < last; ++j) {
    const T* multiplier = left + j * stride;
    const T* row = right + j * stride;
    V value[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) value[v] = load<V>(row + v * L);
#pragma GCC unroll 8
    for (int i = 0; i < Group; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        if (Sign < 0) {
          acc[i][v] -= value[v] * multiplier[i];
        } else {
          acc[i][v] += value[v] * multiplier[i];
        }
      }
    }
  }
}

/// Finishes `Group` rows (k.. counted within A) of the column strip that starts at c. Returns 0 or
/// the 1-based row whose pivot failed.
template <class T, int Bytes, int Group>
INFOSLICE_INLINE int64_t finish_rows(const Rows<T>& m, int64_t k, int64_t c, int64_t first) {
  using V = Lanes<T, Bytes>;
  constexpr int L = kLanes<T, Bytes>;
  T* const own = m.data + (m.prior + k) * m.stride;
  V acc[Group][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < Group; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) acc[i][v] = load<V>(own + i * m.stride + c + v * L);
  }
  accumulate<T, Bytes, Group, -1>(acc, m.data + k, m.data + c, m.stride, first, m.prior + k);
#pragma GCC unroll 8
  for (int i = 0; i < Group; ++i) {
    T* const row = own + i * m.stride;
#pragma GCC unroll 8
    for (int t = 0; t < i; ++t) {
      const T multiplier = own[t * m.stride + k + i];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) acc[i][v] -= acc[t][v] * multiplier;
    }
    const int64_t diagonal = k + i - c;  // lane of this row's diagonal, if the strip holds it
    T pivot_root;
    if (diagonal >= 0 && diagonal < kVectors * L) {
      const T pivot = acc[i][diagonal / L][diagonal % L];
      if (!(pivot > T(0) && pivot <= std::numeric_limits<T>::max())) return k + i + 1;
      pivot_root = std::sqrt(pivot);
    } else {
      pivot_root = row[k + i];
    }
    const T scale = T(1) / pivot_root;
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      acc[i][v] *= scale;
      store(row + c + v * L, acc[i][v]);
    }
    if (diagonal >= 0 && diagonal < kVectors * L) row[k + i] = pivot_root;
  }
  return 0;
}

template <int Bytes, class T>
INFOSLICE_INLINE int64_t eliminate_body(const Rows<T>& m) {
  constexpr int64_t strip = kVectors * kLanes<T, Bytes>;
  constexpr int group = kGroup<Bytes>;
  static_assert(strip % group == 0, "the diagonal of a group of rows must lie in one strip");
  for (int64_t block = 0; block < m.rows; block += kRowBlock) {
    const int64_t end = std::min(block + kRowBlock, m.rows);
    for (int64_t c = block / strip * strip; c < m.columns; c += strip) {
      // Below unit vector r everything above row r is zero: skip it both as a row to finish and as
      // a summand.
      const int64_t zeros = c >= m.identity ? c - m.identity : 0;
      int64_t k = block;
      for (; k + group <= end && k < c + strip; k += group) {
        if (k + group <= zeros) continue;
        const int64_t first = c >= m.identity ? m.prior + std::min(zeros, k) : 0;
        if (const int64_t failed = finish_rows<T, Bytes, group>(m, k, c, first)) return failed;
      }
      for (; k < end && k < c + strip; ++k) {
        if (k < zeros) continue;
        const int64_t first = c >= m.identity ? m.prior + std::min(zeros, k) : 0;
        if (const int64_t failed = finish_rows<T, Bytes, 1>(m, k, c, first)) return failed;
      }
    }
  }
  return 0;
}

template <int Bytes, int Group>
INFOSLICE_INLINE void gram_rows(const double* b, int64_t rows, int64_t stride, int64_t i0,
                                int64_t c, double* out, int64_t out_stride) {
  using V = Lanes<double, Bytes>;
  constexpr int L = kLanes<double, Bytes>;
  V acc[Group][kVectors] = {};
  accumulate<double, Bytes, Group, 1>(acc, b + i0, b + c, stride, 0, rows);
  for (int i = 0; i < Group; ++i) {
    for (int v = 0; v < kVectors; ++v) store(out + (i0 + i) * out_stride + c + v * L, acc[i][v]);
  }
}

template <int Bytes>
INFOSLICE_INLINE void gram_body(const double* b, int64_t rows, int64_t columns, int64_t stride,
                                double* c, int64_t c_stride) {
  constexpr int64_t strip = kVectors * kLanes<double, Bytes>;
  constexpr int group = kGroup<Bytes>;
  for (int64_t s = 0; s < columns; s += strip) {
    int64_t i = 0;
    for (; i + group <= columns && i < s + strip; i += group)
      gram_rows<Bytes, group>(b, rows, stride, i, s, c, c_stride);
    for (; i < columns && i < s + strip; ++i)
      gram_rows<Bytes, 1>(b, rows, stride, i, s, c, c_stride);
  }
}

constexpr int kWidth = 3;              // registers per row of an update's tile
constexpr int64_t kColumnBlock = 192;  // multipliers packed together: they stay in L2

/// c[i][:] += sign * sum_j left[j][i] * right[j][:] for `Group` rows of `Vectors` registers.
template <class T, int Bytes, int Group, int Vectors, int Sign>
INFOSLICE_INLINE void update_tile(const T* left, int64_t left_stride, const T* right,
                                  int64_t right_stride, int64_t count, T* c, int64_t c_stride) {
  using V = Lanes<T, Bytes>;
  constexpr int L = kLanes<T, Bytes>;
  V acc[Group][Vectors] = {};
#pragma GCC unroll 8
  for (int i = 0; i < Group; ++i) {
    // The tile to the right comes next: c may be larger than any cache.
    for (int v = 0; v < Vectors; v += 64 / Bytes) {
      __builtin_prefetch(c + i * c_stride + (Vectors + v) * L, 1, 2);
    }
  }
  for (int64_t j = 0; j < count; ++j) {
    V value[Vectors];
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) value[v] = load<V>(right + j * right_stride + v * L);
#pragma GCC unroll 8
    for (int i = 0; i < Group; ++i) {
      const T multiplier = left[j * left_stride + i];
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) acc[i][v] += value[v] * multiplier;
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Group; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) {
      T* const to = c + i * c_stride + v * L;
      store(to, Sign < 0 ? load<V>(to) - acc[i][v] : load<V>(to) + acc[i][v]);
    }
  }
}

template <int Bytes>
INFOSLICE_INLINE void subtract_gram_body(const double* u, int64_t rows, int64_t columns,
                                         int64_t stride, double* c, int64_t c_stride) {
  constexpr int64_t L = kLanes<double, Bytes>;
  constexpr int group = kGroup<Bytes>;
  const Workspace<double> packed(rows * kColumnBlock);
  for (int64_t block = 0; block < columns; block += kColumnBlock) {
    const int64_t end = std::min(block + kColumnBlock, columns);
    for (int64_t i = block; i < end; i += group) {  // [group][row][column], one stream per tile
      const int64_t width = std::min<int64_t>(group, end - i);
      double* to = packed.get() + (i - block) * rows;
      for (int64_t j = 0; j < rows; ++j, to += width) std::copy_n(u + j * stride + i, width, to);
    }
    for (int64_t strip = block; strip < columns; strip += kWidth * L) {
      const int64_t vectors = std::min<int64_t>(kWidth, (columns - strip + L - 1) / L);
      for (int64_t i = block; i < std::min(end, strip + kWidth * L); i += group) {
        const int64_t skip = std::max<int64_t>(0, (i - strip) / L);
        const int64_t from = strip + skip * L, width = std::min<int64_t>(group, end - i);
        const double* left = packed.get() + (i - block) * rows;
        const auto tile = [&](auto vectors) __attribute__((always_inline)) {
          constexpr int n = decltype(vectors)::value;
          if (width == group) {
            update_tile<double, Bytes, group, n, -1>(left, group, u + from, stride, rows,
                                                     c + i * c_stride + from, c_stride);
          } else {
            for (int64_t r = 0; r < width; ++r) {
              update_tile<double, Bytes, 1, n, -1>(left + r, width, u + from, stride, rows,
                                                   c + (i + r) * c_stride + from, c_stride);
            }
          }
        };
        if (vectors - skip == 3) {
          tile(std::integral_constant<int, 3>());
        } else if (vectors - skip == 2) {
          tile(std::integral_constant<int, 2>());
        } else if (vectors - skip == 1) {
          tile(std::integral_constant<int, 1>());
        }
      }
    }
  }
}

}  // namespace

INFOSLICE_WIDEST(void, subtract_gram,
                 (const double* u, int64_t rows, int64_t columns, int64_t stride, double* c,
                  int64_t c_stride),
                 subtract_gram_body, (u, rows, columns, stride, c, c_stride))
INFOSLICE_WIDEST(int64_t, eliminate, (const Rows<float>& m), eliminate_body, (m))
INFOSLICE_WIDEST(int64_t, eliminate, (const Rows<double>& m), eliminate_body, (m))
INFOSLICE_WIDEST(void, gram,
                 (const double* b, int64_t rows, int64_t columns, int64_t stride, double* c,
                  int64_t c_stride),
                 gram_body, (b, rows, columns, stride, c, c_stride))

}  // namespace infoslice::cpu
