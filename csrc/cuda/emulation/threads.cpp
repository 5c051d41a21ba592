// A block on threads of the system, for ThreadSanitizer. Barriers order all threads of the block
// and collectives the lanes of a warp, through locks of their own, so that nothing else is ordered
// by accident.
#ifdef INFOSLICE_EMULATION_THREADS

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "cuda/emulation/block.h"

namespace infoslice::emulation {
namespace {

constexpr std::chrono::seconds kPatience{20};

struct Warp {
  std::mutex mutex;
  std::condition_variable changed;
};

thread_local CudaThread* current_thread = nullptr;
Block::Implementation* current_block = nullptr;

[[noreturn]] void stop(const std::string& what) {
  std::fprintf(stderr, "CUDA emulation: %s\n", what.c_str());
  std::abort();
}

}  // namespace

struct Block::Implementation {
  Implementation(uint3 index, dim3 size, dim3 grid, const std::function<void()>& kernel,
                 std::mt19937_64& generator)
      : body(kernel),
        random(generator),
        threads(size.x * size.y * size.z),
        warps((threads.size() + kWarp - 1) / kWarp) {
    for (size_t i = 0; i < threads.size(); ++i) {
      const unsigned flat = static_cast<unsigned>(i);
      threads[i].index = static_cast<int>(i);
      threads[i].position = {
          {flat % size.x, flat / size.x % size.y, flat / size.x / size.y}, index, size, grid};
    }
  }

  std::string run() {
    current_block = this;
    std::vector<CudaThread*> order;
    for (CudaThread& thread : threads) order.push_back(&thread);
    std::shuffle(order.begin(), order.end(), random);
    std::vector<std::thread> running;
    for (CudaThread* thread : order) {
      running.emplace_back([this, thread] {
        current_thread = thread;
        body();
      });
    }
    for (std::thread& thread : running) thread.join();
    return {};
  }

  void sync(Place place) {
    std::unique_lock<std::mutex> lock(barrier_mutex);
    const uint64_t mine = generation;
    if (++arrived == threads.size()) {
      arrived = 0;
      ++generation;
      barrier_changed.notify_all();
    } else if (!barrier_changed.wait_for(lock, kPatience, [&] { return generation != mine; })) {
      stop("divergent barrier: not all threads of the block reach __syncthreads" + at(place));
    }
  }

  const std::function<void()>& body;
  std::mt19937_64& random;
  std::vector<CudaThread> threads;
  std::vector<Warp> warps;
  std::mutex barrier_mutex, atomic_mutex;
  std::condition_variable barrier_changed, atomic_changed;
  size_t arrived = 0;
  uint64_t generation = 0;
};

Block::Block(uint3 index, dim3 size, dim3 grid, void* shared_memory, size_t bytes,
             const std::function<void()>& body, std::mt19937_64& random)
    : shared(shared_memory),
      shared_bytes(bytes),
      implementation_(new Implementation(index, size, grid, body, random)) {}
Block::~Block() = default;
std::string Block::run() { return implementation_->run(); }

CudaThread& this_thread() { return *current_thread; }
const Position& position() { return current_thread->position; }
int lane() { return current_thread->index % kWarp; }
void sync_threads(Place place) { current_block->sync(place); }

void wait_until(Place place, const std::function<bool()>& condition) {
  std::unique_lock<std::mutex> lock(current_block->atomic_mutex);
  if (!current_block->atomic_changed.wait_for(lock, kPatience, condition))
    stop("deadlock at a barrier in shared memory" + at(place));
}

void atomically(const std::function<void()>& action) {
  const std::lock_guard<std::mutex> lock(current_block->atomic_mutex);
  action();
  current_block->atomic_changed.notify_all();
}
void set_off(const std::function<void()>& operation) { atomically(operation); }
void stop_kernel(const std::string& what) { stop(what); }

const uint64_t* exchange(Collective kind, unsigned mask, uint64_t value, Place place,
                         uint64_t second, uint64_t third) {
  CudaThread& me = *current_thread;
  const int number = me.index / kWarp, first = number * kWarp;
  Warp& own = current_block->warps[static_cast<size_t>(number)];
  CudaThread* warp[kWarp];
  const int lanes = std::min(kWarp, static_cast<int>(current_block->threads.size()) - first);
  for (int i = 0; i < lanes; ++i) warp[i] = &current_block->threads[static_cast<size_t>(first + i)];
  if ((mask >> (me.index - first) & 1u) == 0) {
    stop("lane " + std::to_string(me.index - first) + " is not in the mask it gives" + at(place));
  }
  std::unique_lock<std::mutex> lock(own.mutex);
  me.state = CudaThread::at_collective;
  me.kind = kind;
  me.mask = mask;
  me.values[0] = value;
  me.values[1] = second;
  me.values[2] = third;
  me.place = place;
  if (finish_collective(warp, lanes, me)) {
    own.changed.notify_all();
  } else if (!own.changed.wait_for(lock, kPatience,
                                   [&] { return me.state == CudaThread::ready; })) {
    stop("deadlock: " + describe(*warp, lanes));
  }
  return me.received;
}

uint64_t read_lane(const uint64_t* values, unsigned mask, int source, Place place) {
  if ((mask >> source & 1u) == 0) {
    stop("a shuffle reads lane " + std::to_string(source) + ", which is not in its mask" +
         at(place));
  }
  return values[source];
}

}  // namespace infoslice::emulation

#endif
