// One kernel for the pilots, one for the products and sums of a tile over a stretch of samples, one
// that puts the stretches together. A task of the second is (tile, split of the samples, batch item),
// tiles next to each other so that blocks that read the same samples run at the same time.
#include "covariance.h"

#include <algorithm>

#include "cuda/covariance_finish.cuh"
#include "cuda/covariance_pilot.cuh"
#include "cuda/grid.h"
#include "cuda/hopper.h"
#include "cuda/tensor_cores.cuh"

namespace infoslice::cuda {
namespace {

constexpr int64_t kSplit = 64;      // splits are multiples of so many samples
constexpr int64_t kOverhead = 300;  // what a task costs beside its samples, in samples
constexpr unsigned kStages = 3;     // of samples in shared memory

/// Whether the Hopper kernels may have done tasks already.
template <class Math>
constexpr bool kOnHopper = sizeof(typename Math::Element) == 2 && Math::kTile == kHopperTile;

/// Shared memory of a block.
template <class Math, class Source>
struct Shared {
  typename Math::Stage stages[kStages][2];                       // [turn][side]
  typename Source::Place samples[kStages + 1][2][Math::kDepth];  // [turn][side][sample]
  typename Source::Place variables[2][Math::kTile];
  Sums sums[2][Math::kTile];
  typename Math::Element pilots[2][Math::kTile];
  int sides;  // that are not the same tile
  unsigned turns;
  int variables_count[2];
  bool shifted;   // whether a pilot is not zero
  bool tells[2];  // whether this is the tile to tell the sums of a side's variables
  int64_t task, part, item, begin, length, tile[2];  // what to do, in here to spare registers
};

template <class Math, class Source>
__global__ void __launch_bounds__(kProductThreads, Math::kBlocks)
    products_kernel(const __grid_constant__ Inputs<Source> inputs,
                    const __grid_constant__ Plan plan, Parts<typename Math::Accumulator> parts) {
  using T = typename Math::Element;
  constexpr int kTile = Math::kTile, kDepth = Math::kDepth;
  constexpr unsigned kFlushTurns = Math::kFlush / kDepth;
  static_assert(kTile <= kProductThreads && 2 * kDepth <= kProductThreads);
  using Memory = Shared<Math, Source>;
  INFOSLICE_DYNAMIC_SHARED(Memory, shared);
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t task = blockIdx.x; task < plan.tasks(); task = shared->task + gridDim.x) {
    __syncthreads();  // the task before is over
    if (thread == 0) {
      const int64_t part = task / plan.tiles, item = part / plan.splits;
      const int64_t begin = (part - item * plan.splits) * plan.length;
      shared->task = task;
      shared->part = part;
      shared->begin = begin;
      shared->length = begin + plan.length < plan.samples ? plan.length : plan.samples - begin;
      shared->turns = static_cast<unsigned>((shared->length + kDepth - 1) / kDepth);
      shared->item = item;
      int64_t* const tile = shared->tile;
      tile_at(plan, task - part * plan.tiles, &tile[0], &tile[1]);
      shared->sides = plan.symmetric && tile[0] == tile[1] ? 1 : 2;
    }
    __syncthreads();
    if constexpr (kOnHopper<Math>) {
      if (parts.unshifted(plan, shared->item, shared->tile[0], shared->tile[1])) continue;
    }
    bool shifts = false;
    if (thread < kTile) {
#pragma unroll 1
      for (int s = 0; s < shared->sides; ++s) {
        const Source& source = inputs.side[s];
        const int64_t item = shared->item, first = shared->tile[s] * kTile,
                      left = plan.variables[s] - first;
        const int count = static_cast<int>(left < kTile ? left : kTile);
        T pilot{};
        if (thread < count) {
          typename Source::Place place = source.variable(first + thread);
          place.offset += source.item(item);
          shared->variables[s][thread] = place;
          const int own = plan.symmetric ? 0 : s;
          pilot = exact<T>(parts.pilots[plan.pilots_at(own, item) + first + thread]);
        }
        shared->pilots[s][thread] = pilot;
        shared->sums[s][thread] = {0, 0};
        if (thread == 0) {
          shared->variables_count[s] = count;
          const bool edge = shared->tile[1 - s] == 0;
          shared->tells[s] = plan.symmetric ? shared->sides == 1 : edge;
        }
        shifts |= widened(pilot) != 0;
      }
    }
    const auto locate = [&](unsigned turn) {  // its samples
      const unsigned side = threadIdx.x / kDepth, sample = threadIdx.x % kDepth;
      if (side < 2)
        shared->samples[turn % (kStages + 1)][side][sample] =
            inputs.side[side].sample(shared->begin + int64_t{turn} * kDepth + sample);
    };
#pragma unroll 1
    for (unsigned turn = 0; turn < kStages; ++turn) locate(turn);
    const bool any = __syncthreads_or(shifts);
    if (thread == 0) shared->shifted = any;
    __syncthreads();

    // Stages are filled in turns, each while those before it are multiplied. Second parts of
    // deviations take the last one's place.
    const auto stages = [&] { return Math::kParts && shared->shifted ? kStages - 1 : kStages; };
    const auto stage_of = [&](unsigned turn) {
      return stages() == kStages ? turn % kStages : turn % (kStages - 1);
    };
    const auto fill = [&](unsigned turn) {
      const int64_t left = shared->length - int64_t{turn} * kDepth;
      const int samples = static_cast<int>(left < kDepth ? left : kDepth);
#pragma unroll 1
      for (int s = 0; s < shared->sides && samples > 0; ++s)
        Vectors<Math>::copy(shared->stages[stage_of(turn)][s], inputs.side[s], shared->variables[s],
                            shared->variables_count[s], shared->samples[turn % (kStages + 1)][s],
                            samples, shared->pilots[s]);
      commit_copies();
    };
#pragma unroll 1
    for (unsigned turn = 0; turn + 1 < stages(); ++turn) fill(turn);

    Math math;
    math.clear();
#pragma unroll 1
    for (unsigned turn = 0; turn < shared->turns; ++turn) {
      if (stages() == kStages)
        wait_copies<kStages - 2>();
      else
        wait_copies<kStages - 3>();
      auto& now = shared->stages[stage_of(turn)];
      bool parted = false;
      if (shared->shifted) {
#pragma unroll 1
        for (int s = 0; s < shared->sides; ++s)
          parted |=
              Vectors<Math>::settle(now[s], shared->stages[kStages - 1][s], shared->pilots[s]);
      }
      parted = Math::kParts && shared->shifted ? __syncthreads_or(parted) != 0
                                               : (__syncthreads(), false);
      fill(turn + stages() - 1);
      locate(turn + stages());
      // What lies above the diagonal or beyond the variables is not asked for.
      const int right = shared->sides - 1, thread = thread_anew();
      if (Math::row(thread) < shared->variables_count[0] &&
          Math::column(thread) < shared->variables_count[right] &&
          !(right == 0 && Math::column(thread) > Math::row(thread))) {
#pragma unroll 1
        for (int both = 0; both < (parted ? 4 : 1); ++both)
          math.multiply(both & 1 ? shared->stages[kStages - 1][0] : now[0],
                        both & 2 ? shared->stages[kStages - 1][right] : now[right]);
      }
#pragma unroll 1
      for (int s = 0; s < shared->sides; ++s) {
        if (shared->tells[s] && thread < kTile)
          Math::sum(now[s], shared->stages[kStages - 1][s], parted, thread,
                    &shared->sums[s][thread]);
      }
      if ((turn + 1) % kFlushTurns == 0 || turn + 1 == shared->turns) {
        math.give(parts.products + shared->task * plan.tile_size(), plan.rows, plan.columns,
                  turn >= kFlushTurns);
        math.clear();
      }
      if (Math::kParts && parted) __syncthreads();  // before second parts are written again
    }
#pragma unroll 1
    for (int s = 0; s < shared->sides; ++s) {
      if (shared->tells[s] && thread < shared->variables_count[s])
        parts.sums[plan.sums_at(s, shared->part) + shared->tile[s] * kTile + thread] =
            shared->sums[s][thread];
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
         static_cast<size_t>(plan.tasks() * plan.tile_size()) * sizeof(A) +
         static_cast<size_t>(plan.items * plan.tile_columns) * sizeof(int);
}

template <class A>
Parts<A> parts_in(void* workspace, const Plan& plan) {
  Parts<A> parts;
  parts.sums = static_cast<Sums*>(workspace);
  parts.pilots =
      reinterpret_cast<double*>(parts.sums + plan.items * plan.splits * plan.all_variables());
  parts.products = reinterpret_cast<A*>(parts.pilots + plan.items * plan.all_variables());
  parts.shifted = reinterpret_cast<int*>(parts.products + plan.tasks() * plan.tile_size());
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
cudaError_t run_pilots(const Inputs<Source>& inputs, const Plan& plan,
                       const Parts<typename Math::Accumulator>& parts, void* stream) {
  using T = typename Math::Element;
  const auto covariance_pilots = pilots_kernel<T, Source, typename Math::Accumulator>;
  INFOSLICE_LAUNCH(covariance_pilots, grid(divide_up(plan.items * plan.all_variables(), kThreads)),
                   kThreads, 0, stream, inputs, plan, parts);
  return cudaGetLastError();
}

enum class Hopper { never, where_possible, only };
constexpr Hopper kHopper = kHopperVerified ? Hopper::where_possible : Hopper::never;

/// Where the Hopper kernels serve, the tiles that they leave are told by parts->shifted.
template <class Math, class Input>
cudaError_t run_hopper(Hopper hopper, const Input& x, const Input* y, const Plan& plan,
                       Parts<typename Math::Accumulator>* parts, void* stream) {
  cudaError_t error = cudaErrorNotSupported;
  if constexpr (kOnHopper<Math> && std::is_same_v<Input, SampleBatch>) {
    if (hopper != Hopper::never && y == nullptr)
      error = hopper_products<typename Math::Element>(x, plan, *parts, stream);
  }
  if (error != cudaErrorNotSupported || hopper == Hopper::only) return error;
  parts->shifted = nullptr;
  return cudaSuccess;
}

template <class Math, class Source>
cudaError_t run_products(const Inputs<Source>& inputs, const Plan& plan,
                         const Parts<typename Math::Accumulator>& parts, void* stream) {
  const auto covariance_products = products_kernel<Math, Source>;
  const cudaError_t error =
      cudaFuncSetAttribute(covariance_products, cudaFuncAttributeMaxDynamicSharedMemorySize,
                           static_cast<int>(sizeof(Shared<Math, Source>)));
  if (error != cudaSuccess) return error;
  INFOSLICE_LAUNCH(covariance_products, grid(plan.tasks()), kProductThreads,
                   sizeof(Shared<Math, Source>), stream, inputs, plan, parts);
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
int run(Hopper hopper, const Input& x, const Input* y, int64_t correction, Out* cov, Out* mean_x,
        Out* mean_y, void* workspace, void* stream) {
  using A = typename Math::Accumulator;
  Plan plan;
  cudaError_t error = make_plan(x, y, Math::kTile, Math::kBlocks, &plan);
  if (error != cudaSuccess || plan.tasks() == 0) return error;
  Parts<A> parts = parts_in<A>(workspace, plan);
  using Source = decltype(source_of<Math>(x));
  const Inputs<Source> inputs{{source_of<Math>(x), source_of<Math>(y == nullptr ? x : *y)}};
  error = run_pilots<Math>(inputs, plan, parts, stream);
  if (error == cudaSuccess) error = run_hopper<Math>(hopper, x, y, plan, &parts, stream);
  if (error == cudaSuccess) error = run_products<Math>(inputs, plan, parts, stream);
  if (error != cudaSuccess) return error;
  // With few cells, small squares keep the device busy.
  return plan.tiles * plan.items < 8
             ? run_finish<A, Out, 8>(plan, parts, correction, cov, mean_x, mean_y, stream)
             : run_finish<A, Out, 32>(plan, parts, correction, cov, mean_x, mean_y, stream);
}

/// Calls f with the way to multiply that serves these inputs.
template <class T, class F>
auto with_math(const SampleBatch& x, const SampleBatch* y, const F& f) {
  [[maybe_unused]] const bool small =
      std::max(x.first.variables, y == nullptr ? 0 : y->first.variables) <= 64;
  const bool along = along_samples(x.first);
  if constexpr (sizeof(T) < 8) {
    if (!small) return along ? f(TensorCores<T, 128, true>()) : f(TensorCores<T, 128, false>());
  }
  return along ? f(TensorCores<T, 64, true>()) : f(TensorCores<T, 64, false>());
}

/// Patches are read along the samples: neighbouring positions see neighbouring pixels.
template <class T, class F>
auto with_math(const Patches&, const Patches*, const F& f) {
  return f(TensorCores<T, sizeof(T) == 8 ? 64 : 128, true>());
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
    return run<decltype(math)>(kHopper, x, y, correction, cov, mean_x, mean_y, workspace, stream);
  });
}

template <class T, class Out>
int covariance_hopper(const SampleBatch& x, int64_t correction, Out* cov, Out* mean,
                      void* workspace, void* stream) {
  const SampleBatch* const none = nullptr;
  return with_math<T>(x, none, [&](auto math) {
    return run<decltype(math)>(Hopper::only, x, none, correction, cov, mean, mean, workspace,
                               stream);
  });
}

template <class T, class Out>
int patch_covariance(const Patches& x, const Patches* y, int64_t correction, Out* cov, Out* mean_x,
                     Out* mean_y, void* workspace, void* stream) {
  return with_math<T>(x, y, [&](auto math) {
    return run<decltype(math)>(Hopper::never, x, y, correction, cov, mean_x, mean_y, workspace,
                               stream);
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
#define INFOSLICE_INSTANTIATE_HOPPER(T)                                                        \
  template int covariance_hopper<T, float>(const SampleBatch&, int64_t, float*, float*, void*, \
                                           void*);
INFOSLICE_INSTANTIATE_HOPPER(bfloat16)
INFOSLICE_INSTANTIATE_HOPPER(float16)
#undef INFOSLICE_INSTANTIATE_HOPPER
#undef INFOSLICE_INSTANTIATE
#undef INFOSLICE_INSTANTIATE_OUT

}  // namespace infoslice::cuda
