// One running block. fibers.cpp and threads.cpp implement it, one of them per build.
#pragma once

#include <array>
#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#define INFOSLICE_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define INFOSLICE_ADDRESS_SANITIZER 1
#endif
#endif
#ifndef INFOSLICE_ADDRESS_SANITIZER
#define INFOSLICE_ADDRESS_SANITIZER 0
#endif

namespace infoslice::emulation {

constexpr bool kSanitizedAddresses = INFOSLICE_ADDRESS_SANITIZER;
constexpr int kWarp = 32;

struct Warpgroup;  // warpgroup.cpp

struct CudaThread {
  enum State { ready, at_barrier, at_collective, at_condition, returned };
  Position position{};
  int index = 0;
  State state = ready;
  Place place{"", 0};  // where it waits
  Collective kind = Collective::sync;
  unsigned mask = 0;
  uint64_t values[3] = {};
  uint64_t received[3 * kWarp] = {};
  uint64_t block_votes = 0;              // how many __syncthreads_or it has come to
  std::function<bool()> condition;       // that it waits for
  std::shared_ptr<Warpgroup> warpgroup;  // its matrix products under way
  struct Copy {
    void* to;
    const void* from;
    size_t bytes;
  };
  std::vector<Copy> copies;              // begun and not yet in a group
  std::deque<std::vector<Copy>> groups;  // not yet waited for
};
CudaThread& this_thread();

/// Brings the collective on which `me` has just arrived to its end if all lanes are there, else
/// leaves `me` waiting. `warp` are the `lanes` threads of its warp. Lanes that the block does not
/// have are not waited for.
bool finish_collective(CudaThread* const* warp, int lanes, const CudaThread& me);

/// "threads 0-31 wait at __syncthreads (file:12); thread 32 has returned", for all that are not
/// ready.
std::string describe(const CudaThread* threads, int count);

std::string at(Place place);

// ---- for what is asynchronous -------------------------------------------------------------------

/// Waits for what another thread or an operation does `atomically` or by `set_off`.
void wait_until(Place place, const std::function<bool()>& condition);
void atomically(const std::function<void()>& action);
/// Takes effect at some time from now on, all at once.
void set_off(const std::function<void()>& operation);
[[noreturn]] void stop_kernel(const std::string& what);  // makes the launch fail
/// The block's shared memory, by address in its window.
uint32_t address_in_shared(const void* pointer);
char* shared_at(uint32_t address);
/// The matrix products that a warpgroup of the block has issued: descriptors and flags.
std::vector<std::array<uint64_t, 3>>& issued_products(int warpgroup);

class Block {
 public:
  Block(uint3 index, dim3 size, dim3 grid, void* shared, size_t shared_bytes,
        const std::function<void()>& body, std::mt19937_64& random);
  ~Block();
  std::string run();  // what went wrong, or nothing

  void* const shared;
  const size_t shared_bytes;
  std::vector<std::array<uint64_t, 3>> issued[8];  // by warpgroup
  // The last __syncthreads_or of even and of odd number that somebody said yes to.
  std::atomic<uint64_t> last_yes[2] = {};

  struct Implementation;

 private:
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace infoslice::emulation
