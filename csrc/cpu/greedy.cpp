#include "greedy.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>

#include "common/parallel.h"
#include "cpu/greedy_layer.h"

namespace infoslice::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kPanelRows = 64;  // variables eliminated between two products of matrices

/// Channels in slots, taken one by one.
class Greedy {
 public:
  /// The channels are `ids`, in rising order, of at most `most` variables in a layer.
  Greedy(const std::vector<int64_t>& ids, int64_t most, bool drop, int threads)
      : ids_(ids),
        slots_(static_cast<int64_t>(ids.size())),
        block_(std::max<int64_t>(1, kPanelRows / most)),
        drop_(drop),
        threads_(threads) {
    ids_.resize(static_cast<size_t>(round_up(slots_, kTile)), -1);
    scores_.resize(ids_.size());
    open_.resize(ids_.size(), 0.0);
    std::fill(open_.begin(), open_.begin() + slots_, 1.0);
    slot_of_.resize(ids.empty() ? 0 : static_cast<size_t>(ids.back()) + 1);
    for (size_t slot = 0; slot < ids.size(); ++slot)
      slot_of_[static_cast<size_t>(ids[slot])] = static_cast<int64_t>(slot);
  }

  /// For at most `count` eliminations, besides those of `prior` other variables.
  Layer& add_layer(Score score, int64_t r, int64_t count, int64_t prior) {
    const bool in_place = count <= block_ && prior <= kPanelRows;
    return layers_.emplace_back(score, slots_, r, block_ * r, prior, in_place);
  }

  /// By column of a layer, the number of the variable that stands there; -1 for padding.
  std::vector<int64_t> variables(int64_t r) const {
    std::vector<int64_t> result(ids_.size() * static_cast<size_t>(r), -1);
    for (int64_t slot = 0; slot < slots_; ++slot) {
      for (int64_t a = 0; a < r; ++a)
        result[static_cast<size_t>(place(slot, a, r))] = ids_[static_cast<size_t>(slot)] * r + a;
    }
    return result;
  }

  void run(double sign, const Choice& choice) {
    for (int64_t step = 0; step < choice.count; ++step) {
      score(0, tiles());
      const int64_t id = best();
      if (id < 0) return refuse(choice, step);
      choice.order[step] = id;
      choice.values[step] = sign * scores_[slot_of(id)] + 0.0;  // no -0
      if (step + 1 < choice.count) take(id);
    }
    *choice.info = 0;
  }

  static void refuse(const Choice& choice, int64_t step) {
    *choice.info = static_cast<int32_t>(step + 1);
    std::fill(choice.order + step, choice.order + choice.count, -1);
    std::fill(choice.values + step, choice.values + choice.count,
              std::numeric_limits<double>::quiet_NaN());
  }

  /// Eliminates a channel; false where its block cannot be.
  bool take(int64_t id) {
    if (std::any_of(layers_.begin(), layers_.end(), [](const Layer& l) { return l.full(); }))
      bring_up_to_date();
    const int64_t slot = static_cast<int64_t>(slot_of(id));
    score(slot / kTile, slot / kTile + 1);
    if (!(scores_[slot_of(id)] < kInfinity)) return false;
    for (Layer& layer : layers_) layer.eliminate(slot, tiles());
    ids_[static_cast<size_t>(slot)] = -1;
    open_[static_cast<size_t>(slot)] = 0;
    return true;
  }

