// A step of a greedy choice: one launch per layer, in which every block finds out by itself which
// channel is the best and brings its own channels up to date.
#pragma once

#include "cuda/greedy_scores.cuh"

namespace infoslice::cuda {

constexpr int kLanes = 64;                        // columns that a block works on side by side,
constexpr int kShares = kGreedyThreads / kLanes;  // by so many threads each
constexpr int64_t kPanelRows = 64;                // variables eliminated between two downdates

/// Threads that score a channel together.
constexpr int team_of(int64_t r) { return r == 1 ? 1 : r <= 32 ? 32 : kGreedyThreads; }

/// Channels of a block.
__host__ __device__ constexpr int64_t channels_of_block(int64_t r) {
  return r < kLanes ? kLanes / r : 1;
}

/// What the layers share.
struct GreedyState {
  int32_t* open;       // [channels] 1: may be chosen
  double* scores;      // [channels]
  const int64_t* ids;  // numbers of the channels; null: they count from 0
  int64_t* order;
  double* values;
  int32_t* info;
  double sign;  // of the values
};

struct GreedyStep {
  const Best* bests;  // [bests_count] of the launch before; null: nothing is eliminated yet
  int64_t bests_count;
  Best* next;              // [blocks], written by the launch of the last layer; null in the others
  int64_t step, forced;    // forced: the channel to take, no choice and no result; -1: the best
  int64_t filled;          // rows of the panels
  bool records, adds;      // the first layer records the choice; those behind it add their scores
  const int32_t* refused;  // of what came before the first step; or null
};

/// The channel to eliminate; kFailed after a failure, which the first thread of the first block
/// records.
__device__ inline int64_t choose(const GreedyState& state, const GreedyStep& s, bool drop) {
  Best best{-kInfinity, kNone};
  for (int64_t b = threadIdx.x; b < s.bests_count; b += kGreedyThreads)
    best = better(best, s.bests[b]);
  best = best_of_block(best);
  const bool forced = s.forced >= 0;
  const bool failed = forced ? best.channel == kFailed || !(state.scores[s.forced] < kInfinity)
                             : best.score == kInfinity || (best.score == -kInfinity && !drop);
  if (s.records && blockIdx.x == 0 && threadIdx.x == 0) {
    if (failed && *state.info == 0) *state.info = static_cast<int32_t>(s.step + 1);
    if (!forced) {
      const int64_t id = failed || state.ids == nullptr ? best.channel : state.ids[best.channel];
      state.order[s.step] = failed ? -1 : id;
      state.values[s.step] = failed ? nan("") : state.sign * best.score + 0.0;  // no -0
    }
  }
  return failed ? kFailed : forced ? s.forced : best.channel;
}

/// After the last step nothing is eliminated.
__global__ void __launch_bounds__(kGreedyThreads)
    choose_kernel(GreedyState state, GreedyStep s, bool drop) {
  choose(state, s, drop);
}

/// The rows of one channel of the two matrices, for one column: D^-1/2 L^-1 rows, from `rows`.
__device__ inline void solve_rows(const double* factors, int64_t r, double* rows, int64_t stride) {
  for (int64_t a = 0; a < r; ++a) {
    double x = rows[a * stride];
    for (int64_t b = 0; b < a; ++b) x -= factors[packed(a, b)] * rows[b * stride];
    rows[a * stride] = x;
  }
  for (int64_t a = 0; a < r; ++a) {
    const double scale = factors[packed(a, a)];
    rows[a * stride] = scale == 0 ? 0.0 : rows[a * stride] * scale;
  }
}

template <int kTeam>
class Step {
  static constexpr int kRows = kTeam == 1 ? 1 : kShares;  // of the channel that are formed together
  // The multipliers of a row are padded to kRows. Where r > 32, no rows are pending.
  static constexpr int kMultipliers = kTeam == 1 ? kPanelRows : kTeam == 32 ? 1024 : 1;

 public:
  struct Shared {
    double u[kMultipliers], w[kMultipliers];  // the panels' columns of the channel: [row][padded r]
    double sums[2][kTeam <= 32 ? kRows : 1][kShares][kLanes];  // what the panels take off a row
  };

