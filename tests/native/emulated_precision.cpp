#include "precision.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>

#include "emulated.h"

namespace infoslice {
namespace {

template <class T>
bool compare(int64_t batch, int64_t d, int64_t block) {
  prepare(d + block);
  const size_t size = static_cast<size_t>(batch * d * d), count = static_cast<size_t>(batch);
  const size_t values = static_cast<size_t>(batch * d * block);
  std::vector<T> a(size), blocks(values), expected(values);
  std::vector<int32_t> info(count), expected_info(count);
  std::mt19937 random(static_cast<unsigned>(d));
  std::uniform_real_distribution<T> uniform(T(-0.5), T(0.5));
  for (size_t e = 0; e < size; ++e) {
    const int64_t i = static_cast<int64_t>(e) / d % d, j = static_cast<int64_t>(e) % d;
    a[e] = j > i    ? std::numeric_limits<T>::quiet_NaN()
           : i == j ? static_cast<T>(d)
                    : uniform(random);
  }
  if (batch > 1) a[static_cast<size_t>(2 * d * d - 1)] = -1;  // the second one is not definite
  std::vector<double> workspace(cuda::precision_workspace(batch, d) / sizeof(double));
  const int error = cuda::precision_blocks(a.data(), batch, d, block, blocks.data(), info.data(),
                                           workspace.data(), nullptr);
  cpu::precision_blocks(a.data(), batch, d, block, expected.data(), expected_info.data(), 1);
  bool good = error == 0 && info == expected_info;
  for (size_t e = 0; e < values && good; ++e) {
    good = info[e / static_cast<size_t>(d * block)] != 0
               ? std::isnan(blocks[e])
               : std::abs(blocks[e] - expected[e]) <= 4 * std::numeric_limits<T>::epsilon();
  }
  std::printf("%ld x %ld, blocks of %ld, %zu-byte elements: %s %s\n", static_cast<long>(batch),
              static_cast<long>(d), static_cast<long>(block), sizeof(T), good ? "good" : "WRONG",
              emulation::report().c_str());
  return good;
}

}  // namespace

bool check_precision() {
  bool good = compare<float>(4 * INFOSLICE_MAX_GRID + 2, 9, 3) && compare<double>(2, 65, 1);
  if (!kThreads) {
    good = compare<double>(16 * INFOSLICE_MAX_GRID + 2, 7, 1) && good;
    good = compare<double>(3, 32, 32) && good;
    good = compare<float>(INFOSLICE_MAX_GRID + 1, 66, 3) && good;
    good = compare<double>(2, 130, 65) && good;
  }
  return good;
}

}  // namespace infoslice