  /// Fills the slots of the channels that were taken with the last ones, so that the matrices
  /// shrink, and applies the panels.
  void bring_up_to_date() {
    const auto there = [&](int64_t slot) { return ids_[static_cast<size_t>(slot)] >= 0; };
    const int64_t before = tiles() * kTile;
    for (int64_t to = 0; to < slots_; ++to) {
      while (slots_ > to && !there(slots_ - 1)) --slots_;
      if (to >= slots_ || there(to)) continue;
      const int64_t from = --slots_;
      for (Layer& layer : layers_) layer.move(from, to, before * layer.r());
      slot_of_[static_cast<size_t>(ids_[static_cast<size_t>(from)])] = to;
      std::swap(ids_[static_cast<size_t>(from)], ids_[static_cast<size_t>(to)]);
      std::swap(open_[static_cast<size_t>(from)], open_[static_cast<size_t>(to)]);
    }
    struct Task {
      const Layer* layer;
      int which;
      int64_t band, columns;
    };
    // A long band and a short one are next to each other, so that runs of tasks are alike.
    std::vector<Task> tasks;
    double products = 0;
    for (const Layer& layer : layers_) {
      const int64_t columns = tiles() * kTile * layer.r(), bands = (columns + kBand - 1) / kBand;
      for (int which = 0; which < 2; ++which) {
        if (layer.rows(which) == 0) continue;
        for (int64_t band = 0; band < bands; ++band)
          tasks.push_back({&layer, which, band % 2 ? bands - 1 - band / 2 : band / 2, columns});
        products += 0.5 * static_cast<double>(layer.rows(which) * columns * columns);
      }
    }
    parallel_for(threads_for(threads_, products / 25), static_cast<int64_t>(tasks.size()),
                 [&](int64_t i) {
                   const Task& task = tasks[static_cast<size_t>(i)];
                   task.layer->downdate(task.which, task.band, task.columns);
                 });
    for (Layer& layer : layers_) layer.empty_panels();
  }

  int64_t tiles() const { return round_up(slots_, kTile) / kTile; }

 private:
  size_t slot_of(int64_t id) const {
    return static_cast<size_t>(slot_of_[static_cast<size_t>(id)]);
  }

  void score(int64_t first_tile, int64_t last_tile) {
    std::fill(scores_.begin() + first_tile * kTile, scores_.begin() + last_tile * kTile, 0.0);
    for (const Layer& layer : layers_)
      layer.add_scores(drop_, first_tile, last_tile, scores_.data());
  }

  /// The lowest id among those with the highest score; -1 if a score is NaN or +inf, or all losses
  /// are infinite.
  int64_t best() const {
    const double score = highest(scores_.data(), open_.data(), tiles());
    int64_t id = -1;
    if (score == kInfinity || (score == -kInfinity && !drop_)) return id;
    for (size_t slot = 0; slot < static_cast<size_t>(slots_); ++slot) {
      if (scores_[slot] == score && ids_[slot] >= 0 && (id < 0 || ids_[slot] < id)) id = ids_[slot];
    }
    return id;
  }

  std::vector<int64_t> ids_;      // by slot; -1: none any more
  std::vector<int64_t> slot_of_;  // by id
  std::deque<Layer> layers_;
  std::vector<double> open_;  // by slot: 1, or 0 where the id is -1
  std::vector<double> scores_;
  int64_t slots_, block_;
  bool drop_;
  int threads_;
};

/// All numbers below `count` but these.
std::vector<int64_t> others(int64_t count, const std::vector<int64_t>& these) {
  std::vector<char> marked(static_cast<size_t>(count), 0);
  for (int64_t i : these) marked[static_cast<size_t>(i)] = 1;
  std::vector<int64_t> result;
  for (int64_t i = 0; i < count; ++i) {
    if (!marked[static_cast<size_t>(i)]) result.push_back(i);
  }
  return result;
}

/// Eliminates y from the second matrix of the layer; false where S_yy is singular. `columns` are the
/// variables of x by column, -1 for padding.
template <class T>
bool condition_on_y(const MatrixView<T>& cov, const MutualInformation& of,
                    const std::vector<int64_t>& columns, Layer& layer) {
  std::vector<int64_t> y;  // those that vary
  for (int64_t j = 0; j < of.ny; ++j) {
    const auto zero = [&](int64_t v) { return cov(of.y[j], v) == 0; };
    const bool constant = of.noise_variance == 0 && std::all_of(of.x, of.x + of.nx, zero) &&
                          std::all_of(of.y, of.y + of.ny, zero);
    if (!constant) y.push_back(of.y[j]);
  }
  const int64_t ny = static_cast<int64_t>(y.size()), nx = static_cast<int64_t>(columns.size());
  const int64_t begin = round_up(ny, kTile), stride = padded_stride<double>(begin + nx);
  const Workspace<double> rows = zeros(ny * stride);  // [S_yy | 0 | S_yx] -> [L' | 0 | L^-1 S_yx]
  std::vector<double> variance;
  for (int64_t i = 0; i < ny; ++i) {
    double* const row = rows.get() + i * stride;
    const int64_t v = y[static_cast<size_t>(i)];
    for (int64_t j = i; j < ny; ++j) row[j] = cov(v, y[static_cast<size_t>(j)]);
    row[i] += of.noise_variance;
    variance.push_back(row[i]);
    for (int64_t c = 0; c < nx; ++c) {
      const int64_t x = columns[static_cast<size_t>(c)];
      if (x >= 0) row[begin + c] = cov(v, x);
    }
  }
  if (eliminate(Rows<double>{rows.get(), 0, ny, begin + nx, stride, begin + nx}) != 0) return false;
  for (int64_t i = 0; i < ny; ++i) {
    const double root = rows.get()[i * stride + i];
    if (!(root * root > rounding_floor(ny) * variance[static_cast<size_t>(i)])) return false;
  }
  layer.eliminate_rows(rows.get() + begin, stride, ny, nx / kTile / layer.r());
  return true;
}

