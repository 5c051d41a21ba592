#include "spanning_tree.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>

#include "emulated.h"

namespace infoslice {
namespace {

/// Small integers: every distance is exact, many are the same, and so are the trees.
template <class T>
bool compare(int64_t batch, int64_t n, int64_t d, bool with_base) {
  prepare(n + d);
  std::vector<T> points(static_cast<size_t>(batch * n * d)), base;
  std::mt19937 random(static_cast<unsigned>(n));
  for (T& x : points) x = static_cast<T>(random() % 50);
  if (with_base) {
    base.resize(static_cast<size_t>(n * n));
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j) base[static_cast<size_t>(i * n + j)] = T((i + j) * i * j % 9);
  }
  if (batch > 1) points.back() = std::numeric_limits<T>::quiet_NaN();
  const size_t count = static_cast<size_t>(batch), size = static_cast<size_t>(batch * (n - 1));
  std::vector<int64_t> edges(2 * size), expected_edges(2 * size);
  std::vector<T> lengths(size), expected_lengths(size);
  std::vector<int32_t> info(count), expected_info(count);
  std::vector<double> workspace(cuda::spanning_tree_workspace(batch, n) / sizeof(double));
  const T* const shared = with_base ? base.data() : nullptr;
  const int error = cuda::spanning_tree(points.data(), shared, batch, n, d, edges.data(),
                                        lengths.data(), info.data(), workspace.data(), nullptr);
  cpu::spanning_tree(points.data(), shared, batch, n, d, expected_edges.data(),
                     expected_lengths.data(), expected_info.data(), 1);
  bool good = error == 0 && info == expected_info && edges == expected_edges;
  for (size_t i = 0; i < size && good; ++i)
    good = std::isnan(expected_lengths[i]) ? std::isnan(lengths[i])
                                           : lengths[i] == expected_lengths[i];
  std::printf("%ld trees of %ld points in %ld dimensions, %zu-byte elements: %s %s\n",
              static_cast<long>(batch), static_cast<long>(n), static_cast<long>(d), sizeof(T),
              good ? "good" : "WRONG", emulation::report().c_str());
  return good;
}

}  // namespace

bool check_spanning_tree() {
  bool good = compare<float>(INFOSLICE_MAX_GRID + 1, 5, 2, true);
  if (!kThreads) {
    good = compare<double>(2 * INFOSLICE_MAX_GRID + 1, 40, 3, true) && good;
    good = compare<double>(2, 300, 2, false) && good;
    good = compare<float>(1, 260, 0, true) && good;
    good = compare<float>(2, 1, 3, false) && good;
  }
  return good;
}

}  // namespace infoslice
