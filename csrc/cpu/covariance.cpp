#include "covariance.h"

#include <cmath>
#include <memory>
#include <type_traits>
#include <vector>

#include "common/parallel.h"
#include "cpu/covariance_sources.h"
#include "cpu/covariance_tiles.h"

namespace infoslice::cpu {
namespace {

constexpr int kTile = kPanel * kPanel;
// Up to so many variables the samples are shared out among threads, in at most kSlabs slabs with
// moments of their own; above, the tiles of each chunk are. A rule of the shape alone, so that
// results do not depend on the number of threads.
constexpr int64_t kSlabVariables = 512;
constexpr int64_t kSlabs = 8;
constexpr int64_t kSlabSamples = 8192;
constexpr double kTileNanoseconds = 10;  // for each sample, one thread
constexpr double kPackNanoseconds = 8;   // for each sample of a panel

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

// One input of a problem: its means so far, and the chunk at hand.
template <class A>
struct Side {
  explicit Side(const Source& from)
      : source(from),
        variables(from.variables()),
        panels((variables + kPanel - 1) / kPanel),
        shift(panels * kPanel),
        packed(panels * kPanel * kChunk<A>),
        sums(panels),
        mean(panels * kPanel),
        magnitude(panels * kPanel),
        deviation(panels * kPanel),
        step(panels * kPanel) {}

  void pack(int64_t begin, int64_t count, int threads) {
    const double work = kPackNanoseconds * static_cast<double>(count * panels);
    parallel_for(threads_for(threads, work), panels, [&](int64_t p) {
      const int used = static_cast<int>(std::min<int64_t>(kPanel, variables - p * kPanel));
      source.pack(p * kPanel, used, begin, count, &shift[p * kPanel],
                  &packed[p * kPanel * kChunk<A>], sums[p]);
    });
  }

  // The shift is the running mean. The first chunk's own mean serves where there is none yet; it is
  // summed relative to the first sample, so that a constant channel has deviations of exactly zero.
  void pack_shifted(int64_t seen, int64_t begin, int64_t count, int threads) {
    if (seen == 0) {
      for (int64_t v = 0; v < variables; ++v) source.read(v, begin, 1, &shift[v]);
      pack(begin, count, threads);
      const double chunk = static_cast<double>(count);
      for (int64_t v = 0; v < variables; ++v)
        shift[v] = rounded(static_cast<double>(shift[v]) + static_cast<double>(sum(v)) / chunk,
                           static_cast<double>(sums[v / kPanel].magnitude[v % kPanel]) / chunk);
    } else {
      for (int64_t v = 0; v < variables; ++v)
        shift[v] = rounded(mean[v], magnitude[v] / static_cast<double>(seen));
    }
    pack(begin, count, threads);
  }

  // Rounds to a sixteenth of the mean deviation: nothing to the size of the products, but samples
  // of few digits (bfloat16, pixels) keep few, so that their sums are exact where a shift of full
  // precision would make every addition round the same way.
  static A rounded(double value, double deviation) {
    if (!(deviation > 0 && deviation < 1e300)) return static_cast<A>(value);
    const double unit = std::ldexp(1.0, std::ilogb(deviation) - 4);
    return static_cast<A>(std::nearbyint(value / unit) * unit);
  }

  // Takes the chunk's sums into the mean. deviation: the chunk's mean minus the shift; step: minus
  // the mean of the samples before.
  void advance(int64_t seen, int64_t count) {
    const double chunk = static_cast<double>(count), all = static_cast<double>(seen + count);
    for (int64_t v = 0; v < variables; ++v) {
      deviation[v] = static_cast<double>(sum(v)) / chunk;
      step[v] = static_cast<double>(shift[v]) + deviation[v] - mean[v];
      mean[v] += step[v] * (chunk / all);
      magnitude[v] += static_cast<double>(sums[v / kPanel].magnitude[v % kPanel]);
    }
  }

  A sum(int64_t v) const { return sums[v / kPanel].sum[v % kPanel]; }
  const A* panel(int64_t p) const { return &packed[p * kPanel * kChunk<A>]; }

