// The emulated CUDA kernels in a plain program, to be built with a sanitizer.
//   emulated             runs the checks of all ops (emulated.h)
//   emulated OP          the same for one op, e.g. covariance
//   emulated 9 33        the same for the Cholesky kernels and these orders only
//   emulated NAME        runs a model kernel (model_kernels.cu); prints its values or what failed
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>

#include "emulated.h"
#include "model_kernels.h"

int main(int count, char** arguments) {
  using namespace infoslice;
  std::vector<int64_t> orders;
  for (int i = 1; i < count; ++i) {
    if (const int64_t d = std::atoll(arguments[i])) orders.push_back(d);
  }
  if (orders.empty() && kThreads) orders = {9, 33};
  if (orders.empty()) orders = {1, 2, 8, 9, 17, 31, 32, 33, 64, 65, 130};
  const std::pair<std::string, std::function<bool()>> checks[] = {
      {"cholesky", [&] { return check_cholesky(orders); }},
      {"covariance", check_covariance},
      {"dense", check_dense},
      {"precision", check_precision},
      {"greedy", check_greedy},
      {"gaussian_mi", check_gaussian_mi},
      {"slice_channels", check_slice_channels},
      {"spanning_tree", check_spanning_tree},
  };
  const std::string name = count < 2 ? "" : std::atoll(arguments[1]) ? "cholesky" : arguments[1];
  bool good = true, found = false;
  for (const auto& [op, check] : checks) {
    if (!name.empty() && name != op) continue;
    found = true;
    good = check() && good;
  }
  if (found) return good ? 0 : 1;
  const model::Outcome outcome = model::run(name, 64, 1);
  for (float value : outcome.values) std::printf("%g ", static_cast<double>(value));
  std::printf("\n%s\n", outcome.report.c_str());
  return outcome.error == 0 ? 0 : 1;
}
