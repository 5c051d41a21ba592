#include "gaussian_mi.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "common/parallel.h"
#include "cpu/dense.h"
#include "cpu/pairs.h"
#include "cpu/transpose.h"

namespace infoslice::cpu {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Score {
  double nats;
  int64_t info;
};

Score refused(int64_t info) { return {kNaN, info}; }

bool usable_variance(double variance) {
  return variance > 0 && variance <= std::numeric_limits<double>::max();
}

/// S = covariance + noise, by variable number; the upper triangle is never read.
template <class T>
class Covariance {
 public:
  Covariance(const T* cov, int64_t n, const MutualInformation& of) : cov_(cov), n_(n), of_(of) {}
  double x(int64_t i, int64_t j) const { return at(of_.x[i], of_.x[j]); }
  double xy(int64_t i, int64_t j) const { return at(of_.x[i], of_.y[j]); }
  double y(int64_t i, int64_t j) const {
    return at(of_.y[i], of_.y[j]) + (i == j ? of_.noise_variance : 0.0);
  }

  bool x_is_constant(int64_t i) const { return x(i, i) == 0 && uncorrelated(of_.x[i]); }
  bool y_is_constant(int64_t j) const { return y(j, j) == 0 && uncorrelated(of_.y[j]); }

 private:
  double at(int64_t i, int64_t j) const {
    return static_cast<double>(cov_[std::max(i, j) * n_ + std::min(i, j)]);
  }
  bool uncorrelated(int64_t v) const {
    const auto zero = [&](int64_t w) { return at(v, w) == 0; };
    return std::all_of(of_.x, of_.x + of_.nx, zero) && std::all_of(of_.y, of_.y + of_.ny, zero);
  }

  const T* cov_;
  int64_t n_;
  const MutualInformation& of_;
};

/// Zeroed rows for eliminate().
class Matrix {
 public:
  Matrix(int64_t rows, int64_t columns)
      : rows_(rows),
        columns_(columns),
        stride_(padded_stride<double>(columns)),
        data_(rows * stride_) {
    std::fill(data_.get(), data_.get() + rows * stride_, 0.0);
  }
  double* operator[](int64_t i) const { return data_.get() + i * stride_; }
  int64_t stride() const { return stride_; }

  /// The rows from `prior` on are [A | B]; returns the failed row of A (1-based) or 0.
  int64_t eliminate(int64_t prior, int64_t identity, int threads = 1) const {
    return cpu::eliminate(
        Rows<double>{data_.get(), prior, rows_ - prior, columns_, stride_, identity}, threads);
  }
  int64_t eliminate() const { return eliminate(0, columns_); }

