#include "cpu/scores.h"

#include <limits>

#include "cpu/widest.h"

namespace infoslice::cpu {
namespace {

template <int Bytes>
using Lanes = Vec<double, Bytes / 8>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// log x of positive normal numbers, to some units in the last place.
template <int Bytes>
INFOSLICE_INLINE Lanes<Bytes> log_of(const Lanes<Bytes>& x) {
  using V = Lanes<Bytes>;
  using I = Vec<int64_t, Bytes / 8>;
  // x = m 2^e with m in [1/sqrt 2, sqrt 2)
  const I bits = (I)x;
  V m = (V)((bits & 0x000fffffffffffff) | 0x3ff0000000000000);
  // An integer below 2^52 becomes a double as the mantissa of 2^52.
  V e = (V)((bits >> 52) | 0x4330000000000000) - (4503599627370496.0 + 1023.0);
  e = m > 1.4142135623730951 ? e + 1.0 : e;
  m = m > 1.4142135623730951 ? m * 0.5 : m;
  // log m = 2 atanh s = 2 s (1 + s^2 / 3 + s^4 / 5 + ...), s^2 < 0.0295
  const V s = (m - 1.0) / (m + 1.0), z = s * s;
  V sum = z * 0.0 + 1.0 / 21;
#pragma GCC unroll 10
  for (int k = 9; k >= 0; --k) sum = sum * z + 1.0 / (2 * k + 1);
  return e * 0.693147180369123816490 + (2.0 * s * sum + e * 1.90821492927058770002e-10);
}

/// Row a of L of 8 (here a register of) blocks: leaves L_ab in `lower`, returns the pivot.
template <int Bytes>
INFOSLICE_INLINE Lanes<Bytes> eliminate_row(const double* block, int64_t a, const double* inverse,
                                            double* lower) {
  using V = Lanes<Bytes>;
  double* const row = lower + packed(a, 0) * kTile;
  V pivot = load<V>(block + packed(a, a) * kTile);
  for (int64_t b = 0; b < a; ++b) {
    V x = load<V>(block + packed(a, b) * kTile);
    for (int64_t t = 0; t < b; ++t)
      x -= load<V>(row + t * kTile) * load<V>(lower + packed(b, t) * kTile);
    store(row + b * kTile, x);
  }
  for (int64_t b = 0; b < a; ++b) {
    const V x = load<V>(row + b * kTile), scaled = x * load<V>(inverse + b * kTile);
    pivot -= x * scaled;
    store(row + b * kTile, scaled);
  }
  return pivot;
}

/// tr(P^-1 Q) of factored P: the sum of (L^-1 Q L^-T)_aa / D_a.
template <int Bytes>
INFOSLICE_INLINE Lanes<Bytes> trace(const double* block, int64_t r, const double* lower,
                                    const double* pivots, double* square) {
  using V = Lanes<Bytes>;
  V sum = {};
  for (int64_t a = 0; a < r; ++a) {
    double* const row = square + a * r * kTile;
    for (int64_t b = 0; b < r; ++b) {  // row a of L^-1 Q
      V x = load<V>(block + packed(std::max(a, b), std::min(a, b)) * kTile);
      for (int64_t t = 0; t < a; ++t)
        x -= load<V>(lower + packed(a, t) * kTile) * load<V>(square + (t * r + b) * kTile);
      store(row + b * kTile, x);
    }
  }
  for (int64_t a = 0; a < r; ++a) {  // and of L^-1 Q L^-T up to its diagonal
    double* const row = square + a * r * kTile;
    for (int64_t b = 0; b <= a; ++b) {
      V x = load<V>(row + b * kTile);
      for (int64_t t = 0; t < b; ++t)
        x -= load<V>(row + t * kTile) * load<V>(lower + packed(b, t) * kTile);
      store(row + b * kTile, x);
    }
    sum += load<V>(row + a * kTile) / load<V>(pivots + a * kTile);
  }
  return sum;
}

// Refusals are added up as NaN: GCC takes the logic of two conditions on 64-byte vectors apart into
// scalars.
template <int Bytes, Score score>
INFOSLICE_INLINE Lanes<Bytes> score_lanes(const Scoring& s, int64_t tile, int64_t lane,
                                          const Factors& factors) {
  using V = Lanes<Bytes>;
  const V zero = {}, nan = zero + std::numeric_limits<double>::quiet_NaN(),
          redundant = score == Score::entropy ? zero - kInfinity : zero;
  const int64_t r = s.r, block = tile * packed(r, 0) * kTile + lane;
  double* const inverse = factors.inverse() + lane;
  // Its own inverses: those of the second matrix stand where the square of a trace would be.
  double* const inverse2 = factors.square() + lane;
  V total = {};
  for (int64_t a = 0; a < r; ++a) {
    const int64_t column = (tile * r + a) * kTile + lane;
    const V pivot = eliminate_row<Bytes>(s.first + block, a, inverse, factors.lower(0) + lane);
    const V floor = load<V>(s.first_variance + column) * s.limit;
    const V least = s.drop ? -floor : nan;  // of a pivot that may be dropped
    store(factors.pivots(0) + a * kTile + lane, pivot > floor ? pivot : zero);
    if (a + 1 < r) store(inverse + a * kTile, pivot > floor ? 1.0 / pivot : zero);
    V value = pivot, refused = zero;
    if constexpr (score == Score::information) {
      const V pivot2 = eliminate_row<Bytes>(s.second + block, a, inverse2, factors.lower(1) + lane);
      const V floor2 = load<V>(s.second_variance + column) * s.limit;
      store(factors.pivots(1) + a * kTile + lane, pivot > floor ? pivot2 : zero);
      if (a + 1 < r) store(inverse2 + a * kTile, pivot > floor ? 1.0 / pivot2 : zero);
      value = pivot / pivot2;
      refused = pivot2 > floor2 ? zero : nan;
    }
    if constexpr (score == Score::least_squares) {
      total += pivot > floor ? zero : nan;
    } else {
      refused += value >= std::numeric_limits<double>::min() ? zero : nan;
      refused += value <= std::numeric_limits<double>::max() ? zero : nan;
      const V good = 0.5 * log_of<Bytes>(value) + refused, low = pivot >= least ? redundant : nan;
      total += pivot > floor ? good : low;
    }
  }
  if constexpr (score == Score::least_squares)
    total -= trace<Bytes>(s.second + block, r, factors.lower(0) + lane, factors.pivots(0) + lane,
                          factors.square() + lane);
  return total;
}

template <int Bytes, Score score>
INFOSLICE_INLINE void add_scores_of(const Scoring& s, int64_t first_tile, int64_t last_tile,
                                    const Factors& factors, double* scores) {
  using V = Lanes<Bytes>;
  for (int64_t tile = first_tile; tile < last_tile; ++tile) {
    for (int64_t lane = 0; lane < kTile; lane += Bytes / 8) {
      double* const to = scores + tile * kTile + lane;
      store(to, load<V>(to) + score_lanes<Bytes, score>(s, tile, lane, factors));
    }
  }
}

template <int Bytes>
INFOSLICE_INLINE void add_scores_body(const Scoring& s, int64_t first_tile, int64_t last_tile,
                                      const Factors& factors, double* scores) {
  if (s.score == Score::entropy) {
    add_scores_of<Bytes, Score::entropy>(s, first_tile, last_tile, factors, scores);
  } else if (s.score == Score::information) {
    add_scores_of<Bytes, Score::information>(s, first_tile, last_tile, factors, scores);
  } else {
    add_scores_of<Bytes, Score::least_squares>(s, first_tile, last_tile, factors, scores);
  }
}

template <int Bytes>
INFOSLICE_INLINE double highest_body(const double* scores, const double* open, int64_t tiles) {
  using V = Lanes<Bytes>;
  constexpr int L = Bytes / 8;
  V best = V{} - kInfinity, bad = {};
  for (int64_t slot = 0; slot < tiles * kTile; slot += L) {
    const V score = load<V>(open + slot) > 0.0 ? load<V>(scores + slot) : V{} - kInfinity;
    best = score > best ? score : best;
    bad = score < kInfinity ? bad : V{} + 1.0;
  }
  double result = -kInfinity;
  for (int l = 0; l < L; ++l) result = bad[l] > 0 ? kInfinity : std::max(result, best[l]);
  return result;
}

}  // namespace

INFOSLICE_WIDEST(void, add_scores,
                 (const Scoring& scoring, int64_t first_tile, int64_t last_tile,
                  const Factors& factors, double* scores),
                 add_scores_body, (scoring, first_tile, last_tile, factors, scores))
INFOSLICE_WIDEST(double, highest, (const double* scores, const double* open, int64_t tiles),
                 highest_body, (scores, open, tiles))

}  // namespace infoslice::cpu
