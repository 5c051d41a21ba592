// Drives every CPU kernel over odd sizes on arrays of exact length, checks the results against
// plain loops, and is meant to be built with -fsanitize=address,undefined (see CMakeLists.txt). No
// Python, no torch.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "cholesky.h"
#include "common/numeric.h"
#include "common/parallel.h"
#include "covariance.h"
#include "cpu/dense.h"
#include "gaussian_mi.h"
#include "greedy.h"
#include "precision.h"
#include "slice_channels.h"
#include "spanning_tree.h"

namespace infoslice {
namespace {

int failures = 0;

void expect(bool good, const std::string& what) {
  if (good) return;
  ++failures;
  std::printf("WRONG: %s\n", what.c_str());
}

template <class T>
using Array = std::vector<T>;

std::mt19937 generator(7);

template <class T>
Array<T> random_array(int64_t count) {
  std::normal_distribution<double> normal;
  Array<T> values(static_cast<size_t>(count));
  for (T& value : values) value = static_cast<T>(normal(generator));
  return values;
}

// Symmetric positive definite matrices with NaN where nothing may read, the last one spoilt if
// `spoil`.
template <class T>
Array<T> definite(int64_t batch, int64_t d, bool spoil) {
  Array<T> a(static_cast<size_t>(batch * d * d));
  const Array<T> noise = random_array<T>(batch * d * d);
  for (size_t e = 0; e < a.size(); ++e) {
    const int64_t i = static_cast<int64_t>(e) / d % d, j = static_cast<int64_t>(e) % d;
    a[e] = j > i    ? std::numeric_limits<T>::quiet_NaN()
           : i == j ? static_cast<T>(d + 1)
                    : noise[e] / 4;
  }
  if (spoil) a[a.size() - 1] = std::numeric_limits<T>::quiet_NaN();
  return a;
}

template <class T>
void linear_algebra(int64_t batch, int64_t d, int threads) {
  const std::string where =
      std::to_string(batch) + "x" + std::to_string(d) + " of " + std::to_string(sizeof(T));
  const double tolerance =
      20.0 * static_cast<double>(d) * static_cast<double>(std::numeric_limits<T>::epsilon());
  const Array<T> a = definite<T>(batch, d, batch > 1);
  Array<T> factor(a.size()), value(static_cast<size_t>(batch));
  Array<int32_t> info(value.size(), -1), info_of_logdet(value.size(), -1);
  cpu::cholesky(a.data(), batch, d, factor.data(), info.data(), threads);
  cpu::logdet(a.data(), batch, d, value.data(), info_of_logdet.data(), threads);
  expect(info == info_of_logdet, "info of cholesky and logdet differ: " + where);
  Array<T> diagonal(static_cast<size_t>(batch * d)), whole(a.size());
  cpu::precision_blocks(a.data(), batch, d, 1, diagonal.data(), info.data(), threads);
  cpu::precision_blocks(a.data(), batch, d, d, whole.data(), info.data(), threads);
  expect(info == info_of_logdet, "info of precision: " + where);
  for (int64_t b = 0; b < batch; ++b) {
    const T *m = a.data() + b * d * d, *l = factor.data() + b * d * d,
            *w = whole.data() + b * d * d;
    const size_t at = static_cast<size_t>(b);
    if (batch > 1 && b == batch - 1) {
      expect(info[at] == d && std::isnan(value[at]) && std::isnan(l[0]) && std::isnan(w[0]),
             "NaN: " + where);
      continue;
    }
    expect(info[at] == 0, "info: " + where);
    double error = 0, log_diagonal = 0;
    for (int64_t i = 0; i < d; ++i) {
      log_diagonal += 2 * std::log(static_cast<double>(l[i * d + i]));
      double identity = 0;  // (A^-1 A)_ii
      for (int64_t j = 0; j < d; ++j) {
        double product = 0;
        for (int64_t k = 0; k <= std::min(i, j); ++k)
          product += static_cast<double>(l[i * d + k]) * l[j * d + k];
        const T entry = m[std::max(i, j) * d + std::min(i, j)];
        error = std::max(error,
                         std::abs(product - static_cast<double>(entry)) / static_cast<double>(d));
        identity += static_cast<double>(w[i * d + j]) * entry;
        if (j > i) expect(l[i * d + j] == 0, "upper triangle: " + where);
      }
      error = std::max(error, std::abs(identity - 1));
      error = std::max(error, std::abs(static_cast<double>(
                                  w[i * d + i] -
                                  diagonal[at * static_cast<size_t>(d) + static_cast<size_t>(i)])));
    }
    error = std::max(
        error, std::abs(log_diagonal - static_cast<double>(value[at])) / static_cast<double>(d));
    expect(error <= tolerance, "error " + std::to_string(error) + ": " + where);
  }
}

void grams(int64_t rows, int64_t columns) {
  const int64_t stride = cpu::padded_stride<double>(columns);
  const Array<double> b = random_array<double>(rows * stride);
  Array<double> c = random_array<double>(columns * stride);
  cpu::gram(b.data(), rows, columns, stride, c.data(), stride);
  for (int64_t i = 0; i < columns; ++i) {
    for (int64_t j = i; j < columns; ++j) {
      double entry = 0;
      for (int64_t k = 0; k < rows; ++k)
        entry += b[static_cast<size_t>(k * stride + i)] * b[static_cast<size_t>(k * stride + j)];
      expect(std::abs(entry - c[static_cast<size_t>(i * stride + j)]) < 1e-11,
             "gram " + std::to_string(rows) + "x" + std::to_string(columns));
    }
  }
}

// Kruskal's total length against the tree's, and every vertex gained once.
template <class T>
void trees(int64_t batch, int64_t n, int64_t d, bool with_base, int threads) {
  const std::string where = std::to_string(batch) + " trees of " + std::to_string(n);
  const Array<T> points = random_array<T>(batch * n * d);
  Array<T> base = random_array<T>(with_base ? n * n : 0);
  for (int64_t i = 0; i < n && with_base; ++i)
    for (int64_t j = 0; j < i; ++j)
      base[static_cast<size_t>(i * n + j)] = base[static_cast<size_t>(j * n + i)];
  Array<int64_t> edges(static_cast<size_t>(batch * (n - 1) * 2));
  Array<T> lengths(static_cast<size_t>(batch * (n - 1)));
  Array<int32_t> info(static_cast<size_t>(batch), -1);
  cpu::spanning_tree(points.data(), with_base ? base.data() : nullptr, batch, n, d, edges.data(),
                     lengths.data(), info.data(), threads);
  for (int64_t b = 0; b < batch; ++b) {
    expect(info[static_cast<size_t>(b)] == 0, "info: " + where);
    std::vector<std::pair<double, std::pair<int64_t, int64_t>>> all;
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < i; ++j) {
        double distance = with_base ? static_cast<double>(base[static_cast<size_t>(i * n + j)]) : 0;
        for (int64_t k = 0; k < d; ++k) {
          const double step =
              static_cast<double>(points[static_cast<size_t>((b * n + i) * d + k)]) -
              static_cast<double>(points[static_cast<size_t>((b * n + j) * d + k)]);
          distance += step * step;
        }
        all.push_back({distance, {i, j}});
      }
    }
    std::sort(all.begin(), all.end());
    std::vector<int64_t> part(static_cast<size_t>(n));
    std::iota(part.begin(), part.end(), 0);
    double expected = 0, total = 0;
    for (const auto& [distance, pair] : all) {
      const int64_t from = part[static_cast<size_t>(pair.first)];
      const int64_t to = part[static_cast<size_t>(pair.second)];
      if (from == to) continue;
      expected += distance;
      std::replace(part.begin(), part.end(), from, to);
    }
    std::vector<bool> in(static_cast<size_t>(n));
    in[0] = true;
    bool grows = true;
    for (int64_t e = b * (n - 1); e < (b + 1) * (n - 1); ++e) {
      const size_t from = static_cast<size_t>(edges[static_cast<size_t>(2 * e)]);
      const size_t to = static_cast<size_t>(edges[static_cast<size_t>(2 * e + 1)]);
      grows = grows && in[from] && !in[to];
      in[to] = true;
      total += static_cast<double>(lengths[static_cast<size_t>(e)]);
    }
    expect(grows, "no tree: " + where);
    expect(std::abs(total - expected) <= 1e-5 * static_cast<double>(n * (d + 1)),
           "length: " + where);
  }
}

