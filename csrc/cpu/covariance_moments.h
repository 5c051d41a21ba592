// Sums over stretches of samples, from which covariance makes its results: how chunks are cut,
// shifted, multiplied and put together.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

#include "common/parallel.h"
#include "common/workspace.h"
#include "cpu/covariance_packing.h"

namespace infoslice::cpu {

constexpr int64_t kRowPanels = 16;            // left panels that stay in the second-level cache
constexpr double kProductNanoseconds = 0.02;  // one thread
constexpr double kPackNanoseconds = 0.2;      // for each sample of a variable

// How samples are cut into chunks: several whole runs of a line, or even parts of one, so that most
// lines are packed from where they are.
template <class A>
class Chunks {
 public:
  explicit Chunks(const Source& x) : run_(x.run()), whole_(run_ < kTypicalChunk<A>) {
    constexpr int64_t kEven = 16;  // the blocks of every level
    const int64_t parts = (run_ + kTypicalChunk<A> / 2) / kTypicalChunk<A>;
    size_ = whole_ ? kTypicalChunk<A> / run_ * run_
                   : ((run_ + parts - 1) / parts + kEven - 1) / kEven * kEven;
  }
  int64_t size() const { return size_; }
  int64_t count(int64_t begin, int64_t end) const {
    const int64_t left = whole_ ? size_ : std::min(size_, run_ - begin % run_);
    return std::min(left, end - begin);
  }

 private:
  const int64_t run_;
  const bool whole_;
  int64_t size_;
};

// The chunk at hand of one input, in panels.
template <class A>
class Panels {
 public:
  Panels(int64_t variables, int64_t samples)
      : packing_(packing<A>()),
        blocks_((samples + packing_.lanes - 1) / packing_.lanes),
        panels_((variables + packing_.panel - 1) / packing_.panel),
        memory_(panels_ * blocks_ * packing_.panel * packing_.lanes) {
    // Variables that only fill up the last panel are zero.
    std::fill(packed().panel(panels_ - 1), memory_.end(), A(0));
  }
  Packed<A> packed() const { return {memory_.begin(), blocks_, packing_}; }

 private:
  const Packing packing_;
  const int64_t blocks_, panels_;
  const Workspace<A> memory_;
};

// What is known of one input: sums about a shift that is near the mean.
template <class A>
struct Side {
  explicit Side(const Source& from)
      : source(from),
        variables(from.variables()),
        shift(variables),
        chunk(variables),
        sum(variables),
        square(variables),
        varies(variables) {}

  void pack(int64_t begin, int64_t count, const Packed<A>& packed, int threads) {
    const int64_t strips = (variables + kStrip<A> - 1) / kStrip<A>;
    const double work = kPackNanoseconds * static_cast<double>(count * variables);
    parallel_for(threads_for(threads, work), strips, [&](int64_t s) {
      const int64_t first = s * kStrip<A>;
      const int used = static_cast<int>(std::min<int64_t>(kStrip<A>, variables - first));
      source.pack(first, used, begin, count, &shift[first], packed, &chunk[first]);
    });
  }

  // The first shift is the mean of a quarter of the first chunk of a stretch, summed relative to its
  // first sample, so that a constant channel has deviations of exactly zero.
  void start(int64_t begin, int64_t count, int threads) {
    for (int64_t v = 0; v < variables; ++v) {
      double first;
      source.read(v, begin, 1, &first);
      shift[v] = static_cast<A>(first);
    }
    count = (count + 3) / 4;
    pack(begin, count, Panels<A>(variables, count).packed(), threads);
    const double n = static_cast<double>(count);
    for (int64_t v = 0; v < variables; ++v)
      shift[v] =
          rounded(static_cast<double>(shift[v]) + chunk[v].sum / n, std::sqrt(chunk[v].square / n));
  }

