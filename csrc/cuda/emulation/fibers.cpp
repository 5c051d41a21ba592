// A block on fibers (ucontext): all its threads on one thread of the system, switched at barriers
// and collectives.
#ifndef INFOSLICE_EMULATION_THREADS

#include <ucontext.h>

#include <algorithm>
#include <exception>
#include <stdexcept>

#include "cuda/emulation/block.h"

#if INFOSLICE_ADDRESS_SANITIZER
#include <sanitizer/common_interface_defs.h>
#endif

namespace infoslice::emulation {
namespace {

constexpr size_t kStackBytes = 256 * 1024;

using Stack = std::unique_ptr<char[]>;
std::vector<Stack>
    spare_stacks;  // not used again under AddressSanitizer, which remembers their frames

struct Fiber {
  CudaThread thread;
  ucontext_t context;
  Stack stack;
  unsigned laziness = 0;       // runs in one of so many rounds, on average
  void* fake_stack = nullptr;  // AddressSanitizer's
};

Block::Implementation* current_block = nullptr;
Fiber* current_fiber = nullptr;

}  // namespace

struct Block::Implementation {
  Implementation(uint3 index, dim3 size, dim3 grid, const std::function<void()>& kernel,
                 std::mt19937_64& generator)
      : body(kernel), random(generator), fibers(size.x * size.y * size.z) {
    for (size_t i = 0; i < fibers.size(); ++i) {
      Fiber& fiber = fibers[i];
      const unsigned flat = static_cast<unsigned>(i);
      fiber.thread.index = static_cast<int>(i);
      fiber.thread.position = {
          {flat % size.x, flat / size.x % size.y, flat / size.x / size.y}, index, size, grid};
      if (spare_stacks.empty()) {
        fiber.stack.reset(new char[kStackBytes]);
      } else {
        fiber.stack = std::move(spare_stacks.back());
        spare_stacks.pop_back();
      }
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.get();
      fiber.context.uc_stack.ss_size = kStackBytes;
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Implementation::enter, 0);
    }
  }

  ~Implementation() {
    if (kSanitizedAddresses || !problem.empty())
      return;  // stacks of threads that never returned are thrown away
    for (Fiber& fiber : fibers) spare_stacks.push_back(std::move(fiber.stack));
  }

  /// In rounds: every thread that can runs until it waits or returns, in a shuffled order. From
  /// one barrier to the next some warps and some lanes are slow and sit rounds out; a warp that
  /// meets a slow one's data too early or too late then shows it.
  std::string run() {
    try {
      return rounds();
    } catch (const std::runtime_error& error) {
      return problem = error.what();
    }
  }

  std::string rounds() {
    current_block = this;
    draw_laziness();
    std::vector<Fiber*> ready;
    for (;;) {
      ready.clear();
      for (Fiber& fiber : fibers) {
        if (fiber.thread.state == CudaThread::at_condition && fiber.thread.condition())
          fiber.thread.state = CudaThread::ready;
        if (fiber.thread.state == CudaThread::ready) ready.push_back(&fiber);
      }
      if (!under_way.empty() && (ready.empty() || random() % 4 == 0)) {  // in any order
        if (in(CudaThread::returned) == fibers.size())
          return problem = "the block ended while copies to its shared memory were under way";
        std::swap(under_way[random() % under_way.size()], under_way.back());
        const std::function<void()> operation = std::move(under_way.back());
        under_way.pop_back();
        operation();
        if (!problem.empty()) return problem;
        continue;
      }
      if (ready.empty()) {
        if (!release_barrier()) break;
        draw_laziness();
        continue;
      }
      std::shuffle(ready.begin(), ready.end(), random);
      for (size_t i = 0; i < ready.size(); ++i) {
        if (i + 1 < ready.size() && random() % ready[i]->laziness != 0) continue;
        resume(*ready[i]);
        if (!problem.empty()) return problem;
      }
    }
    return problem;
  }

  /// Half of the warps are prompt; a quarter is slow, and a quarter has one slow lane.
  void draw_laziness() {
    constexpr unsigned slow = 64;
    for (size_t first = 0; first < fibers.size(); first += kWarp) {
      const uint64_t kind = random() % 4, lane = random() % kWarp;
      for (size_t i = first; i < std::min(first + kWarp, fibers.size()); ++i) {
        fibers[i].laziness = kind == 0 || (kind == 1 && i - first == lane) ? slow : 1;
      }
    }
  }

  size_t in(CudaThread::State state) const {
    return static_cast<size_t>(std::count_if(fibers.begin(), fibers.end(), [&](const Fiber& fiber) {
      return fiber.thread.state == state;
    }));
  }

