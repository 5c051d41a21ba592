#include "slice_channels.h"

#include <type_traits>

#include "cuda/grid.h"
#include "cuda/launch.h"
#include "cuda/slice_table.h"
#include "cuda/upload.cuh"

namespace infoslice::cuda {
namespace {

constexpr unsigned kThreads = 256;
constexpr unsigned kBatch = 2;  // packs of a thread whose loads are under way at once

struct alignas(16) Block16 {
  uint32_t words[4];
};

// The table on the device.
struct View {
  const uint32_t* words;
  const SliceEntry* entries;
  const SliceAxis* axes;
  const uint32_t* first_chunk;
  uint32_t count;  // of entries
};

// An axis as a chunk sees it. Index: uint32_t unless the table is wide.
template <class Index>
struct Axis {
  Index start, size;
  uint32_t multiplier, shift, entry_words;
  const uint32_t* list;
  int64_t stride;

  __device__ Axis(const SliceAxis& axis, int64_t from, const uint32_t* words)
      : start(static_cast<Index>(from)),
        size(static_cast<Index>(axis.size)),
        multiplier(axis.multiplier),
        shift(axis.shift),
        entry_words(axis.entry_words),
        list(axis.list == kWhole ? nullptr : words + axis.list),
        stride(axis.stride) {}

  // Leaves in `index` the place on this axis; the steps of the next one are returned.
  __device__ Index carry(Index& index) const {
    Index steps;
    if constexpr (std::is_same_v<Index, uint64_t>) {
      if (shift == kLong) {  // longer than a chunk: once at most
        steps = index >= size;
        index -= steps * size;
        return steps;
      }
    }
    const auto n = static_cast<uint32_t>(index);
    const auto high = static_cast<uint32_t>(uint64_t{n} * multiplier >> 32);
    steps = (high + n) >> shift;
    index -= steps * size;
    return steps;
  }