template <class T>
void submatrices(int64_t n, int64_t k, int64_t count, int threads) {
  const std::string where = std::to_string(count) + " submatrices of " + std::to_string(k);
  const Array<T> cov = definite<T>(1, n, false);
  Array<int64_t> index;
  for (int64_t set = 0; set < count; ++set)
    for (int64_t i = 0; i < k; ++i) index.push_back((5 * set + 3 * i) % n);
  if (k > 1) index.back() = index[index.size() - 2];  // a variable twice
  Array<T> value(static_cast<size_t>(count)), copies;
  Array<int32_t> info(value.size(), -1), expected_info(info);
  for (int64_t set = 0; set < count; ++set) {
    for (int64_t i = 0; i < k; ++i) {
      for (int64_t j = 0; j < k; ++j) {
        const int64_t a = index[static_cast<size_t>(set * k + i)],
                      b = index[static_cast<size_t>(set * k + j)];
        copies.push_back(cov[static_cast<size_t>(std::max(a, b) * n + std::min(a, b))]);
      }
    }
  }
  if (k > 1) copies.back() = 0;
  Array<T> expected(value.size());
  cpu::submatrix_logdet(cov.data(), n, index.data(), count, k, value.data(), info.data(), threads);
  cpu::logdet(copies.data(), count, k, expected.data(), expected_info.data(), threads);
  expect(info == expected_info, "info: " + where);
  for (size_t set = 0; set < value.size(); ++set)
    expect(value[set] == expected[set] || info[set] == k, where);
}

