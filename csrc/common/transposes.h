// Matrices turned within registers, on the compiler's shuffles.
//
// A register is a row of pieces of 16 bytes. Shuffles either move whole pieces or stay inside them:
// every x86 level has both as single instructions, NEON needs the latter only.
#pragma once

#include <cstdint>
#include <utility>

#include "common/simd.h"

namespace infoslice {

template <class T>
constexpr int kPiece = static_cast<int>(16 / sizeof(T));  // elements of a piece

namespace detail {

template <int... I>
using Indices = std::integer_sequence<int, I...>;

template <class V, int First, class H, int... I>
INFOSLICE_INLINE V pick(const H& low, const H& high, Indices<I...>) {
  return __builtin_shufflevector(low, high, First + I...);
}

// The element of two registers of `lanes` elements, counted through, that lane `lane` takes if
// `Pattern` gives, for every element of a piece, an element of the two pieces in that place.
template <int... Pattern>
constexpr int in_pieces(int lane, int lanes) {
  constexpr int pattern[] = {Pattern...}, piece = sizeof...(Pattern);
  const int from = pattern[lane % piece], start = lane / piece * piece;
  return start + (from < piece ? from : lanes + from - piece);
}
template <int... Pattern>
struct Shuffle {
  template <class V, int... I>
  INFOSLICE_INLINE static V in(const V& a, const V& b, Indices<I...>) {
    return __builtin_shufflevector(a, b, in_pieces<Pattern...>(I, sizeof...(I))...);
  }
};

}  // namespace detail

// Half a register (0 or 1), and two halves joined.
template <int Half, class T, int N>
INFOSLICE_INLINE Vec<T, N / 2> half(const Vec<T, N>& value) {
  return detail::pick<Vec<T, N / 2>, Half * N / 2>(value, value,
                                                   std::make_integer_sequence<int, N / 2>());
}
template <class T, int N>
INFOSLICE_INLINE Vec<T, 2 * N> join(const Vec<T, N>& low, const Vec<T, N>& high) {
  return detail::pick<Vec<T, 2 * N>, 0>(low, high, std::make_integer_sequence<int, 2 * N>());
}

// A register whose p-th piece comes from from[p * step] + at, and back.
template <int N, class T>
INFOSLICE_INLINE Vec<T, N> load_pieces(const T* const* from, int step, int64_t at) {
  if constexpr (N == kPiece<T>) {
    return load<Vec<T, N>>(*from + at);
  } else {
    return join<T, N / 2>(load_pieces<N / 2>(from, step, at),
                          load_pieces<N / 2>(from + N / 2 / kPiece<T> * step, step, at));
  }
}
template <int N, class T>
INFOSLICE_INLINE void store_pieces(T* const* to, int step, int64_t at, const Vec<T, N>& value) {
  if constexpr (N == kPiece<T>) {
    store(*to + at, value);
  } else {
    store_pieces<N / 2>(to, step, at, half<0, T, N>(value));
    store_pieces<N / 2>(to + N / 2 / kPiece<T> * step, step, at, half<1, T, N>(value));
  }
}

// Element e of piece p of register q becomes element q of piece p of register e: with registers of
// load_pieces(from + q, kPiece, at) the elements at + e of all lanes, in the order of the lanes.
template <int N, class T>
INFOSLICE_INLINE void transpose_pieces(Vec<T, N> (&v)[kPiece<T>]) {
  constexpr auto lanes = std::make_integer_sequence<int, N>();
  const auto a = v[0], b = v[1];
  if constexpr (kPiece<T> == 2) {
    v[0] = detail::Shuffle<0, 2>::in(a, b, lanes);
    v[1] = detail::Shuffle<1, 3>::in(a, b, lanes);
  } else {
    const auto c = v[2], d = v[3];
    const auto ab_low = detail::Shuffle<0, 4, 1, 5>::in(a, b, lanes);
    const auto ab_high = detail::Shuffle<2, 6, 3, 7>::in(a, b, lanes);
    const auto cd_low = detail::Shuffle<0, 4, 1, 5>::in(c, d, lanes);
    const auto cd_high = detail::Shuffle<2, 6, 3, 7>::in(c, d, lanes);
    v[0] = detail::Shuffle<0, 1, 4, 5>::in(ab_low, cd_low, lanes);
    v[1] = detail::Shuffle<2, 3, 6, 7>::in(ab_low, cd_low, lanes);
    v[2] = detail::Shuffle<0, 1, 4, 5>::in(ab_high, cd_high, lanes);
    v[3] = detail::Shuffle<2, 3, 6, 7>::in(ab_high, cd_high, lanes);
  }
}

}  // namespace infoslice
