// One call of a central kernel, for callgrind to count: instructions NAME. See instructions.py.
#include <cstdio>
#include <cstring>
#include <numeric>
#include <vector>

#include "cholesky.h"
#include "covariance.h"
#include "slice_channels.h"

namespace {

using namespace infoslice;

// Arithmetic from a simple generator: the same numbers everywhere.
std::vector<float> numbers(int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / static_cast<float>(1 << 24) - 0.5f;
  }
  return values;
}

struct Covariance {
  int64_t channels = 64, n = 8192;
  std::vector<float> x = numbers(n * channels), cov = numbers(channels * channels), mean = cov;
  Samples samples{x.data(), channels, 1, {{n, channels}}, 1};
  void operator()() { cpu::covariance<float, float>(&samples, 1, 1, cov.data(), mean.data(), 1); }
};

struct LogDeterminant {
  int64_t batch = 512, d = 16;
  std::vector<float> a = numbers(batch * d * d), logdet = numbers(batch);
  std::vector<int32_t> info = std::vector<int32_t>(static_cast<size_t>(batch));
  LogDeterminant() {
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t i = 0; i < d; ++i) a[static_cast<size_t>((b * d + i) * d + i)] += 16;
  }
  void operator()() { cpu::logdet(a.data(), batch, d, logdet.data(), info.data(), 1); }
};

struct SliceChannels {
  int64_t rows = 512, columns = 512;
  std::vector<float> from = numbers(rows * columns), to = numbers(rows * columns / 2);
  std::vector<int64_t> keep = std::vector<int64_t>(static_cast<size_t>(columns / 2));
  SliceJob::Axis axes[2] = {{rows, columns, columns / 2, nullptr},
                            {columns / 2, 1, 1, keep.data()}};
  std::vector<SliceJob> jobs{{from.data(), to.data(), 4, axes, 2}};
  SliceChannels() {
    for (size_t j = 0; j < keep.size(); ++j) keep[j] = static_cast<int64_t>(2 * j + (j / 3) % 2);
  }
  void operator()() { cpu::slice_channels(jobs, 1); }
};

// The name by which callgrind knows where to count.
extern "C" [[gnu::noinline]] void infoslice_counted(void (*run)(void*), void* kernel) {
  run(kernel);
}

template <class Kernel>
void count() {
  Kernel kernel;
  kernel();  // pages and one-time choices
  infoslice_counted([](void* k) { (*static_cast<Kernel*>(k))(); }, &kernel);
}

}  // namespace

int main(int arguments, char** argument) {
  const char* name = arguments == 2 ? argument[1] : "";
  if (std::strcmp(name, "covariance") == 0) {
    count<Covariance>();
  } else if (std::strcmp(name, "logdet") == 0) {
    count<LogDeterminant>();
  } else if (std::strcmp(name, "slice_channels") == 0) {
    count<SliceChannels>();
  } else {
    std::printf("instructions covariance|logdet|slice_channels\n");
    return 2;
  }
  return 0;
}
