#include "greedy.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>

#include "emulated.h"

namespace infoslice {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Square {
  explicit Square(int64_t order) : n(order), data(static_cast<size_t>(order * order)) {}
  double& operator()(int64_t i, int64_t j) { return data[static_cast<size_t>(i * n + j)]; }
  double operator()(int64_t i, int64_t j) const { return data[static_cast<size_t>(i * n + j)]; }
  int64_t n;
  std::vector<double> data;
};

Square definite(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(-0.5, 0.5);
  Square a(n);
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j <= i; ++j)
      a(i, j) = a(j, i) =
          i == j ? 0.25 * static_cast<double>(n) + uniform(random) : uniform(random);
  }
  return a;
}

/// Eliminates variable v from both: the second like the first, or as W'W.
double eliminate(Square& p, Square& q, int64_t v, bool obs) {
  const int64_t n = p.n;
  const double loss = obs ? q(v, v) / p(v, v) : 0.5 * std::log(q(v, v) / p(v, v));
  const Square a = p, b = q;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const double z = a(v, i) / a(v, v), t = a(v, j) / a(v, v);
      p(i, j) -= z * a(v, j);
      q(i, j) -= obs ? z * b(v, j) + t * b(v, i) - z * t * b(v, v) : b(v, i) * b(v, j) / b(v, v);
    }
  }
  return loss;
}

double eliminate_channel(Square& p, Square& q, int64_t c, int64_t r, bool obs) {
  double loss = 0;
  for (int64_t a = 0; a < r; ++a) loss += eliminate(p, q, c * r + a, obs);
  return loss;
}

struct Found {
  explicit Found(int64_t count)
      : order(static_cast<size_t>(count), -7), values(static_cast<size_t>(count), -7) {}
  Choice choice() {
    return {static_cast<int64_t>(order.size()), order.data(), values.data(), &info};
  }
  bool operator==(const Found& expected) const {
    bool good = info == expected.info && order == expected.order;
    for (size_t k = 0; k < values.size() && good; ++k) {
      const double bound = 1e-10 * (1 + std::abs(expected.values[k]));
      good = std::isnan(expected.values[k]) ? std::isnan(values[k])
                                            : std::abs(values[k] - expected.values[k]) <= bound;
    }
    return good;
  }
  std::vector<int64_t> order;
  std::vector<double> values;
  int32_t info = -7;
};

/// One after the other by the definition, always the least.
Found by_definition(Square p, Square q, int64_t r, int64_t count, bool obs) {
  Found found(count);
  std::vector<char> gone(static_cast<size_t>(p.n / r), 0);
  found.info = 0;
  for (size_t k = 0; k < found.order.size(); ++k) {
    double best = std::numeric_limits<double>::infinity();
    for (int64_t c = 0; c < p.n / r; ++c) {
      if (gone[static_cast<size_t>(c)]) continue;
      Square a(r), b(r);
      for (int64_t e = 0; e < r * r; ++e) {
        a(e / r, e % r) = p(c * r + e / r, c * r + e % r);
        b(e / r, e % r) = q(c * r + e / r, c * r + e % r);
      }
      const double value = eliminate_channel(a, b, 0, r, obs);
      if (value >= best) continue;
      found.order[k] = c;
      found.values[k] = best = value;
    }
    eliminate_channel(p, q, found.order[k], r, obs);
    gone[static_cast<size_t>(found.order[k])] = 1;
  }
  return found;
}

bool report(const char* name, int64_t channels, int64_t r, bool good) {
  std::printf("%s, %ld channels of %ld: %s %s\n", name, static_cast<long>(channels),
              static_cast<long>(r), good ? "good" : "WRONG", emulation::report().c_str());
  return good;
}

std::vector<char> workspace_of(size_t bytes) { return std::vector<char>(bytes, '\xff'); }

bool eliminations(int64_t channels, int64_t r, int64_t count, bool obs) {
  prepare(channels);
  const int64_t n = channels * r;
  const Square p = definite(n, 1);
  Square q = definite(n, 2);
  for (size_t e = 0; e < q.data.size() && !obs; ++e) q.data[e] += p.data[e];
  const MatrixView<double> first{p.data.data(), n, 1}, second{q.data.data(), n, 1};
  const std::vector<LayerPair<double>> layers{{first, second, r}};
  std::vector<char> workspace = workspace_of(cuda::elimination_workspace({r}, channels));
  Found found(count);
  const auto body = obs ? cuda::obs_elimination<double> : cuda::backward_elimination<double>;
  const int error = body(layers, channels, {}, found.choice(), workspace.data(), nullptr);
  const Found expected = by_definition(p, q, r, count, obs);
  return report(obs ? "obs" : "backward", channels, r, error == 0 && found == expected);
}

bool forward(int64_t groups, int64_t size, int64_t ny, int64_t count, int64_t bad) {
  prepare(groups);
  const int64_t nx = groups * size, n = nx + ny;
  Square cov = definite(n, 3);
  Square given = cov, ignored = cov;
  std::vector<int64_t> x, y;
  for (int64_t v = 0; v < n; ++v) (v < nx ? x : y).push_back(v);
  for (int64_t v : y) eliminate(given, ignored, v, false);
  Square p(nx), q(nx);
  for (int64_t i = 0; i < nx; ++i) {
    for (int64_t j = 0; j < nx; ++j) {
      p(i, j) = cov(i, j);
      q(i, j) = given(i, j);
    }
  }
  Found expected = by_definition(p, q, size, count, false);
  for (double& value : expected.values) value = -value;  // gains
  if (bad > 0) {
    cov(y[static_cast<size_t>(bad - 1)], y[static_cast<size_t>(bad - 1)]) = -1;
    expected.info = 1;
    std::fill(expected.order.begin(), expected.order.end(), -1);
    std::fill(expected.values.begin(), expected.values.end(), kNan);
  }
  const MutualInformation of{x.data(), nx, y.data(), ny, size, 0.0};
  std::vector<char> workspace = workspace_of(cuda::forward_selection_workspace(of));
  Found found(count);
  const int error = cuda::forward_selection(MatrixView<double>{cov.data.data(), n, 1}, of, {},
                                            found.choice(), workspace.data(), nullptr);
  return report(bad > 0 ? "forward, refused" : "forward", groups, size,
                error == 0 && found == expected);
}

}  // namespace

bool check_greedy() {
  bool good = true;
  for (bool obs : {false, true}) {
    good = eliminations(5, 1, 3, obs) && good;
    good = eliminations(3, 2, 2, obs) && good;
    if (kThreads) continue;
    good = eliminations(70, 1, 67, obs) && good;
    good = eliminations(24, 3, 24, obs) && good;
    good = eliminations(3, 33, 3, obs) && good;
  }
  good = forward(4, 1, 2, 2, 0) && good;
  if (kThreads) return good;
  good = forward(70, 1, 3, 67, 0) && good;
  good = forward(9, 9, 5, 9, 0) && good;
  good = forward(5, 2, 3, 4, 2) && good;
  return good;
}

}  // namespace infoslice