template <class T>
void information(int64_t nx, int64_t ny, int64_t group, int threads) {
  const std::string where =
      std::to_string(nx) + "," + std::to_string(ny) + "/" + std::to_string(group);
  const int64_t n = nx + ny + 1, batch = 3, groups = nx / group;
  Array<T> cov = definite<T>(batch, n, false);
  for (int64_t i = 0; i < n; ++i)
    cov[static_cast<size_t>(std::max<int64_t>(i, 1) * n + std::min<int64_t>(i, 1))] = 0;
  Array<int64_t> order(
      static_cast<size_t>(n));  // variable 1 of the first matrix is constant, and is in x
  std::iota(order.begin(), order.end(), 0);
  std::rotate(order.begin(), order.begin() + 1, order.end());
  const MutualInformation of{order.data(), nx, order.data() + nx, ny, group, 0.25};
  Array<T> marginal(static_cast<size_t>(batch * groups)), conditional(marginal), pairwise(marginal);
  Array<int32_t> info(marginal.size()), conditional_info(info), pairwise_info(info);
  cpu::marginal_mi(cov.data(), batch, n, of, marginal.data(), info.data(), threads);
  cpu::conditional_mi(cov.data(), batch, n, of, conditional.data(), conditional_info.data(),
                      threads);
  cpu::pairwise_mi(cov.data(), batch, n, of, pairwise.data(), pairwise_info.data(), threads);
  for (size_t g = 0; g < marginal.size(); ++g) {
    expect(info[g] == 0 && marginal[g] >= 0 && marginal[g] < 1, "marginal " + where);
    expect(pairwise_info[g] == 0 && pairwise[g] >= 0 && pairwise[g] < 1, "pairwise " + where);
    const bool constant = g < static_cast<size_t>(groups);
    expect(constant ? conditional_info[g] == 1 && std::isnan(conditional[g])
                    : conditional_info[g] == 0 && conditional[g] > T(-1e-12),
           "conditional " + where);
  }
}

