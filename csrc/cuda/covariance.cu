// One kernel for the products and sums of a tile over a stretch of samples, one that puts the
// stretches together. A task of the first is (tile, split of the samples, batch item), tiles next to
// each other so that blocks that read the same samples run at the same time.
#include "covariance.h"

#include <algorithm>

#include "cuda/covariance_finish.cuh"
#include "cuda/grid.h"
#include "cuda/simt.cuh"
#include "cuda/tensor_cores.cuh"

namespace infoslice::cuda {
namespace {

constexpr int64_t kSplit = 64;      // splits are multiples of so many samples
constexpr int64_t kFlush = 4096;    // samples before the sums go to memory
constexpr int64_t kOverhead = 300;  // what a task costs beside its samples, in samples
constexpr int kPilots = 8;

/// Shared memory of a block: what it multiplies and what it reads next, in turns.
template <class Math, class Source>
struct Shared {
  typename Math::Stage stages[2][2];                   // [turn][side]
  typename Source::Place samples[2][2][Math::kDepth];  // [turn][side][sample]
  typename Source::Place variables[2][Math::kTile];
  typename Math::Element pilots[2][Math::kTile];
};

/// x and y, or x twice.
template <class Source>
struct Inputs {
  Source side[2];
};

/// The pilot of a variable: the sample nearest the mean of eight, or zero if that will
/// do and is preferred.
template <bool kPrefersZero, class Source, class T>
__device__ inline T choose_pilot(const Source& source, const T* from,
                                 typename Source::Place variable, int64_t n) {
  T values[kPilots];
#pragma unroll
  for (int s = 0; s < kPilots; ++s)
    values[s] = source.read(from, variable, source.sample(s * n / kPilots));
  auto mean = widened(values[0]) / kPilots;
#pragma unroll
  for (int s = 1; s < kPilots; ++s) mean += widened(values[s]) / kPilots;
  T nearest = values[0];
  auto squares = mean * 0;
#pragma unroll
  for (int s = 0; s < kPilots; ++s) {
    const auto distance = widened(values[s]) - mean;
    if (fabs(distance) < fabs(widened(nearest) - mean)) nearest = values[s];
    squares += distance * distance;
  }
  return kPrefersZero && mean * mean <= 4 * squares / kPilots ? T{} : nearest;
}

/// What a block holds of one side of a product: a tile on its way from memory to shared memory.
template <class Math, class Source>
struct Side {
  using T = typename Math::Element;
  using Load = Loader<T, Math::kTile, Math::kDepth, Math::kVector, Math::kAlongSamples>;

  __device__ __forceinline__ void load(const typename Source::Place* places, int samples) {
    tile.load(*source, from, variable_places, variables, places, samples, pilots);
  }
  __device__ __forceinline__ bool put(typename Math::Stage& stage, bool shifted) const {
    bool parted = false;
#pragma unroll
    for (int pass = 0; pass < Load::kPasses; ++pass) {
      const int variable = Load::variable(pass);
      parted |= Math::put(stage, variable, Load::sample(pass), tile.vector(pass), pilots + variable,
                          shifted);
    }
    return parted;
  }

