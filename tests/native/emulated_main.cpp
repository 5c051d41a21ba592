// The emulated CUDA kernels in a plain program, to be built with a sanitizer.
//   emulated            runs the kernels of csrc/cuda and compares them with the CPU's
//   emulated 9 33       the same for these orders only
//   emulated NAME       runs a model kernel (model_kernels.cu); prints its values or what failed
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <vector>

#include "cholesky.h"
#include "model_kernels.h"

namespace infoslice {
namespace {

// Two matrices more than the grid has room for. With threads of the system, where a shuffle takes
// milliseconds, that grid is one block, and float has to do.
#ifdef INFOSLICE_EMULATION_THREADS
constexpr bool kThreads = true;
#else
constexpr bool kThreads = false;
#endif
int64_t batch_of(int64_t d) { return (d <= 32 ? 4 : 1) * INFOSLICE_MAX_GRID + 2; }

template <class T>
bool compare(int64_t batch, int64_t d, size_t shared_memory_limit) {
  emulation::set_shared_memory_limit(shared_memory_limit);
  emulation::set_seed(static_cast<uint64_t>(d));
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

bool compare_all(const std::vector<int64_t>& orders) {
  bool good = true;
  for (int64_t d : orders) {
    for (size_t limit : {size_t{232448}, size_t{2048}}) {
      if (limit == 2048 && d <= 32) continue;  // would not do for a warp's tile
      good = compare<float>(batch_of(d), d, limit) && good;
      if (!kThreads) good = compare<double>(batch_of(d), d, limit) && good;
    }
  }
  return good;
}

}  // namespace
}  // namespace infoslice

int main(int count, char** arguments) {
  using namespace infoslice;
  std::vector<int64_t> orders;
  for (int i = 1; i < count; ++i) {
    if (const int64_t d = std::atoll(arguments[i])) orders.push_back(d);
  }
  if (count < 2) orders = {1, 2, 8, 9, 17, 31, 32, 33, 64, 65};
  if (!orders.empty()) return compare_all(orders) ? 0 : 1;
  const model::Outcome outcome = model::run(arguments[1], 64, 1);
  for (float value : outcome.values) std::printf("%g ", static_cast<double>(value));
  std::printf("\n%s\n", outcome.report.c_str());
  return outcome.error == 0 ? 0 : 1;
}