 private:
  int64_t rows_, columns_, stride_;
  Workspace<double> data_;
};

/// The first row (1-based) of [U | ...] whose pivot is missing or nothing but rounding; 0 if all
/// are good. `failed` is what eliminate() returned, variance(i) the diagonal before, order(i) the
/// 0-based place for which info speaks.
template <class Variance, class Order>
int64_t first_redundant(const Matrix& u, int64_t prior, int64_t rows, int64_t failed,
                        const Variance& variance, const Order& order) {
  const int64_t finished = failed ? failed - 1 : rows;
  for (int64_t i = 0; i < finished; ++i) {
    const double root = u[prior + i][i];
    if (!(root * root > rounding_floor(order(i) + 1) * variance(i))) return i + 1;
  }
  return failed;
}

/// sums[c] += sum over rows [begin, end) of m[r][column + c]^2
void add_squares(const Matrix& m, int64_t begin, int64_t end, int64_t column,
                 std::vector<double>& sums) {
  for (int64_t r = begin; r < end; ++r) {
    const double* row = m[r] + column;
    for (size_t c = 0; c < sums.size(); ++c) sums[c] += row[c] * row[c];
  }
}

// ---- marginal -----------------------------------------------------------------------------------

/// A group of more than one variable, given z = L^-1 S_yx in rows [0, ky), columns [column, ...) of
/// `eliminated`.
template <class T>
Score marginal_group(const Covariance<T>& s, const std::vector<int64_t>& members, int64_t first,
                     int64_t ny, const Matrix& eliminated, int64_t ky, int64_t column) {
  const int64_t g = static_cast<int64_t>(members.size());
  const auto place = [&](int64_t i) { return ny + members[static_cast<size_t>(i)] - first; };
  const Matrix own(g, g + ky);  // [S_gg | Z'] -> [C' | R]
  for (int64_t i = 0; i < g; ++i) {
    for (int64_t j = i; j < g; ++j)
      own[i][j] = s.x(members[static_cast<size_t>(i)], members[static_cast<size_t>(j)]);
    for (int64_t r = 0; r < ky; ++r)
      own[i][g + r] = eliminated[r][column + members[static_cast<size_t>(i)]];
  }
  const auto variance = [&](int64_t i) {
    return s.x(members[static_cast<size_t>(i)], members[static_cast<size_t>(i)]);
  };
  if (const int64_t k = first_redundant(own, 0, g, own.eliminate(), variance, place))
    return refused(place(k - 1) + 1);

  const Matrix given_y(
      ky + g, g);  // [R'; I] -> pivots of I - R R': at most 1, so that the sum below is at least 0
  transpose(own[0] + g, g, ky, own.stride(), given_y[0], given_y.stride());
  for (int64_t i = 0; i < g; ++i) given_y[ky + i][i] = 1;
  const auto one = [](int64_t) { return 1.0; };
  if (const int64_t k = first_redundant(given_y, ky, g, given_y.eliminate(ky, g), one, place)) {
    return refused(place(k - 1) + 1);
  }
  double log_roots = 0;
  for (int64_t i = 0; i < g; ++i) log_roots += std::log(given_y[ky + i][i]);
  return {0.0 - log_roots, 0};
}

template <class T>
void marginal(const Covariance<T>& s, const MutualInformation& of, Score* out, int threads) {
  std::vector<int64_t> y;  // places in of.y of those that vary
  for (int64_t j = 0; j < of.ny; ++j) {
    if (!s.y_is_constant(j)) y.push_back(j);
  }
  const int64_t ky = static_cast<int64_t>(y.size()), groups = of.nx / of.group_size;
  const Matrix m(ky, ky + of.nx);  // [S_yy | S_yx] -> [L' | Z]
  for (int64_t i = 0; i < ky; ++i) {
    const int64_t yi = y[static_cast<size_t>(i)];
    for (int64_t j = i; j < ky; ++j) m[i][j] = s.y(yi, y[static_cast<size_t>(j)]);
    for (int64_t c = 0; c < of.nx; ++c) m[i][ky + c] = s.xy(c, yi);
  }
  const auto place = [&](int64_t i) { return y[static_cast<size_t>(i)]; };
  const auto variance = [&](int64_t i) { return s.y(place(i), place(i)); };
  const int64_t failed = m.eliminate(0, ky + of.nx, threads);
  if (const int64_t k = first_redundant(m, 0, ky, failed, variance, place)) {
    std::fill(out, out + groups, refused(place(k - 1) + 1));
    return;
  }
  if (of.group_size == 1) {
    std::vector<double> explained(static_cast<size_t>(of.nx), 0.0);
    add_squares(m, 0, ky, ky, explained);
    const int64_t k = of.ny + 1;
    for (int64_t c = 0; c < of.nx; ++c) {
      const double r2 = explained[static_cast<size_t>(c)] / s.x(c, c);
      if (s.x_is_constant(c)) {
        out[c] = {0, 0};
      } else if (!(usable_variance(s.x(c, c)) && 1 - r2 > rounding_floor(k))) {
        out[c] = refused(k);
      } else {
        out[c] = {-0.5 * std::log1p(-r2), 0};
      }
    }
    return;
  }
  for (int64_t g = 0; g < groups; ++g) {
    std::vector<int64_t> members;
    for (int64_t i = g * of.group_size; i < (g + 1) * of.group_size; ++i) {
      if (!s.x_is_constant(i)) members.push_back(i);
    }
    out[g] = marginal_group(s, members, g * of.group_size, of.ny, m, ky, ky);
  }
}

// ---- conditional --------------------------------------------------------------------------------

/// A group of more than one variable; W_x and W_y are the rows [0, nx) and [nx, nx + ny) of w
/// behind `column`.
Score conditional_group(const Matrix& w, int64_t column, int64_t first, int64_t size, int64_t nx,
                        int64_t ny) {
  const Matrix prior(nx - first, size), precision(size, size), own(size, size + ny);
  for (int64_t r = first; r < nx; ++r) {  // above its own rows a column of W is zero
    std::copy(w[r] + column + first, w[r] + column + first + size, prior[r - first]);
  }
  gram(prior[0], nx - first, size, prior.stride(), precision[0], precision.stride());
  for (int64_t i = 0; i < size; ++i) std::copy(precision[i] + i, precision[i] + size, own[i] + i);
  transpose(w[nx] + column + first, ny, size, w.stride(), own[0] + size, own.stride());
  // [(S_xx^-1)_gg | W_y'] -> [C' | K'], so that the joint precision is C (I + K'K) C'
  const auto variance = [&](int64_t i) { return precision[i][i]; };
  const auto place = [&](int64_t i) { return nx + ny + i; };
  if (const int64_t k = first_redundant(own, 0, size, own.eliminate(), variance, place)) {
    return refused(place(k - 1) + 1);
  }
  const Matrix k(ny, size), gain(size, size);
  transpose(own[0] + size, size, ny, own.stride(), k[0], k.stride());
  gram(k[0], ny, size, k.stride(), gain[0], gain.stride());
  for (int64_t i = 0; i < size; ++i) gain[i][i] += 1;
  if (const int64_t failed = gain.eliminate()) return refused(place(failed - 1) + 1);
  double log_roots = 0;
  for (int64_t i = 0; i < size; ++i) log_roots += std::log(gain[i][i]);
  return {log_roots, 0};
}

template <class T>
void conditional(const Covariance<T>& s, const MutualInformation& of, Score* out, int threads) {
  const int64_t nx = of.nx, ny = of.ny, n = nx + ny, groups = nx / of.group_size;
  const Matrix m(n, n + nx);  // [S | I] -> [L' | W], of W only the columns of x
  for (int64_t i = 0; i < nx; ++i) {
    for (int64_t j = i; j < nx; ++j) m[i][j] = s.x(i, j);
    for (int64_t j = 0; j < ny; ++j) m[i][nx + j] = s.xy(i, j);
    m[i][n + i] = 1;
  }
  for (int64_t i = 0; i < ny; ++i) {
    for (int64_t j = i; j < ny; ++j) m[nx + i][nx + j] = s.y(i, j);
  }
  const auto variance = [&](int64_t i) { return i < nx ? s.x(i, i) : s.y(i - nx, i - nx); };
  const auto place = [](int64_t i) { return i; };
  const int64_t failed = m.eliminate(0, n, threads);
  if (const int64_t k = first_redundant(m, 0, n, failed, variance, place)) {
    std::fill(out, out + groups, refused(k));
    return;
  }
  if (of.group_size > 1) {
    for (int64_t g = 0; g < groups; ++g) {
      out[g] = conditional_group(m, n, g * of.group_size, of.group_size, nx, ny);
    }
    return;
  }
  std::vector<double> own(static_cast<size_t>(nx), 0.0), gain(static_cast<size_t>(nx), 0.0);
  add_squares(m, 0, nx, n, own);
  add_squares(m, nx, n, n, gain);
  for (size_t c = 0; c < own.size(); ++c) {
    const double nats = 0.5 * std::log1p(gain[c] / own[c]);
    out[c] = std::isfinite(nats) ? Score{nats, 0} : refused(n + 1);
  }
}

// ---- pairwise -----------------------------------------------------------------------------------

/// `cross` are the covariances of the x of the group (rows, from `row` on) and y.
template <class T>
Score pairwise_group(const Covariance<T>& s, const MutualInformation& of, const Matrix& cross,
                     int64_t row, int64_t first, const Outputs& y) {
  std::vector<int64_t> members;
  for (int64_t i = first; i < first + of.group_size; ++i) {
    if (!s.x_is_constant(i)) members.push_back(i);
  }
  const int64_t g = static_cast<int64_t>(members.size());
  const auto member = [&](int64_t i) { return members[static_cast<size_t>(i)]; };
  const auto place = [&](int64_t i) { return member(i) - first; };
  const auto variance = [&](int64_t i) { return s.x(member(i), member(i)); };
  double nats = 0;
  int64_t failed = 0;
  if (g == 1) {
    if (!usable_variance(variance(0))) return refused(place(0) + 1);
    failed = sum_pairs(cross[row + place(0)], 1, 0, 1 / std::sqrt(variance(0)), y, nats);
  } else if (g > 1) {
    const int64_t columns = static_cast<int64_t>(y.scale.size());
    const Matrix m(g, g + columns);  // [S_gg | S_gy] -> [C' | columns whose squares are the shares]
    for (int64_t i = 0; i < g; ++i) {
      for (int64_t j = i; j < g; ++j) m[i][j] = s.x(member(i), member(j));
      std::copy_n(cross[row + place(i)], of.ny, m[i] + g);
    }
    if (const int64_t k = first_redundant(m, 0, g, m.eliminate(), variance, place)) {
      return refused(place(k - 1) + 1);
    }
    failed = sum_pairs(m[0] + g, g, m.stride(), 1, y, nats);
  }
  return failed ? refused(of.group_size + failed) : Score{nats, 0};
}

template <class T>
void pairwise(const Covariance<T>& s, const MutualInformation& of, Score* out, int) {
  const size_t padded = static_cast<size_t>((of.ny + 7) / 8 * 8);
  Outputs y{std::vector<double>(padded), std::vector<double>(padded)};
  for (int64_t j = 0; j < of.ny; ++j) {
    const double variance = s.y(j, j);
    y.floor[static_cast<size_t>(j)] = rounding_floor(of.group_size + j + 1);
    y.scale[static_cast<size_t>(j)] = s.y_is_constant(j)          ? 0
                                      : usable_variance(variance) ? 1 / std::sqrt(variance)
                                                                  : kNaN;
  }
  // Some groups at a time: read along the rows of cov, written along those of cross.
  const int64_t size = of.group_size, tile = (15 + size) / size * size;
  const Matrix cross(tile, of.ny);
  for (int64_t i0 = 0; i0 < of.nx; i0 += tile) {
    const int64_t end = std::min(i0 + tile, of.nx);
    for (int64_t j = 0; j < of.ny; ++j) {
      for (int64_t i = i0; i < end; ++i) cross[i - i0][j] = s.xy(i, j);
    }
    for (int64_t i = i0; i < end; i += size) {
      out[i / size] = pairwise_group(s, of, cross, i - i0, i, y);
    }
  }
}

// ---- the batch ----------------------------------------------------------------------------------

template <class T, class Scores>
void run(const T* cov, int64_t batch, int64_t n, const MutualInformation& of, T* nats,
         int32_t* info, int threads, double flops, const Scores& scores) {
  const int64_t groups = of.nx / of.group_size;
  threads = threads_for(threads, static_cast<double>(batch) * (flops / 15 + 1e3));
  parallel_for(threads, batch, [&](int64_t b) {
    std::vector<Score> out(static_cast<size_t>(groups));
    scores(Covariance<T>(cov + b * n * n, n, of), of, out.data(), threads);
    for (int64_t g = 0; g < groups; ++g) {
      nats[b * groups + g] = static_cast<T>(out[static_cast<size_t>(g)].nats);
      info[b * groups + g] = static_cast<int32_t>(out[static_cast<size_t>(g)].info);
    }
  });
}

}  // namespace

