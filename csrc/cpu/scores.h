// What each channel is worth now, from the diagonal blocks of the matrices: 8 channels at a time.
#pragma once

#include <cstdint>

#include "cpu/downdate.h"

namespace infoslice::cpu {

/// Of a channel with the blocks P in the first matrix and Q in the second.
enum class Score {
  entropy,        ///< 1/2 log det P
  information,    ///< 1/2 log det P - 1/2 log det Q
  least_squares,  ///< -tr(P^-1 Q)
};

struct Scoring {
  Score score;
  bool drop;     ///< redundant variables of P count nothing (entropy: the channel counts -inf);
                 ///< else they make the score NaN
  int64_t r;     ///< variables per channel
  double limit;  ///< a pivot of at most limit * variance is nothing but rounding
  const double* first;  ///< diagonal blocks, [tile][packed(a, b)][8]
  const double* second;
  const double* first_variance;  ///< of the variables before all, by column
  const double* second_variance;
};

/// L D L' of the blocks of the last tile that was scored.
class Factors {
 public:
  explicit Factors(int64_t r) : r_(r), data_(zeros((2 * packed(r, 0) + 3 * r + r * r) * kTile)) {}
  double* lower(int which) const { return data_.get() + which * packed(r_, 0) * kTile; }
  double* pivots(int which) const { return lower(2) + which * r_ * kTile; }
  double* inverse() const { return pivots(2); }  ///< scratch
  double* square() const { return pivots(3); }   ///< scratch, r x r

 private:
  int64_t r_;
  Workspace<double> data_;
};

/// scores[slot] += the score, for the slots [8 first_tile, 8 last_tile). NaN: a pivot of a block is
/// not a positive normal number above rounding (but see `drop`). A dropped variable has pivot 0.
void add_scores(const Scoring& scoring, int64_t first_tile, int64_t last_tile,
                const Factors& factors, double* scores);

/// The highest score of the slots [0, 8 tiles) that are open (1, else 0); +inf if one is NaN or +inf.
double highest(const double* scores, const double* open, int64_t tiles);

}  // namespace infoslice::cpu