  __device__ int64_t offset(Index index) const {
    if (list == nullptr) return static_cast<int64_t>(index) * stride;
    if constexpr (std::is_same_v<Index, uint64_t>) {
      if (entry_words == 2)
        return static_cast<int64_t>(uint64_t{list[2 * index + 1]} << 32 | list[2 * index]) * stride;
    }
    return static_cast<int64_t>(list[index]) * stride;
  }
};

// A part of an entry's target, at most a chunk.
struct Piece {
  const SliceAxis* axes;  // in shared memory
  const int64_t* start;   // where the piece begins, on every axis
  int count;
  uint32_t unit;
  const uint32_t* words;
  const char* source;
  char* target;
  uint32_t bytes;
};

template <class Index>
struct Spot {  // of a unit in the source
  const char* line;
  Index index;  // on the inner axis
};

// Copies from those spots whose bit in `which` is set, 4 bytes at least from each; all loads come
// before the first store.
template <class Unit, class Index>
__device__ void move(const Spot<Index>* spots, const Axis<Index>& inner, unsigned which, char* to) {
  constexpr unsigned kUnits = sizeof(Unit) < 4 ? 4 / sizeof(Unit) : 1;
  Unit values[kBatch][kUnits];
#pragma unroll
  for (unsigned b = 0; b < kBatch; ++b) {
    if ((which >> b & 1) == 0) continue;
#pragma unroll
    for (unsigned i = 0; i < kUnits; ++i)
      values[b][i] =
          *reinterpret_cast<const Unit*>(spots[b].line + inner.offset(spots[b].index + i));
  }
#pragma unroll
  for (unsigned b = 0; b < kBatch; ++b) {
    if ((which >> b & 1) == 0) continue;
    char* const place = to + b * kThreads * kUnits * sizeof(Unit);
    if constexpr (kUnits == 1) {
      *reinterpret_cast<Unit*>(place) = values[b][0];
    } else {
      uint32_t packed = 0;
#pragma unroll
      for (unsigned i = 0; i < kUnits; ++i)
        packed |= uint32_t{values[b][i]} << (8 * sizeof(Unit) * i);
      *reinterpret_cast<uint32_t*>(place) = packed;
    }
  }
}

// A thread writes 4 bytes at a time (a unit of 8 or 16 bytes is one): then the lanes of a warp read
// units that lie near each other, in a line or two of the cache for each load, and still write whole
// lines. To put 16 bytes together of 2-byte units would make the loads of a warp reach over 8 lines.
template <class Index>
__device__ void gather(const Piece& piece) {
  const uint32_t unit = piece.unit, units = piece.bytes / unit, pack = unit < 4 ? 4 / unit : 1;
  const bool aligned = reinterpret_cast<uintptr_t>(piece.target) % 4 == 0;
  const Axis<Index> inner(piece.axes[0], piece.start[0], piece.words);
  const auto spot_of = [&](uint32_t number) {
    Spot<Index> spot{piece.source, inner.start + number};
    Index steps = inner.carry(spot.index);
    // The other axes stay in shared memory: registers are better spent on loads.
#pragma unroll 1
    for (int a = 1; a < piece.count; ++a) {
      const Axis<Index> axis(piece.axes[a], piece.start[a], piece.words);
      Index index = axis.start + steps;
      steps = axis.carry(index);
      spot.line += axis.offset(index);
    }
    return spot;
  };
  for (uint32_t base = threadIdx.x * pack; base < units; base += kBatch * kThreads * pack) {
    Spot<Index> spots[kBatch];
    unsigned whole = 0;  // a bit for each pack that is of one line of the source
#pragma unroll
    for (unsigned b = 0; b < kBatch; ++b) {
      const uint32_t first = base + b * kThreads * pack;
      spots[b] = {nullptr, 0};
      if (first >= units) continue;
      spots[b] = spot_of(first);
      // Nor does it reach over the end of the piece, which is one of 4 bytes or one of a line.
      if (pack == 1 || (aligned && spots[b].index + pack <= inner.size)) whole |= 1u << b;
    }
    char* const to = piece.target + base * unit;
    switch (unit) {
      case 1:
        move<uint8_t>(spots, inner, whole, to);
        break;
      case 2:
        move<uint16_t>(spots, inner, whole, to);
        break;
      case 4:
        move<uint32_t>(spots, inner, whole, to);
        break;
      case 8:
        move<uint64_t>(spots, inner, whole, to);
        break;
      default:
        move<Block16>(spots, inner, whole, to);
    }
    if (pack == 1 || whole == (1u << kBatch) - 1) continue;
#pragma unroll 1
    for (unsigned n = 0; n < kBatch * pack; ++n) {  // the other packs unit by unit
      const uint32_t number = base + n / pack * kThreads * pack + n % pack;
      if (number >= units || (whole >> n / pack & 1) != 0) continue;
      const Spot<Index> spot = spot_of(number);
      const char* const from = spot.line + inner.offset(spot.index);
      char* const place = piece.target + number * unit;
      if (unit == 1)
        *place = *from;
      else
        *reinterpret_cast<uint16_t*>(place) = *reinterpret_cast<const uint16_t*>(from);
    }
  }
}

// The entry of a chunk: the last that does not begin behind it.
__device__ uint32_t entry_of(const View& view, uint32_t chunk) {
  uint32_t low = 0, high = view.count;
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (view.first_chunk[middle] <= chunk ? low : high) = middle;
  }
  return low;
}

__device__ uint32_t bytes_at(const SliceEntry& entry, int64_t at) {
  return static_cast<uint32_t>(entry.bytes - at < kSliceChunk ? entry.bytes - at : kSliceChunk);
}

// Chunks first, ..., first + count - 1 into their targets or, where there is scratch memory, one
// behind the other into that.
template <class Index>
__global__ void __launch_bounds__(kThreads, sizeof(Index) == 4 ? 4 : 2)
    gather_kernel(const View view, uint32_t first, uint32_t count, char* scratch) {
  __shared__ SliceAxis axes[kSliceAxes + 1];
  __shared__ int64_t start[kSliceAxes + 1];
  for (uint32_t c = blockIdx.x; c < count; c += gridDim.x) {
    const uint32_t number = entry_of(view, first + c);
    const SliceEntry entry = view.entries[number];
    const int64_t at = int64_t{first + c - view.first_chunk[number]} * kSliceChunk;
    if (threadIdx.x < entry.count) {
      const SliceAxis axis = view.axes[entry.axes + threadIdx.x];
      axes[threadIdx.x] = axis;
      start[threadIdx.x] = at / entry.unit / axis.within % axis.size;
    }
    __syncthreads();
    char* const to = scratch ? scratch + int64_t{c} * kSliceChunk : entry.target + at;
    const Piece piece{axes,
                      start,
                      static_cast<int>(entry.count),
                      entry.unit,
                      view.words,
                      entry.source,
                      to,
                      bytes_at(entry, at)};
    gather<Index>(piece);
    __syncthreads();
  }
}

template <class Unit>
__device__ void copy(const char* from, char* to, uint32_t bytes) {
  const auto units = static_cast<uint32_t>(bytes / sizeof(Unit));
#pragma unroll 4
  for (uint32_t u = threadIdx.x; u < units; u += kThreads)
    reinterpret_cast<Unit*>(to)[u] = reinterpret_cast<const Unit*>(from)[u];
  for (uint32_t b = units * static_cast<uint32_t>(sizeof(Unit)) + threadIdx.x; b < bytes;
       b += kThreads)
    to[b] = from[b];
}

// The same chunks from scratch memory to their targets.
__global__ void __launch_bounds__(kThreads)
    scatter_kernel(const View view, uint32_t first, uint32_t count, const char* scratch) {
  for (uint32_t c = blockIdx.x; c < count; c += gridDim.x) {
    const uint32_t number = entry_of(view, first + c);
    const SliceEntry entry = view.entries[number];
    const int64_t at = int64_t{first + c - view.first_chunk[number]} * kSliceChunk;
    const char* const from = scratch + int64_t{c} * kSliceChunk;
    char* const to = entry.target + at;
    const uint32_t bytes = bytes_at(entry, at);
    const uintptr_t address = reinterpret_cast<uintptr_t>(to);
    if (address % 16 == 0)
      copy<Block16>(from, to, bytes);
    else if (address % 4 == 0)
      copy<uint32_t>(from, to, bytes);
    else
      copy<uint8_t>(from, to, bytes);
  }
}

}  // namespace

