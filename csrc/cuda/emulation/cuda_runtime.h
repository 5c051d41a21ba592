// The part of CUDA C++ and of its run time that the kernels use, for the host compiler. Put this
// folder before CUDA's on the include path and compile a .cu file as C++: the same source then runs
// on the CPU.
//
// - Blocks run one after the other, in a shuffled order.
// - Threads are fibers; between two barriers they run in a shuffled order, some warps and some lanes
//   much slower than others, so that a missing barrier shows.
// - __shared__ is a static variable, not initialised anew for a block, as on the device.
// - Dynamic shared memory is filled with 0xff bytes (NaN, -1) for every block; its end is guarded.
// - Warp intrinsics wait for all lanes of their mask; in between, lanes are not in lock step.
// - Divergent barriers, deadlocks, lanes missing from a mask and launches that the device would
//   refuse make the launch fail: cudaGetLastError() says so, emulation::report() says what and where.
//
// With INFOSLICE_EMULATION_THREADS every CUDA thread is a thread of the system, for ThreadSanitizer:
// a data race between CUDA threads is then one that it reports with file and line. (A deadlock ends
// the program there.)
// Matrix instructions and asynchronous copies of vectors are in matrix.h; barriers in shared memory
// and copies of tensors in async.h; the warpgroup's matrix products in warpgroup.h.
// Not modelled: concurrency between blocks, the rounding of fast intrinsics, proxy fences.
#pragma once

#define INFOSLICE_EMULATION 1

#include <math.h>  // device code calls sqrt, log, isfinite and nan without std::

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __shared__ static
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
};
using cudaStream_t = struct CUstream_st*;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97
};

enum cudaDriverEntryPointQueryResult {
  cudaDriverEntryPointSuccess = 0,
  cudaDriverEntryPointSymbolNotFound = 1
};
constexpr unsigned long long cudaEnableDefault = 0;

cudaError_t cudaGetLastError();
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* result);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t stream);

namespace infoslice::emulation {

// ---- for tests ----------------------------------------------------------------------------------

void set_seed(uint64_t seed);                // of the order of threads and blocks
void set_shared_memory_limit(size_t bytes);  // of a block; as on an H100 unless told
std::string report();  // what the last failed launch was about; cleared by the call

// ---- for the macros -----------------------------------------------------------------------------

struct Place {  // of a call in the source
  const char* file;
  int line;
};

struct Position {
  uint3 thread;
  uint3 block;
  dim3 block_size;
  dim3 grid_size;
};
const Position& position();  // of the running CUDA thread

void launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
            const void* stream, const std::function<void()>& body);
void allow_shared_memory(const void* kernel, size_t bytes);
void* dynamic_shared();
void sync_threads(Place place);
bool sync_threads_or(Place place, bool predicate);

enum class Collective { sync, shuffle, vote, matrix };
/// Waits until all lanes of the mask have come to a collective of this kind; gives their values, by
/// lane: 32 of the first, of the second, of the third.
const uint64_t* exchange(Collective kind, unsigned mask, uint64_t value, Place place,
                         uint64_t second = 0, uint64_t third = 0);
/// The value of a lane, which must be one of the mask's.
uint64_t read_lane(const uint64_t* values, unsigned mask, int source, Place place);
int lane();

template <class T>
T shuffle(Place place, unsigned mask, T value, int source, bool in_range) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  const uint64_t* values = exchange(Collective::shuffle, mask, bits, place);
  if (in_range) {
    bits = read_lane(values, mask, source, place);
    std::memcpy(&value, &bits, sizeof(T));
  }
  return value;
}
template <class T>
T shuffle_index(Place place, unsigned mask, T value, int source, int width = 32) {
  return shuffle(place, mask, value, lane() / width * width + (source & (width - 1)), true);
}
template <class T>
T shuffle_xor(Place place, unsigned mask, T value, int bits, int width = 32) {
  const int source = lane() ^ bits;
  return shuffle(place, mask, value, source, source / width <= lane() / width);
}
template <class T>
T shuffle_up(Place place, unsigned mask, T value, unsigned delta, int width = 32) {
  const int source = lane() - static_cast<int>(delta);
  return shuffle(place, mask, value, source, source >= lane() / width * width);
}
template <class T>
T shuffle_down(Place place, unsigned mask, T value, unsigned delta, int width = 32) {
  const int source = lane() + static_cast<int>(delta);
  return shuffle(place, mask, value, source, source < (lane() / width + 1) * width);
}
unsigned ballot(Place place, unsigned mask, bool predicate);

struct SyncWarp {
  Place place;
  void operator()(unsigned mask = 0xffffffffu) const { exchange(Collective::sync, mask, 0, place); }
};

}  // namespace infoslice::emulation

#define INFOSLICE_HERE (::infoslice::emulation::Place{__FILE__, __LINE__})
#define threadIdx (::infoslice::emulation::position().thread)
#define blockIdx (::infoslice::emulation::position().block)
#define blockDim (::infoslice::emulation::position().block_size)
#define gridDim (::infoslice::emulation::position().grid_size)
#define warpSize 32

#define __syncthreads() ::infoslice::emulation::sync_threads(INFOSLICE_HERE)
#define __syncthreads_or(predicate) \
  static_cast<int>(::infoslice::emulation::sync_threads_or(INFOSLICE_HERE, predicate))
#define __syncwarp \
  ::infoslice::emulation::SyncWarp { INFOSLICE_HERE }
#define __shfl_sync(...) ::infoslice::emulation::shuffle_index(INFOSLICE_HERE, __VA_ARGS__)
#define __shfl_xor_sync(...) ::infoslice::emulation::shuffle_xor(INFOSLICE_HERE, __VA_ARGS__)
#define __shfl_up_sync(...) ::infoslice::emulation::shuffle_up(INFOSLICE_HERE, __VA_ARGS__)
#define __shfl_down_sync(...) ::infoslice::emulation::shuffle_down(INFOSLICE_HERE, __VA_ARGS__)
#define __ballot_sync(mask, predicate) \
  ::infoslice::emulation::ballot(INFOSLICE_HERE, mask, predicate)
#define __any_sync(mask, predicate) (__ballot_sync(mask, predicate) != 0u)
#define __all_sync(mask, predicate) (__ballot_sync(mask, !(predicate)) == 0u)

inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int value) {
  ::infoslice::emulation::allow_shared_memory(reinterpret_cast<const void*>(kernel),
                                              static_cast<size_t>(value));
  return cudaSuccess;
}

/// Adds atomically and returns the value before: a compare-and-swap loop serves integers and floats
/// alike.
template <class T>
T atomicAdd(T* to, T value) {
  T before;
  __atomic_load(to, &before, __ATOMIC_RELAXED);
  for (;;) {
    T after = before + value;
    if (__atomic_compare_exchange(to, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
      return before;
  }
}

/// Stores `value` where `expected` stands; returns what stood there.
template <class T>
T atomicCAS(T* to, T expected, T value) {
  __atomic_compare_exchange(to, &expected, &value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  return expected;
}
