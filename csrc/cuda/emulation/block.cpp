// What the two ways to run a block have in common.
#include "cuda/emulation/block.h"

#include <algorithm>
#include <cstring>
#include <sstream>
#include <utility>

#include "cuda/emulation/matrix.h"

namespace infoslice::emulation {

bool finish_collective(CudaThread* const* warp, int lanes, const CudaThread& me) {
  for (int i = 0; i < lanes; ++i) {
    const bool waited_for = (me.mask >> i & 1u) != 0;
    const CudaThread& other = *warp[i];
    if (waited_for && (other.state != CudaThread::at_collective || other.kind != me.kind ||
                       other.mask != me.mask)) {
      return false;
    }
  }
  uint64_t values[3 * kWarp] = {};
  for (int i = 0; i < lanes; ++i) {
    for (int v = 0; v < 3; ++v) values[v * kWarp + i] = warp[i]->values[v];
  }
  const unsigned mask = me.mask;
  for (int i = 0; i < lanes; ++i) {
    if ((mask >> i & 1u) == 0) continue;
    std::copy(values, values + 3 * kWarp, warp[i]->received);
    warp[i]->state = CudaThread::ready;
  }
  return true;
}

void copy_async(void* to, const void* from, size_t bytes) {
  std::memset(to, 0xff, bytes);
  this_thread().copies.push_back({to, from, bytes});
}

void commit_copies() {
  CudaThread& thread = this_thread();
  thread.groups.push_back(std::exchange(thread.copies, {}));
}

void wait_copies(size_t groups_left) {
  auto& groups = this_thread().groups;
  for (; groups.size() > groups_left; groups.pop_front()) {
    for (const CudaThread::Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
  }
}

std::string at(Place place) {
  return std::string(" (") + place.file + ":" + std::to_string(place.line) + ")";
}

std::string describe(const CudaThread* threads, int count) {
  const auto doing = [](const CudaThread& thread) -> std::string {
    static const char* const kinds[] = {"__syncwarp", "a shuffle", "a vote",
                                        "a matrix instruction"};
    switch (thread.state) {
      case CudaThread::returned:
        return "returned";
      case CudaThread::at_barrier:
        return "at __syncthreads" + at(thread.place);
      case CudaThread::at_condition:
        return "at a barrier in shared memory" + at(thread.place);
      case CudaThread::at_collective: {
        std::ostringstream mask;
        mask << " of lanes 0x" << std::hex << thread.mask;
        return std::string("at ") + kinds[static_cast<int>(thread.kind)] + mask.str() +
               at(thread.place);
      }
      default:
        return "running";
    }
  };
  std::ostringstream text;
  for (int begin = 0; begin < count;) {
    const std::string what = doing(threads[begin]);
    int end = begin + 1;
    while (end < count && doing(threads[end]) == what) ++end;
    text << (begin ? "; " : "") << "thread" << (end - begin > 1 ? "s " : " ") << begin;
    if (end - begin > 1) text << "-" << end - 1;
    text << " " << what;
    begin = end;
  }
  return text.str();
}

}  // namespace infoslice::emulation
