// One kernel for the products and sums of a tile over a stretch of samples, one that puts the
// stretches together. A task of the first is (tile, split of the samples, batch item), tiles next to
// each other so that blocks that read the same samples run at the same time.
#include "covariance.h"

#include <algorithm>

#include "cuda/simt.cuh"

namespace infoslice::cuda {
namespace {

constexpr int64_t kPromote = 64;    // samples summed in one set of registers
constexpr int64_t kFlush = 4096;    // samples before the sums go to memory
constexpr int64_t kOverhead = 300;  // what a task costs beside its samples, in samples
constexpr int kPilots = 8;
constexpr int kFinish = 32;  // rows and columns of a block that finishes
#ifndef INFOSLICE_MAX_GRID
#define INFOSLICE_MAX_GRID 65535
#endif
constexpr int64_t kMaxGrid = INFOSLICE_MAX_GRID;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// How a call is cut into tasks and where their results lie.
struct Plan {
  int64_t samples, items, variables[2];  // [2]: of x, of y
  int64_t tiles, tile_columns;
  int64_t splits, length;   // samples of a split
  int tile, rows, columns;  // edge of a tile, and what of it is stored
  bool symmetric;

  __host__ __device__ int64_t tasks() const { return tiles * splits * items; }
  __host__ __device__ int64_t tile_size() const { return int64_t{rows} * columns; }
  /// Of the sums of a split of an item: entry (first variable) of side 0 or 1.
  __host__ __device__ int64_t sums_at(int side, int64_t part) const {
    return side * items * splits * variables[0] + part * variables[side];
  }
  __host__ __device__ int64_t pilots_at(int side, int64_t item) const {
    return side * items * variables[0] + item * variables[side];
  }
  int64_t all_variables() const { return variables[0] + (symmetric ? 0 : variables[1]); }
};

struct Sums {
  double sum, magnitude;
};

/// The workspace.
template <class A>
struct Parts {
  Sums* sums;      // [side][item][split][variable]
  double* pilots;  // [side][item][variable]
  A* products;     // [item][split][tile][row][column]
};

/// Shared memory of a block: what it multiplies and what it reads next, in turns.
template <class Math>
struct Shared {
  typename Math::Stage stages[2][2];    // [turn][side]
  int64_t offsets[2][2][Math::kDepth];  // [turn][side][sample]
  typename Math::Element pilots[2][Math::kTile];
};

/// x and y, or x twice.
struct Inputs {
  View side[2];
};

__device__ inline void tile_at(const Plan& plan, int64_t tile, int64_t* i, int64_t* j) {
  *i = plan.symmetric ? tile_row(tile) : tile / plan.tile_columns;
  *j = tile - (plan.symmetric ? *i * (*i + 1) / 2 : *i * plan.tile_columns);
}

/// The pilot of the variable at `from`.
template <class T>
__device__ inline T choose_pilot(const View& view, const T* from, int64_t n) {
  T values[kPilots];
  for (int s = 0; s < kPilots; ++s) values[s] = from[offset_of_sample(view, s * n / kPilots)];
  auto mean = widened(values[0]) / kPilots;
  for (int s = 1; s < kPilots; ++s) mean += widened(values[s]) / kPilots;
  T nearest = values[0];
  for (int s = 1; s < kPilots; ++s) {
    if (fabs(widened(values[s]) - mean) < fabs(widened(nearest) - mean)) nearest = values[s];
  }
  return nearest;
}

/// What a block holds of one side of a product: a tile on its way from memory to shared memory.
template <class Math, bool kAlongSamples>
struct Side {
  using T = typename Math::Element;
  using A = typename Math::Accumulator;
  using Load = Loader<T, Math::kTile, Math::kDepth, Math::kVector, kAlongSamples>;
  using Columns = ColumnSums<A, kAlongSamples ? Load::kPasses : Math::kVector>;

  __device__ __forceinline__ void load(int samples, const int64_t* offsets) {
    tile.load(from, view->inputs.first.stride, view->vectors, variables, samples, offsets, pilots);
  }

  /// Takes the pilots off the loaded tile, sums it up and puts it into shared memory.
  __device__ __forceinline__ void put(typename Math::Stage& stage) {
#pragma unroll
    for (int pass = 0; pass < Load::kPasses; ++pass) {
      const int variable = Load::variable(pass);
      A deviations[Math::kVector];
#pragma unroll
      for (int e = 0; e < Math::kVector; ++e) {
        deviations[e] =
            widened(tile.values[pass][e]) - widened(pilots[variable + (kAlongSamples ? 0 : e)]);
        columns.add(kAlongSamples ? pass : e, deviations[e]);
      }
      Math::template put<kAlongSamples>(stage, variable, Load::sample(pass), deviations);
    }
  }