  /// Nobody can run: all have returned, or all wait at one barrier, or the kernel is wrong.
  bool release_barrier() {
    if (in(CudaThread::returned) == fibers.size()) return false;
    const Place& first = fibers[0].thread.place;
    const bool one_barrier = in(CudaThread::at_barrier) == fibers.size() &&
                             std::all_of(fibers.begin(), fibers.end(), [&](const Fiber& fiber) {
                               return fiber.thread.place.line == first.line &&
                                      std::strcmp(fiber.thread.place.file, first.file) == 0;
                             });
    if (!one_barrier) {
      std::vector<CudaThread> threads;
      for (const Fiber& fiber : fibers) threads.push_back(fiber.thread);
      problem = (in(CudaThread::at_barrier) > 0 ? "divergent barrier: " : "deadlock: ") +
                describe(threads.data(), static_cast<int>(threads.size()));
      return false;
    }
    for (Fiber& fiber : fibers) fiber.thread.state = CudaThread::ready;
    return true;
  }

  void resume(Fiber& fiber) {
    current_fiber = &fiber;
#if INFOSLICE_ADDRESS_SANITIZER
    void* own = nullptr;
    __sanitizer_start_switch_fiber(&own, fiber.stack.get(), kStackBytes);
#endif
    swapcontext(&scheduler, &fiber.context);
#if INFOSLICE_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(own, nullptr, nullptr);
#endif
    current_fiber = nullptr;
  }

  /// Back to the scheduler; comes back here when it resumes the fiber, if ever.
  void suspend(bool for_good) {
    Fiber& fiber = *current_fiber;
#if INFOSLICE_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, scheduler_stack,
                                   scheduler_stack_bytes);
#endif
    (void)for_good;
    swapcontext(&fiber.context, &scheduler);
#if INFOSLICE_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(fiber.fake_stack, nullptr, nullptr);
#endif
  }

  [[noreturn]] void stop(const std::string& what) {
    if (current_fiber == nullptr) throw std::runtime_error(what);  // in the scheduler
    problem = what;
    for (;;) suspend(true);
  }

  static void enter() {
#if INFOSLICE_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(nullptr, &current_block->scheduler_stack,
                                    &current_block->scheduler_stack_bytes);
#endif
    try {
      current_block->body();
      current_fiber->thread.state = CudaThread::returned;
    } catch (const std::exception& error) {
      current_block->problem = std::string("a kernel threw: ") + error.what();
    }
    for (;;) current_block->suspend(true);
  }

  const std::function<void()>& body;
  std::mt19937_64& random;
  std::vector<std::function<void()>> under_way;  // set off, not done
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_bytes = 0;
  std::string problem;
};

Block::Block(uint3 index, dim3 size, dim3 grid, void* shared_memory, size_t bytes,
             const std::function<void()>& body, std::mt19937_64& random)
    : shared(shared_memory),
      shared_bytes(bytes),
      implementation_(new Implementation(index, size, grid, body, random)) {}
Block::~Block() = default;
std::string Block::run() { return implementation_->run(); }

CudaThread& this_thread() { return current_fiber->thread; }
const Position& position() { return current_fiber->thread.position; }
int lane() { return current_fiber->thread.index % kWarp; }

void sync_threads(Place place) {
  current_fiber->thread.state = CudaThread::at_barrier;
  current_fiber->thread.place = place;
  current_block->suspend(false);
}

void wait_until(Place place, const std::function<bool()>& condition) {
  CudaThread& me = current_fiber->thread;
  me.condition = condition;
  me.place = place;
  me.state = CudaThread::at_condition;
  current_block->suspend(false);
}

void atomically(const std::function<void()>& action) { action(); }
void set_off(const std::function<void()>& operation) {
  current_block->under_way.push_back(operation);
}
void stop_kernel(const std::string& what) { current_block->stop(what); }

const uint64_t* exchange(Collective kind, unsigned mask, uint64_t value, Place place,
                         uint64_t second, uint64_t third) {
  CudaThread& me = current_fiber->thread;
  me.state = CudaThread::at_collective;
  me.kind = kind;
  me.mask = mask;
  me.values[0] = value;
  me.values[1] = second;
  me.values[2] = third;
  me.place = place;
  std::vector<Fiber>& fibers = current_block->fibers;
  const int first = me.index / kWarp * kWarp;
  if ((mask >> (me.index - first) & 1u) == 0) {
    current_block->stop("lane " + std::to_string(me.index - first) +
                        " is not in the mask it gives" + at(place));
  }
  const int lanes = std::min(kWarp, static_cast<int>(fibers.size()) - first);
  CudaThread* warp[kWarp];
  for (int i = 0; i < lanes; ++i) warp[i] = &fibers[static_cast<size_t>(first + i)].thread;
  if (!finish_collective(warp, lanes, me)) current_block->suspend(false);
  return me.received;
}

uint64_t read_lane(const uint64_t* values, unsigned mask, int source, Place place) {
  if ((mask >> source & 1u) == 0) {
    current_block->stop("a shuffle reads lane " + std::to_string(source) +
                        ", which is not in its mask" + at(place));
  }
  return values[source];
}

}  // namespace infoslice::emulation

#endif
