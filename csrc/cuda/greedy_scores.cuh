// What each channel is worth now, from the diagonal blocks of the matrices (cpu/scores.h), and the
// best of them.
#pragma once

#include <limits>

#include "cuda/greedy_matrix.cuh"

namespace infoslice::cuda {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLeastNormal = std::numeric_limits<double>::min();
constexpr double kLargest = std::numeric_limits<double>::max();
constexpr int64_t kNone = std::numeric_limits<int64_t>::max();

/// Of a channel with the blocks P in the first matrix and Q in the second.
enum class Score : int {
  entropy,        ///< 1/2 log det P
  information,    ///< 1/2 log det P - 1/2 log det Q
  least_squares,  ///< -tr(P^-1 Q)
};

struct GreedyMatrix {
  Triangle stale;
  double* panel;     // [rows][stride]: what was eliminated since
  double* blocks;    // [channels][packed(r, 0)], the diagonal blocks as they are now
  double* factors;   // the same of L D L', with D^-1/2 on the diagonal (0: a dropped variable);
                     // of the second matrix in least squares [channels][r][r] L^-1 Q L^-T
  double* variance;  // [n] before all eliminations, NaN where not finite
};

/// The two matrices of one layer (or of one selection).
struct GreedyLayer {
  GreedyMatrix first, second;
  int64_t channels, r;
  int64_t stride;  // of the panels
  double limit;    // a pivot of at most limit * variance is nothing but rounding
  Score score;
  bool
      drop;  // redundant variables of P count nothing (entropy: the channel counts -inf); else they
             // make the score NaN
};

// ---- a channel, by a team of 1, 32 or 256 threads ------------------------------------------------

template <int kTeam>
__device__ __forceinline__ int64_t variables(const GreedyLayer& l) {  // r
  return kTeam == 1 ? 1 : l.r;
}

template <int kTeam>
__device__ __forceinline__ void sync_team() {
  if constexpr (kTeam == 32) __syncwarp();
  if constexpr (kTeam > 32) __syncthreads();
}

/// tr(P^-1 Q) of factored P; leaves the lower triangle of L^-1 Q L^-T.
template <int kTeam>
__device__ double trace(const GreedyLayer& l, int64_t channel, int lane) {
  const int64_t r = variables<kTeam>(l);
  const double* const lower = l.first.factors + channel * packed(r, 0);
  const double* const block = l.second.blocks + channel * packed(r, 0);
  double* const square = l.second.factors + channel * r * r;
  for (int64_t b = lane; b < r; b += kTeam) {  // a column of L^-1 Q
    for (int64_t a = 0; a < r; ++a) {
      double x = block[a < b ? packed(b, a) : packed(a, b)];
      for (int64_t t = 0; t < a; ++t) x -= lower[packed(a, t)] * square[t * r + b];
      square[a * r + b] = x;
    }
  }
  sync_team<kTeam>();
  for (int64_t a = lane; a < r; a += kTeam) {  // a row of that times L^-T, up to the diagonal
    for (int64_t b = 0; b <= a; ++b) {
      double x = square[a * r + b];
      for (int64_t t = 0; t < b; ++t) x -= square[a * r + t] * lower[packed(b, t)];
      square[a * r + b] = x;
    }
  }
  sync_team<kTeam>();
  double sum = 0;
  for (int64_t a = 0; a < r; ++a) {
    const double scale = lower[packed(a, a)];
    sum += square[a * r + a] * (scale * scale);
  }
  return sum;
}

/// Factors the blocks of a channel; gives its score to all threads of the team. NaN: a pivot is not
/// a positive normal number above rounding (but see `drop`).
template <int kTeam>
__device__ double score_channel(const GreedyLayer& l, int64_t channel, int lane) {
  const bool two = l.score == Score::information;
  const int64_t r = variables<kTeam>(l), size = packed(r, 0);
  double* const f = l.first.factors + channel * size;
  double* const g = two ? l.second.factors + channel * size : f;
  for (int64_t e = lane; e < size; e += kTeam) {
    f[e] = l.first.blocks[channel * size + e];
    if (two) g[e] = l.second.blocks[channel * size + e];
  }
  sync_team<kTeam>();
  const double refused = nan(""), redundant = l.score == Score::entropy ? -kInfinity : 0.0;
  double total = 0;
  for (int64_t a = 0; a < r; ++a) {
    const double pivot = f[packed(a, a)], floor = l.first.variance[channel * r + a] * l.limit;
    const bool counts = pivot > floor;
    const double inverse = counts ? 1 / pivot : 0.0;
    double value = pivot, inverse2 = 0, scale2 = 0;
    bool good = counts;
    if (two) {
      const double pivot2 = g[packed(a, a)];
      good = good && pivot2 > l.second.variance[channel * r + a] * l.limit;
      value = pivot / pivot2;
      inverse2 = counts ? 1 / pivot2 : 0.0;
      scale2 = counts ? 1 / sqrt(pivot2) : 0.0;
    }
    if (l.score != Score::least_squares) {
      good = good && value >= kLeastNormal && value <= kLargest;
      if (good) total += 0.5 * log(value);
    }
    if (!good) total += !counts && l.drop && pivot >= -floor ? redundant : refused;
    for (int64_t i = a + 1 + lane; i < r; i += kTeam) {
      const double l1 = f[packed(i, a)] * inverse, l2 = two ? g[packed(i, a)] * inverse2 : 0.0;
#pragma unroll 2
      for (int64_t j = a + 1; j <= i; ++j) {
        f[packed(i, j)] -= l1 * f[packed(j, a)];
        if (two) g[packed(i, j)] -= l2 * g[packed(j, a)];
      }
    }
    sync_team<kTeam>();  // all have read the pivot and the column, which nobody needs as they were
    for (int64_t i = a + 1 + lane; i < r; i += kTeam) {
      f[packed(i, a)] *= inverse;
      if (two) g[packed(i, a)] *= inverse2;
    }
    if (lane == 0) {
      f[packed(a, a)] = counts ? 1 / sqrt(pivot) : 0.0;
      if (two) g[packed(a, a)] = scale2;
    }
  }
  if (l.score == Score::least_squares) {
    sync_team<kTeam>();
    total -= trace<kTeam>(l, channel, lane);
  }
  return total;
}

// ---- the best of all -----------------------------------------------------------------------------

/// The highest score and the lowest channel that has it. +inf ranks highest: channel kBad tells of
/// a score that is NaN or +inf, kFailed of a step before that could not be made.
struct Best {
  double score;
  int64_t channel;
};
constexpr int64_t kBad = -1, kFailed = -2;

__device__ __forceinline__ Best better(const Best& a, const Best& b) {
  return a.score > b.score || (a.score == b.score && a.channel < b.channel) ? a : b;
}

/// The best that a thread of the block has, for all of them.
__device__ inline Best best_of_block(Best mine) {
  constexpr int kWarps = kGreedyThreads / 32;
  __shared__ double scores[kWarps];
  __shared__ int64_t channels[kWarps];
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    const Best other{__shfl_xor_sync(0xffffffffu, mine.score, offset),
                     __shfl_xor_sync(0xffffffffu, mine.channel, offset)};
    mine = better(mine, other);
  }
  if (threadIdx.x % 32 == 0) {
    scores[threadIdx.x / 32] = mine.score;
    channels[threadIdx.x / 32] = mine.channel;
  }
  __syncthreads();
  for (int w = 0; w < kWarps; ++w) mine = better(mine, {scores[w], channels[w]});
  __syncthreads();  // the next call overwrites them
  return mine;
}

}  // namespace infoslice::cuda
