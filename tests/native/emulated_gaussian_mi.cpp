#include "gaussian_mi.h"

#include <cmath>
#include <cstdio>
#include <memory>
#include <random>

#include "emulated.h"

namespace infoslice {
namespace {

using Matrix = std::vector<std::vector<double>>;

// Log-determinant of the variables chosen, by elimination without pivoting.
double logdet(const Matrix& s, const std::vector<int64_t>& chosen) {
  Matrix a(chosen.size(), std::vector<double>(chosen.size()));
  for (size_t i = 0; i < chosen.size(); ++i) {
    for (size_t j = 0; j < chosen.size(); ++j)
      a[i][j] = s[static_cast<size_t>(chosen[i])][static_cast<size_t>(chosen[j])];
  }
  double sum = 0;
  for (size_t p = 0; p < a.size(); ++p) {
    sum += std::log(a[p][p]);
    for (size_t i = p + 1; i < a.size(); ++i) {
      for (size_t j = p + 1; j < a.size(); ++j) a[i][j] -= a[i][p] / a[p][p] * a[p][j];
    }
  }
  return sum;
}

std::vector<int64_t> joined(std::vector<int64_t> a, const std::vector<int64_t>& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

double expected(const char* name, const Matrix& s, const MutualInformation& of, int64_t g) {
  const std::vector<int64_t> y(of.y, of.y + of.ny);
  std::vector<int64_t> group, others;
  for (int64_t i = 0; i < of.nx; ++i) (i / of.group_size == g ? group : others).push_back(of.x[i]);
  const auto information = [&](const std::vector<int64_t>& of_y, std::vector<int64_t> given) {
    return (logdet(s, joined(group, given)) + logdet(s, joined(of_y, given)) - logdet(s, given) -
            logdet(s, joined(joined(group, of_y), given))) /
           2;
  };
  if (name[0] == 'm') return information(y, {});
  if (name[0] == 'c') return information(y, others);
  double sum = 0;
  for (const int64_t j : y) sum += information({j}, {});
  return sum;
}

// Two covariances, the second with a NaN; arrays of exact length.
template <class T, class WorkspaceOf, class Body>
bool compare(const char* name, int64_t nx, int64_t ny, int64_t group_size, WorkspaceOf workspace_of,
             Body body) {
  prepare(nx + ny);
  const int64_t n = nx + ny + 1, groups = nx / group_size;
  std::vector<int64_t> x, y;
  for (int64_t i = 0; i < nx; ++i) x.push_back((i * 5 + 3) % n);  // n has no divisor 5 here
  for (int64_t j = 0; j < ny; ++j) y.push_back(((nx + j) * 5 + 3) % n);
  std::mt19937 random(static_cast<unsigned>(n));
  std::uniform_real_distribution<double> uniform(-0.5, 0.5);
  const std::unique_ptr<T[]> cov(new T[static_cast<size_t>(2 * n * n)]);
  Matrix s(static_cast<size_t>(n), std::vector<double>(static_cast<size_t>(n)));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const T value = i == j ? static_cast<T>(n) / 4 : static_cast<T>(uniform(random));
      cov[static_cast<size_t>(i * n + j)] = j > i ? static_cast<T>(NAN) : value;
      cov[static_cast<size_t>((n + i) * n + j)] = cov[static_cast<size_t>(i * n + j)];
      if (j > i) continue;
      s[static_cast<size_t>(i)][static_cast<size_t>(j)] = static_cast<double>(value);
      s[static_cast<size_t>(j)][static_cast<size_t>(i)] = static_cast<double>(value);
    }
  }
  for (const int64_t j : y) s[static_cast<size_t>(j)][static_cast<size_t>(j)] += 0.25;
  cov[static_cast<size_t>((n + y[0]) * n + y[0])] = static_cast<T>(NAN);
  const MutualInformation of{x.data(), nx, y.data(), ny, group_size, 0.25};
  const std::unique_ptr<T[]> nats(new T[static_cast<size_t>(2 * groups)]);
  const std::unique_ptr<int32_t[]> info(new int32_t[static_cast<size_t>(2 * groups)]);
  const std::unique_ptr<char[]> workspace(new char[workspace_of(2, of)]);
  const int error = body(cov.get(), 2, n, of, nats.get(), info.get(), workspace.get(), nullptr);
  bool good = error == 0;
  for (int64_t g = 0; g < groups; ++g) {
    const auto at = static_cast<size_t>(g), bad = static_cast<size_t>(groups + g);
    good = good && info[at] == 0 && info[bad] > 0 && std::isnan(nats[bad]) &&
           std::abs(static_cast<double>(nats[at]) - expected(name, s, of, g)) <= 1e-6;
  }
  std::printf("%s, %s, %ld and %ld variables, groups of %ld: %s %s\n", name,
              sizeof(T) == 8 ? "double" : "float", static_cast<long>(nx), static_cast<long>(ny),
              static_cast<long>(group_size), good ? "good" : "WRONG", emulation::report().c_str());
  return good;
}

template <class T>
bool compare_all(int64_t nx, int64_t ny, int64_t group_size) {
  bool good =
      compare<T>("marginal", nx, ny, group_size, cuda::marginal_mi_workspace, cuda::marginal_mi<T>);
  good = compare<T>("conditional", nx, ny, group_size, cuda::conditional_mi_workspace,
                    cuda::conditional_mi<T>) &&
         good;
  return compare<T>("pairwise", nx, ny, group_size, cuda::pairwise_mi_workspace,
                    cuda::pairwise_mi<T>) &&
         good;
}

}  // namespace

bool check_gaussian_mi() {
  bool good = compare_all<float>(4, 3, 2);
  good = compare_all<double>(3, 2, 1) && good;
  if (kThreads) return good;
  good = compare_all<double>(70, 5, 1) && good;
  good = compare_all<float>(36, 40, 18) && good;
  return compare_all<double>(68, 3, 34) && good;
}

}  // namespace infoslice
