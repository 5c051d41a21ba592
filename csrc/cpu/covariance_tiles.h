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

// N lanes of a vector from one on.
template <class A, int N, class V>
INFOSLICE_INLINE Vec<A, N> slice(const V* v, int from) {
  Vec<A, N> lanes;
  __builtin_memcpy(&lanes, reinterpret_cast<const A*>(v) + from, sizeof(lanes));
  return lanes;
}

// The sum of both halves of a vector.
template <class A, int W>
INFOSLICE_INLINE Vec<A, W / 2> add_halves(const Vec<A, W>& v) {
  return slice<A, W / 2>(&v, 0) + slice<A, W / 2>(&v, W / 2);
}

// [sum of both halves of a, of b].
INFOSLICE_INLINE Vec<float, 8> pair_halves(const Vec<float, 8>& a, const Vec<float, 8>& b) {
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
         __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}
INFOSLICE_INLINE Vec<double, 4> pair_halves(const Vec<double, 4>& a, const Vec<double, 4>& b) {
  return __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
}

// Within each 16 bytes: the sums of the lanes of 4 (float) or 2 (double) vectors.
INFOSLICE_INLINE Vec<float, 4> sums_of_quads(const Vec<float, 4>* v) {
  const auto ab = __builtin_shufflevector(v[0], v[1], 0, 4, 1, 5) +
                  __builtin_shufflevector(v[0], v[1], 2, 6, 3, 7);
  const auto cd = __builtin_shufflevector(v[2], v[3], 0, 4, 1, 5) +
                  __builtin_shufflevector(v[2], v[3], 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}
INFOSLICE_INLINE Vec<float, 8> sums_of_quads(const Vec<float, 8>* v) {
  const auto ab = __builtin_shufflevector(v[0], v[1], 0, 8, 1, 9, 4, 12, 5, 13) +
                  __builtin_shufflevector(v[0], v[1], 2, 10, 3, 11, 6, 14, 7, 15);
  const auto cd = __builtin_shufflevector(v[2], v[3], 0, 8, 1, 9, 4, 12, 5, 13) +
                  __builtin_shufflevector(v[2], v[3], 2, 10, 3, 11, 6, 14, 7, 15);
  return __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13) +
         __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
}
INFOSLICE_INLINE Vec<double, 2> sums_of_quads(const Vec<double, 2>* v) {
  return __builtin_shufflevector(v[0], v[1], 0, 2) + __builtin_shufflevector(v[0], v[1], 1, 3);
}
INFOSLICE_INLINE Vec<double, 4> sums_of_quads(const Vec<double, 4>* v) {
  return __builtin_shufflevector(v[0], v[1], 0, 4, 2, 6) +
         __builtin_shufflevector(v[0], v[1], 1, 5, 3, 7);
}

// The sums of the lanes of L vectors of L lanes.
template <class A, int L>
INFOSLICE_INLINE Vec<A, L> sums_of_lanes(const Vec<A, L>* v) {
  constexpr int kQ = 16 / sizeof(A);
  if constexpr (L == kQ) {
    return sums_of_quads(v);
  } else {
    Vec<A, L> pairs[kQ];
    for (int i = 0; i < kQ; ++i) pairs[i] = pair_halves(v[i], v[i + kQ]);
    return sums_of_quads(pairs);
  }
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
  // As many sums at a time as 32 bytes have lanes.
  constexpr int L = W * sizeof(A) == 64 ? W / 2 : W;
#pragma GCC unroll 32
  for (int e = 0; e < P * P; e += L) {
    Vec<A, L> partial[L] = {};
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if (e + i >= P * P) break;
      const V& sum = sums[(e + i) / P][(e + i) % P];
      if constexpr (L == W) {
        partial[i] = sum;
      } else {
        partial[i] = add_halves<A, W>(sum);
      }
    }
    const Vec<A, L> tile = sums_of_lanes<A, L>(partial);
    constexpr int D = W * sizeof(A) / 8 < L ? W * sizeof(A) / 8 : L;  // doubles of a register
    using Doubles = Vec<double, D>;
#pragma GCC unroll 4
    for (int i = 0; i < L; i += D) {
      const auto part = __builtin_convertvector(slice<A, D>(&tile, i), Doubles);
      if (e + i + D <= P * P) {
        store(products + e + i, load<Doubles>(products + e + i) + part);
      } else {
        double rest[D];
        store(rest, part);
        for (int c = 0; c < P * P - e - i; ++c) products[e + i + c] += rest[c];
      }
    }
  }
}

// Thin entries, one for each CPU level.
#define INFOSLICE_TILE_ENTRY(suffix, target, bytes, panel)                                        \
  template <class A, bool kDiagonal>                                                              \
  target void tile_##suffix(const A* left, const A* right, int64_t blocks, Ahead ahead,           \
                            double* products) {                                                   \
    tile_body<A, bytes / int(sizeof(A)), panel, kDiagonal>(left, right, blocks, ahead, products); \
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