  // Rounds to about a sixteenth of the deviation: nothing to the size of the products, but samples
  // of few digits (bfloat16, pixels) keep few, so that their sums are exact where a shift of full
  // precision would make every addition round the same way.
  static A rounded(double value, double deviation) {
    if (!(deviation > 1e-300 && deviation < 1e280)) return static_cast<A>(value);
    uint64_t bits;
    std::memcpy(&bits, &deviation, sizeof(bits));
    bits &= uint64_t{0x7ff} << 52;  // a power of two
    std::memcpy(&deviation, &bits, sizeof(bits));
    // The last place of numbers of this size is that of a sixteenth.
    const double large = deviation * (0x3p51 / 16);
    return static_cast<A>((value + large) - large);
  }

  void advance() {
    for (int64_t v = 0; v < variables; ++v) {
      sum[v] += chunk[v].sum;
      square[v] += chunk[v].square;
      varies[v] |= static_cast<char>(chunk[v].varies);
    }
  }

  // Whether the mean has left the shift by half a standard deviation somewhere.
  bool drifted(double n) const {
    for (int64_t v = 0; v < variables; ++v)
      if (sum[v] * sum[v] > 0.25 * n * square[v]) return true;
    return false;
  }

  // Moves the shift; `step` tells by how much.
  void move(double n, const std::vector<A>& to, std::vector<double>& step) {
    step.resize(shift.size());
    for (int64_t v = 0; v < variables; ++v) {
      step[v] = static_cast<double>(to[v]) - static_cast<double>(shift[v]);
      square[v] += step[v] * (n * step[v] - 2 * sum[v]);
      shift[v] = to[v];
    }
  }
  std::vector<A> near_mean(double n) const {
    std::vector<A> to(shift.size());
    for (int64_t v = 0; v < variables; ++v) to[v] = rounded(mean(v, n), std::sqrt(square[v] / n));
    return to;
  }

  double mean(int64_t v, double n) const { return static_cast<double>(shift[v]) + sum[v] / n; }

  const Source& source;
  const int64_t variables;
  std::vector<A> shift;
  std::vector<Sums> chunk;  // of the chunk at hand
  std::vector<double> sum, square;
  std::vector<char> varies;
};

// Count, sums and products of a stretch of samples about shifts; of x with itself if `y` is null.
template <class A>
class Moments {
 public:
  Moments(const Side<A>& x, const Side<A>* y)
      : x_(x),
        y_(y ? std::make_unique<Side<A>>(*y) : nullptr),
        packing_(packing<A>()),
        rows_(panels_of(x_)),
        columns_(y_ ? panels_of(*y_) : rows_),
        products_((y_ ? rows_ * columns_ : rows_ * (rows_ + 1) / 2) * tile_size()) {
    std::fill(products_.begin(), products_.end(), 0.0);
  }

  void add(int64_t begin, int64_t end, int threads) {
    const Chunks<A> chunks(x_.source);
    const int64_t most = std::min(chunks.size(), end - begin);
    const Panels<A> panels_x(x_.variables, most);
    const std::unique_ptr<const Panels<A>> panels_y =
        y_ ? std::make_unique<Panels<A>>(y_->variables, most) : nullptr;
    const Packed<A> x = panels_x.packed(), y = y_ ? panels_y->packed() : x;
    if (begin < end) {
      x_.start(begin, chunks.count(begin, end), threads);
      if (y_) y_->start(begin, chunks.count(begin, end), threads);
    }
    while (begin < end) {
      const int64_t count = chunks.count(begin, end), next = begin + count;
      // Near the mean, products are as accurate for means of 100 standard deviations as for none.
      const double n = static_cast<double>(count_);
      if (count_ > 0 && (x_.drifted(n) || (y_ && y_->drifted(n))))
        move(x_.near_mean(n), y_ ? y_->near_mean(n) : std::vector<A>());
      x_.pack(begin, count, x, threads);
      if (y_) y_->pack(begin, count, y, threads);
      add_tiles(x, y, count, Upcoming{next, next < end ? chunks.count(next, end) : 0}, threads);
      x_.advance();
      if (y_) y_->advance();
      count_ += count;
      begin = next;
    }
  }

  // Takes in the moments of a later stretch, which are about shifts of their own until now.
  void merge(Moments& later) {
    later.move(x_.shift, y_ ? y_->shift : std::vector<A>());
    const auto add_side = [](Side<A>& side, const Side<A>& other) {
      for (int64_t v = 0; v < side.variables; ++v) {
        side.sum[v] += other.sum[v];
        side.square[v] += other.square[v];
        side.varies[v] |= other.varies[v];
      }
    };
    add_side(x_, later.x_);
    if (y_) add_side(*y_, *later.y_);
    const double* other = later.products_.begin();
    for (double& product : products_) product += *other++;
    count_ += later.count_;
  }