  const Source& source;
  const int64_t variables, panels;
  std::vector<A> shift, packed;
  std::vector<PanelSums<A>> sums;
  std::vector<double> mean, magnitude, deviation, step;
};

// Count, means and central co-moments of a stretch of samples; of x with itself if `y` is null.
template <class A>
class Moments {
 public:
  Moments(const Source& x, const Source* y)
      : x_(x),
        y_(y ? std::make_unique<Side<A>>(*y) : nullptr),
        left_(x_.panels * kPanel),
        right_(x_.panels * kPanel),
        products_((y_ ? x_.panels * y_->panels : x_.panels * (x_.panels + 1) / 2) * kTile) {}

  void add(int64_t begin, int64_t end, int threads) {
    for (; begin < end; begin += kChunk<A>) {
      const int64_t count = std::min(kChunk<A>, end - begin);
      x_.pack_shifted(seen_, begin, count, threads);
      x_.advance(seen_, count);
      if (y_) {
        y_->pack_shifted(seen_, begin, count, threads);
        y_->advance(seen_, count);
        add_tiles(*y_, count, threads);
      } else {
        add_tiles(x_, count, threads);
      }
      seen_ += count;
    }
  }

  // Chan, Golub and LeVeque: moments of both stretches together.
  void merge(const Moments& later) {
    const double here = static_cast<double>(seen_), there = static_cast<double>(later.seen_);
    const double weight = here * there / (here + there);
    const auto step_of = [&](Side<A>& side, const Side<A>& other) {
      for (int64_t v = 0; v < side.variables; ++v) {
        side.step[v] = other.mean[v] - side.mean[v];
        side.mean[v] += side.step[v] * (there / (here + there));
        side.magnitude[v] += other.magnitude[v];
      }
    };
    step_of(x_, later.x_);
    if (y_) step_of(*y_, *later.y_);
    const double* column_step = y_ ? y_->step.data() : x_.step.data();
    for_each_tile([&](int64_t i, int64_t j, int64_t at) {
      for (int r = 0; r < kPanel; ++r)
        for (int c = 0; c < kPanel; ++c)
          products_[at + r * kPanel + c] +=
              later.products_[at + r * kPanel + c] +
              weight * x_.step[i * kPanel + r] * column_step[j * kPanel + c];
    });
    seen_ += later.seen_;
  }

  // Whether float tiles have served: nothing overflowed and no channel varies on a scale whose
  // squares float does not hold well. A channel that does not vary at all is fine.
  bool well_scaled() const {
    const auto side_is = [this](const Side<A>& side) {
      for (int64_t v = 0; v < side.variables; ++v) {
        const double scale = side.magnitude[v] / static_cast<double>(seen_);
        if (!(scale == 0 || (scale > 1e-15 && scale < 1e15))) return false;
      }
      return true;
    };
    if (!side_is(x_) || (y_ && !side_is(*y_))) return false;
    bool finite = true;
    for (double value : products_) finite &= std::abs(value) <= 1e300;
    return finite;
  }

  // Divides and writes row major; the first row with a value that Out cannot hold, or -1.
  template <class Out>
  int64_t write(int64_t correction, const Results& out) const {
    Out *cov = static_cast<Out*>(out.cov), *mean_x = static_cast<Out*>(out.mean_x);
    Out* mean_y = static_cast<Out*>(out.mean_y);
    const double divisor = static_cast<double>(seen_ - correction);
    const int64_t columns = y_ ? y_->variables : x_.variables;
    for_each_tile([&](int64_t i, int64_t j, int64_t at) {
      const int64_t rows_used = std::min<int64_t>(kPanel, x_.variables - i * kPanel);
      const int64_t columns_used = std::min<int64_t>(kPanel, columns - j * kPanel);
      for (int64_t r = 0; r < rows_used; ++r)
        for (int64_t c = 0; c < columns_used; ++c) {
          const int64_t row = i * kPanel + r, column = j * kPanel + c;
          const Out value = static_cast<Out>(products_[at + r * kPanel + c] / divisor);
          cov[row * columns + column] = value;
          if (!y_ && column <= row) cov[column * columns + row] = value;
        }
    });
    int64_t bad = -1;
    for (int64_t v = x_.variables - 1; v >= 0; --v) {
      mean_x[v] = static_cast<Out>(x_.mean[v]);
      bool finite = std::isfinite(mean_x[v]);
      for (int64_t c = 0; c < columns; ++c) finite &= std::isfinite(cov[v * columns + c]);
      if (!finite) bad = v;
    }
    if (y_)
      for (int64_t v = 0; v < columns; ++v) mean_y[v] = static_cast<Out>(y_->mean[v]);
    return bad;
  }

