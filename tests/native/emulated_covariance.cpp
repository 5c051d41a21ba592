#include "covariance.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>

#include "common/numeric.h"
#include "emulated.h"

namespace infoslice {
namespace {

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
  prepare(n);
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

// Receptive fields with padding, a stride and a dilation.
template <class T>
bool compare_patches(const char* type) {
  prepare(3);
  Patches p{};
  p.images = 2;
  p.channels = 3;
  for (int d = 0; d < 2; ++d) {
    p.size[d] = 6 - d;
    p.kernel[d] = 3 - d;
    p.step[d] = 1 + d;
    p.padding[d] = 1;
    p.dilation[d] = 1 + d;
    p.out[d] =
        (p.size[d] + 2 * p.padding[d] - p.dilation[d] * (p.kernel[d] - 1) - 1) / p.step[d] + 1;
  }
  p.pixel_stride[1] = 1;
  p.pixel_stride[0] = p.size[1];
  p.channel_stride = p.size[0] * p.size[1];
  p.image_stride = p.channels * p.channel_stride;
  const std::unique_ptr<T[]> data(new T[static_cast<size_t>(p.images * p.image_stride)]);
  std::mt19937 random(5);
  for (int64_t e = 0; e < p.images * p.image_stride; ++e)
    set(data[static_cast<size_t>(e)], 20 + static_cast<int>(random() % 8));
  p.data = data.get();
  const int64_t variables = p.variables(), n = p.count();
  std::vector<double> cov(static_cast<size_t>(variables * variables)),
      mean(static_cast<size_t>(variables));
  const std::unique_ptr<char[]> workspace(
      new char[cuda::patch_covariance_workspace<T>(p, nullptr)]);
  const int error = cuda::patch_covariance<T, double>(p, nullptr, 1, cov.data(), mean.data(),
                                                      nullptr, workspace.get(), nullptr);
  const auto value = [&](int64_t v, int64_t k) -> double {
    const int64_t taps = p.kernel[0] * p.kernel[1], spots = p.out[0] * p.out[1];
    const int64_t y =
        k % spots / p.out[1] * p.step[0] - p.padding[0] + v % taps / p.kernel[1] * p.dilation[0];
    const int64_t x = k % p.out[1] * p.step[1] - p.padding[1] + v % p.kernel[1] * p.dilation[1];
    if (y < 0 || x < 0 || y >= p.size[0] || x >= p.size[1]) return 0;
    return static_cast<double>(widen(data[static_cast<size_t>(
        k / spots * p.image_stride + v / taps * p.channel_stride + y * p.size[1] + x)]));
  };
  const auto average = [&](int64_t v) {
    double sum = 0;
    for (int64_t k = 0; k < n; ++k) sum += value(v, k);
    return sum / static_cast<double>(n);
  };
  double worst = 0;
  for (int64_t i = 0; i < variables; ++i) {
    for (int64_t j = 0; j < variables; ++j) {
      const double mi = average(i), mj = average(j);
      double sum = 0;
      for (int64_t k = 0; k < n; ++k) sum += (value(i, k) - mi) * (value(j, k) - mj);
      const double got = cov[static_cast<size_t>(i * variables + j)];
      const double difference = std::abs(got - sum / static_cast<double>(n - 1));
      worst = difference <= worst ? worst : difference;  // NaN too
    }
  }
  const bool good = error == 0 && worst <= 1e-3;  // of variances of about 100
  std::printf("covariance of patches, %s, off by %.1e: %s %s\n", type, worst,
              good ? "good" : "WRONG", emulation::report().c_str());
  return good;
}

#ifndef INFOSLICE_EMULATION_THREADS
constexpr int64_t kHopperSamples = 200, kHopperVariables = 72;
#else
constexpr int64_t kHopperSamples = 72, kHopperVariables = 72;
#endif

// The Hopper kernels against the portable ones, where variable `far` is far from zero (-1: none).
bool compare_hopper(bool along, int64_t far) {
  prepare(far + 2);
  constexpr int64_t n = kHopperSamples, variables = kHopperVariables;
  const std::unique_ptr<bfloat16[]> data(new bfloat16[n * variables]);
  std::mt19937 random(1);
  const int64_t stride = along ? n : 1, step = along ? 1 : variables;
  for (int64_t v = 0; v < variables; ++v) {
    for (int64_t k = 0; k < n; ++k)
      set(data[static_cast<size_t>(v * stride + k * step)],
          (v == far ? 90 : 0) + static_cast<int>(random() % 9) - 4);
  }
  SampleBatch x{};
  x.first.data = data.get();
  x.first.variables = variables;
  x.first.stride = stride;
  x.first.axes[0] = {n, step};
  x.first.axes_count = 1;
  std::vector<float> cov(variables * variables), mean(variables), expected(cov);
  const std::unique_ptr<char[]> workspace(
      new char[cuda::covariance_workspace<bfloat16>(x, nullptr)]);
  const int error = cuda::covariance_hopper<bfloat16, float>(x, 1, cov.data(), mean.data(),
                                                             workspace.get(), nullptr);
  cuda::covariance<bfloat16, float>(x, nullptr, 1, expected.data(), mean.data(), nullptr,
                                    workspace.get(), nullptr);
  float worst = 0;
  for (size_t e = 0; e < cov.size(); ++e) {
    const float difference = std::abs(cov[e] - expected[e]);
    worst = difference <= worst ? worst : difference;
  }
  const bool good = error == 0 && worst <= 1e-5f;
  std::printf("covariance on Hopper%s%s: %s %s\n", along ? " along the samples" : "",
              far < 0 ? "" : ", shifted", good ? "good" : "WRONG", emulation::report().c_str());
  return good;
}

}  // namespace

bool check_covariance() {
  bool good = true;
  for (bool along : {false, true}) {
    good = compare_covariance<float>("float", 40, 9, 0, along) && good;
    good = compare_covariance<bfloat16>("bfloat16", 40, 9, 0, along) && good;
    good = compare_hopper(along, -1) && good;
    if (along) good = compare_patches<bfloat16>("bfloat16") && good;
    if (kThreads) continue;
    good = compare_hopper(along, 5) && good;
    good = compare_covariance<float>("float", 33, 70, 13, along) && good;
    good = compare_covariance<double>("double", 40, 67, 0, along) && good;
    good = compare_covariance<bfloat16>("bfloat16", 64, 72, 0, along) && good;
    good = compare_covariance<float16>("float16", 33, 5, 70, along) && good;
  }
  if (!kThreads) good = compare_patches<double>("double") && good;
  return good;
}

}  // namespace infoslice