SliceTable slice_table(const std::vector<SliceJob>& jobs, bool in_place, int64_t scratch) {
  SliceTableBuilder builder(jobs.size(), in_place);
  for (const SliceJob& job : jobs) builder.add(job);
  return builder.finish(scratch);
}

size_t slice_channels_workspace(const SliceTable& table) {
  return table.words.size() * 4 + static_cast<size_t>(table.scratch_chunks) * kSliceChunk;
}

int slice_channels(const SliceTable& table, void* workspace, void* stream) {
  if (table.chunks == 0) return cudaSuccess;
  const size_t bytes = table.words.size() * 4;
  if (const cudaError_t error = upload(table.words.data(), bytes, workspace, stream)) return error;
  const auto* const words = static_cast<const uint32_t*>(workspace);
  const View view{words, reinterpret_cast<const SliceEntry*>(words + table.entries_at),
                  reinterpret_cast<const SliceAxis*>(words + table.axes_at),
                  words + table.first_chunk_at, static_cast<uint32_t>(table.entries)};
  const auto gather_chunks = table.wide ? gather_kernel<uint64_t> : gather_kernel<uint32_t>;
  const auto chunks = static_cast<uint32_t>(table.chunks),
             group = static_cast<uint32_t>(table.scratch_chunks);
  if (group == 0) {
    INFOSLICE_LAUNCH(gather_chunks, grid(chunks), kThreads, 0, stream, view, 0u, chunks, nullptr);
    return cudaGetLastError();
  }
  // A unit is read at or behind the place in its tensor to which it is written, and the order of the
  // units is that of their sources (header). So when the chunks before `first` are written, all that
  // is read from `first` on is as it was, in this tensor and in the others, which share no memory
  // with it. Of its own group a chunk may overwrite the sources: they are in scratch memory by then.
  char* const scratch = static_cast<char*>(workspace) + bytes;
  for (uint32_t first = 0; first < chunks; first += group) {
    const uint32_t count = chunks - first < group ? chunks - first : group;
    INFOSLICE_LAUNCH(gather_chunks, grid(count), kThreads, 0, stream, view, first, count, scratch);
    if (const cudaError_t error = cudaGetLastError()) return error;
    INFOSLICE_LAUNCH(scatter_kernel, grid(count), kThreads, 0, stream, view, first, count, scratch);
    if (const cudaError_t error = cudaGetLastError()) return error;
  }
  return cudaSuccess;
}

}  // namespace infoslice::cuda