// All are chosen, once each, by gains that add up to what is known; refusals too.
template <class T>
void choices(int64_t channels, int64_t r, int64_t ny, int threads) {
  const std::string where = std::to_string(channels) + "*" + std::to_string(r) + " given " +
                            std::to_string(ny) + " of " + std::to_string(sizeof(T));
  const int64_t nx = channels * r, n = nx + ny;
  const Array<T> cov = definite<T>(1, n, false), other = definite<T>(1, nx, false);
  Array<T> spoilt = definite<T>(1, nx, true), block(cov.size());
  Array<int64_t> variables(static_cast<size_t>(n));
  std::iota(variables.begin(), variables.end(), 0);
  Array<int64_t> order(static_cast<size_t>(channels));
  Array<double> values(order.size());
  int32_t info = -1;
  const Choice choice{channels, order.data(), values.data(), &info};
  const auto all_chosen = [&](const char* what) {
    Array<int64_t> sorted = order;
    std::sort(sorted.begin(), sorted.end());
    Array<int64_t> expected(sorted.size());
    std::iota(expected.begin(), expected.end(), 0);
    expect(info == 0 && sorted == expected, what + (" chose wrongly: " + where));
  };
  MutualInformation of{variables.data(), nx, variables.data() + nx, ny, r, 0.25};
  const MatrixView<T> view{cov.data(), n, 1};
  cpu::forward_selection(view, of, {}, choice, threads);
  all_chosen("forward_selection");
  double sum = std::accumulate(values.begin(), values.end(), 0.0);
  T nats = 0, value = 0;
  int32_t other_info = -1;
  if (ny > 0) {
    of.group_size = nx;
    cpu::marginal_mi(cov.data(), 1, n, of, &nats, &other_info, 1);
    expect(std::abs(sum - static_cast<double>(nats)) < 1e-5, "sum of gains: " + where);
    of.group_size = r;
  } else {
    cpu::logdet(cov.data(), 1, n, &value, &other_info, 1);
    expect(std::abs(2 * sum - static_cast<double>(value)) < 1e-4 * static_cast<double>(n),
           "sum of entropies: " + where);
  }
  if (channels > 2) {  // a few, with some that are in from the start
    const Choice few{channels - 2, order.data(), values.data(), &info};
    cpu::forward_selection(view, of, {channels - 1, 0}, few, threads);
    expect(info == 0, "start: " + where);
    const Choice two{2, order.data(), values.data(), &info};
    cpu::forward_selection(view, of, {}, two, threads);
    expect(info == 0 && order[0] != order[1], "two: " + where);
  }
  const MatrixView<T> first{other.data(), nx, 1}, bad{spoilt.data(), nx, 1};
  const std::vector<LayerPair<T>> twice = {{first, first, r}, {first, first, r}};
  cpu::obs_elimination(twice, channels, {}, choice, threads);
  all_chosen("obs_elimination");
  sum = std::accumulate(values.begin(), values.end(), 0.0);
  expect(std::abs(sum - 2 * static_cast<double>(nx)) < 1e-9 * static_cast<double>(nx),
         "tr(P^-1 P): " + where);
  cpu::backward_elimination(twice, channels, {}, choice, threads);
  all_chosen("backward_elimination");
  expect(values[0] == 0 && values.back() == 0, "nothing told: " + where);
  cpu::backward_elimination<T>({{first, bad, r}}, channels, {}, choice, threads);
  expect(info == 1 && order[0] == -1 && std::isnan(values[0]), "refusal: " + where);
  if (channels > 1) {
    const Choice rest{channels - 1, order.data(), values.data(), &info};
    cpu::obs_elimination<T>({{bad, first, r}}, channels, {channels - 1}, rest, threads);
    expect(info == 0, "kept and never read: " + where);
  }
}