 private:
  template <class F>
  void for_each_tile(const F& f) const {
    int64_t at = 0;
    for (int64_t i = 0; i < x_.panels; ++i)
      for (int64_t j = 0, end = y_ ? y_->panels : i + 1; j < end; ++j, at += kTile) f(i, j, at);
  }

  void add_tiles(const Side<A>& columns, int64_t count, int threads) {
    const double chunk = static_cast<double>(count), before = static_cast<double>(seen_);
    const double weight = before * chunk / (before + chunk);
    for (int64_t v = 0; v < x_.variables; ++v) {
      left_[v] = -chunk * x_.deviation[v];
      right_[v] = weight * x_.step[v];
    }
    const int64_t rows = x_.panels;
    const double tiles = static_cast<double>(products_.size()) / kTile;
    const auto add_row = [&](int64_t i) {
      const int64_t end = y_ ? y_->panels : i + 1;
      double* products = &products_[(y_ ? i * end : i * (i + 1) / 2) * kTile];
      for (int64_t j = 0; j < end; ++j, products += kTile)
        tile(x_.panel(i), columns.panel(j), count, {&left_[i * kPanel], &right_[i * kPanel]},
             {&columns.deviation[j * kPanel], &columns.step[j * kPanel]}, products);
    };
    // Row i of the triangle has i + 1 tiles: a task takes one row from each end.
    parallel_for(threads_for(threads, kTileNanoseconds * tiles * chunk), (rows + 1) / 2,
                 [&](int64_t i) {
                   add_row(i);
                   if (rows - 1 - i != i) add_row(rows - 1 - i);
                 });
  }

  Side<A> x_;
  std::unique_ptr<Side<A>> y_;
  std::vector<double> left_, right_;  // the factors of the rank-one terms that belong to rows
  std::vector<double> products_;      // tile after tile
  int64_t seen_ = 0;
};

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
  const int64_t bad = out.as_double ? moments.template write<double>(correction, out)
                                    : moments.template write<float>(correction, out);
  if (bad >= 0) outcome = {CovarianceOutcome::out_of_range, false, 0, bad};
  return true;
}

// One batch item, its slabs on `threads` threads.
template <class A>
CovarianceOutcome solve(const Source& x, const Source* y, int64_t correction, const Results& out,
                        int threads) {
  const int64_t n = x.count();
  const int64_t widest = std::max(x.variables(), y ? y->variables() : 0);
  const int64_t slabs =
      widest > kSlabVariables ? 1 : std::min(kSlabs, std::max<int64_t>(1, n / kSlabSamples));
  const int64_t slab = (n / slabs + kChunk<A> - 1) / kChunk<A> * kChunk<A>;
  std::vector<std::unique_ptr<Moments<A>>> moments(slabs);
  const auto run_slab = [&](int64_t s) {
    moments[s] = std::make_unique<Moments<A>>(x, y);
    moments[s]->add(std::min(n, s * slab), s + 1 == slabs ? n : std::min(n, (s + 1) * slab),
                    threads);
  };
  if (slabs == 1) {
    run_slab(0);
  } else {
    const double panels = static_cast<double>(x.variables()) / kPanel + 1;
    parallel_for(threads_for(threads, kPackNanoseconds * panels * static_cast<double>(n)), slabs,
                 run_slab);
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
  const double tiles = static_cast<double>((rows / kPanel + 1) * (columns / kPanel + 1));
  const double each = kTileNanoseconds * tiles * static_cast<double>(x[0]->count());
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
