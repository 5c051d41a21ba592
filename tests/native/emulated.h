// The checks of the program `emulated`: for each op, its CUDA kernels on the emulation against the
// CPU kernels or a plain loop, on arrays of exact length for a sanitizer to watch.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <vector>

namespace infoslice {

// With threads of the system a shuffle takes milliseconds: one type and few sizes have to do.
#ifdef INFOSLICE_EMULATION_THREADS
constexpr bool kThreads = true;
#else
constexpr bool kThreads = false;
#endif
constexpr size_t kDeviceShared = 232448;  // of a block, on an H100

// Every check sets the order of threads and the shared memory of a block, prints a line for each
// case, and returns whether all were good.
inline void prepare(int64_t seed, size_t shared_memory_limit = kDeviceShared) {
  emulation::set_seed(static_cast<uint64_t>(seed));
  emulation::set_shared_memory_limit(shared_memory_limit);
}

bool check_cholesky(const std::vector<int64_t>& orders);
bool check_covariance();
bool check_dense();
bool check_precision();
bool check_greedy();
bool check_gaussian_mi();
bool check_slice_channels();
bool check_spanning_tree();

}  // namespace infoslice
