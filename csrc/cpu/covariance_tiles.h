// The hot loop of covariance: tiles of products of two panels.
//
// A packed chunk holds samples of all variables in panels of P variables. A panel is a row of
// blocks; a block is P vectors, each W consecutive samples of one variable. A tile is the P x P
// sums of products of two panels, kept in P * P registers of W partial sums each: every vector
// loaded serves P multiply-adds, nothing is broadcast, and inputs whose samples are contiguous
// (images, patches) need no transposition. P fills the registers of a CPU level: 5 of 32, 3 of 16.
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include "common/simd.h"

namespace infoslice::cpu {

#if defined(__aarch64__)
constexpr int kBaselinePanel = 5;  // 32 registers
#else
constexpr int kBaselinePanel = 3;
#endif

// How a chunk is packed at the CPU level at hand.
struct Packing {
  int panel, lanes;  // variables of a panel, samples of a block
};
template <class A>
Packing packing() {
  switch (cpu_level()) {
    case CpuLevel::v4:
      return {5, 64 / int(sizeof(A))};
    case CpuLevel::v3:
      return {3, 32 / int(sizeof(A))};
    default:
      return {kBaselinePanel, 16 / int(sizeof(A))};
  }
}

template <class V, size_t... I>
INFOSLICE_INLINE auto add_halves(const V& v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, int(I)...) +
         __builtin_shufflevector(v, v, int(I + sizeof...(I))...);
}

// W partial sums to the 16 bytes of a Vec<A, 16 / sizeof(A)>.
template <int W, class A, class V>
INFOSLICE_INLINE auto fold(const V& v) {
  if constexpr (W * sizeof(A) == 16) {
    return v;
  } else {
    return fold<W / 2, A>(add_halves(v, std::make_index_sequence<W / 2>{}));
  }
}

// The sums of the lanes of 4 (float) or 2 (double) vectors of 16 bytes, in one vector.
INFOSLICE_INLINE Vec<float, 4> sums_of_lanes(const Vec<float, 4>* v) {
  const auto ab = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5) +
                  __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
  const auto cd = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5) +
                  __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}
INFOSLICE_INLINE Vec<double, 2> sums_of_lanes(const Vec<double, 2>* v) {
  return __builtin_shufflevector(v[0], v[1], 0, 2) + __builtin_shufflevector(v[0], v[1], 1, 3);
}

// Memory that the next chunk will read, fetched `step` bytes further with each block of a tile.
struct Ahead {
  const char* at;
  int64_t step;
};

// products (P x P, row major) += the tile of two panels; of a panel with itself only the lower
// triangle is computed, and what is above it is of no use.
template <class A, int W, int P, bool kDiagonal>
INFOSLICE_INLINE void tile_body(const A* left, const A* right, int64_t blocks, Ahead ahead,
                                double* products) {
  using V = Vec<A, W>;
  for (int line = 0; line < P * P; line += 8) __builtin_prefetch(products + line, 1);
  V sums[P][P] = {};
  for (const A* end = left + blocks * P * W; left != end; left += P * W, right += P * W) {
    __builtin_prefetch(ahead.at);
    ahead.at += ahead.step;
    V b[P];
#pragma GCC unroll 16
    for (int c = 0; c < P; ++c) b[c] = load<V>(right + c * W);
#pragma GCC unroll 16
    for (int r = 0; r < P; ++r) {
      const V a = kDiagonal ? b[r] : load<V>(left + r * W);
#pragma GCC unroll 16
      for (int c = 0; c < (kDiagonal ? r + 1 : P); ++c) sums[r][c] += a * b[c];
    }
  }
  constexpr int kQuad = 16 / sizeof(A);
  constexpr int kQuads = (P * P + kQuad - 1) / kQuad;
  Vec<A, kQuad> folded[kQuads * kQuad] = {};
#pragma GCC unroll 32
  for (int e = 0; e < P * P; ++e) folded[e] = fold<W, A>(sums[e / P][e % P]);
  A tile[kQuads * kQuad];
#pragma GCC unroll 32
  for (int q = 0; q < kQuads; ++q) store(tile + q * kQuad, sums_of_lanes(folded + q * kQuad));
  for (int e = 0; e < P * P; ++e) products[e] += static_cast<double>(tile[e]);
}

// Thin entries, one for each CPU level.
#define INFOSLICE_TILE_ENTRY(suffix, target, bytes, panel)                                    \
  template <class A, bool kDiagonal>                                                          \
  target void tile_##suffix(const A* left, const A* right, int64_t blocks, Ahead ahead, double* products) { \
    tile_body<A, bytes / int(sizeof(A)), panel, kDiagonal>(left, right, blocks, ahead, products);    \
  }
INFOSLICE_TILE_ENTRY(v4, INFOSLICE_TARGET_V4, 64, 5)
INFOSLICE_TILE_ENTRY(v3, INFOSLICE_TARGET_V3, 32, 3)
INFOSLICE_TILE_ENTRY(base, , 16, kBaselinePanel)
#undef INFOSLICE_TILE_ENTRY

template <class A, bool kDiagonal>
void tile(const A* left, const A* right, int64_t blocks, Ahead ahead, double* products) {
  switch (cpu_level()) {
    case CpuLevel::v4:
      return tile_v4<A, kDiagonal>(left, right, blocks, ahead, products);
    case CpuLevel::v3:
      return tile_v3<A, kDiagonal>(left, right, blocks, ahead, products);
    case CpuLevel::baseline:
      return tile_base<A, kDiagonal>(left, right, blocks, ahead, products);
  }
}

}  // namespace infoslice::cpu