  // Whether float tiles have served: nothing overflowed and no channel varies on a scale whose
  // squares float does not hold well.
  bool well_scaled() const {
    const auto side_is = [this](const Side<A>& side) {
      for (int64_t v = 0; v < side.variables; ++v) {
        const double scale = side.square[v] / static_cast<double>(count_);
        if (!(scale < 1e30) || (side.varies[v] && !(scale > 1e-30))) return false;
      }
      return true;
    };
    return side_is(x_) && (!y_ || side_is(*y_));
  }

  // Subtracts the means' part, divides and writes row major. -1, or the first variable with a value
  // that Out cannot hold, those of y counted after those of x.
  template <class Out>
  int64_t write(int64_t correction, Out* cov, Out* mean_x, Out* mean_y) const {
    const Side<A>& side_y = y_ ? *y_ : x_;
    const double n = static_cast<double>(count_), scale = 1 / (n - static_cast<double>(correction));
    const int64_t rows = x_.variables, columns = side_y.variables;
    int64_t bad = rows;
    std::vector<double> line(static_cast<size_t>(columns_ * packing_.panel));
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t end = row_length(row);
      gather_row(row, line.data());
      const double minus = -x_.sum[row] / n;
      Out* to = cov + row * columns;
      int outside = 0;
      for (int64_t c = 0; c < end; ++c) {
        to[c] = static_cast<Out>((line[c] + minus * side_y.sum[c]) * scale);
        outside |= !(std::abs(to[c]) <= std::numeric_limits<Out>::max());
      }
      if (outside && y_) bad = std::min(bad, row);
      for (int64_t c = 0; outside && !y_ && c < end; ++c)
        if (!std::isfinite(to[c])) bad = std::min(bad, c);
      // While they are in the cache.
      if (!y_ && (row + 1 == rows || (row + 1) % kMirrored == 0))
        mirror(cov, rows, row / kMirrored * kMirrored, row + 1);
    }
    for (int64_t v = 0; v < rows; ++v) {
      mean_x[v] = static_cast<Out>(x_.mean(v, n));
      if (!std::isfinite(mean_x[v])) bad = std::min(bad, v);
    }
    int64_t bad_y = columns;
    for (int64_t v = 0; y_ && v < columns; ++v) {
      mean_y[v] = static_cast<Out>(y_->mean(v, n));
      if (!std::isfinite(mean_y[v])) bad_y = std::min(bad_y, v);
    }
    return bad < rows ? bad : bad_y < columns ? rows + bad_y : -1;
  }

 private:
  int64_t tile_size() const { return packing_.panel * packing_.panel; }
  int64_t panels_of(const Side<A>& side) const {
    return (side.variables + packing_.panel - 1) / packing_.panel;
  }
  // The tiles of a row of panels are one after the other.
  int64_t first_tile(int64_t row) const { return y_ ? row * columns_ : row * (row + 1) / 2; }

  // The columns of a row that are held, and where they start in its first tile.
  int64_t row_length(int64_t row) const { return y_ ? y_->variables : row + 1; }
  double* row_of_tiles(int64_t row) const {
    return products_.begin() + first_tile(row / packing_.panel) * tile_size() +
           row % packing_.panel * packing_.panel;
  }

  // One row of products out of its tiles.
  void gather_row(int64_t row, double* line) const {
    const double* tiles = row_of_tiles(row);
    const auto gather = [&](auto panel) {
      for (int64_t c = 0; c < row_length(row); c += panel, tiles += panel * panel)
        for (int i = 0; i < panel; ++i) line[c + i] = tiles[i];
    };
    if (packing_.panel == 5)
      gather(std::integral_constant<int, 5>{});
    else
      gather(std::integral_constant<int, 3>{});
  }

