// The scheduler of the emulation; its model is described in cuda_runtime.h.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <utility>
#include <vector>

#include "cuda/emulation/block.h"

namespace infoslice::emulation {
namespace {

constexpr size_t kGuardBytes = 64;
constexpr size_t kSharedWithoutOptIn = 48 * 1024;
constexpr unsigned char kPoison = 0xff, kGuard = 0xa5;

uint64_t seed = 1;
size_t shared_limit = 232448;  // H100: 227 KiB
std::map<const void*, size_t> allowed_shared;
cudaError_t last_error = cudaSuccess;
std::string last_report;
Block* running_block = nullptr;

void fail(cudaError_t error, const std::string& what) {
  if (last_error == cudaSuccess) last_error = error;
  if (last_report.empty()) last_report = what;
}

bool refuse(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes) {
  std::ostringstream why;
  const size_t threads = size_t{block.x} * block.y * block.z;
  const auto opted_in = allowed_shared.find(kernel);
  const size_t allowed = opted_in == allowed_shared.end() ? kSharedWithoutOptIn : opted_in->second;
  if (threads == 0 || threads > 1024 || block.z > 64) {
    why << "a block of " << threads << " threads";
  } else if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
             grid.z > 65535) {
    why << "a grid of " << grid.x << " x " << grid.y << " x " << grid.z << " blocks";
  } else if (shared_bytes > shared_limit || shared_bytes > std::max(allowed, kSharedWithoutOptIn)) {
    why << shared_bytes << " bytes of dynamic shared memory, allowed are "
        << std::min(allowed, shared_limit);
  } else {
    return false;
  }
  fail(cudaErrorInvalidConfiguration, std::string(name) + ": launch refused: " + why.str());
  return true;
}

}  // namespace

void set_seed(uint64_t value) { seed = value; }
void set_shared_memory_limit(size_t bytes) { shared_limit = bytes; }
std::string report() { return std::exchange(last_report, {}); }
void allow_shared_memory(const void* kernel, size_t bytes) { allowed_shared[kernel] = bytes; }
void* dynamic_shared() { return running_block->shared; }

void launch(const char* name, const void* kernel, dim3 grid, dim3 block, size_t shared_bytes,
            const void* /*stream: everything runs at once*/, const std::function<void()>& body) {
  if (refuse(name, kernel, grid, block, shared_bytes)) return;
  std::mt19937_64 random(seed);
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  std::vector<uint64_t> order(blocks);
  for (uint64_t i = 0; i < blocks; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random);
  for (uint64_t index : order) {
    // Exact size from the heap, so that AddressSanitizer sees the end; the guard is for builds
    // without it.
    const std::unique_ptr<unsigned char, decltype(&std::free)> shared(
        static_cast<unsigned char*>(
            std::malloc(shared_bytes + (kSanitizedAddresses ? 0 : kGuardBytes))),
        &std::free);
    std::fill(shared.get(), shared.get() + shared_bytes, kPoison);
    if (!kSanitizedAddresses)
      std::fill(shared.get() + shared_bytes, shared.get() + shared_bytes + kGuardBytes, kGuard);
    const uint3 where{static_cast<unsigned>(index % grid.x),
                      static_cast<unsigned>(index / grid.x % grid.y),
                      static_cast<unsigned>(index / grid.x / grid.y)};
    Block current(where, block, grid, shared.get(), shared_bytes, body, random);
    running_block = &current;
    std::string problem = current.run();
    running_block = nullptr;
    if (!kSanitizedAddresses && problem.empty() &&
        std::any_of(shared.get() + shared_bytes, shared.get() + shared_bytes + kGuardBytes,
                    [](unsigned char byte) { return byte != kGuard; })) {
      problem = "wrote behind the end of " + std::to_string(shared_bytes) +
                " bytes of dynamic shared memory";
    }
    if (!problem.empty()) {
      std::ostringstream text;
      text << name << ", block (" << where.x << ", " << where.y << ", " << where.z
           << "): " << problem;
      fail(cudaErrorLaunchFailure, text.str());
      return;
    }
  }
}

bool sync_threads_or(Place place, bool predicate) {
  const uint64_t vote = ++this_thread().block_votes;
  std::atomic<uint64_t>& last_yes = running_block->last_yes[vote % 2];
  if (predicate) last_yes.store(vote, std::memory_order_relaxed);
  sync_threads(place);
  return last_yes.load(std::memory_order_relaxed) == vote;
}

namespace {
constexpr uint32_t kSharedBegin = 1040;  // of the dynamic part: aligned to 16 bytes, not to more
}

uint32_t address_in_shared(const void* pointer) {
  const auto offset = static_cast<const char*>(pointer) - static_cast<char*>(running_block->shared);
  if (offset < 0 || static_cast<size_t>(offset) >= running_block->shared_bytes)
    stop_kernel("an address outside dynamic shared memory");
  return kSharedBegin + static_cast<uint32_t>(offset);
}

char* shared_at(uint32_t address) {
  if (address < kSharedBegin || address - kSharedBegin >= running_block->shared_bytes)
    stop_kernel("an address outside dynamic shared memory");
  return static_cast<char*>(running_block->shared) + (address - kSharedBegin);
}

std::vector<std::array<uint64_t, 3>>& issued_products(int warpgroup) {
  return running_block->issued[warpgroup];
}

unsigned ballot(Place place, unsigned mask, bool predicate) {
  const uint64_t* votes = exchange(Collective::vote, mask, predicate ? 1 : 0, place);
  unsigned result = 0;
  for (unsigned i = 0; i < 32; ++i) {
    if ((mask >> i & 1u) != 0 && votes[i] != 0) result |= 1u << i;
  }
  return result;
}

}  // namespace infoslice::emulation

cudaError_t cudaGetLastError() {
  return std::exchange(infoslice::emulation::last_error, cudaSuccess);
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 2;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 9;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(infoslice::emulation::shared_limit);
      break;
  }
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int byte, size_t bytes, cudaStream_t) {
  std::memset(to, byte, bytes);
  return cudaSuccess;
}
