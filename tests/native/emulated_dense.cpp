#include "cuda/dense.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>

#include "emulated.h"

namespace infoslice {
namespace {

// [A; B C; D E; identity] against a plain loop over the pivots.
template <class T>
bool compare(int64_t count, int64_t columns, int64_t pivots, int64_t others, bool identity) {
  prepare(columns);
  const int64_t rows = columns + others + (identity ? pivots : 0), stride = columns + 1;
  std::vector<T> m(static_cast<size_t>(count * rows * stride)), before;
  std::vector<int32_t> info(static_cast<size_t>(count));
  std::mt19937 random(static_cast<unsigned>(columns));
  std::uniform_real_distribution<T> uniform(T(-0.5), T(0.5));
  const auto at = [&](std::vector<T>& of, int64_t b, int64_t i, int64_t j) -> T& {
    return of[static_cast<size_t>((b * rows + i) * stride + j)];
  };
  for (int64_t b = 0; b < count; ++b) {
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < stride; ++j)
        at(m, b, i, j) = i == j                 ? static_cast<T>(columns)
                         : i < columns + others ? uniform(random)
                                                : static_cast<T>(i - columns - others == j);
    }
  }
  before = m;
  const cuda::Batch<T> batch{m.data(), count,  rows,          columns,
                             pivots,   stride, rows * stride, columns + others};
  const int error = cuda::eliminate<T>(batch, nullptr, info.data(), nullptr);
  std::vector<T>& expected = before;
  bool good = error == 0;
  for (int64_t b = 0; b < count && good; ++b) {
    for (int64_t p = 0; p < pivots; ++p) {
      for (int64_t i = p + 1; i < rows; ++i) {
        const T factor = at(expected, b, i, p) / at(expected, b, p, p);
        for (int64_t j = p + 1; j < columns && j <= i; ++j)
          at(expected, b, i, j) -= factor * at(expected, b, j, p);
      }
      const T root = std::sqrt(at(expected, b, p, p));
      for (int64_t i = p; i < rows; ++i) at(expected, b, i, p) /= root;
    }
    good = info[static_cast<size_t>(b)] == 0;
  }
  const T bound = static_cast<T>(8 * columns) * std::numeric_limits<T>::epsilon();
  for (size_t e = 0; e < m.size() && good; ++e) good = std::abs(m[e] - expected[e]) <= bound;
  std::printf("%ld x %ld columns, %ld pivots, %ld other rows%s, %zu-byte elements: %s %s\n",
              static_cast<long>(count), static_cast<long>(columns), static_cast<long>(pivots),
              static_cast<long>(others), identity ? " and the identity" : "", sizeof(T),
              good ? "good" : "WRONG", emulation::report().c_str());
  return good;
}

}  // namespace

bool check_dense() {
  bool good = compare<double>(2, 70, 66, 3, true);
  if (!kThreads) {
    good = compare<double>(3, 64, 64, 0, true) && good;
    good = compare<float>(3, 130, 100, 70, false) && good;
    good = compare<float>(1, 200, 64, 0, false) && good;
  }
  return good;
}

}  // namespace infoslice
