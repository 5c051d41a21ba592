#include "covariance.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

#include "common/parallel.h"
#include "cpu/covariance_moments.h"
#include "cpu/covariance_sources.h"

namespace infoslice::cpu {
namespace {

// Up to so many variables the samples are shared out among threads, in at most kSlabs slabs with
// moments of their own; above, the tiles of each chunk are. A rule of the shape alone, so that
// results do not depend on the number of threads.
constexpr int64_t kSlabVariables = 512;
constexpr int64_t kSlabs = 8;
constexpr int64_t kSlabSamples = 8192;

// Where the results of a problem go: arrays of double or of float.
struct Results {
  void *cov, *mean_x, *mean_y;
  bool as_double;
  Results item(int64_t i, int64_t rows, int64_t columns) const {
    const auto at = [&](void* start, int64_t elements) -> void* {
      return start ? static_cast<char*>(start) + elements * (as_double ? 8 : 4) : nullptr;
    };
    return {at(cov, i * rows * columns), at(mean_x, i * rows), at(mean_y, i * columns), as_double};
  }
};
template <class Out>
Results results(Out* cov, Out* mean_x, Out* mean_y) {
  return {cov, mean_x, mean_y, std::is_same_v<Out, double>};
}

template <class Out, class A>
int64_t write(const Moments<A>& moments, int64_t correction, const Results& to) {
  return moments.write(correction, static_cast<Out*>(to.cov), static_cast<Out*>(to.mean_x),
                       static_cast<Out*>(to.mean_y));
}

// The first variable with a NaN or Inf; -1 if there is none.
int64_t find_not_finite(const Source& source) {
  std::vector<double> values(kChunk<double>);
  for (int64_t v = 0; v < source.variables(); ++v)
    for (int64_t begin = 0; begin < source.count(); begin += kChunk<double>) {
      const int64_t count = std::min(kChunk<double>, source.count() - begin);
      source.read(v, begin, count, values.data());
      for (int64_t k = 0; k < count; ++k)
        if (!std::isfinite(values[k])) return v;
    }
  return -1;
}

// One batch item after slabs were merged; false: float tiles will not do.
template <class A>
bool conclude(const Moments<A>& moments, const Source& x, const Source* y, int64_t correction,
              const Results& out, CovarianceOutcome& outcome) {
  if (!moments.well_scaled()) {
    const int64_t in_x = find_not_finite(x), in_y = y ? find_not_finite(*y) : -1;
    if (in_x >= 0 || in_y >= 0) {
      outcome = {CovarianceOutcome::not_finite, in_x < 0, 0, in_x >= 0 ? in_x : in_y};
      return true;
    }
    if (std::is_same_v<A, float>) return false;
  }
  const int64_t bad = out.as_double ? write<double>(moments, correction, out)
                                    : write<float>(moments, correction, out);
  const bool in_y = bad >= x.variables();
  if (bad >= 0)
    outcome = {CovarianceOutcome::out_of_range, in_y, 0, in_y ? bad - x.variables() : bad};
  return true;
}

// One batch item, its slabs on `threads` threads.
template <class A>
CovarianceOutcome solve(const Source& x, const Source* y, int64_t correction, const Results& out,
                        int threads) {
  const int64_t n = x.count();
  const int64_t rows = x.variables(), columns = y ? y->variables() : rows;
  const int64_t slabs = std::max(rows, columns) > kSlabVariables
                            ? 1
                            : std::min(kSlabs, std::max<int64_t>(1, n / kSlabSamples));
  const Chunks<A> chunks(x);
  const int64_t slab = (n / slabs + chunks.size() - 1) / chunks.size() * chunks.size();
  const Side<A> side_x(x);
  const std::unique_ptr<const Side<A>> side_y = y ? std::make_unique<Side<A>>(*y) : nullptr;
  std::vector<std::unique_ptr<Moments<A>>> moments(slabs);
  const auto run_slab = [&](int64_t s) {
    moments[s] = std::make_unique<Moments<A>>(side_x, side_y.get());
    moments[s]->add(std::min(n, s * slab), s + 1 == slabs ? n : std::min(n, (s + 1) * slab),
                    threads);
  };
  if (slabs == 1) {
    run_slab(0);
  } else {
    const double work = kPackNanoseconds * static_cast<double>(rows + columns) +
                        kProductNanoseconds * static_cast<double>(rows * columns) / 2;
    parallel_for(threads_for(threads, work * static_cast<double>(n)), slabs, run_slab);
    for (int64_t s = 1; s < slabs; ++s) moments[0]->merge(*moments[s]);
  }
  CovarianceOutcome outcome;
  if (conclude(*moments[0], x, y, correction, out, outcome)) return outcome;
  moments.clear();
  return solve<double>(x, y, correction, out, threads);
}

using Sources = std::vector<std::unique_ptr<const Source>>;

// All items; many small ones are shared out among the threads whole. T: the type of the inputs.
template <class T>
CovarianceOutcome solve_all(const Sources& x, const Sources& y, int64_t correction,
                            const Results& out, int threads) {
  using A = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const int64_t items = static_cast<int64_t>(x.size());
  const int64_t rows = x[0]->variables(), columns = y.empty() ? rows : y[0]->variables();
  std::vector<CovarianceOutcome> outcomes(x.size());
  const auto run = [&](int64_t item) {
    outcomes[item] = solve<A>(*x[item], y.empty() ? nullptr : y[item].get(), correction,
                              out.item(item, rows, columns), threads);
    outcomes[item].item = item;
  };
  const double products = static_cast<double>(rows) * static_cast<double>(columns);
  const double each = kProductNanoseconds * products * static_cast<double>(x[0]->count());
  if (items > 1 && each < 1e8) {
    parallel_for(threads_for(threads, each * static_cast<double>(items)), items, run);
  } else {
    for (int64_t item = 0; item < items; ++item) run(item);
  }
  for (const CovarianceOutcome& outcome : outcomes)
    if (outcome.kind != CovarianceOutcome::ok) return outcome;
  return {};
}

template <class Reader, class Layout>
Sources sources(const Layout* layouts, int64_t items) {
  Sources list;
  for (int64_t i = 0; i < items; ++i)
    list.push_back(std::make_unique<PackedSource<Reader>>(Reader(layouts[i])));
  return list;
}

}  // namespace

template <class T, class Out>
CovarianceOutcome covariance(const Samples* x, int64_t items, int64_t correction, Out* cov,
                             Out* mean, int threads) {
  return solve_all<T>(sources<SampleReader<T>>(x, items), {}, correction,
                      results(cov, mean, static_cast<Out*>(nullptr)), threads);
}

template <class T, class Out>
CovarianceOutcome cross_covariance(const Samples* x, const Samples* y, int64_t items,
                                   int64_t correction, Out* cov, Out* mean_x, Out* mean_y,
                                   int threads) {
  return solve_all<T>(sources<SampleReader<T>>(x, items), sources<SampleReader<T>>(y, items),
                      correction, results(cov, mean_x, mean_y), threads);
}

template <class T, class Out>
CovarianceOutcome patch_covariance(const Patches& x, int64_t correction, Out* cov, Out* mean,
                                   int threads) {
  return solve_all<T>(sources<PatchReader<T>>(&x, 1), {}, correction,
                      results(cov, mean, static_cast<Out*>(nullptr)), threads);
}

template <class T, class Out>
CovarianceOutcome patch_cross_covariance(const Patches& x, const Samples& y, int64_t correction,
                                         Out* cov, Out* mean_x, Out* mean_y, int threads) {
  return solve_all<T>(sources<PatchReader<T>>(&x, 1), sources<SampleReader<T>>(&y, 1), correction,
                      results(cov, mean_x, mean_y), threads);
}

#define INFOSLICE_INSTANTIATE(T, Out)                                                            \
  template CovarianceOutcome covariance<T, Out>(const Samples*, int64_t, int64_t, Out*, Out*,    \
                                                int);                                            \
  template CovarianceOutcome cross_covariance<T, Out>(const Samples*, const Samples*, int64_t,   \
                                                      int64_t, Out*, Out*, Out*, int);           \
  template CovarianceOutcome patch_covariance<T, Out>(const Patches&, int64_t, Out*, Out*, int); \
  template CovarianceOutcome patch_cross_covariance<T, Out>(const Patches&, const Samples&,      \
                                                            int64_t, Out*, Out*, Out*, int);
#define INFOSLICE_INSTANTIATE_INPUT(T) \
  INFOSLICE_INSTANTIATE(T, double) INFOSLICE_INSTANTIATE(T, float)
INFOSLICE_INSTANTIATE_INPUT(double)
INFOSLICE_INSTANTIATE_INPUT(float)
INFOSLICE_INSTANTIATE_INPUT(bfloat16)
INFOSLICE_INSTANTIATE_INPUT(float16)

}  // namespace infoslice::cpu
