// The emulated CUDA kernels in a plain program, to be built with a sanitizer.
//   emulated             runs the kernels of csrc/cuda and compares them with the CPU's
//   emulated 9 33        the same for the Cholesky kernels and these orders only
//   emulated covariance  the same for the covariance kernels only, with sums in double
//   emulated NAME        runs a model kernel (model_kernels.cu); prints its values or what failed
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cholesky.h"
#include "common/numeric.h"
#include "covariance.h"
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
constexpr size_t kDeviceShared = 232448;  // of a block, on an H100
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
    for (size_t limit : {kDeviceShared, size_t{2048}}) {
      if (limit == 2048 && d <= 32) continue;  // would not do for a warp's tile
      good = compare<float>(batch_of(d), d, limit) && good;
      if (!kThreads) good = compare<double>(batch_of(d), d, limit) && good;
    }
  }
  return good;
}

// Small whole numbers, which all types hold.
void set(double& to, int value) { to = value; }
void set(float& to, int value) { to = static_cast<float>(value); }
void set(bfloat16& to, int value) {
  const auto exact = static_cast<float>(value);
  uint32_t bits;
  std::memcpy(&bits, &exact, sizeof(bits));
  to.bits = static_cast<uint16_t>(bits >> 16);
}
void set(float16& to, int value) { to.bits = static_cast<uint16_t>(0x6400 + value); }  // 1024 +

// Two items of rows and of columns variables; columns 0: of rows alone. Arrays of exact length.
template <class T>
bool compare_covariance(const char* type, int64_t n, int64_t rows, int64_t columns, bool along) {
  emulation::set_seed(static_cast<uint64_t>(n));
  constexpr int64_t kItems = 2;
  std::mt19937 random(static_cast<unsigned>(n));
  const auto make = [&](int64_t variables, std::unique_ptr<T[]>& data) {
    data.reset(new T[static_cast<size_t>(kItems * n * variables)]);
    for (int64_t e = 0; e < kItems * n * variables; ++e)
      set(data[static_cast<size_t>(e)], 90 + static_cast<int>(random() % 8));
    SampleBatch batch{};
    batch.first.data = data.get();
    batch.first.variables = variables;
    batch.first.stride = along ? n : 1;
    batch.first.axes[0] = {n, along ? 1 : variables};
    batch.first.axes_count = 1;
    batch.axes[0] = {kItems, n * variables};
    batch.axes_count = 1;
    return batch;
  };
  std::unique_ptr<T[]> x_data, y_data;
  const SampleBatch x = make(rows, x_data), other = make(columns, y_data);
  const SampleBatch* y = columns == 0 ? nullptr : &other;
  const SampleBatch& right = y == nullptr ? x : other;
  const int64_t width = right.first.variables;
  std::vector<double> cov(static_cast<size_t>(kItems * rows * width)),
      mean_x(static_cast<size_t>(kItems * rows)), mean_y(static_cast<size_t>(kItems * width));
  const std::unique_ptr<char[]> workspace(new char[cuda::covariance_workspace<T>(x, y)]);
  const int error = cuda::covariance<T, double>(x, y, 1, cov.data(), mean_x.data(), mean_y.data(),
                                                workspace.get(), nullptr);
  const auto value = [&](const SampleBatch& batch, int64_t item, int64_t k, int64_t v) {
    return static_cast<double>(widen(static_cast<const T*>(
        batch.first.data)[item * batch.axes[0].stride + k * batch.first.axes[0].stride +
                          v * batch.first.stride]));
  };
  double worst = 0;
  for (int64_t item = 0; item < kItems; ++item) {
    const auto mean = [&](const SampleBatch& batch, int64_t v) {
      double sum = 0;
      for (int64_t k = 0; k < n; ++k) sum += value(batch, item, k, v);
      return sum / static_cast<double>(n);
    };
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        const double mi = mean(x, i), mj = mean(right, j);
        double sum = 0;
        for (int64_t k = 0; k < n; ++k)
          sum += (value(x, item, k, i) - mi) * (value(right, item, k, j) - mj);
        const double got = cov[static_cast<size_t>((item * rows + i) * width + j)];
        const double difference = std::abs(got - sum / static_cast<double>(n - 1));
        worst = difference <= worst ? worst : difference;  // NaN too
      }
    }
  }
  const bool good = error == 0 && worst <= 1e-5;
  std::printf("covariance, %s, %ld samples of %ld and %ld variables%s: %s %s\n", type,
              static_cast<long>(n), static_cast<long>(rows), static_cast<long>(columns),
              along ? " along them" : "", good ? "good" : "WRONG", emulation::report().c_str());
  return good;
}

bool compare_covariances() {
  emulation::set_shared_memory_limit(kDeviceShared);
  bool good = true;
  for (bool along : {false, true}) {
    good = compare_covariance<float>("float", 40, 9, 0, along) && good;
    good = compare_covariance<bfloat16>("bfloat16", 40, 9, 0, along) && good;
    if (kThreads) continue;
    good = compare_covariance<float>("float", 33, 70, 13, along) && good;
    good = compare_covariance<double>("double", 40, 67, 0, along) && good;
    good = compare_covariance<bfloat16>("bfloat16", 64, 72, 0, along) && good;
    good = compare_covariance<float16>("float16", 33, 5, 70, along) && good;
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
  if (count == 2 && std::string(arguments[1]) == "covariance") return compare_covariances() ? 0 : 1;
  const bool all = count < 2;
  if (all) orders = {1, 2, 8, 9, 17, 31, 32, 33, 64, 65};
  if (!orders.empty()) {
    const bool good = compare_all(orders);
    return good && (!all || compare_covariances()) ? 0 : 1;
  }
  const model::Outcome outcome = model::run(arguments[1], 64, 1);
  for (float value : outcome.values) std::printf("%g ", static_cast<double>(value));
  std::printf("\n%s\n", outcome.report.c_str());
  return outcome.error == 0 ? 0 : 1;
}
