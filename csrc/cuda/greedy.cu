#include "greedy.h"

#include "cuda/dense.h"
#include "cuda/greedy_given.cuh"
#include "cuda/greedy_step.cuh"
#include "cuda/grid.h"
#include "cuda/upload.cuh"

namespace infoslice::cuda {
namespace {

constexpr size_t kAlignment = 256;

/// Hands out a workspace piece by piece; of a null one, only the bytes are told.
class Pieces {
 public:
  explicit Pieces(void* workspace) : base_(static_cast<char*>(workspace)) {}
  template <class T>
  T* take(int64_t count) {
    T* const piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    used_ += (bytes + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

int64_t blocks_of(const GreedyLayer& l) {
  return grid(divide_up(l.channels, channels_of_block(l.r)));
}

dim3 tiles_of(int64_t n) { return {grid(divide_up(n, kSide)), grid(divide_up(n, kSide))}; }

/// The launches of a choice, one after the other. Every function returns the first error.
class Greedy {
 public:
  Greedy(Score score, bool drop, int64_t channels, const std::vector<int64_t>& sizes, int64_t prior,
         Pieces& pieces)
      : block_(kPanelRows) {
    for (int64_t r : sizes) block_ = std::min(block_, std::max<int64_t>(1, kPanelRows / r));
    const auto matrix = [&](const GreedyLayer& l, bool square) {
      const int64_t size = channels * l.r * (l.r + 1) / 2;
      GreedyMatrix m;
      m.stale = {pieces.take<double>(Triangle::size(channels * l.r))};
      m.panel = pieces.take<double>(block_ * l.r * l.stride);
      m.blocks = pieces.take<double>(size);
      m.factors = pieces.take<double>(square ? channels * l.r * l.r : size);
      m.variance = pieces.take<double>(channels * l.r);
      return m;
    };
    for (int64_t r : sizes) {
      GreedyLayer l{};
      l.channels = channels;
      l.r = r;
      l.stride = divide_up(channels * r, 32) * 32;
      l.limit = rounding_floor(prior + channels * r);
      l.score = score;
      l.drop = drop;
      l.first = matrix(l, false);
      if (score != Score::entropy) l.second = matrix(l, score == Score::least_squares);
      layers_.push_back(l);
    }
    state_.open = pieces.take<int32_t>(channels);
    state_.scores = pieces.take<double>(channels);
    for (Best*& bests : bests_) bests = pieces.take<Best>(blocks_of(layers_.back()));
  }

  const std::vector<GreedyLayer>& layers() const { return layers_; }

  cudaError_t begin(const Choice& choice, double sign, const int64_t* ids, int64_t eliminations,
                    void* stream) {
    state_.ids = ids;
    state_.order = choice.order;
    state_.values = choice.values;
    state_.info = choice.info;
    state_.sign = sign;
    left_ = eliminations;
    stream_ = stream;
    const cudaStream_t on = static_cast<cudaStream_t>(stream);
    cudaError_t error = cudaMemsetAsync(choice.info, 0, sizeof(int32_t), on);
    // Columns of channels that are gone are multiplied along, and never asked for.
    for (const GreedyLayer& l : layers_) {
      const size_t panel = static_cast<size_t>(block_ * l.r * l.stride) * sizeof(double);
      for (double* of : {l.first.panel, l.second.panel}) {
        if (error == cudaSuccess && of != nullptr) error = cudaMemsetAsync(of, 0, panel, on);
      }
    }
    if (error != cudaSuccess) return error;
    const size_t bytes = static_cast<size_t>(layers_[0].channels) * sizeof(int32_t);
    return cudaMemsetAsync(state_.open, 1, bytes, on);  // any number but 0
  }

  template <class T>
  cudaError_t load(const MatrixView<T>& matrix, const Sources& sources, const GreedyLayer& l,
                   const GreedyMatrix& to) {
    const int64_t n = l.channels * l.r;
    const auto load_triangle = load_kernel<T>;
    INFOSLICE_LAUNCH(load_triangle, tiles_of(n), kGreedyThreads, 0, stream_, matrix, sources, n,
                     to.stale);
    return cudaGetLastError();
  }

  /// Takes the diagonal blocks or the variances, or both, from the tiles.
  cudaError_t take_diagonal(const GreedyLayer& l, const GreedyMatrix& from, double* blocks,
                            double* variances) {
    const int64_t elements = l.channels * l.r * l.r;
    INFOSLICE_LAUNCH(diagonal_kernel, grid(divide_up(elements, kGreedyThreads)), kGreedyThreads, 0,
                     stream_, from.stale, l.channels, l.r, blocks, variances);
    return cudaGetLastError();
  }

  cudaError_t downdate(const GreedyLayer& l, const GreedyMatrix& matrix, const Panels& panels) {
    const int64_t n = l.channels * l.r;
    INFOSLICE_LAUNCH(downdate_kernel, tiles_of(n), kGreedyThreads, 0, stream_, matrix.stale, n,
                     panels, static_cast<const int32_t*>(state_.info));
    return cudaGetLastError();
  }

  /// Scores all channels. refused: not 0 on the device if there is nothing to choose from.
  cudaError_t score(const int32_t* refused) {
    GreedyStep s{};
    s.refused = refused;
    return advance(s);
  }

  /// Takes a channel, of which `start` tells (no result), or the best (result number `step`).
  cudaError_t take(int64_t step, int64_t forced) {
    GreedyStep s{};
    s.bests = bests_[now_];
    s.bests_count = blocks_of(layers_.back());
    s.step = step;
    s.forced = forced;
    s.records = true;
    if (left_ == 0) {
      INFOSLICE_LAUNCH(choose_kernel, 1, kGreedyThreads, 0, stream_, state_, s, layers_[0].drop);
      return cudaGetLastError();
    }
    cudaError_t error = advance(s);
    --left_;
    if (error != cudaSuccess || ++pending_ < block_ || left_ == 0) return error;
    for (const GreedyLayer& l : layers_) {
      const double *const u = l.first.panel, *const w = l.second.panel;
      const int64_t rows = pending_ * l.r;
      error = downdate(l, l.first, {u, u, rows, l.stride, 1});
      if (error == cudaSuccess && l.score != Score::entropy)
        error =
            downdate(l, l.second, {l.score == Score::information ? w : u, w, rows, l.stride, 1});
      if (error != cudaSuccess) return error;
    }
    pending_ = 0;
    return cudaSuccess;
  }

 private:
  cudaError_t advance(GreedyStep s) {
    now_ = 1 - now_;
    for (const GreedyLayer& l : layers_) {
      s.next = &l == &layers_.back() ? bests_[now_] : nullptr;
      s.filled = pending_ * l.r;
      const auto step_alone = step_kernel<1>;
      const auto step_of_warps = step_kernel<32>;
      const auto step_of_blocks = step_kernel<kGreedyThreads>;
      const unsigned blocks = static_cast<unsigned>(blocks_of(l));
      if (team_of(l.r) == 1) {
        INFOSLICE_LAUNCH(step_alone, blocks, kGreedyThreads, 0, stream_, l, state_, s);
      } else if (team_of(l.r) == 32) {
        INFOSLICE_LAUNCH(step_of_warps, blocks, kGreedyThreads, 0, stream_, l, state_, s);
      } else {
        INFOSLICE_LAUNCH(step_of_blocks, blocks, kGreedyThreads, 0, stream_, l, state_, s);
      }
      const cudaError_t error = cudaGetLastError();
      if (error != cudaSuccess) return error;
      s.records = false;
      s.adds = true;
    }
    return cudaSuccess;
  }

  std::vector<GreedyLayer> layers_;
  GreedyState state_{};
  Best* bests_[2];
  int64_t block_;                   // channels taken between two downdates
  int64_t pending_ = 0, left_ = 0;  // channels in the panels; channels still to be eliminated
  int now_ = 0;
  void* stream_ = nullptr;
};

cudaError_t run(Greedy& greedy, const std::vector<int64_t>& start, int64_t count) {
  cudaError_t error = cudaSuccess;
  for (size_t i = 0; i < start.size() && error == cudaSuccess; ++i)
    error = greedy.take(0, start[i]);
  for (int64_t step = 0; step < count && error == cudaSuccess; ++step)
    error = greedy.take(step, -1);
  return error;
}

// ---- forward -------------------------------------------------------------------------------------

struct Forward {
  Forward(const MutualInformation& of, void* workspace)
      : pieces(workspace),
        greedy(of.ny == 0 ? Score::entropy : Score::information, true, of.nx / of.group_size,
               {of.group_size}, of.ny, pieces),
        x(pieces.take<int64_t>(of.nx)),
        y(pieces.take<int64_t>(of.ny)),
        given{pieces.take<double>((of.ny + of.nx) * of.ny),
              pieces.take<double>(of.ny),
              pieces.take<int32_t>(of.ny),
              x,
              y,
              of.nx,
              of.ny,
              of.noise_variance},
        refused(pieces.take<int32_t>(1)) {}

  Pieces pieces;
  Greedy greedy;
  int64_t *x, *y;
  GivenY given;
  int32_t* refused;
};

/// Leaves L^-1 S_yx in the rows of x: the panel that takes S_xx to S_xx given y.
template <class T>
cudaError_t eliminate_y(const MatrixView<T>& cov, const Forward& f, void* stream) {
  const GivenY& of = f.given;
  const int64_t rows = of.ny + of.nx;
  const auto gather = gather_kernel<T>;
  INFOSLICE_LAUNCH(gather, grid(divide_up(rows * of.ny, kGreedyThreads)), kGreedyThreads, 0, stream,
                   cov, of);
  cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  INFOSLICE_LAUNCH(constants_kernel, grid(of.ny), kGreedyThreads, 0, stream, of);
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  INFOSLICE_LAUNCH(floors_kernel, 1, kGreedyThreads, 0, stream, of, rounding_floor(1));
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  const Batch<double> batch{of.rows, 1, rows, of.ny, of.ny, of.ny, rows * of.ny, rows};
  return static_cast<cudaError_t>(
      eliminate(batch, static_cast<const double*>(of.floors), f.refused, stream));
}

// ---- backward ------------------------------------------------------------------------------------

struct Backward {
  Backward(Score score, const std::vector<int64_t>& sizes, int64_t open, void* workspace)
      : pieces(workspace),
        greedy(score, false, open, sizes, 0, pieces),
        ids(pieces.take<int64_t>(open)) {}
  Pieces pieces;
  Greedy greedy;
  int64_t* ids;
};

template <class T>
int eliminate_backward(Score score, const std::vector<LayerPair<T>>& layers, int64_t channels,
                       const std::vector<int64_t>& keep, const Choice& choice, void* workspace,
                       void* stream) {
  std::vector<char> kept(static_cast<size_t>(channels), 0);
  for (int64_t c : keep) kept[static_cast<size_t>(c)] = 1;
  std::vector<int64_t> open, sizes;
  for (int64_t c = 0; c < channels; ++c) {
    if (kept[static_cast<size_t>(c)] == 0) open.push_back(c);
  }
  for (const LayerPair<T>& pair : layers) sizes.push_back(pair.r);
  if (choice.count == 0)
    return cudaMemsetAsync(choice.info, 0, sizeof(int32_t), static_cast<cudaStream_t>(stream));
  Backward b(score, sizes, static_cast<int64_t>(open.size()), workspace);
  cudaError_t error = upload(open.data(), open.size() * sizeof(int64_t), b.ids, stream);
  if (error == cudaSuccess) error = b.greedy.begin(choice, -1, b.ids, choice.count - 1, stream);
  for (size_t i = 0; i < layers.size() && error == cudaSuccess; ++i) {
    const GreedyLayer& l = b.greedy.layers()[i];
    const Sources sources{b.ids, l.r};
    error = b.greedy.load(layers[i].first, sources, l, l.first);
    if (error == cudaSuccess) error = b.greedy.load(layers[i].second, sources, l, l.second);
    for (const GreedyMatrix* m : {&l.first, &l.second}) {
      if (error == cudaSuccess) error = b.greedy.take_diagonal(l, *m, m->blocks, m->variance);
    }
  }
  if (error == cudaSuccess) error = b.greedy.score(nullptr);
  return error == cudaSuccess ? run(b.greedy, {}, choice.count) : error;
}

}  // namespace

size_t forward_selection_workspace(const MutualInformation& of) {
  return Forward(of, nullptr).pieces.used();
}

template <class T>
int forward_selection(const MatrixView<T>& cov, const MutualInformation& of,
                      const std::vector<int64_t>& start, const Choice& choice, void* workspace,
                      void* stream) {
  Forward f(of, workspace);
  const GreedyLayer& l = f.greedy.layers()[0];
  const Sources sources{f.x, 1};
  const int64_t further = std::max<int64_t>(choice.count - 1, 0);
  cudaError_t error = upload(of.x, static_cast<size_t>(of.nx) * sizeof(int64_t), f.x, stream);
  if (error == cudaSuccess)
    error = upload(of.y, static_cast<size_t>(of.ny) * sizeof(int64_t), f.y, stream);
  if (error == cudaSuccess)
    error =
        f.greedy.begin(choice, 1, nullptr, static_cast<int64_t>(start.size()) + further, stream);
  if (error == cudaSuccess) error = f.greedy.load(cov, sources, l, l.first);
  if (error == cudaSuccess)
    error = f.greedy.take_diagonal(l, l.first, l.first.blocks, l.first.variance);
  if (error == cudaSuccess && of.ny > 0) {
    error = f.greedy.load(cov, sources, l, l.second);
    if (error == cudaSuccess)
      error = f.greedy.take_diagonal(l, l.second, nullptr, l.second.variance);
    if (error == cudaSuccess) error = eliminate_y(cov, f, stream);
    const double* const w = f.given.rows + of.ny * of.ny;
    if (error == cudaSuccess) error = f.greedy.downdate(l, l.second, {w, w, of.ny, 1, of.ny});
    if (error == cudaSuccess) error = f.greedy.take_diagonal(l, l.second, l.second.blocks, nullptr);
  }
  if (error == cudaSuccess) error = f.greedy.score(of.ny > 0 ? f.refused : nullptr);
  return error == cudaSuccess ? run(f.greedy, start, choice.count) : error;
}

size_t elimination_workspace(const std::vector<int64_t>& group_sizes, int64_t open) {
  return Backward(Score::least_squares, group_sizes, open, nullptr).pieces.used();
}

template <class T>
int backward_elimination(const std::vector<LayerPair<T>>& layers, int64_t channels,
                         const std::vector<int64_t>& keep, const Choice& choice, void* workspace,
                         void* stream) {
  return eliminate_backward(Score::information, layers, channels, keep, choice, workspace, stream);
}

template <class T>
int obs_elimination(const std::vector<LayerPair<T>>& layers, int64_t channels,
                    const std::vector<int64_t>& keep, const Choice& choice, void* workspace,
                    void* stream) {
  return eliminate_backward(Score::least_squares, layers, channels, keep, choice, workspace,
                            stream);
}

#define INFOSLICE_INSTANTIATE(T)                                                               \
  template int forward_selection(const MatrixView<T>&, const MutualInformation&,               \
                                 const std::vector<int64_t>&, const Choice&, void*, void*);    \
  template int backward_elimination(const std::vector<LayerPair<T>>&, int64_t,                 \
                                    const std::vector<int64_t>&, const Choice&, void*, void*); \
  template int obs_elimination(const std::vector<LayerPair<T>>&, int64_t,                      \
                               const std::vector<int64_t>&, const Choice&, void*, void*);
INFOSLICE_INSTANTIATE(float)
INFOSLICE_INSTANTIATE(double)
#undef INFOSLICE_INSTANTIATE

}  // namespace infoslice::cuda