  // sum (x - a - step_x) (y - b - step_y) out of sum (x - a) (y - b).
  void move(const std::vector<A>& to_x, const std::vector<A>& to_y) {
    const double n = static_cast<double>(count_);
    std::vector<double> step_x, step_y;
    x_.move(n, to_x, step_x);
    if (y_) y_->move(n, to_y, step_y);
    const auto is_zero = [](double step) { return step == 0; };
    if (std::all_of(step_x.begin(), step_x.end(), is_zero) &&
        std::all_of(step_y.begin(), step_y.end(), is_zero))
      return;
    const std::vector<double>& steps = y_ ? step_y : step_x;
    const std::vector<double>& sums = y_ ? y_->sum : x_.sum;
    for (int64_t row = 0; row < x_.variables; ++row) {
      const double a = n * step_x[row] - x_.sum[row], b = -step_x[row];
      double* to = row_of_tiles(row);
      for (int64_t column = 0; column < row_length(row); to += tile_size())
        for (int c = 0; c < packing_.panel && column < row_length(row); ++c, ++column)
          to[c] += a * steps[column] + b * sums[column];
    }
    for (int64_t v = 0; v < x_.variables; ++v) x_.sum[v] -= n * step_x[v];
    if (y_)
      for (int64_t v = 0; v < y_->variables; ++v) y_->sum[v] -= n * step_y[v];
  }

  // The samples that come after the chunk at hand.
  struct Upcoming {
    int64_t begin, count;
  };

  void add_tiles(const Packed<A>& left, const Packed<A>& right, int64_t count, Upcoming upcoming,
                 int threads) {
    const int64_t blocks = (count + packing_.lanes - 1) / packing_.lanes;
    const auto add_rows = [&](int64_t group) {
      const int64_t begin = group * kRowPanels, end = std::min(rows_, begin + kRowPanels);
      for (int64_t j = 0; j < (y_ ? columns_ : end); ++j)
        for (int64_t i = y_ ? begin : std::max(begin, j); i < end; ++i) {
          const int64_t at = first_tile(i) + j;
          // While a tile is computed the memory is idle: each of the first tiles fetches a part.
          Ahead ahead{reinterpret_cast<const char*>(right.panel(j)), 0};
          if (at < x_.variables && upcoming.count > 0)
            ahead = x_.source.ahead(at, upcoming.begin, upcoming.count, blocks);
          double* products = products_.begin() + at * tile_size();
          if (!y_ && i == j)
            tile<A, true>(left.panel(i), right.panel(j), blocks, ahead, products);
          else
            tile<A, false>(left.panel(i), right.panel(j), blocks, ahead, products);
        }
    };
    const double products = static_cast<double>(products_.end() - products_.begin());
    const double work = kProductNanoseconds * products * static_cast<double>(count);
    const int64_t groups = (rows_ + kRowPanels - 1) / kRowPanels;
    // Rows of the triangle grow: a task takes a group from each end.
    parallel_for(threads_for(threads, work), (groups + 1) / 2, [&](int64_t g) {
      add_rows(g);
      if (groups - 1 - g != g) add_rows(groups - 1 - g);
    });
  }

  // Copies the rows [begin, end) of the lower triangle to the upper, block by block and by way of a
  // buffer: rows of the matrix may fall on the same places of the cache.
  static constexpr int64_t kMirrored = 64;
  template <class Out>
  static void mirror(Out* cov, int64_t n, int64_t begin, int64_t end) {
    Out block[kMirrored][kMirrored + 16];
    for (int64_t j0 = 0; j0 < end; j0 += kMirrored) {
      for (int64_t i = begin; i < end; ++i)
        std::copy(cov + i * n + j0, cov + i * n + std::min(j0 + kMirrored, i + 1),
                  block[i - begin]);
      for (int64_t j = j0; j < std::min(j0 + kMirrored, end); ++j)
        for (int64_t i = std::max(begin, j); i < end; ++i)
          cov[j * n + i] = block[i - begin][j - j0];
    }
  }

  Side<A> x_;
  std::unique_ptr<Side<A>> y_;
  const Packing packing_;
  const int64_t rows_, columns_;      // in panels
  const Workspace<double> products_;  // tile after tile
  int64_t count_ = 0;
};

}  // namespace infoslice::cpu