  const Source* source;
  const T* from;  // this batch item
  const typename Source::Place* variable_places;
  int variables;
  const T* pilots;
  Load tile;
};

template <class Math, class Source>
__global__ void __launch_bounds__(kThreads, Math::kBlocks)
    products_kernel(const __grid_constant__ Inputs<Source> inputs,
                    const __grid_constant__ Plan plan, Parts<typename Math::Accumulator> parts) {
  using T = typename Math::Element;
  using A = typename Math::Accumulator;
  constexpr int kTile = Math::kTile, kDepth = Math::kDepth;
  static_assert(2 * kTile <= kThreads && kSplit % Math::kPromote == 0 &&
                Math::kPromote % kDepth == 0);
  using Memory = Shared<Math, Source>;
  INFOSLICE_DYNAMIC_SHARED(Memory, shared);
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t task = blockIdx.x; task < plan.tasks(); task += gridDim.x) {
    const int64_t which = task % plan.tiles, part = task / plan.tiles;  // part: item and split
    const int64_t item = part / plan.splits, split = part - item * plan.splits;
    int64_t i, j;
    tile_at(plan, which, &i, &j);
    const bool same = plan.symmetric && i == j;  // both sides of the product are one tile
    const int64_t begin = split * plan.length;
    const int64_t end = begin + plan.length < plan.samples ? begin + plan.length : plan.samples;
    Side<Math, Source> x{}, y{};
    const auto start = [&](Side<Math, Source>& side, int s, int64_t v0) {
      side.source = &inputs.side[s];
      side.from = static_cast<const T*>(side.source->data) + side.source->item(item);
      side.variable_places = shared->variables[s];
      const int64_t left = plan.variables[s] - v0;
      side.variables = static_cast<int>(left < kTile ? left : kTile);
      side.pilots = shared->pilots[s];
    };
    start(x, 0, i * kTile);
    start(y, 1, j * kTile);

    // A thread looks after one variable of a side: its pilot, and its sums where this tile is the
    // one to tell them.
    const int own_side = thread / kTile, own = thread % kTile;
    const bool used = own_side < 2 && own < (own_side == 0 ? x.variables : y.variables);
    const bool tells =
        used && (own_side == 0 ? (plan.symmetric ? i == j : j == 0) : !plan.symmetric && i == 0);
    const int64_t own_variable = (own_side == 0 ? i : j) * kTile + own;
    A sum = 0, magnitude = 0;
    Sums sums{0, 0};

    __syncthreads();  // the task before is over
    T pilot{};
    if (used) {
      const Source& source = inputs.side[own_side];
      const typename Source::Place place = source.variable(own_variable);
      pilot = choose_pilot<Math::kPrefersZero>(source, own_side == 0 ? x.from : y.from, place,
                                               plan.samples);
      shared->variables[own_side][own] = place;
    }
    if (own_side < 2) shared->pilots[own_side][own] = pilot;
    if (tells && split == 0)
      parts.pilots[plan.pilots_at(own_side, item) + own_variable] = widened(pilot);
    const auto locate = [&](int64_t k, int turn) {  // the samples from k on
      if (thread < 2 * kDepth)
        shared->samples[turn][thread / kDepth][thread % kDepth] =
            inputs.side[thread / kDepth].sample(k + thread % kDepth);
    };
    locate(begin, 0);
    const bool shifted = __syncthreads_or(widened(pilot) != 0);

    Math math;
    math.clear();
    // In a turn, the samples from k on are loaded, those before are multiplied, and it is found out
    // where those after them lie.
    bool parted = false;
    int turn = 0;
    for (int64_t k = begin; k < end + kDepth; k += kDepth, turn ^= 1) {
      if (k < end) {
        const int samples = static_cast<int>(end - k < kDepth ? end - k : kDepth);
        x.load(shared->samples[turn][0], samples);
        if (!same) y.load(shared->samples[turn][1], samples);
      }
      locate(k + kDepth, turn ^ 1);
      if (k > begin) {
        const auto& stages = shared->stages[turn ^ 1];
        math.multiply(stages[0], stages[same ? 0 : 1], parted);
        if (tells) Math::sum(stages[own_side], own, parted && shifted, &sum, &magnitude);
        if ((k - begin) % Math::kPromote == 0 || k >= end) {
          math.promote();
          sums.sum += sum;
          sums.magnitude += magnitude;
          sum = magnitude = 0;
        }
        if ((k - begin) % kFlush == 0 || k >= end) {
          A* to = parts.products + (part * plan.tiles + which) * plan.tile_size();
          const bool first = k - begin <= kFlush;
          math.for_each([&](int row, int column, A value) {
            if (row < plan.rows && column < plan.columns) {
              A* const at = to + row * plan.columns + column;
              *at = first ? value : *at + value;
            }
          });
          math.clear();
        }
      }
      bool parts_now = false;
      if (k < end) {
        parts_now = x.put(shared->stages[turn][0], shifted);
        if (!same) parts_now |= y.put(shared->stages[turn][1], shifted);
      }
      parted = __syncthreads_or(parts_now);
    }
    if (tells) parts.sums[plan.sums_at(own_side, part) + own_variable] = sums;
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

int64_t variables_of(const SampleBatch& batch) { return batch.first.variables; }
int64_t variables_of(const Patches& patches) { return patches.variables(); }
int64_t samples_of(const SampleBatch& batch) { return batch.first.count(); }
int64_t samples_of(const Patches& patches) { return patches.count(); }
int64_t items_of(const SampleBatch& batch) { return batch.items(); }
int64_t items_of(const Patches&) { return 1; }

template <class Input>
cudaError_t make_plan(const Input& x, const Input* y, int tile, int blocks, Plan* plan) {
  int device = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess)
    error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess) return error;
  const int64_t vx = variables_of(x), vy = y == nullptr ? vx : variables_of(*y);
  plan->samples = samples_of(x);
  plan->items = items_of(x);
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
  plan->length = divide_up(divide_up(plan->samples, splits), kSplit) * kSplit;
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

template <class Math>
Strided source_of(const SampleBatch& batch) {
  constexpr int64_t kVector = Math::kVector;
  return {batch, in_vectors(batch, Math::kAlongSamples, kVector,
                            sizeof(typename Math::Element) * kVector)};
}
template <class Math>
Unfolded source_of(const Patches& patches) {
  return Unfolded(patches);
}

template <class Math, class Source>
cudaError_t run_products(const Inputs<Source>& inputs, const Plan& plan,
                         const Parts<typename Math::Accumulator>& parts, void* stream) {
  const auto covariance_products = products_kernel<Math, Source>;
  const cudaError_t error =
      cudaFuncSetAttribute(covariance_products, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(sizeof(Shared<Math, Source>)));
  if (error != cudaSuccess) return error;
  INFOSLICE_LAUNCH(covariance_products, grid(plan.tasks()), kThreads, sizeof(Shared<Math, Source>),
                   stream, inputs, plan, parts);
  return cudaGetLastError();
}

template <class A, class Out, int kSquare>
cudaError_t run_finish(const Plan& plan, const Parts<A>& parts, int64_t correction, Out* cov,
                       Out* mean_x, Out* mean_y, void* stream) {
  const int64_t rows = divide_up(plan.variables[0], kSquare),
                columns = divide_up(plan.variables[1], kSquare);
  const int64_t squares = plan.symmetric ? rows * (rows + 1) / 2 : rows * columns;
  const auto covariance_finish = finish_kernel<A, Out, kSquare>;
  const dim3 blocks(static_cast<unsigned>(squares), grid(plan.items));
  INFOSLICE_LAUNCH(covariance_finish, blocks, kThreads, 0, stream, plan, parts, correction, cov,
                   mean_x, mean_y);
  return cudaGetLastError();
}

template <class Math, class Input, class Out>
int run(const Input& x, const Input* y, int64_t correction, Out* cov, Out* mean_x, Out* mean_y,
        void* workspace, void* stream) {
  using A = typename Math::Accumulator;
  Plan plan;
  cudaError_t error = make_plan(x, y, Math::kTile, Math::kBlocks, &plan);
  if (error != cudaSuccess || plan.tasks() == 0) return error;
  const Parts<A> parts = parts_in<A>(workspace, plan);
  using Source = decltype(source_of<Math>(x));
  const Inputs<Source> inputs{{source_of<Math>(x), source_of<Math>(y == nullptr ? x : *y)}};
  error = run_products<Math>(inputs, plan, parts, stream);
  if (error != cudaSuccess) return error;
  // With few cells, small squares keep the device busy.
  return plan.tiles * plan.items < 8
             ? run_finish<A, Out, 8>(plan, parts, correction, cov, mean_x, mean_y, stream)
             : run_finish<A, Out, 32>(plan, parts, correction, cov, mean_x, mean_y, stream);
}

/// Calls f with the way to multiply that serves these inputs.
template <class T, class F>
auto with_math(const SampleBatch& x, const SampleBatch* y, const F& f) {
  const bool small = std::max(x.first.variables, y == nullptr ? 0 : y->first.variables) <= 64;
  const bool along = along_samples(x.first);
  if constexpr (sizeof(T) == 8) {
    return along ? f(Simt<T, 64, true>()) : f(Simt<T, 64, false>());
  } else if constexpr (sizeof(T) == 4) {
    if (small) return along ? f(Simt<T, 64, true>()) : f(Simt<T, 64, false>());
    return along ? f(Simt<T, 128, true>()) : f(Simt<T, 128, false>());
  } else {
    if (small) return along ? f(TensorCores<T, 64, true>()) : f(TensorCores<T, 64, false>());
    return along ? f(TensorCores<T, 128, true>()) : f(TensorCores<T, 128, false>());
  }
}

/// Patches are read along the samples: neighbouring positions see neighbouring pixels.
template <class T, class F>
auto with_math(const Patches&, const Patches*, const F& f) {
  if constexpr (sizeof(T) >= 4) {
    return f(Simt<T, sizeof(T) == 8 ? 64 : 128, true>());
  } else {
    return f(TensorCores<T, 128, true>());
  }
}

template <class T, class Input>
size_t workspace_of(const Input& x, const Input* y) {
  return with_math<T>(x, y, [&](auto math) -> size_t {
    using Math = decltype(math);
    Plan plan;
    // Without a device there is nothing to compute either; that is the call's to tell.
    if (make_plan(x, y, Math::kTile, Math::kBlocks, &plan) != cudaSuccess) return 0;
    return bytes_of<typename Math::Accumulator>(plan);
  });
}

}  // namespace

template <class T>
size_t covariance_workspace(const SampleBatch& x, const SampleBatch* y) {
  return workspace_of<T>(x, y);
}

template <class T>
size_t patch_covariance_workspace(const Patches& x, const Patches* y) {
  return workspace_of<T>(x, y);
}

template <class T, class Out>
int covariance(const SampleBatch& x, const SampleBatch* y, int64_t correction, Out* cov,
               Out* mean_x, Out* mean_y, void* workspace, void* stream) {
  return with_math<T>(x, y, [&](auto math) {
    return run<decltype(math)>(x, y, correction, cov, mean_x, mean_y, workspace, stream);
  });
}

template <class T, class Out>
int patch_covariance(const Patches& x, const Patches* y, int64_t correction, Out* cov, Out* mean_x,
                     Out* mean_y, void* workspace, void* stream) {
  return with_math<T>(x, y, [&](auto math) {
    return run<decltype(math)>(x, y, correction, cov, mean_x, mean_y, workspace, stream);
  });
}

#define INFOSLICE_INSTANTIATE_OUT(T, Out)                                                          \
  template int covariance<T, Out>(const SampleBatch&, const SampleBatch*, int64_t, Out*, Out*,     \
                                  Out*, void*, void*);                                             \
  template int patch_covariance<T, Out>(const Patches&, const Patches*, int64_t, Out*, Out*, Out*, \
                                        void*, void*);
#define INFOSLICE_INSTANTIATE(T)                                                   \
  template size_t covariance_workspace<T>(const SampleBatch&, const SampleBatch*); \
  template size_t patch_covariance_workspace<T>(const Patches&, const Patches*);   \
  INFOSLICE_INSTANTIATE_OUT(T, float)                                              \
  INFOSLICE_INSTANTIATE_OUT(T, double)
INFOSLICE_INSTANTIATE(double)
INFOSLICE_INSTANTIATE(float)
INFOSLICE_INSTANTIATE(bfloat16)
INFOSLICE_INSTANTIATE(float16)
#undef INFOSLICE_INSTANTIATE
#undef INFOSLICE_INSTANTIATE_OUT

}  // namespace infoslice::cuda
