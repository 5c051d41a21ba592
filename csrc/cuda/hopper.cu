// The products of covariance by TMA and wgmma (compute capability 9.0a). They read the input as it
// is, so they serve the tiles whose pilots are all zero; a first kernel finds out which those are and
// the portable kernel does the others, without a word to the host.
//
// A persistent block takes (tile, split of the samples, batch item) in turns. One thread fetches
// steps of 64 samples into a ring of shared memory; two warpgroups multiply half of the tile each;
// two warps sum the samples of diagonal tiles up from there.
//
// Sums are those of the tensor cores over kPromote steps, these are added in float registers, and
// every kFlush steps in memory.
#include "cuda/hopper.h"

#include "cuda/grid.h"
#include "cuda/hopper.cuh"
#include "cuda/samples.cuh"

namespace infoslice::cuda {
namespace {

constexpr int kEdge = kHopperTile;
constexpr int kStep = 64;                     // samples: 128 bytes, the width of the swizzle
constexpr int kRing = 6;                      // stages
constexpr int kPromote = 2;                   // steps; the tensor cores truncate where they add
constexpr int kFlush = 256;                   // steps
constexpr int kMultipliers = 8, kAdders = 2;  // warps; one more fetches
constexpr int kBlock = 32 * (kMultipliers + kAdders + 1);
constexpr unsigned kSideBytes = kEdge * kStep * 2;
constexpr unsigned kHalfBytes = kSideBytes / 2;  // 64 variables
constexpr unsigned kAtom = 1024;                 // of the swizzle: eight rows of 128 bytes

// A side is 128 rows of 128 bytes: a variable's 64 samples if those are contiguous (along), else
// 64 variables of a sample, 64 rows for the tile's first half and 64 for its second. The 16-byte
// units of row r are exchanged: unit u lies at u ^ r % 8.
struct Ring {
  unsigned char sides[kRing][2][kSideBytes];
  uint64_t full[kRing], empty[kRing];
};
constexpr size_t kSharedBytes = sizeof(Ring) + kAtom;  // its begin is rounded up

/// How the samples are cut into steps. The tensor's first two axes are the innermost of the samples
/// and the variables, the contiguous one first; then come the other axes of the samples and those of
/// the batch, inner ones first.
struct Steps {
  unsigned all, each_split, inner;  // inner: along the innermost axis of the samples
  unsigned sizes[3];                // of the other axes
  int of_samples;                   // as many of them
};

struct Task {
  int64_t which, part, item, i, j;
  unsigned begin, end;  // steps
  bool unshifted;       // others are not this kernel's
};

__device__ Task task_at(int64_t task, const Plan& plan, const Steps& steps,
                        const Parts<float>& parts) {
  Task t;
  t.which = task % plan.tiles;
  t.part = task / plan.tiles;
  t.item = t.part / plan.splits;
  tile_at(plan, t.which, &t.i, &t.j);
  const auto split = static_cast<unsigned>(t.part - t.item * plan.splits);
  t.begin = split * steps.each_split;
  t.end = t.begin + steps.each_split;
  t.begin = t.begin < steps.all ? t.begin : steps.all;
  t.end = t.end < steps.all ? t.end : steps.all;
  t.unshifted = parts.unshifted(plan, t.item, t.i, t.j);
  return t;
}

/// Where in the ring, the same for all roles.
struct Turn {
  int stage = 0;
  unsigned parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kRing) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// One thread: fetches what the others use.
template <bool kAlong>
__device__ void fetch(Ring* ring, const CUtensorMap* map, const Plan& plan, const Steps& steps,
                      const Parts<float>& parts) {
  prefetch_map(map);
  Turn turn;
  for (int64_t task = blockIdx.x; task < plan.tasks(); task += gridDim.x) {
    const Task t = task_at(task, plan, steps, parts);
    if (!t.unshifted) continue;
    int at[5] = {0, 0, 0, 0, 0};
    auto item = static_cast<unsigned>(t.item);
    for (int a = 0; a < 3; ++a) {
      if (a < steps.of_samples) continue;
      at[2 + a] = static_cast<int>(item % steps.sizes[a]);
      item /= steps.sizes[a];
    }
    for (unsigned step = t.begin; step < t.end; ++step, turn.next()) {
      unsigned rest = step / steps.inner;
      const int sample = static_cast<int>(step - rest * steps.inner) * kStep;
      for (int a = 0; a < 3; ++a) {
        if (a >= steps.of_samples) continue;
        at[2 + a] = static_cast<int>(rest % steps.sizes[a]);
        rest /= steps.sizes[a];
      }
      const int sides = t.i == t.j ? 1 : 2;
      uint64_t* const full = &ring->full[turn.stage];
      barrier_wait(&ring->empty[turn.stage], turn.parity ^ 1);
      barrier_expect(full, static_cast<unsigned>(sides) * kSideBytes);
      for (int side = 0; side < sides; ++side) {
        unsigned char* const to = ring->sides[turn.stage][side];
        const int variable = static_cast<int>(side == 0 ? t.i : t.j) * kEdge;
        if constexpr (kAlong) {
          at[0] = sample;
          at[1] = variable;
          load_box(to, map, full, at);
        } else {
          at[0] = variable;
          at[1] = sample;
          load_box(to, map, full, at);
          at[0] = variable + kEdge / 2;
          load_box(to + kHalfBytes, map, full, at);
        }
      }
    }
  }
}

/// Two warps: the sums of the samples of diagonal tiles, two variables a thread.
template <class T, bool kAlong>
__device__ void add_up(Ring* ring, int thread, const Plan& plan, const Steps& steps,
                       const Parts<float>& parts) {
  constexpr int kThreadsHere = 32 * kAdders;
  static_assert(2 * kThreadsHere == kEdge);
  Turn turn;
  for (int64_t task = blockIdx.x; task < plan.tasks(); task += gridDim.x) {
    const Task t = task_at(task, plan, steps, parts);
    if (!t.unshifted) continue;
    double sum[2] = {0, 0}, magnitude[2] = {0, 0};
    for (unsigned step = t.begin; step < t.end; ++step, turn.next()) {
      barrier_wait(&ring->full[turn.stage], turn.parity);
      const unsigned char* const side = ring->sides[turn.stage][0];
      float part[2] = {0, 0}, part_magnitude[2] = {0, 0};
      const auto add = [&](int which, T value) {
        const float wide = widened(value);
        part[which] += wide;
        part_magnitude[which] += fabs(wide);
      };
      if (t.i == t.j && kAlong) {
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          const int row = thread + v * kThreadsHere;
#pragma unroll
          for (int unit = 0; unit < 8; ++unit) {
            const auto values =
                *reinterpret_cast<const Pack<T, 8>*>(side + row * 128 + ((unit ^ row % 8) * 16));
#pragma unroll
            for (int e = 0; e < 8; ++e) add(v, values.at[e]);
          }
        }
      } else if (t.i == t.j) {
        const unsigned char* const half = side + 2 * thread / kStep * kHalfBytes;
        const int byte = 2 * thread % kStep * 2;
#pragma unroll 8
        for (int row = 0; row < kStep; ++row) {
          const auto values =
              *reinterpret_cast<const Pack<T, 2>*>(half + row * 128 + (byte ^ row % 8 * 16));
          add(0, values.at[0]);
          add(1, values.at[1]);
        }
      }
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        sum[v] += static_cast<double>(part[v]);
        magnitude[v] += static_cast<double>(part_magnitude[v]);
      }
      __syncwarp();
      if (thread % 32 == 0) barrier_arrive(&ring->empty[turn.stage]);
    }
    for (int v = 0; v < 2; ++v) {
      const int64_t variable = t.i * kEdge + (kAlong ? thread + v * kThreadsHere : 2 * thread + v);
      if (t.i == t.j && variable < plan.variables[0])
        parts.sums[plan.sums_at(0, t.part) + variable] = {sum[v], magnitude[v]};
    }
  }
}

