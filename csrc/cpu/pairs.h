// The sum behind pairwise information, for gaussian_mi.cpp.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "cpu/widest.h"

namespace infoslice::cpu {
namespace {

/// y by place, up to a whole register of constants.
struct Outputs {
  std::vector<double> scale;  ///< 1 / standard deviation; 0 for a constant, NaN for no variance
  std::vector<double> floor;  ///< of the share of the variance that must stay unexplained
};

/// -1/2 sum_j log(1 - r_j) with the shares r_j = sum_i (rows[i][j] * scale * y.scale[j])^2. Returns
/// 0 or the first j + 1 whose share is too close to 1.
///
/// A logarithm costs more than all else here. The shares of several y_j are joined first, lane by
/// lane, 1 - u = prod_j (1 - r_j), as u, which keeps small ones exact, and while u is far from 1.
template <int Bytes>
INFOSLICE_INLINE int64_t sum_pairs_body(const double* rows, int64_t count, int64_t stride,
                                        double scale, const Outputs& y, double& nats) {
  constexpr int L = Bytes / static_cast<int>(sizeof(double));
  using V = Vec<double, L>;
  double joined[L] = {};
  V lanes = {};
  const auto join = [&](double& to, double share) {
    if (share > 0.5) {
      nats -= 0.5 * std::log1p(-share);
    } else {
      to += share * (1 - to);
      if (to > 0.5) nats -= 0.5 * std::log1p(-std::exchange(to, 0.0));
    }
  };
  nats = 0;
  for (size_t j = 0; j < y.scale.size(); j += L) {
    V shares = {};
    for (int64_t i = 0; i < count; ++i) {
      const V root = load<V>(rows + i * stride + j) * (load<V>(&y.scale[j]) * scale);
      shares += root * root;
    }
    const V next = lanes + shares * (1 - lanes);
    const auto small = next <= 0.5;
    int64_t all = -1;
    for (int l = 0; l < L; ++l) all &= small[l];
    if (all) {
      lanes = next;
      continue;
    }
    store(joined, lanes);
    for (int l = 0; l < L; ++l) {
      const double share = shares[l];
      if (!(1 - share > y.floor[j + l])) return static_cast<int64_t>(j) + l + 1;
      join(joined[l], share);
    }
    lanes = load<V>(joined);
  }
  store(joined, lanes);
  double rest = 0;
  for (const double share : joined) join(rest, share);
  nats -= 0.5 * std::log1p(-rest);
  return 0;
}
INFOSLICE_WIDEST(int64_t, sum_pairs,
                 (const double* rows, int64_t count, int64_t stride, double scale, const Outputs& y,
                  double& nats),
                 sum_pairs_body, (rows, count, stride, scale, y, nats))

}  // namespace
}  // namespace infoslice::cpu
