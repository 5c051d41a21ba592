// A small pool of threads: static partition, deterministic results, no spinning.
//
// An own pool, not OpenMP: a second OpenMP runtime in a process that has torch's oversubscribes the
// cores, and a libgomp region stalls for milliseconds when a partner thread is not scheduled.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>

namespace infoslice {

// Runs body(i) for every i in [0, tasks) on at most `threads` threads, the caller's included:
// thread t takes the t-th run of consecutive tasks. Returns when all are done; the first exception
// of a body is thrown again here. Inside a task, or while another thread of the caller's program
// uses the pool, the tasks run one after the other on the calling thread. So a result is the same
// for every number of threads if, and only if, tasks write to places of their own.
void parallel_for(int threads, int64_t tasks, const std::function<void(int64_t)>& body);

// How many of `threads` a region of so many nanoseconds of work (one thread) deserves: waking a
// thread costs some 10 us, a busy machine makes it 1 ms, so less than 1 ms of work is not shared.
// Under a sanitizer every region is shared, so that tests on small sizes see what threads do.
inline int threads_for(int threads, [[maybe_unused]] double nanoseconds) {
#ifdef INFOSLICE_SANITIZE
  return threads;
#else
  if (nanoseconds < 1e6) return 1;
  return std::max(1, static_cast<int>(std::min<double>(threads, nanoseconds / 5e5)));
#endif
}

}  // namespace infoslice