/// Two warpgroups: the products, 64 rows of the tile each.
template <class T, bool kAlong>
__device__ void multiply(Ring* ring, int warpgroup, const Plan& plan, const Steps& steps,
                         const Parts<float>& parts) {
  constexpr unsigned kLeading = kAlong ? 16 : kHalfBytes;  // along: not used, and 1 by convention
  const int thread = static_cast<int>(threadIdx.x) % 128;
  const int row = 64 * warpgroup + thread / 32 * 16 + thread % 32 / 4, column = thread % 4 * 2;
  const auto release = [&](int stage) {
    __syncwarp();
    if (thread % 32 == 0) barrier_arrive(&ring->empty[stage]);
  };
  Turn turn;
  for (int64_t task = blockIdx.x; task < plan.tasks(); task += gridDim.x) {
    const Task t = task_at(task, plan, steps, parts);
    if (!t.unshifted) continue;
    const int right_side = t.i == t.j ? 0 : 1;
    float* const to = parts.products + (t.part * plan.tiles + t.which) * plan.tile_size() +
                      row * plan.columns + column;
    unsigned step = t.begin;
    do {
      const unsigned flush = t.end - step < kFlush ? t.end : step + kFlush;
      const bool first = step == t.begin;
      float promoted[64];
#pragma unroll
      for (int e = 0; e < 64; ++e) promoted[e] = 0;
#pragma unroll 1
      while (step < flush) {
        const unsigned promote = flush - step < kPromote ? flush : step + kPromote;
        float sums[64];
        bool add = false;
        int before = 0;
#pragma unroll 1
        for (; step < promote; ++step) {
          barrier_wait(&ring->full[turn.stage], turn.parity);
          const uint32_t left = shared_address(ring->sides[turn.stage][0]) +
                                static_cast<unsigned>(warpgroup) * kHalfBytes;
          const uint32_t right = shared_address(ring->sides[turn.stage][right_side]);
          warpgroup_fence();
#pragma unroll
          for (unsigned k = 0; k < kStep; k += 16) {
            // 16 samples on: 32 bytes of each row, or 16 rows.
            const unsigned on = kAlong ? 2 * k : 128 * k;
            multiply_64x128<T, !kAlong>(sums, describe(left + on, kLeading, kAtom),
                                        describe(right + on, kLeading, kAtom), add || k > 0);
          }
          warpgroup_commit();
          if (add) {
            warpgroup_wait<1>();
            release(before);
          }
          add = true;
          before = turn.stage;
          turn.next();
        }
        warpgroup_wait<0>();
        take(sums);
        release(before);
#pragma unroll
        for (int e = 0; e < 64; ++e) promoted[e] += sums[e];
      }
#pragma unroll
      for (int e = 0; e < 64; ++e) {
        const int down = e / 2 % 2 * 8, on = e / 4 * 8 + e % 2;
        if (row + down < plan.rows && column + on < plan.columns) {
          float* const at = to + down * plan.columns + on;
          *at = first ? promoted[e] : *at + promoted[e];
        }
      }
    } while (step < t.end);
  }
}