template <class T>
void eliminate_backward(Score score, const std::vector<LayerPair<T>>& layers, int64_t channels,
                        const std::vector<int64_t>& keep, const Choice& choice, int threads) {
  int64_t most = 1;
  for (const LayerPair<T>& pair : layers) most = std::max(most, pair.r);
  Greedy greedy(others(channels, keep), most, false, threads);
  for (const LayerPair<T>& pair : layers) {
    Layer& layer = greedy.add_layer(score, pair.r, choice.count, 0);
    const std::vector<int64_t> variables = greedy.variables(pair.r);
    layer.first.load(pair.first, variables, threads);
    layer.second.load(pair.second, variables, threads);
    layer.first_variance = layer.first.variances();
    layer.second_variance = layer.second.variances();
  }
  greedy.run(-1, choice);
}

}  // namespace

template <class T>
void forward_selection(const MatrixView<T>& cov, const MutualInformation& of,
                       const std::vector<int64_t>& start, const Choice& choice, int threads) {
  Greedy greedy(others(of.nx / of.group_size, {}), of.group_size, true, threads);
  const Score score = of.ny == 0 ? Score::entropy : Score::information;
  const int64_t taken = choice.count + static_cast<int64_t>(start.size());
  Layer& layer = greedy.add_layer(score, of.group_size, taken, of.ny);
  std::vector<int64_t> columns = greedy.variables(of.group_size);
  for (int64_t& c : columns) c = c < 0 ? -1 : of.x[c];
  layer.first.load(cov, columns, threads);
  layer.first_variance = layer.first.variances();
  if (score == Score::information) {
    layer.second.copy(layer.first);
    layer.second_variance = layer.first_variance;
    if (!condition_on_y(cov, of, columns, layer)) return Greedy::refuse(choice, 0);
    if (of.ny > kPanelRows) greedy.bring_up_to_date();
  }
  for (int64_t group : start) {
    if (!greedy.take(group)) return Greedy::refuse(choice, 0);
  }
  greedy.run(1, choice);
}

template <class T>
void backward_elimination(const std::vector<LayerPair<T>>& layers, int64_t channels,
                          const std::vector<int64_t>& keep, const Choice& choice, int threads) {
  eliminate_backward(Score::information, layers, channels, keep, choice, threads);
}

template <class T>
void obs_elimination(const std::vector<LayerPair<T>>& layers, int64_t channels,
                     const std::vector<int64_t>& keep, const Choice& choice, int threads) {
  eliminate_backward(Score::least_squares, layers, channels, keep, choice, threads);
}

template void forward_selection(const MatrixView<float>&, const MutualInformation&,
                                const std::vector<int64_t>&, const Choice&, int);
template void forward_selection(const MatrixView<double>&, const MutualInformation&,
                                const std::vector<int64_t>&, const Choice&, int);
template void backward_elimination(const std::vector<LayerPair<float>>&, int64_t,
                                   const std::vector<int64_t>&, const Choice&, int);
template void backward_elimination(const std::vector<LayerPair<double>>&, int64_t,
                                   const std::vector<int64_t>&, const Choice&, int);
template void obs_elimination(const std::vector<LayerPair<float>>&, int64_t,
                              const std::vector<int64_t>&, const Choice&, int);
template void obs_elimination(const std::vector<LayerPair<double>>&, int64_t,
                              const std::vector<int64_t>&, const Choice&, int);

}  // namespace infoslice::cpu
