#include "cholesky.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <random>

#include "emulated.h"

namespace infoslice {
namespace {

// Two matrices more than the grid has room for.
int64_t batch_of(int64_t d) { return (d <= 32 ? 4 : 1) * INFOSLICE_MAX_GRID + 2; }

template <class T>
bool compare(int64_t batch, int64_t d, size_t shared_memory_limit) {
  prepare(d, shared_memory_limit);
  const size_t size = static_cast<size_t>(batch * d * d), count = static_cast<size_t>(batch);
  std::vector<T> a(size), factor(size), expected(size), value(count), expected_value(count);
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
  const int error = cuda::cholesky(a.data(), batch, d, factor.data(), info.data(), nullptr);
  std::vector<T> workspace(cuda::logdet_workspace<T>(batch, d) / sizeof(T));
  std::vector<int32_t> info_of_logdet(count);
  const int second_error = cuda::logdet(a.data(), batch, d, value.data(), info_of_logdet.data(),
                                        workspace.data(), nullptr);
  cpu::logdet(a.data(), batch, d, expected_value.data(), expected_info.data(), 1);
  cpu::cholesky(a.data(), batch, d, expected.data(), expected_info.data(), 1);
  bool good = error == 0 && second_error == 0 && info == expected_info && info_of_logdet == info;
  const T bound = static_cast<T>(8 * d) * std::numeric_limits<T>::epsilon();
  for (size_t b = 0; b < count && good; ++b) {
    good =
        info[b] != 0 ? std::isnan(value[b]) : std::abs(value[b] - expected_value[b]) <= 4 * bound;
  }
  for (size_t e = 0; e < size && good; ++e) {
    const bool upper =
        e % static_cast<size_t>(d) > e / static_cast<size_t>(d) % static_cast<size_t>(d);
    const bool failed = !upper && info[e / static_cast<size_t>(d * d)] != 0;
    good = failed ? std::isnan(factor[e]) : std::abs(factor[e] - expected[e]) <= bound;
  }
  std::printf("%ld x %ld, %zu-byte elements, %zu bytes of shared memory: %s %s\n",
              static_cast<long>(batch), static_cast<long>(d), sizeof(T), shared_memory_limit,
              good ? "good" : "WRONG", emulation::report().c_str());
  return good;
}

}  // namespace

bool check_cholesky(const std::vector<int64_t>& orders) {
  bool good = true;
  for (int64_t d : orders) {
    for (size_t limit : {kDeviceShared, size_t{2048}}) {
      if (limit == 2048 && d <= 32) continue;  // would not do for a warp's tile
      good = compare<float>(batch_of(d), d, limit) && good;
      if (!kThreads) good = compare<double>(batch_of(d), d, limit) && good;
    }
  }
  return good;
}

}  // namespace infoslice