template <class T, bool kAlong>
__global__ void __launch_bounds__(kBlock, 1)
    products_kernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ Plan plan,
                    const __grid_constant__ Steps steps, Parts<float> parts) {
  INFOSLICE_DYNAMIC_SHARED(unsigned char, memory);
  Ring* const ring =
      reinterpret_cast<Ring*>(memory + (kAtom - shared_address(memory) % kAtom) % kAtom);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kRing; ++stage) {
      barrier_init(&ring->full[stage], 1);
      barrier_init(&ring->empty[stage], kMultipliers + kAdders);
    }
    publish_barriers();
  }
  __syncthreads();
  if (warp < kMultipliers) {
    multiply<T, kAlong>(ring, warp / 4, plan, steps, parts);
  } else if (warp < kMultipliers + kAdders) {
    add_up<T, kAlong>(ring, static_cast<int>(threadIdx.x) - 32 * kMultipliers, plan, steps, parts);
  } else if (threadIdx.x % 32 == 0) {
    fetch<kAlong>(ring, &map, plan, steps, parts);
  }
}

/// A block for each tile of variables, a thread for each of them: whether a pilot is not zero.
__global__ void __launch_bounds__(kEdge)
    shifted_kernel(const __grid_constant__ Plan plan, Parts<float> parts) {
  const int64_t tiles = plan.items * plan.tile_columns;
  for (int64_t which = blockIdx.x; which < tiles; which += gridDim.x) {
    const int64_t item = which / plan.tile_columns;
    const int64_t variable = (which - item * plan.tile_columns) * kEdge + threadIdx.x;
    const bool shifted =
        variable < plan.variables[0] && parts.pilots[plan.pilots_at(0, item) + variable] != 0;
    const int any = __syncthreads_or(shifted);
    if (threadIdx.x == 0) parts.shifted[which] = any != 0 ? 1 : 0;
  }
}

// ---- host ---------------------------------------------------------------------------------------

using Axis = Samples::Axis;

/// Axes without those of one, and neighbours in memory as one; the inner ones first.
int merge(const Axis* axes, int count, Axis (&to)[12]) {
  int merged = 0;
  for (int a = count - 1; a >= 0; --a) {
    if (axes[a].size == 1) continue;
    if (merged > 0 && axes[a].stride == to[merged - 1].size * to[merged - 1].stride)
      to[merged - 1].size *= axes[a].size;
    else
      to[merged++] = axes[a];
  }
  return merged;
}