  __device__ Step(const GreedyLayer& layer, const GreedyState& state, const GreedyStep& s,
                  int64_t chosen, Shared& shared)
      : l_(layer),
        state_(state),
        r_(variables<kTeam>(layer)),
        filled_(s.filled),
        chosen_(chosen),
        padded_((r_ + kRows - 1) / kRows * kRows),
        two_(layer.score != Score::entropy),
        crossed_(layer.score == Score::least_squares),
        shared_(shared) {}

  __device__ bool open(int64_t channel) const {
    return channel != chosen_ && state_.open[channel] != 0;
  }

  __device__ void load_multipliers() const {
    if constexpr (kTeam <= 32) {
      for (int64_t e = threadIdx.x; e < filled_ * padded_; e += kGreedyThreads) {
        const int64_t k = e / padded_, a = e % padded_, at = k * l_.stride + chosen_ * r_ + a;
        shared_.u[e] = a < r_ ? l_.first.panel[at] : 0.0;
        shared_.w[e] = two_ && a < r_ ? l_.second.panel[at] : 0.0;
      }
      __syncthreads();
    }
  }

  /// Puts the channel's rows into the panels, for 64 columns. Those of channels that are gone are
  /// left as they are: only entries of the same columns come of them.
  __device__ void form_rows(int64_t first_column, int64_t columns) const {
    const int lane = static_cast<int>(threadIdx.x) % kLanes,
              share = static_cast<int>(threadIdx.x) / kLanes;
    const int64_t r = r_, j = first_column + lane;
    const bool active = lane < columns && open(j / r);
    for (int64_t a0 = 0; a0 < r; a0 += kRows) {
      const bool mine = active && share < kRows && a0 + share < r;
      const double stale = mine ? l_.first.stale.read(chosen_ * r + a0 + share, j) : 0.0;
      const double stale2 = mine && two_ ? l_.second.stale.read(chosen_ * r + a0 + share, j) : 0.0;
      double taken = 0, taken2 = 0;
      if constexpr (kTeam <= 32) {
        if (filled_ > 0) {
          add_panels(a0, j, active, lane, share);
          for (int other = 0; other < kShares && mine; ++other) {
            taken += shared_.sums[0][share][other][lane];
            taken2 += shared_.sums[1][share][other][lane];
          }
        }
      }
      if (mine) {
        const int64_t at = (filled_ + a0 + share) * l_.stride + j;
        l_.first.panel[at] = stale - taken;
        if (two_) l_.second.panel[at] = stale2 - taken2;
      }
      __syncthreads();
    }
    double* const p = l_.first.panel + filled_ * l_.stride + j;
    double* const q = l_.second.panel + filled_ * l_.stride + j;
    const double* const factors = l_.first.factors + chosen_ * packed(r, 0);
    if (active && share == 0) solve_rows(factors, r, p, l_.stride);
    if (active && share == 1 && two_)
      solve_rows(crossed_ ? factors : l_.second.factors + chosen_ * packed(r, 0), r, q, l_.stride);
    if (crossed_) {
      __syncthreads();
      if (active && share == 1) symmetrise(factors, p, q);
    }
  }

  /// Diagonal blocks -= the products of the new rows.
  __device__ void update_blocks(int64_t first, int64_t count) const {
    const int64_t r = r_;
    for (int64_t e = threadIdx.x; e < count * r * r; e += kGreedyThreads) {
      const int64_t channel = first + e / (r * r), a = e / r % r, b = e % r;
      if (b > a || !open(channel)) continue;
      const int64_t at = channel * packed(r, 0) + packed(a, b);
      const double* const p = l_.first.panel + filled_ * l_.stride + channel * r;
      const double* const q = l_.second.panel + filled_ * l_.stride + channel * r;
      double sum = 0, sum2 = 0;
      for (int64_t k = 0; k < r; ++k) {
        const double *const u = p + k * l_.stride, *const w = q + k * l_.stride;
        sum += u[a] * u[b];
        if (two_) sum2 += crossed_ ? u[a] * w[b] + w[a] * u[b] : w[a] * w[b];
      }
      l_.first.blocks[at] -= sum;
      if (two_) l_.second.blocks[at] -= sum2;
    }
  }