template <class T, class Out>
void covariances(int64_t n, int64_t channels, int threads) {
  const std::string where = "covariance " + std::to_string(n) + "x" + std::to_string(channels);
  const Array<float> numbers = random_array<float>(n * channels);
  Array<T> x(numbers.size());
  for (size_t i = 0; i < x.size(); ++i) {
    if constexpr (sizeof(T) == 2) {
      x[i] = T{static_cast<uint16_t>(0x3c00 + i % 7)};
    } else {
      x[i] = static_cast<T>(numbers[i]) + T(100);
    }
  }
  const auto at = [&](int64_t k, int64_t c) {
    return static_cast<double>(widen(x[static_cast<size_t>(k * channels + c)]));
  };
  Samples samples{x.data(), channels, 1, {{n, channels}}, 1};
  Array<Out> cov(static_cast<size_t>(channels * channels)), cross(cov),
      mean(static_cast<size_t>(channels)), other(mean);
  expect(cpu::covariance<T, Out>(&samples, 1, 1, cov.data(), mean.data(), threads).kind ==
             CovarianceOutcome::ok,
         where);
  // The same samples channel by channel, in two images of unequal distance to the next line.
  Array<T> lines(x.size());
  for (int64_t k = 0; k < n; ++k)
    for (int64_t c = 0; c < channels; ++c)
      lines[static_cast<size_t>(c * n + k)] = x[static_cast<size_t>(k * channels + c)];
  const Samples by_line = n % 2 == 0
                              ? Samples{lines.data(), channels, n, {{2, n / 2}, {n / 2, 1}}, 2}
                              : Samples{lines.data(), channels, n, {{n, 1}}, 1};
  expect(cpu::cross_covariance<T, Out>(&samples, &by_line, 1, 1, cross.data(), mean.data(),
                                       other.data(), threads)
                 .kind == CovarianceOutcome::ok,
         where);
  Array<Out> again(cov);
  expect(cpu::covariance<T, Out>(&by_line, 1, 1, again.data(), mean.data(), threads).kind ==
             CovarianceOutcome::ok,
         where);
  for (int64_t i = 0; i < channels; ++i) {
    for (int64_t j = 0; j < channels; ++j) {
      double mean_i = 0, mean_j = 0, sum = 0;
      for (int64_t k = 0; k < n; ++k)
        mean_i += at(k, i) / static_cast<double>(n), mean_j += at(k, j) / static_cast<double>(n);
      for (int64_t k = 0; k < n; ++k)
        sum += (at(k, i) - mean_i) * (at(k, j) - mean_j) / static_cast<double>(n - 1);
      const size_t e = static_cast<size_t>(i * channels + j);
      expect(std::abs(sum - static_cast<double>(cov[e])) < 1e-4 &&
                 std::abs(sum - static_cast<double>(cross[e])) < 1e-4 &&
                 std::abs(sum - static_cast<double>(again[e])) < 1e-4,
             where);
    }
  }
}

void patches(int64_t kernel, int64_t step, int64_t padding, int64_t dilation, int threads) {
  const int64_t images = 2, channels = 3, size = 7;
  const int64_t out = (size + 2 * padding - dilation * (kernel - 1) - 1) / step + 1;
  const Array<float> x = random_array<float>(images * channels * size * size);
  const Array<float> y = random_array<float>(images * 2 * out * out);
  const Patches from{x.data(),
                     images,
                     channels,
                     {size, size},
                     channels * size * size,
                     size * size,
                     {size, 1},
                     {kernel, kernel},
                     {step, step},
                     {padding, padding},
                     {dilation, dilation},
                     {out, out}};
  const Samples to{y.data(), 2, out * out, {{images, 2 * out * out}, {out, out}, {out, 1}}, 3};
  const int64_t variables = from.variables();
  Array<float> cov(static_cast<size_t>(variables * variables)),
      mean(static_cast<size_t>(variables));
  Array<float> cross(static_cast<size_t>(variables * 2)), mean_y(2);
  expect(cpu::patch_covariance<float, float>(from, 1, cov.data(), mean.data(), threads).kind ==
             CovarianceOutcome::ok,
         "patches");
  expect(cpu::patch_cross_covariance<float, float>(from, to, 1, cross.data(), mean.data(),
                                                   mean_y.data(), threads)
                 .kind == CovarianceOutcome::ok,
         "patches against outputs");
  for (int64_t i = 0; i < variables; ++i)
    expect(cov[static_cast<size_t>(i * variables + i)] > 0, "patch variance");
}

