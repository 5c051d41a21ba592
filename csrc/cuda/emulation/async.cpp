#include "cuda/emulation/async.h"

#include <algorithm>
#include <cstring>

#include "cuda/emulation/block.h"

namespace infoslice::emulation {
namespace {

// A barrier's word: bit 63 clear if it was initialised (poison is not), then the phase, the arrivals
// of a phase, those still missing, and the bytes still missing, offset by half their range.
struct Barrier {
  uint64_t phase, expected, pending;
  int64_t bytes;
};
constexpr uint64_t kMostArrivals = (uint64_t{1} << 20) - 1;
constexpr int64_t kMostBytes = (int64_t{1} << 20) - 1, kHalf = int64_t{1} << 21;

[[noreturn]] void stop(Place place, const std::string& what) { stop_kernel(what + at(place)); }

Barrier read(Place place, const uint64_t* barrier) {
  if (shared_address(barrier) % 8 != 0) stop(place, "a barrier that is not aligned");
  const uint64_t word = *barrier;
  if (word >> 63 != 0) stop(place, "a barrier that is not initialised");
  return {word >> 62 & 1, word >> 42 & kMostArrivals, word >> 22 & kMostArrivals,
          static_cast<int64_t>(word & (2 * kHalf - 1)) - kHalf};
}

void write(uint64_t* barrier, Barrier value) {
  if (value.pending == 0 && value.bytes == 0) {
    value.phase ^= 1;
    value.pending = value.expected;
  }
  *barrier = value.phase << 62 | value.expected << 42 | value.pending << 22 |
             static_cast<uint64_t>(value.bytes + kHalf);
}

void add_bytes(Place place, Barrier& barrier, int64_t bytes) {
  barrier.bytes += bytes;
  if (std::abs(barrier.bytes) > kMostBytes) stop(place, "more bytes than a barrier counts");
}

void arrive(Place place, Barrier& barrier) {
  if (barrier.pending == 0) stop(place, "more arrivals than the barrier was initialised for");
  --barrier.pending;
}

/// What the emulation keeps in the 128 bytes of a tensor map.
struct Map {
  char* data;
  uint32_t sizes[5];
  uint64_t strides[4];  // bytes
  uint16_t box[5];
  uint16_t swizzled, valid;
};
static_assert(sizeof(Map) <= sizeof(CUtensorMap));
constexpr uint16_t kValid = 0x7a3d;

}  // namespace

uint32_t shared_address(const void* pointer) { return address_in_shared(pointer); }

void barrier_init(Place place, uint64_t* barrier, uint32_t arrivals) {
  if (arrivals < 1 || arrivals > kMostArrivals) stop(place, "arrivals out of range");
  if (shared_address(barrier) % 8 != 0) stop(place, "a barrier that is not aligned");
  atomically([&] { write(barrier, {0, arrivals, arrivals, 0}); });
}

void barrier_arrive(Place place, uint64_t* barrier) {
  atomically([&] {
    Barrier now = read(place, barrier);
    arrive(place, now);
    write(barrier, now);
  });
}

void barrier_expect(Place place, uint64_t* barrier, uint32_t bytes) {
  atomically([&] {
    Barrier now = read(place, barrier);
    add_bytes(place, now, bytes);
    arrive(place, now);
    write(barrier, now);
  });
}

void barrier_wait(Place place, uint64_t* barrier, uint32_t parity) {
  if (parity > 1) stop(place, "a parity that is neither 0 nor 1");
  atomically([&] { read(place, barrier); });  // initialised by now
  // True of the phase before the one under way, false of the latter.
  wait_until(place, [=] { return read(place, barrier).phase != parity; });
}

void load_box(Place place, void* to, const CUtensorMap* opaque, uint64_t* barrier,
              const int (&origin)[5]) {
  Map map;
  std::memcpy(&map, opaque, sizeof(map));
  if (map.valid != kValid || reinterpret_cast<uintptr_t>(opaque) % 64 != 0)
    stop(place, "a tensor map that is not one");
  uint32_t bytes = 2;
  for (const uint16_t edge : map.box) bytes *= edge;
  const uint32_t address = shared_address(to);
  if (address % 128 != 0) stop(place, "a box to an address that is no multiple of 128");
  shared_at(address + bytes - 1);  // within bounds
  atomically([&] { std::memset(to, 0xff, bytes); });
  const std::vector<int> first(origin, origin + 5);
  set_off([=] {
    uint32_t offset = 0;
    int64_t at[5];
    const auto copy = [&](auto& self, int d, int64_t from, bool inside) -> void {
      for (int e = 0; e < map.box[d]; ++e) {
        at[d] = int64_t{first[static_cast<size_t>(d)]} + e;
        const bool here = inside && at[d] >= 0 && at[d] < map.sizes[d];
        const int64_t element =
            from + at[d] * (d == 0 ? 2 : static_cast<int64_t>(map.strides[d - 1]));
        if (d > 0) {
          self(self, d - 1, element, here);
          continue;
        }
        uint32_t where = address + offset;
        if (map.swizzled) where ^= where >> 3 & 0x70;  // 16-byte units of 128, by their row of 8
        uint16_t bits = 0;
        if (here) std::memcpy(&bits, map.data + element, 2);
        std::memcpy(shared_at(where), &bits, 2);
        offset += 2;
      }
    };
    copy(copy, 4, 0, true);
    Barrier now = read(place, barrier);
    add_bytes(place, now, -int64_t{bytes});
    write(barrier, now);
  });
}

}  // namespace infoslice::emulation

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* data,
                                const cuuint64_t* sizes, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* element_strides,
                                CUtensorMapInterleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion, CUtensorMapFloatOOBfill) {
  using infoslice::emulation::Map;
  Map to{};
  bool good = rank == 5;  // as far as modelled
  good &= reinterpret_cast<uintptr_t>(map) % 64 == 0 && reinterpret_cast<uintptr_t>(data) % 16 == 0;
  for (int d = 0; good && d < 5; ++d) {
    good &= sizes[d] >= 1 && sizes[d] < uint64_t{1} << 32 && box[d] >= 1 && box[d] <= 256 &&
            element_strides[d] == 1;
    good &= d == 0 ||
            (strides[d - 1] % 16 == 0 && strides[d - 1] > 0 && strides[d - 1] < uint64_t{1} << 40);
    if (!good) break;
    to.sizes[d] = static_cast<uint32_t>(sizes[d]);
    to.box[d] = static_cast<uint16_t>(box[d]);
    if (d > 0) to.strides[d - 1] = strides[d - 1];
  }
  good =
      good && 2 * box[0] % 16 == 0 && (swizzle != CU_TENSOR_MAP_SWIZZLE_128B || 2 * box[0] <= 128);
  if (!good) return CUDA_ERROR_INVALID_VALUE;
  to.data = static_cast<char*>(data);
  to.swizzled = swizzle == CU_TENSOR_MAP_SWIZZLE_128B;
  to.valid = infoslice::emulation::kValid;
  std::memset(map, 0xff, sizeof(*map));
  std::memcpy(map, &to, sizeof(to));
  return CUDA_SUCCESS;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  const bool found = std::strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
  *function = found ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  *result = found ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