 private:
  /// What the panels take off the rows from a0, in shares.
  __device__ void add_panels(int64_t a0, int64_t j, bool active, int lane, int share) const {
    double sum[kRows] = {}, sum2[kRows] = {};
    if (active) {
#pragma unroll(kRows == 1 ? 8 : 2)
      for (int64_t k = share; k < filled_; k += kShares) {
        const double u = l_.first.panel[k * l_.stride + j];
        const double w = two_ ? l_.second.panel[k * l_.stride + j] : 0.0;
#pragma unroll
        for (int t = 0; t < kRows; ++t) {
          const double of_u = shared_.u[k * padded_ + a0 + t],
                       of_w = shared_.w[k * padded_ + a0 + t];
          sum[t] += of_u * u;
          sum2[t] += crossed_ ? of_u * w + of_w * u : of_w * w;
        }
      }
    }
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      shared_.sums[0][t][share][lane] = sum[t];
      shared_.sums[1][t][share][lane] = sum2[t];
    }
    __syncthreads();
  }

  /// q -> q - 1/2 K p with K = D^-1/2 L^-1 G_cc L^-T D^-1/2, so that the downdate p'q + q'p - p'K p
  /// becomes p'q + q'p.
  __device__ void symmetrise(const double* factors, const double* p, double* q) const {
    const int64_t r = r_;
    const double* const square = l_.second.factors + chosen_ * r * r;
    for (int64_t a = 0; a < r; ++a) {
      double sum = 0;
      for (int64_t b = 0; b < r; ++b) {
        const double g = a < b ? square[b * r + a] : square[a * r + b];
        sum += g * factors[packed(b, b)] * p[b * l_.stride];
      }
      q[a * l_.stride] -= 0.5 * factors[packed(a, a)] * sum;
    }
  }

  const GreedyLayer& l_;
  const GreedyState& state_;
  const int64_t r_, filled_, chosen_, padded_;
  const bool two_, crossed_;
  Shared& shared_;
};

template <int kTeam>
__global__ void __launch_bounds__(kGreedyThreads, 2)
    step_kernel(const __grid_constant__ GreedyLayer l, const __grid_constant__ GreedyState state,
                const __grid_constant__ GreedyStep s) {
  __shared__ typename Step<kTeam>::Shared shared;
  int64_t chosen = s.refused != nullptr && *s.refused != 0 ? kFailed : kNone;
  if (s.bests != nullptr) {
    chosen = choose(state, s, l.drop);
  } else if (chosen == kFailed && blockIdx.x == 0 && threadIdx.x == 0) {
    *state.info = 1;
  }
  if (chosen == kFailed) {  // the same for all threads of all blocks
    if (s.next != nullptr && threadIdx.x == 0) s.next[blockIdx.x] = {kInfinity, kFailed};
    return;
  }
  const Step<kTeam> step(l, state, s, chosen, shared);
  if (chosen != kNone) step.load_multipliers();
  Best best{-kInfinity, kNone};
  const int64_t r = variables<kTeam>(l), each = channels_of_block(r);
  for (int64_t first = blockIdx.x * each; first < l.channels; first += gridDim.x * each) {
    const int64_t count = first + each < l.channels ? each : l.channels - first;
    if (chosen != kNone) {
      for (int64_t column = 0; column < count * r; column += kLanes)
        step.form_rows(first * r + column, count * r - column);
      __syncthreads();
      step.update_blocks(first, count);
      __syncthreads();
    }
    const int lane = static_cast<int>(threadIdx.x) % kTeam;
    for (int64_t c = first + threadIdx.x / kTeam; c < first + count; c += kGreedyThreads / kTeam) {
      if (!step.open(c)) {  // the same for all threads of the team
        if (lane == 0 && c == chosen && s.next != nullptr) state.open[c] = 0;
        continue;
      }
      double score = score_channel<kTeam>(l, c, lane);
      if (lane != 0) continue;
      if (s.adds) score += state.scores[c];
      state.scores[c] = score;
      best = better(best, score < kInfinity ? Best{score, c} : Best{kInfinity, kBad});
    }
  }
  if (s.next == nullptr) return;
  best = best_of_block(best);
  if (threadIdx.x == 0) s.next[blockIdx.x] = best;
}

}  // namespace infoslice::cuda
