// Drives the thread pool the way programs do: every task once, from many threads at a time, inside
// a task, with exceptions, after fork(). Meant to be built with -fsanitize=thread too.
#include "common/parallel.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

using infoslice::parallel_for;

std::atomic<int> failures{0};

void expect(bool good, const char* what) {
  if (good) return;
  ++failures;
  std::printf("WRONG: %s\n", what);
}

// Plain writes to places of their own: a race would show.
void every_task_once(int threads, int64_t tasks) {
  std::vector<int> done(static_cast<size_t>(tasks));
  parallel_for(threads, tasks, [&](int64_t i) { ++done[static_cast<size_t>(i)]; });
  for (int count : done) expect(count == 1, "every task once");
}

void many_callers() {
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([c] {
      for (int round = 0; round < 200; ++round) every_task_once(1 + (c + round) % 5, round % 23);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

void nested() {
  std::vector<int> done(64);
  parallel_for(4, 8, [&](int64_t i) {
    parallel_for(4, 8, [&](int64_t j) { ++done[static_cast<size_t>(8 * i + j)]; });
  });
  for (int count : done) expect(count == 1, "every nested task once");
}

void exceptions() {
  for (int64_t bad : {0, 7, 15}) {
    bool caught = false;
    try {
      parallel_for(4, 16, [&](int64_t i) {
        if (i == bad) throw std::runtime_error("task " + std::to_string(i));
      });
    } catch (const std::runtime_error& error) {
      caught = error.what() == "task " + std::to_string(bad);
    }
    expect(caught, "the exception of a task comes out");
    every_task_once(4, 16);
  }
}

// (ThreadSanitizer does not follow a child that starts threads.)
[[maybe_unused]] void after_fork() {
  const pid_t child = fork();
  if (child == 0) {
    every_task_once(4, 100);
    _exit(failures == 0 ? 0 : 1);
  }
  int status = 1;
  waitpid(child, &status, 0);
  expect(status == 0, "a child has a pool of its own");
}

}  // namespace

int main() {
  for (int threads : {1, 2, 3, 8})
    for (int64_t tasks : {0, 1, 2, 3, 7, 8, 100}) every_task_once(threads, tasks);
  nested();
  exceptions();
  many_callers();
#ifndef __SANITIZE_THREAD__
  after_fork();
#endif
  std::printf("%d failures\n", failures.load());
  return failures == 0 ? 0 : 1;
}
