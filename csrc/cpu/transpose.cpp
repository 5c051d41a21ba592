#include "cpu/transpose.h"

#include <algorithm>
#include <utility>

#include "cpu/widest.h"

namespace infoslice::cpu {
namespace {

template <int L, int Half, class V, int... I>
INFOSLICE_INLINE void exchange(V& a, V& b, std::integer_sequence<int, I...>) {
  const V low = __builtin_shufflevector(a, b, (I & Half ? L + I - Half : I)...);
  b = __builtin_shufflevector(a, b, (I & Half ? L + I : I + Half)...);
  a = low;
}

/// Transposes L x L elements: exchanges the off-diagonal quarters of ever smaller blocks.
template <int L, int Half = L / 2, class V>
INFOSLICE_INLINE void transpose_block(V (&rows)[L]) {
#pragma GCC unroll 16
  for (int r = 0; r < L; ++r) {
    if (!(r & Half)) {
      exchange<L, Half>(rows[r], rows[r + Half], std::make_integer_sequence<int, L>());
    }
  }
  if constexpr (Half > 1) transpose_block<L, Half / 2>(rows);
}

/// to[j][i] = from[i][j] for the blocks that meet rows [0, rows) and columns [0, min(columns,
/// width(row))). Blocks at the edges overlap others instead of being narrower.
template <int Bytes, class Source, class T, class Width>
INFOSLICE_INLINE void transpose_blocks(const Source* from, int64_t rows, int64_t columns,
                                       int64_t from_stride, T* to, int64_t to_stride,
                                       const Width& width) {
  constexpr int L = Bytes / static_cast<int>(sizeof(T));
  for (int64_t i0 = 0; i0 < rows; i0 += L) {
    const int64_t end = std::min(columns, width(std::min(i0 + L, rows)));
    if (rows < L || columns < L) {
      for (int64_t i = i0; i < std::min(i0 + L, rows); ++i) {
        for (int64_t j = 0; j < end; ++j) {
          to[j * to_stride + i] = static_cast<T>(from[i * from_stride + j]);
        }
      }
      continue;
    }
    const int64_t i = std::min(i0, rows - L);
    for (int64_t j0 = 0; j0 < end; j0 += L) {
      const int64_t j = std::min(j0, columns - L);
      Vec<T, L> block[L];
#pragma GCC unroll 16
      for (int r = 0; r < L; ++r) {
        block[r] = __builtin_convertvector(load<Vec<Source, L>>(from + (i + r) * from_stride + j),
                                           Vec<T, L>);
      }
      transpose_block<L>(block);
#pragma GCC unroll 16
      for (int r = 0; r < L; ++r) store(to + (j + r) * to_stride + i, block[r]);
    }
  }
}

template <int Bytes>
INFOSLICE_INLINE void transpose_body(const double* source, int64_t rows, int64_t columns,
                                     int64_t source_stride, double* destination,
                                     int64_t destination_stride) {
  transpose_blocks<Bytes>(source, rows, columns, source_stride, destination, destination_stride,
                          [=](int64_t) { return columns; });
}
template <int Bytes, class Source, class T>
INFOSLICE_INLINE void load_upper_body(const Source* lower, int64_t d, T* upper, int64_t stride) {
  transpose_blocks<Bytes>(lower, d, d, d, upper, stride, [](int64_t row) { return row; });
}
template <int Bytes, class T>
INFOSLICE_INLINE void store_lower_body(const T* upper, int64_t d, int64_t stride, T* lower) {
  constexpr int L = Bytes / static_cast<int>(sizeof(T));
  for (int64_t strip = 0; strip < d; strip += L) {  // columns of upper become rows of lower
    const int64_t i0 = std::min(strip, std::max<int64_t>(0, d - L)), end = std::min(i0 + L, d);
    transpose_blocks<Bytes>(upper + i0, end, end - i0, stride, lower + i0 * d, d,
                            [=](int64_t) { return end - i0; });
    for (int64_t i = i0; i < end; ++i) std::fill(lower + i * d + i + 1, lower + (i + 1) * d, T(0));
  }
}

}  // namespace

INFOSLICE_WIDEST(void, transpose,
                 (const double* source, int64_t rows, int64_t columns, int64_t source_stride,
                  double* destination, int64_t destination_stride),
                 transpose_body,
                 (source, rows, columns, source_stride, destination, destination_stride))
INFOSLICE_WIDEST(void, load_upper, (const float* lower, int64_t d, float* upper, int64_t stride),
                 load_upper_body, (lower, d, upper, stride))
INFOSLICE_WIDEST(void, load_upper, (const float* lower, int64_t d, double* upper, int64_t stride),
                 load_upper_body, (lower, d, upper, stride))
INFOSLICE_WIDEST(void, load_upper, (const double* lower, int64_t d, double* upper, int64_t stride),
                 load_upper_body, (lower, d, upper, stride))
INFOSLICE_WIDEST(void, store_lower, (const float* upper, int64_t d, int64_t stride, float* lower),
                 store_lower_body, (upper, d, stride, lower))
INFOSLICE_WIDEST(void, store_lower, (const double* upper, int64_t d, int64_t stride, double* lower),
                 store_lower_body, (upper, d, stride, lower))

}  // namespace infoslice::cpu