  /// Adds up, for each variable, what the threads have summed, and adds it to `sums` or sets them.
  __device__ inline void flush_columns(bool first, Sums* sums, Sums* scratch) {
    // Threads that hold sums of the same variable.
    constexpr int kSharers = kAlongSamples ? Load::kAcross : kThreads / Load::kAcross;
    static_assert(sizeof(Sums) * kSharers * Math::kTile <= sizeof(Shared<Math>::stages));
    const int thread = static_cast<int>(threadIdx.x);
    const int sharer = kAlongSamples ? thread % Load::kAcross : thread / Load::kAcross;
    __syncthreads();  // the scratch is free
#pragma unroll
    for (int s = 0; s < (kAlongSamples ? Load::kPasses : Math::kVector); ++s) {
      const int variable = kAlongSamples ? Load::variable(s) : Load::variable(0) + s;
      scratch[variable * kSharers + sharer] = {columns.sum[s], columns.magnitude[s]};
    }
    columns.clear();
    __syncthreads();
    for (int v = thread; v < variables; v += kThreads) {
      Sums all = first ? Sums{0, 0} : sums[v];
      for (int s = 0; s < kSharers; ++s) {
        all.sum += scratch[v * kSharers + s].sum;
        all.magnitude += scratch[v * kSharers + s].magnitude;
      }
      sums[v] = all;
    }
    __syncthreads();
  }