/// Whether TMA can read x: five axes, bases and strides in units of 16 bytes.
template <class T>
bool encode(const SampleBatch& x, const Plan& plan, CUtensorMap* map, Steps* steps, bool* along) {
  using Encode = decltype(&cuTensorMapEncodeTiled);
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found;
  if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                       cudaEnableDefault, &found) != cudaSuccess ||
      found != cudaDriverEntryPointSuccess)
    return false;

  Axis samples[12], items[12];
  int sample_axes = merge(x.first.axes, x.first.axes_count, samples);
  const int item_axes = merge(x.axes, x.axes_count, items);
  if (sample_axes == 0) samples[sample_axes++] = {1, 1};
  if (sample_axes - 1 + item_axes > 3) return false;
  const Axis variables{x.first.variables, x.first.stride};
  *along = variables.stride != 1;
  Axis axes[5] = {
      *along ? samples[0] : variables, *along ? variables : samples[0], {1, 0}, {1, 0}, {1, 0}};
  steps->of_samples = sample_axes - 1;
  for (int a = 1; a < sample_axes; ++a) axes[1 + a] = samples[a];
  for (int a = 0; a < item_axes; ++a) axes[1 + sample_axes + a] = items[a];

  constexpr int64_t kMost = INT32_MAX - kEdge;  // coordinates reach beyond an axis
  int64_t all = divide_up(samples[0].size, kStep);
  steps->inner = static_cast<unsigned>(all);
  cuuint64_t sizes[5], strides[4];
  cuuint32_t box[5] = {kStep, static_cast<cuuint32_t>(*along ? kEdge : kStep), 1, 1, 1},
             each[5] = {1, 1, 1, 1, 1};
  if (axes[0].stride != 1) return false;
  for (int d = 0; d < 5; ++d) {
    if (axes[d].size > kMost) return false;
    sizes[d] = static_cast<cuuint64_t>(axes[d].size);
    if (d >= 2) steps->sizes[d - 2] = static_cast<unsigned>(axes[d].size);
    if (d >= 2 && d - 2 < steps->of_samples) all *= axes[d].size;
    if (d == 0) continue;
    const int64_t bytes = axes[d].stride * static_cast<int64_t>(sizeof(T));
    // An axis of one has any stride.
    strides[d - 1] = axes[d].size == 1 ? 16 : static_cast<cuuint64_t>(bytes);
    if (axes[d].size > 1 && (bytes <= 0 || bytes % 16 != 0 || bytes >= int64_t{1} << 40))
      return false;
  }
  if (all > kMost || plan.items > kMost) return false;
  steps->all = static_cast<unsigned>(all);
  steps->each_split = static_cast<unsigned>(divide_up(all, plan.splits));
  constexpr auto kType = std::is_same_v<T, bfloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                     : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return reinterpret_cast<Encode>(function)(
             map, kType, 5, const_cast<void*>(x.first.data), sizes, strides, box, each,
             CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

template <class T, bool kAlong>
cudaError_t run(const CUtensorMap& map, const Plan& plan, const Steps& steps,
                const Parts<float>& parts, int processors, void* stream) {
  const auto hopper_products = products_kernel<T, kAlong>;
  const cudaError_t error = cudaFuncSetAttribute(
      hopper_products, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(kSharedBytes));
  if (error != cudaSuccess) return error;
  const unsigned blocks = grid(plan.tasks() < processors ? plan.tasks() : processors);
  INFOSLICE_LAUNCH(hopper_products, blocks, kBlock, kSharedBytes, stream, map, plan, steps, parts);
  return cudaGetLastError();
}

}  // namespace

template <class T>
cudaError_t hopper_products(const SampleBatch& x, const Plan& plan, const Parts<float>& parts,
                            void* stream) {
  int device = 0, major = 0, minor = 0, processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  const auto ask = [&](cudaDeviceAttr attribute, int* value) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
  };
  ask(cudaDevAttrComputeCapabilityMajor, &major);
  ask(cudaDevAttrComputeCapabilityMinor, &minor);
  ask(cudaDevAttrMultiProcessorCount, &processors);
  if (error != cudaSuccess) return error;
  CUtensorMap map;
  Steps steps;
  bool along = false;
  if (major != 9 || minor != 0 || !encode<T>(x, plan, &map, &steps, &along))
    return cudaErrorNotSupported;

  const auto hopper_shifted = shifted_kernel;
  INFOSLICE_LAUNCH(hopper_shifted, grid(plan.items * plan.tile_columns), kEdge, 0, stream, plan,
                   parts);
  error = cudaGetLastError();
  if (error != cudaSuccess) return error;
  return along ? run<T, true>(map, plan, steps, parts, processors, stream)
               : run<T, false>(map, plan, steps, parts, processors, stream);
}

template cudaError_t hopper_products<bfloat16>(const SampleBatch&, const Plan&, const Parts<float>&,
                                               void*);
template cudaError_t hopper_products<float16>(const SampleBatch&, const Plan&, const Parts<float>&,
                                              void*);

}  // namespace infoslice::cuda