// [5, columns, inner] cut along its first two axes, or the second alone, to new memory and in place.
void slices(int64_t columns, int64_t inner, int64_t itemsize, int threads) {
  using Axis = SliceJob::Axis;
  const int64_t block = inner * itemsize;
  Array<unsigned char> source(static_cast<size_t>(5 * columns * block));
  for (unsigned char& byte : source) byte = static_cast<unsigned char>(generator());
  for (const Array<int64_t>& rows : {Array<int64_t>{0, 1, 2, 3, 4}, Array<int64_t>{0, 3, 4}}) {
    for (unsigned share : {1, 6, 15}) {  // of 16
      Array<int64_t> kept;
      for (int64_t j = 0; j < columns; ++j)
        if (generator() % 16 < share) kept.push_back(j);
      const auto count = static_cast<int64_t>(kept.size());
      const auto height = static_cast<int64_t>(rows.size());
      Array<unsigned char> expected;
      for (int64_t i : rows)
        for (int64_t j : kept)
          expected.insert(expected.end(), source.begin() + (i * columns + j) * block,
                          source.begin() + (i * columns + j + 1) * block);
      const Axis axes[] = {{height, columns * inner, count * inner, rows.data()},
                           {count, inner, inner, kept.data()},
                           {inner, 1, 1, nullptr}};
      Array<unsigned char> target(expected.size()), same = source;
      cpu::slice_channels({SliceJob{source.data(), target.data(), itemsize, axes, 3}}, threads);
      expect(target == expected, "slice_channels");
      cpu::slice_channels({SliceJob{same.data(), same.data(), itemsize, axes, 3}}, threads);
      expect(std::equal(expected.begin(), expected.end(), same.begin()), "slice_channels_");
    }
  }
}

void run(int threads) {
  for (int64_t d : {1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 127, 129}) {
    for (int64_t batch : {1, 2, 5, 19}) {
      linear_algebra<float>(batch, d, threads);
      linear_algebra<double>(batch, d, threads);
    }
  }
  for (int64_t k : {1, 2, 3, 8, 17, 65, 100}) {
    for (int64_t count : {1, 19, 40}) {
      submatrices<float>(101, k, count, threads);
      submatrices<double>(101, k, count, threads);
    }
  }
  for (int64_t d : {193, 250}) {  // more than one block of rows
    linear_algebra<float>(2, d, threads);
    linear_algebra<double>(2, d, threads);
    information<double>(d, 5, 1, threads);
    information<double>(d, 5, d, threads);
  }
  for (int64_t columns : {1, 7, 8, 25, 191, 200, 401}) {
    for (int64_t rows : {1, 33, 64}) grams(rows, columns);
  }
  for (int64_t nx : {1, 6, 36}) {
    for (int64_t ny : {1, 5, 33}) {
      for (int64_t group : {1, 2, 3, 6, 36}) {
        if (nx % group != 0) continue;
        information<float>(nx, ny, group, threads);
        information<double>(nx, ny, group, threads);
      }
    }
  }
  for (int64_t r : {1, 2, 3, 9, 70}) {
    for (int64_t channels : {1, 3, 8, 17, 66, 131}) {
      if (channels * r > 210) continue;
      for (int64_t ny : {0, 5, 67}) {
        choices<float>(channels, r, ny, threads);
        choices<double>(channels, r, ny, threads);
      }
    }
  }
  for (int64_t channels : {1, 2, 16, 31, 33, 65}) {
    for (int64_t n : {2, 37, 300, 1301, 20000}) {
      if (n * channels > 50000) continue;
      covariances<float, float>(n, channels, threads);
      covariances<double, double>(n, channels, threads);
      covariances<float16, float>(n, channels, threads);
      covariances<bfloat16, double>(n, channels, threads);
    }
  }
  for (int64_t kernel : {1, 2, 3}) {
    for (int64_t step : {1, 2}) {
      for (int64_t padding : {0, 1}) {
        for (int64_t dilation : {1, 2}) patches(kernel, step, padding, dilation, threads);
      }
    }
  }
  for (int64_t n : {1, 2, 7, 16, 31, 32, 33, 65, 100}) {
    for (int64_t d : {0, 1, 3}) {
      for (bool with_base : {false, true}) {
        if (d == 0 && !with_base) continue;
        trees<float>(2, n, d, with_base, threads);
        trees<double>(3, n, d, with_base, threads);
      }
    }
  }
  for (int64_t columns : {1, 13, 64, 65, 300})
    for (int64_t inner : {1, 3, 9, 80})
      for (int64_t itemsize : {1, 2, 4, 8, 16}) slices(columns, inner, itemsize, threads);
}

}  // namespace
}  // namespace infoslice

int main() {
  infoslice::run(1);
  infoslice::run(3);
  std::printf("%d failures\n", infoslice::failures);
  return infoslice::failures == 0 ? 0 : 1;
}
