#include "common/parallel.h"

#include <pthread.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace infoslice {
namespace {

thread_local bool inside_region = false;

// One region at a time. Workers sleep between regions; they are never joined, because at the exit
// of the process there is no safe moment to do so from a module that Python unloads.
class Pool {
 public:
  // False when another thread has the pool: then the caller works alone.
  bool run(int threads, int64_t tasks, const std::function<void(int64_t)>& body) {
    std::unique_lock<std::mutex> owner(region_, std::try_to_lock);
    if (!owner.owns_lock()) return false;
    {
      std::lock_guard<std::mutex> lock(state_);
      while (static_cast<int>(workers_.size()) < threads - 1) {
        const int index = static_cast<int>(workers_.size()) + 1;
        workers_.emplace_back([this, index, seen = generation_] { work(index, seen); });
      }
      body_ = &body;
      tasks_ = tasks;
      threads_ = threads;
      running_ = threads - 1;
      error_ = nullptr;
      ++generation_;
    }
    wake_.notify_all();
    share(0);
    std::unique_lock<std::mutex> lock(state_);
    done_.wait(lock, [this] { return running_ == 0; });
    if (error_) std::rethrow_exception(error_);
    return true;
  }

 private:
  void work(int index, uint64_t seen) {
    std::unique_lock<std::mutex> lock(state_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      if (index >= threads_) continue;
      lock.unlock();
      share(index);
      lock.lock();
      if (--running_ == 0) done_.notify_one();
    }
  }

  void share(int index) {
    const int64_t begin = tasks_ * index / threads_, end = tasks_ * (index + 1) / threads_;
    inside_region = true;
    try {
      for (int64_t i = begin; i < end; ++i) (*body_)(i);
    } catch (...) {
      std::lock_guard<std::mutex> lock(state_);
      if (!error_) error_ = std::current_exception();
    }
    inside_region = false;
  }

  std::mutex region_, state_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  const std::function<void(int64_t)>* body_ = nullptr;
  std::exception_ptr error_;
  int64_t tasks_ = 0;
  uint64_t generation_ = 0;
  int threads_ = 0, running_ = 0;
};

Pool* pool = nullptr;

// Threads do not survive fork(): the child starts a pool of its own and leaves the parent's alone.
Pool& current_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  return *pool;
}

}  // namespace

void parallel_for(int threads, int64_t tasks, const std::function<void(int64_t)>& body) {
  threads = static_cast<int>(std::min<int64_t>(threads, tasks));
  if (threads > 1 && !inside_region && current_pool().run(threads, tasks, body)) return;
  for (int64_t i = 0; i < tasks; ++i) body(i);
}

}  // namespace infoslice