  const View* view;
  const T* from;  // the first variable of the tile, of this batch item
  int variables;
  T* pilots;
  Load tile;
  Columns columns;
};

template <class Math, bool kAlongSamples>
__global__ void __launch_bounds__(kThreads, Math::kBlocks)
    products_kernel(const __grid_constant__ Inputs inputs, const __grid_constant__ Plan plan,
                    Parts<typename Math::Accumulator> parts) {
  using T = typename Math::Element;
  using A = typename Math::Accumulator;
  INFOSLICE_DYNAMIC_SHARED(Shared<Math>, shared);
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t task = blockIdx.x; task < plan.tasks(); task += gridDim.x) {
    const int64_t which = task % plan.tiles, part = task / plan.tiles;  // part: item and split
    const int64_t item = part / plan.splits, split = part - item * plan.splits;
    int64_t i, j;
    tile_at(plan, which, &i, &j);
    const bool same = plan.symmetric && i == j;  // both sides of the product are one tile
    const bool sums_x = plan.symmetric ? i == j : j == 0, sums_y = !plan.symmetric && i == 0;
    const int64_t begin = split * plan.length;
    const int64_t end = begin + plan.length < plan.samples ? begin + plan.length : plan.samples;
    Side<Math, kAlongSamples> x, y;
    const auto start = [&](Side<Math, kAlongSamples>& side, int s, int64_t v0) {
      side.view = &inputs.side[s];
      side.from = item_of<T>(inputs.side[s], item) + v0 * inputs.side[s].inputs.first.stride;
      side.variables = static_cast<int>(
          plan.variables[s] - v0 < Math::kTile ? plan.variables[s] - v0 : Math::kTile);
      side.pilots = shared->pilots[s];
      side.columns.clear();
    };
    start(x, 0, i * Math::kTile);
    start(y, 1, j * Math::kTile);

    __syncthreads();  // the task before is over
    for (int e = thread; e < 2 * Math::kTile; e += kThreads) {
      const int s = e / Math::kTile, v = e % Math::kTile;
      const bool used = v < (s == 0 ? x.variables : y.variables);
      const T* from = (s == 0 ? x.from : y.from) + v * inputs.side[s].inputs.first.stride;
      const T pilot = used ? choose_pilot(inputs.side[s], from, plan.samples) : T{};
      shared->pilots[s][v] = pilot;
      if (split == 0 && used && (s == 0 ? sums_x : sums_y))
        parts.pilots[plan.pilots_at(s, item) + (s == 0 ? i : j) * Math::kTile + v] = widened(pilot);
    }
    const auto locate = [&](int64_t k, int turn) {  // of the samples from k on
      if (thread < 2 * Math::kDepth)
        shared->offsets[turn][thread / Math::kDepth][thread % Math::kDepth] =
            offset_of_sample(inputs.side[thread / Math::kDepth], k + thread % Math::kDepth);
    };
    locate(begin, 0);
    __syncthreads();

    Math math;
    math.clear();
    // In a turn, the samples from k on are loaded, those before are multiplied, and it is found out
    // where those after them lie.
    int turn = 0;
    for (int64_t k = begin; k < end + Math::kDepth; k += Math::kDepth, turn ^= 1) {
      const int samples = static_cast<int>(end - k < Math::kDepth ? end - k : Math::kDepth);
      if (k < end) {
        x.load(samples, shared->offsets[turn][0]);
        if (!same) y.load(samples, shared->offsets[turn][1]);
      }
      locate(k + Math::kDepth, turn ^ 1);
      if (k > begin) {
        math.multiply(shared->stages[turn ^ 1][0], shared->stages[turn ^ 1][same ? 0 : 1]);
        if ((k - begin) % kPromote == 0 || k >= end) math.promote();
      }
      if (k > begin && ((k - begin) % kFlush == 0 || k >= end)) {
        const bool first = k - begin <= kFlush;
        A* to = parts.products + (part * plan.tiles + which) * plan.tile_size();
        math.for_each([&](int row, int column, A value) {
          if (row < plan.rows && column < plan.columns) {
            A* const at = to + row * plan.columns + column;
            *at = first ? value : *at + value;
          }
        });
        math.clear();
        Sums* const scratch = reinterpret_cast<Sums*>(shared->stages);
        if (sums_x)
          x.flush_columns(first, parts.sums + plan.sums_at(0, part) + i * Math::kTile, scratch);
        if (sums_y)
          y.flush_columns(first, parts.sums + plan.sums_at(1, part) + j * Math::kTile, scratch);
      }
      if (k < end) {
        x.put(shared->stages[turn][0]);
        if (!same) y.put(shared->stages[turn][1]);
      }
      __syncthreads();
    }
  }
}

/// Rows and columns of the result in squares of 32: a block for each in the lower triangle.
template <class A, class Out>
__global__ void __launch_bounds__(kThreads)
    finish_kernel(const __grid_constant__ Plan plan, Parts<A> parts, int64_t correction, Out* cov,
                  Out* mean_x, Out* mean_y) {
  __shared__ Out square[kFinish][kFinish + 1];
  __shared__ double totals[2][kFinish];  // NaN for what cannot be given
  constexpr double kLeast = sizeof(A) == 8 ? 1e-150 : 1e-15, kMost = 1 / kLeast;
  const int64_t row_squares = (plan.variables[0] + kFinish - 1) / kFinish,
                column_squares = (plan.variables[1] + kFinish - 1) / kFinish;
  const int64_t squares =
      plan.symmetric ? row_squares * (row_squares + 1) / 2 : row_squares * column_squares;
  const double n = static_cast<double>(plan.samples);
  const int64_t rows = plan.variables[0], columns = plan.variables[1];
  for (int64_t task = blockIdx.x; task < squares * plan.items; task += gridDim.x) {
    const int64_t item = task / squares, which = task - item * squares;
    const int64_t si = plan.symmetric ? tile_row(which) : which / column_squares;
    const int64_t sj = which - (plan.symmetric ? si * (si + 1) / 2 : si * column_squares);
    const int64_t i0 = si * kFinish, j0 = sj * kFinish;
    if (threadIdx.x < 2 * kFinish) {
      const int side = static_cast<int>(threadIdx.x) / kFinish;
      const int of = plan.symmetric ? 0 : side;  // whose sums
      const int64_t v = (side == 0 ? i0 : j0) + threadIdx.x % kFinish;
      double total = 0, magnitude = 0;
      if (v < plan.variables[of]) {
        for (int64_t s = 0; s < plan.splits; ++s) {
          const Sums& sums = parts.sums[plan.sums_at(of, item * plan.splits + s) + v];
          total += sums.sum;
          magnitude += sums.magnitude;
        }
        if (!isfinite(total)) total = not_a_number<double>();
        Out* const means = (side == 0 ? mean_x : mean_y) + item * plan.variables[of];
        if (side == 0 ? sj == 0 : !plan.symmetric && si == 0)
          means[v] = static_cast<Out>(parts.pilots[plan.pilots_at(of, item) + v] + total / n);
        const double average = magnitude / n;
        if (average != 0 && !(average >= kLeast && average <= kMost))
          total = not_a_number<double>();
      }
      totals[side][threadIdx.x % kFinish] = total;
    }
    __syncthreads();
    const int column = static_cast<int>(threadIdx.x) % kFinish;
    Out* const to = cov + item * rows * columns;
    for (int row = static_cast<int>(threadIdx.x) / kFinish; row < kFinish;
         row += kThreads / kFinish) {
      const int64_t i = i0 + row, j = j0 + column;
      if (i >= rows || j >= columns || (plan.symmetric && j > i)) continue;
      const int64_t ti = i / plan.tile, tj = j / plan.tile;
      const int64_t tile = (plan.symmetric ? ti * (ti + 1) / 2 : ti * plan.tile_columns) + tj;
      const A* from = parts.products + (item * plan.splits * plan.tiles + tile) * plan.tile_size() +
                      (i - ti * plan.tile) * plan.columns + (j - tj * plan.tile);
      double sum = 0;
      for (int64_t s = 0; s < plan.splits; ++s)
        sum += static_cast<double>(from[s * plan.tiles * plan.tile_size()]);
      const double central = sum - totals[0][row] * totals[1][column] / n;
      const Out value = static_cast<Out>(central / static_cast<double>(plan.samples - correction));
      square[row][column] = isfinite(value) ? value : not_a_number<Out>();
      to[i * columns + j] = square[row][column];
    }
    __syncthreads();
    if (plan.symmetric) {
      for (int row = static_cast<int>(threadIdx.x) / kFinish; row < kFinish;
           row += kThreads / kFinish) {  // of the mirrored square
        const int64_t i = j0 + row, j = i0 + column;
        if (j < columns && i < j) to[i * columns + j] = square[column][row];
      }
      __syncthreads();
    }
  }
}

// ---- host ---------------------------------------------------------------------------------------

/// As many splits as make the last block end earliest.
int64_t choose_splits(int64_t tasks, int64_t n, int64_t at_once) {
  const int64_t most = std::min(std::max<int64_t>(8, at_once / tasks), divide_up(n, 256));
  int64_t best = 1, best_time = INT64_MAX;
  for (int64_t splits = 1; splits <= most; ++splits) {
    const int64_t time = divide_up(tasks * splits, at_once) * (divide_up(n, splits) + kOverhead);
    if (time < best_time) {
      best = splits;
      best_time = time;
    }
  }
  return best;
}

cudaError_t make_plan(const SampleBatch& x, const SampleBatch* y, int tile, int blocks,
                      Plan* plan) {
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const int64_t vx = x.first.variables, vy = y == nullptr ? vx : y->first.variables;
  plan->samples = x.first.count();
  plan->items = x.items();
  plan->variables[0] = vx;
  plan->variables[1] = vy;
  plan->tile = tile;
  plan->symmetric = y == nullptr;
  plan->tile_columns = divide_up(vy, tile);
  const int64_t tile_rows = divide_up(vx, tile);
  plan->tiles = plan->symmetric ? tile_rows * (tile_rows + 1) / 2 : tile_rows * plan->tile_columns;
  plan->rows = static_cast<int>(std::min<int64_t>(vx, tile));
  plan->columns = static_cast<int>(std::min<int64_t>(vy, tile));
  const int64_t splits = choose_splits(std::max<int64_t>(1, plan->tiles * plan->items),
                                       plan->samples, int64_t{processors} * blocks);
  plan->length = divide_up(divide_up(plan->samples, splits), kPromote) * kPromote;
  plan->splits = divide_up(plan->samples, plan->length);
  return cudaSuccess;
}

template <class A>
size_t bytes_of(const Plan& plan) {
  return static_cast<size_t>(plan.items * plan.all_variables()) *
             (sizeof(double) + static_cast<size_t>(plan.splits) * sizeof(Sums)) +
         static_cast<size_t>(plan.tasks() * plan.tile_size()) * sizeof(A);
}

template <class A>
Parts<A> parts_in(void* workspace, const Plan& plan) {
  Parts<A> parts;
  parts.sums = static_cast<Sums*>(workspace);
  parts.pilots =
      reinterpret_cast<double*>(parts.sums + plan.items * plan.splits * plan.all_variables());
  parts.products = reinterpret_cast<A*>(parts.pilots + plan.items * plan.all_variables());
  return parts;
}

bool along_samples(const Samples& samples) {
  return samples.stride != 1 && samples.axes[samples.axes_count - 1].stride == 1;
}

/// Whether vectors of `count` elements, along samples or variables, are whole and aligned.
bool in_vectors(const SampleBatch& batch, bool along, int64_t count, size_t bytes) {
  const Samples& s = batch.first;
  const Samples::Axis& inner = s.axes[s.axes_count - 1];
  bool good = reinterpret_cast<uintptr_t>(s.data) % bytes == 0;
  good &= along ? inner.stride == 1 && inner.size % count == 0 && s.stride % count == 0
                : s.stride == 1 && s.variables % count == 0 && inner.stride % count == 0;
  for (int a = 0; a + 1 < s.axes_count; ++a) good &= s.axes[a].stride % count == 0;
  for (int a = 0; a < batch.axes_count; ++a) good &= batch.axes[a].stride % count == 0;
  return good;
}

template <class Math, bool kAlongSamples>
cudaError_t run_products(const SampleBatch& x, const SampleBatch& y, const Plan& plan,
                         const Parts<typename Math::Accumulator>& parts, void* stream) {
  constexpr int64_t kVector = Math::kVector;
  constexpr size_t kBytes = sizeof(typename Math::Element) * kVector;
  const Inputs inputs{{{x, in_vectors(x, kAlongSamples, kVector, kBytes)},
                       {y, in_vectors(y, kAlongSamples, kVector, kBytes)}}};
  const auto covariance_products = products_kernel<Math, kAlongSamples>;
  const cudaError_t error =
      cudaFuncSetAttribute(covariance_products, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(sizeof(Shared<Math>)));
  if (error != cudaSuccess) return error;
  INFOSLICE_LAUNCH(covariance_products, static_cast<unsigned>(std::min(kMaxGrid, plan.tasks())),
                   kThreads, sizeof(Shared<Math>), stream, inputs, plan, parts);
  return cudaGetLastError();
}

template <class Math, class Out>
int run(const SampleBatch& x, const SampleBatch* y, int64_t correction, Out* cov, Out* mean_x,
        Out* mean_y, void* workspace, void* stream) {
  using A = typename Math::Accumulator;
  Plan plan;
  cudaError_t error = make_plan(x, y, Math::kTile, Math::kBlocks, &plan);
  if (error != cudaSuccess || plan.tasks() == 0) return error;
  const Parts<A> parts = parts_in<A>(workspace, plan);
  const SampleBatch& right = y == nullptr ? x : *y;
  error = along_samples(x.first) ? run_products<Math, true>(x, right, plan, parts, stream)
                                 : run_products<Math, false>(x, right, plan, parts, stream);
  if (error != cudaSuccess) return error;
  const int64_t rows = divide_up(plan.variables[0], kFinish),
                columns = divide_up(plan.variables[1], kFinish);
  const int64_t squares = plan.symmetric ? rows * (rows + 1) / 2 : rows * columns;
  const auto covariance_finish = finish_kernel<A, Out>;
  INFOSLICE_LAUNCH(covariance_finish,
                   static_cast<unsigned>(std::min(kMaxGrid, squares * plan.items)), kThreads, 0,
                   stream, plan, parts, correction, cov, mean_x, mean_y);
  return cudaGetLastError();
}

/// Calls f with the way to multiply that serves these inputs.
template <class T, class F>
auto with_math(const SampleBatch& x, const SampleBatch* y, const F& f) {
  const int64_t widest = std::max(x.first.variables, y == nullptr ? 0 : y->first.variables);
  if constexpr (sizeof(T) == 8) {
    return f(Simt<T, 64>());
  } else {
    return widest <= 64 ? f(Simt<T, 64>()) : f(Simt<T, 128>());
  }
}

}  // namespace