template <class T>
void marginal_mi(const T* cov, int64_t batch, int64_t n, const MutualInformation& of, T* nats,
                 int32_t* info, int threads) {
  const double nx = static_cast<double>(of.nx), ny = static_cast<double>(of.ny);
  const double flops = ny * ny * (ny / 3 + nx) + nx * of.group_size * (of.group_size + 2 * ny);
  run(cov, batch, n, of, nats, info, threads, flops, marginal<T>);
}

template <class T>
void conditional_mi(const T* cov, int64_t batch, int64_t n, const MutualInformation& of, T* nats,
                    int32_t* info, int threads) {
  const double all = static_cast<double>(of.nx + of.ny);
  run(cov, batch, n, of, nats, info, threads, all * all * (2 * all / 3 + of.group_size),
      conditional<T>);
}

template <class T>
void pairwise_mi(const T* cov, int64_t batch, int64_t n, const MutualInformation& of, T* nats,
                 int32_t* info, int threads) {
  const double flops = static_cast<double>(of.nx) * of.ny * (of.group_size + 50);
  run(cov, batch, n, of, nats, info, threads, flops, pairwise<T>);
}

#define INFOSLICE_INSTANTIATE(op)                                                                \
  template void op(const float*, int64_t, int64_t, const MutualInformation&, float*, int32_t*,   \
                   int);                                                                         \
  template void op(const double*, int64_t, int64_t, const MutualInformation&, double*, int32_t*, \
                   int);
INFOSLICE_INSTANTIATE(marginal_mi)
INFOSLICE_INSTANTIATE(conditional_mi)
INFOSLICE_INSTANTIATE(pairwise_mi)
#undef INFOSLICE_INSTANTIATE

}  // namespace infoslice::cpu
