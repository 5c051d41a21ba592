#include "model_kernels.h"

#include <map>
#include <stdexcept>

#include "cuda/launch.h"

namespace infoslice::model {
namespace {

constexpr unsigned kAll = 0xffffffffu;

// Every kernel gets the number of values and `out`, which starts as 0, 1, 2, ...

// ---- right --------------------------------------------------------------------------------------

__global__ void reverse(float* out, int n) {
  INFOSLICE_DYNAMIC_SHARED(float, shared);
  const int t = static_cast<int>(threadIdx.x);
  shared[t] = out[t];
  __syncthreads();
  out[t] = shared[n - 1 - t];
}

__global__ void static_sum(float* out, int n) {
  __shared__ float partial[32];
  const int t = static_cast<int>(threadIdx.x);
  float sum = out[t];
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAll, sum, offset);
  if (t % 32 == 0) partial[t / 32] = sum;
  __syncthreads();
  sum = 0;
  for (int w = 0; w < n / 32; ++w) sum += partial[w];
  out[t] = sum;
}

__global__ void histogram(float* out, int n) {
  INFOSLICE_DYNAMIC_SHARED(int, counts);
  const int t = static_cast<int>(threadIdx.x);
  counts[t] = 0;
  __syncthreads();
  atomicAdd(&counts[t % 5], t);
  __syncthreads();
  out[t] = static_cast<float>(counts[t]);
  __syncthreads();
  atomicAdd(&out[n - 1], 0.5f);
}

__global__ void shuffle_up(float* out, int) {
  out[threadIdx.x] = __shfl_up_sync(kAll, out[threadIdx.x], 3, 8);
}
__global__ void shuffle_down(float* out, int) {
  out[threadIdx.x] = __shfl_down_sync(kAll, out[threadIdx.x], 3, 8);
}
__global__ void shuffle_xor(float* out, int) {
  out[threadIdx.x] = __shfl_xor_sync(kAll, out[threadIdx.x], 5);
}
__global__ void shuffle_index(float* out, int) {
  out[threadIdx.x] = __shfl_sync(kAll, out[threadIdx.x], 2 * static_cast<int>(threadIdx.x), 16);
}

__global__ void votes(float* out, int) {
  const int t = static_cast<int>(threadIdx.x);
  const unsigned threes = __ballot_sync(kAll, t % 3 == 0);
  const bool any = __any_sync(kAll, t % 32 == 31), all = __all_sync(kAll, t % 32 < 31);
  out[t] = static_cast<float>(threes & 0xffffu) + (any ? 0.5f : 0.0f) + (all ? 0.25f : 0.0f);
}

// Halves of a warp go different ways, each with its own mask.
__global__ void half_warps(float* out, int) {
  const int t = static_cast<int>(threadIdx.x);
  if (t % 32 < 16) {
    out[t] = __shfl_sync(0x0000ffffu, out[t], 15 - t % 32);
  } else {
    for (int i = 0; i < 3; ++i) out[t] = __shfl_down_sync(0xffff0000u, out[t], 1);
  }
}

__global__ void uninitialised(float* out, int) {
  INFOSLICE_DYNAMIC_SHARED(float, shared);
  out[threadIdx.x] = shared[threadIdx.x];
}

// ---- broken -------------------------------------------------------------------------------------

__global__ void missing_barrier(float* out, int n) {
  INFOSLICE_DYNAMIC_SHARED(float, shared);
  const int t = static_cast<int>(threadIdx.x);
  shared[t] = out[t];
  out[t] = shared[n - 1 - t];
}

__global__ void missing_warp_barrier(float* out, int) {
  INFOSLICE_DYNAMIC_SHARED(float, shared);
  const int t = static_cast<int>(threadIdx.x);
  shared[t] = out[t];
  out[t] = shared[t ^ 1];
}

__global__ void divergent_barrier(float* out, int) {
  if (threadIdx.x < 5) __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void two_barriers(float* out, int) {
  if (threadIdx.x < 5) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 1;
}

__global__ void missing_lanes(float* out, int) {
  if (threadIdx.x % 32 < 7) out[threadIdx.x] = __shfl_sync(kAll, out[threadIdx.x], 0);
}

__global__ void barrier_and_shuffle(float* out, int) {
  if (threadIdx.x % 32 < 7) {
    out[threadIdx.x] = __shfl_sync(kAll, out[threadIdx.x], 0);
  } else {
    __syncthreads();
  }
}

__global__ void not_in_own_mask(float* out, int) {
  out[threadIdx.x] = __shfl_sync(0x0000fff0u, out[threadIdx.x], 5);
}

__global__ void reads_outside_mask(float* out, int) {
  if (threadIdx.x % 32 < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, out[threadIdx.x], 20);
}

__global__ void shared_overrun(float* out, int) {
  INFOSLICE_DYNAMIC_SHARED(float, shared);
  shared[threadIdx.x + 1] = out[threadIdx.x];  // the last thread writes behind the end
  __syncthreads();
  out[threadIdx.x] = 1;
}

__global__ void global_overrun(float* out, int) { out[threadIdx.x + 1] = 1; }

using Kernel = void (*)(float*, int);
const std::map<std::string, Kernel>& kernels() {
  static const std::map<std::string, Kernel> all = {
      {"reverse", reverse},
      {"static_sum", static_sum},
      {"histogram", histogram},
      {"shuffle_up", shuffle_up},
      {"shuffle_down", shuffle_down},
      {"shuffle_xor", shuffle_xor},
      {"shuffle_index", shuffle_index},
      {"votes", votes},
      {"half_warps", half_warps},
      {"uninitialised", uninitialised},
      {"missing_barrier", missing_barrier},
      {"missing_warp_barrier", missing_warp_barrier},
      {"divergent_barrier", divergent_barrier},
      {"two_barriers", two_barriers},
      {"missing_lanes", missing_lanes},
      {"barrier_and_shuffle", barrier_and_shuffle},
      {"not_in_own_mask", not_in_own_mask},
      {"reads_outside_mask", reads_outside_mask},
      {"shared_overrun", shared_overrun},
      {"global_overrun", global_overrun},
  };
  return all;
}

}  // namespace

Outcome run(const std::string& name, int threads, uint64_t seed) {
  // Launches that a device refuses are named after what is wrong with them.
  const bool refused = name == "no_blocks" || name == "too_many_threads" || name == "no_opt_in";
  const auto found = kernels().find(refused ? "reverse" : name);
  if (found == kernels().end()) throw std::invalid_argument("no model kernel named " + name);
  const Kernel model_kernel = found->second;
  // Exactly as large as told, so that AddressSanitizer knows the end.
  std::vector<float> values(static_cast<size_t>(threads));
  values.shrink_to_fit();
  for (int i = 0; i < threads; ++i) values[static_cast<size_t>(i)] = static_cast<float>(i);
  const unsigned grid = name == "no_blocks" ? 0 : 1;
  const unsigned block = name == "too_many_threads" ? 1025u : static_cast<unsigned>(threads);
  const size_t bytes = name == "no_opt_in" ? 50000 : values.size() * sizeof(float);
  emulation::set_seed(seed);
  INFOSLICE_LAUNCH(model_kernel, grid, block, bytes, nullptr, values.data(), threads);
  const int error = cudaGetLastError();
  return {error, emulation::report(), values};
}

}  // namespace infoslice::model