template <class T>
size_t covariance_workspace(const SampleBatch& x, const SampleBatch* y) {
  return with_math<T>(x, y, [&](auto math) -> size_t {
    using Math = decltype(math);
    Plan plan;
    // Without a device there is nothing to compute either; that is the call's to tell.
    if (make_plan(x, y, Math::kTile, Math::kBlocks, &plan) != cudaSuccess) return 0;
    return bytes_of<typename Math::Accumulator>(plan);
  });
}

template <class T, class Out>
int covariance(const SampleBatch& x, const SampleBatch* y, int64_t correction, Out* cov,
               Out* mean_x, Out* mean_y, void* workspace, void* stream) {
  return with_math<T>(x, y, [&](auto math) {
    return run<decltype(math)>(x, y, correction, cov, mean_x, mean_y, workspace, stream);
  });
}

#define INFOSLICE_INSTANTIATE_OUT(T, Out)                                                      \
  template int covariance<T, Out>(const SampleBatch&, const SampleBatch*, int64_t, Out*, Out*, \
                                  Out*, void*, void*);
#define INFOSLICE_INSTANTIATE(T)                                                   \
  template size_t covariance_workspace<T>(const SampleBatch&, const SampleBatch*); \
  INFOSLICE_INSTANTIATE_OUT(T, float)                                              \
  INFOSLICE_INSTANTIATE_OUT(T, double)
INFOSLICE_INSTANTIATE(double)
INFOSLICE_INSTANTIATE(float)
INFOSLICE_INSTANTIATE(bfloat16)
INFOSLICE_INSTANTIATE(float16)
#undef INFOSLICE_INSTANTIATE
#undef INFOSLICE_INSTANTIATE_OUT

}  // namespace infoslice::cuda
