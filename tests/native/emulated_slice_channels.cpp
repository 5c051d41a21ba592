#include "slice_channels.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <random>

#include "emulated.h"

namespace infoslice {
namespace {

// A contiguous tensor [a, b, c] cut along its first two axes, beside a few small ones, of which the
// last is not cut. Arrays of exact length.
bool compare_slices(int64_t itemsize, int64_t a, int64_t b, int64_t c, bool in_place) {
  prepare(a);
  std::mt19937 random(static_cast<unsigned>(a));
  const auto half_of = [&](int64_t size) {
    std::vector<int64_t> keep;
    for (int64_t i = 0; i < size; ++i)
      if (random() % 2 || i + 1 == size) keep.push_back(i);
    return keep;
  };
  struct Case {
    std::vector<int64_t> rows, columns;
    int64_t sizes[3];
    SliceJob::Axis axes[3];
    std::unique_ptr<unsigned char[]> source, target;
    std::vector<unsigned char> expected;
  };
  std::vector<Case> cases(4);
  std::vector<SliceJob> jobs;
  for (size_t i = 0; i < cases.size(); ++i) {
    Case& one = cases[i];
    const int64_t sizes[3] = {i ? 3 : a, i ? 5 : b, i ? 2 : c};
    const size_t item = static_cast<size_t>(itemsize);
    const auto bytes = static_cast<size_t>(sizes[0] * sizes[1] * sizes[2]) * item;
    one.rows = half_of(sizes[0]), one.columns = half_of(sizes[1]);
    if (i == 3) one.rows = {0, 1, 2}, one.columns = {0, 1, 2, 3, 4};
    one.source.reset(new unsigned char[bytes]);
    for (size_t e = 0; e < bytes; ++e) one.source[e] = static_cast<unsigned char>(random());
    const auto rows = static_cast<int64_t>(one.rows.size()),
               columns = static_cast<int64_t>(one.columns.size());
    one.axes[0] = {rows, sizes[1] * sizes[2], columns * sizes[2], one.rows.data()};
    one.axes[1] = {columns, sizes[2], sizes[2], one.columns.data()};
    one.axes[2] = {sizes[2], 1, 1, nullptr};
    for (int64_t r : one.rows)
      for (int64_t k : one.columns) {
        const unsigned char* from = &one.source[static_cast<size_t>(r * sizes[1] + k) *
                                                static_cast<size_t>(sizes[2]) * item];
        one.expected.insert(one.expected.end(), from, from + sizes[2] * itemsize);
      }
    one.target.reset(new unsigned char[one.expected.size()]);
    jobs.push_back(
        {one.source.get(), in_place ? one.source.get() : one.target.get(), itemsize, one.axes, 3});
  }
  const cuda::SliceTable table = cuda::slice_table(jobs, in_place, 1 << 15);
  const std::unique_ptr<char[]> workspace(new char[cuda::slice_channels_workspace(table)]);
  bool good = cuda::slice_channels(table, workspace.get(), nullptr) == 0;
  for (size_t i = 0; i < cases.size(); ++i)
    good = good &&
           std::memcmp(jobs[i].target, cases[i].expected.data(), cases[i].expected.size()) == 0;
  std::printf("slices of %ld x %ld x %ld elements of %ld bytes%s: %s %s\n", static_cast<long>(a),
              static_cast<long>(b), static_cast<long>(c), static_cast<long>(itemsize),
              in_place ? ", in place" : "", good ? "good" : "WRONG", emulation::report().c_str());
  return good;
}

}  // namespace

bool check_slice_channels() {
  bool good = true;
  for (bool in_place : {false, true}) {
    good = compare_slices(2, 65, 600, 1, in_place) && good;
    good = compare_slices(4, 9, 40, 9, in_place) && good;
    if (kThreads) continue;
    good = compare_slices(1, 50, 70, 33, in_place) && good;
    good = compare_slices(2, 64, 128, 9, in_place) && good;
    good = compare_slices(8, 33, 20, 31, in_place) && good;
    good = compare_slices(16, 17, 1, 700, in_place) && good;
  }
  return good;
}

}  // namespace infoslice
