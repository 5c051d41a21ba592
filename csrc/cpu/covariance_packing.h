// Packing chunks for covariance: samples, widened and minus a shift, go into panels (the layout of
// covariance_tiles.h), and their sums are taken on the way.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common/numeric.h"
#include "common/simd.h"
#include "cpu/covariance_tiles.h"

namespace infoslice::cpu {

// Samples in a chunk, typically and at most. A panel is 10 to 24 KB, so that one stays in the
// first-level cache while the others that it is multiplied with come from the second; a fourth of
// an image of 56 x 56 is 784 samples.
template <class A>
constexpr int64_t kTypicalChunk = 3200 / sizeof(A);
template <class A>
constexpr int64_t kChunk = kTypicalChunk<A> * 3 / 2 + 16;

// Variables packed together. Rows of them are a cache line of float or double.
template <class A>
constexpr int kStrip = 64 / sizeof(A);

// Sums over a chunk of the shifted samples of a variable.
struct Sums {
  double sum, square;
  bool varies;  // whether any is not zero; the square may underflow
};

// A chunk in panels.
template <class A>
struct Packed {
  A* data;
  int64_t blocks;  // in a panel, whether filled or not
  Packing packing;
  int64_t block_size() const { return packing.panel * packing.lanes; }
  A* panel(int64_t p) const { return data + p * blocks * block_size(); }
  // The first block of a variable; the next is block_size() further.
  A* variable(int64_t v) const {
    return panel(v / packing.panel) + v % packing.panel * packing.lanes;
  }
};

// W numbers in storage to the working type.
template <class A, int W>
INFOSLICE_INLINE Vec<A, W> widen_lanes(const double* from) {
  return __builtin_convertvector(load<Vec<double, W>>(from), Vec<A, W>);
}
template <class A, int W>
INFOSLICE_INLINE Vec<A, W> widen_lanes(const float* from) {
  return __builtin_convertvector(load<Vec<float, W>>(from), Vec<A, W>);
}
template <class A, int W, class T>
INFOSLICE_INLINE Vec<A, W> widen_lanes(const T* from) {
  return __builtin_convertvector(widen<W>(load<Vec<uint16_t, W>>(from), T{}), Vec<A, W>);
}

// Running sums of W lanes.
template <class A, int W>
struct LaneSums {
  using V = Vec<A, W>;
  using Bits = Vec<std::conditional_t<sizeof(A) == 4, uint32_t, uint64_t>, W>;
  V sum = {}, square = {};
  Bits bits = {};
  INFOSLICE_INLINE void add(const V& value) {
    sum += value;
    square += value * value;
    bits |= (Bits)value;
  }
  INFOSLICE_INLINE void add(const LaneSums& other) {
    sum += other.sum;
    square += other.square;
    bits |= other.bits;
  }
  // The sums of `variables` variables, which take turns in the lanes.
  INFOSLICE_INLINE void finish(int variables, int used, Sums* sums) const {
    A sum_of[W], square_of[W];
    std::remove_const_t<std::remove_reference_t<decltype(bits[0])>> bits_of[W];
    store(sum_of, sum);
    store(square_of, square);
    store(bits_of, bits);
    for (int v = 0; v < used; ++v) sums[v] = {};
    for (int lane = 0; lane < W; ++lane) {
      const int v = lane % variables;
      if (v >= used) continue;
      sums[v].sum += static_cast<double>(sum_of[lane]);
      sums[v].square += static_cast<double>(square_of[lane]);
      sums[v].varies |= bits_of[lane] << 1 != 0;  // zeros have signs
    }
  }
};

// One variable whose samples are side by side.
template <class A, int W, class T>
INFOSLICE_INLINE void pack_line(const T* from, int64_t count, A shift, A* to, int64_t block_size,
                                Sums& sums) {
  using V = Vec<A, W>;
  constexpr int kChains = 4;  // independent sums, since an addition takes 4 cycles
  LaneSums<A, W> chains[kChains];
  const V shifts = shift - V{};
  int64_t k = 0;
  for (; k + kChains * W <= count; k += kChains * W) {
#pragma GCC unroll 4
    for (int i = 0; i < kChains; ++i, to += block_size) {
      const V value = widen_lanes<A, W>(from + k + i * W) - shifts;
      store(to, value);
      chains[i].add(value);
    }
  }
  for (; k < count; k += W, to += block_size) {
    V value;
    if (k + W <= count) {
      value = widen_lanes<A, W>(from + k) - shifts;
    } else {
      A last[W] = {};
      for (int64_t i = 0; k + i < count; ++i) last[i] = static_cast<A>(widen(from[k + i])) - shift;
      value = load<V>(last);
    }
    store(to, value);
    chains[0].add(value);
  }
  for (int i = 1; i < kChains; ++i) chains[0].add(chains[i]);
  chains[0].finish(1, 1, &sums);
}

// Pieces of 8 or 16 bytes, `stride` elements apart, side by side in a vector of N elements U.
template <class V, size_t... I>
INFOSLICE_INLINE auto join(const V& low, const V& high, std::index_sequence<I...>) {
  return __builtin_shufflevector(low, high, int(I)...);
}
template <class U, int N, int kPiece>
INFOSLICE_INLINE Vec<U, N> gather_pieces(const U* from, int64_t stride) {
  constexpr int kEach = kPiece / sizeof(U);
  if constexpr (N * sizeof(U) == 16 && kPiece == 8) {
    uint64_t low, high;
    std::memcpy(&low, from, 8);
    std::memcpy(&high, from + stride, 8);
    return (Vec<U, N>)Vec<uint64_t, 2>{low, high};
  } else if constexpr (N == kEach) {
    return load<Vec<U, N>>(from);
  } else {
    return join(gather_pieces<U, N / 2, kPiece>(from, stride),
                gather_pieces<U, N / 2, kPiece>(from + N / 2 / kEach * stride, stride),
                std::make_index_sequence<N>{});
  }
}

// Within each 16 bytes: the halves of the lanes of a and b, alternating in groups of `group`.
template <int W, int kLanes, int kGroup, bool kHigh>
constexpr int interleaved(int i) {
  const int lane = i / kLanes * kLanes, at = i % kLanes;
  return lane + at / (2 * kGroup) * kGroup + at % kGroup + (kHigh ? kLanes / 2 : 0) +
         (at / kGroup % 2 ? W : 0);
}
template <int kLanes, int kGroup, bool kHigh, class V, size_t... I>
INFOSLICE_INLINE V interleave(const V& a, const V& b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, interleaved<sizeof...(I), kLanes, kGroup, kHigh>(int(I))...);
}

// Transposes the 4 x 4 (float) or 2 x 2 (double) blocks that Q vectors have in each 16 bytes.
template <class A, int W>
INFOSLICE_INLINE void transpose_quads(Vec<A, W>* x) {
  constexpr auto lanes = std::make_index_sequence<W>{};
  if constexpr (sizeof(A) == 4) {
    const auto ab_low = interleave<4, 1, false>(x[0], x[1], lanes);
    const auto ab_high = interleave<4, 1, true>(x[0], x[1], lanes);
    const auto cd_low = interleave<4, 1, false>(x[2], x[3], lanes);
    const auto cd_high = interleave<4, 1, true>(x[2], x[3], lanes);
    x[0] = interleave<4, 2, false>(ab_low, cd_low, lanes);
    x[1] = interleave<4, 2, true>(ab_low, cd_low, lanes);
    x[2] = interleave<4, 2, false>(ab_high, cd_high, lanes);
    x[3] = interleave<4, 2, true>(ab_high, cd_high, lanes);
  } else {
    const auto low = interleave<2, 1, false>(x[0], x[1], lanes);
    x[1] = interleave<2, 1, true>(x[0], x[1], lanes);
    x[0] = low;
  }
}

// A strip of variables that are neighbours in memory, from rows of them.
template <class A, int W>
class StripPacker {
 public:
  static constexpr int kQ = 16 / sizeof(A), kQuads = kStrip<A> / kQ;

  INFOSLICE_INLINE StripPacker(const Packed<A>& packed, int64_t first, int used, const A* shift)
      : used_(used), block_size_(packed.block_size()) {
    for (int c = 0; c < used; ++c) to_[c] = packed.variable(first + c);
    for (int q = 0; q < kQuads; ++q) {
      A pattern[W];
      for (int lane = 0; lane < W; ++lane) {
        const int c = q * kQ + lane % kQ;
        pattern[lane] = c < used ? shift[c] : A(0);
      }
      shifts_[q] = load<V>(pattern);
    }
  }

  // The next W rows of a full strip.
  template <class T>
  INFOSLICE_INLINE void block(const T* rows, int64_t stride) {
    add_block(rows, stride, shifts_);
  }

  // W rows, of which only so many samples and `used` variables exist.
  template <class T, class RowAt>
  INFOSLICE_INLINE void staged_block(int64_t samples, const A* shift, const RowAt& row_at) {
    A rows[W * kStrip<A>] = {};
    for (int64_t k = 0; k < samples; ++k) {
      const T* from = row_at(k);
      for (int c = 0; c < used_; ++c)
        rows[k * kStrip<A> + c] = static_cast<A>(widen(from[c])) - shift[c];
    }
    const V none[kQuads] = {};
    add_block(static_cast<const A*>(rows), kStrip<A>, none);
  }

  INFOSLICE_INLINE void finish(Sums* sums) const {
    for (int q = 0; q * kQ < used_; ++q)
      sums_[q].finish(kQ, std::min(kQ, used_ - q * kQ), sums + q * kQ);
  }

 private:
  using V = Vec<A, W>;

  template <class T>
  INFOSLICE_INLINE void add_block(const T* rows, int64_t stride, const V* shifts) {
#pragma GCC unroll 8
    for (int q = 0; q < kQuads; ++q) {
      V x[kQ];
#pragma GCC unroll 4
      for (int i = 0; i < kQ; ++i) {
        // Lane group g holds the quad of row g * Q + i.
        x[i] = quads(rows + i * stride + q * kQ, kQ * stride) - shifts[q];
        sums_[q].add(x[i]);
      }
      transpose_quads<A, W>(x);
#pragma GCC unroll 4
      for (int c = 0; c < kQ; ++c) {
        if (q * kQ + c >= used_) break;
        store(to_[q * kQ + c] + at_, x[c]);
      }
    }
    at_ += block_size_;
  }

  template <class T>
  INFOSLICE_INLINE static V quads(const T* from, int64_t stride) {
    if constexpr (std::is_floating_point_v<T>) {
      const auto gathered = gather_pieces<T, W, kQ * sizeof(T)>(from, stride);
      return __builtin_convertvector(gathered, V);
    } else {
      const auto bits =
          gather_pieces<uint16_t, W, kQ * 2>(reinterpret_cast<const uint16_t*>(from), stride);
      return __builtin_convertvector(widen<W>(bits, T{}), V);
    }
  }

  V shifts_[kQuads];
  LaneSums<A, W> sums_[kQuads];
  A* to_[kStrip<A>];
  const int used_;
  const int64_t block_size_;
  int64_t at_ = 0;
};

// Packs `count` samples of the variables [first, first + used) minus their shift.
template <class A, int W, class Reader>
INFOSLICE_INLINE void pack_strip_body(const Reader& reader, int64_t first, int used, int64_t begin,
                                      int64_t count, const A* shift, const Packed<A>& packed,
                                      Sums* sums) {
  using T = typename Reader::T;
  if (!reader.by_rows()) {
    T scratch[kChunk<A>];
    for (int c = 0; c < used; ++c) {
      const T* from = reader.line(first + c, begin, count, scratch);
      pack_line<A, W>(from, count, shift[c], packed.variable(first + c), packed.block_size(),
                      sums[c]);
    }
    return;
  }
  StripPacker<A, W> packer(packed, first, used, shift);
  for (int64_t k = 0; k < count;) {
    int64_t length, stride;
    const T* from = reader.row(begin + k, length, stride) + first;
    if constexpr (packer.kQ * sizeof(T) >= 8) {  // shorter pieces are not worth a way of their own
      length = length < count - k ? length : count - k;
      if (used == kStrip<A> && length >= W) {
        for (; length >= W; length -= W, k += W, from += W * stride) {
          // Rows lie too far apart for the hardware to see them coming.
          for (int i = 0; i < W; ++i) __builtin_prefetch(from + (2 * W + i) * stride);
          packer.block(from, stride);
        }
        continue;
      }
    }
    const int64_t samples = count - k < W ? count - k : W;
    packer.template staged_block<T>(samples, shift, [&](int64_t i) {
      if (i < length) return from + i * stride;
      int64_t length_there, stride_there;
      return reader.row(begin + k + i, length_there, stride_there) + first;
    });
    k += samples;
  }
  packer.finish(sums);
}

// Thin entries, one for each CPU level.
#define INFOSLICE_PACK_ENTRY(suffix, target, bytes)                                              \
  template <class A, class Reader>                                                               \
  target void pack_strip_##suffix(const Reader& reader, int64_t first, int used, int64_t begin,  \
                                  int64_t count, const A* shift, const Packed<A>& packed,        \
                                  Sums* sums) {                                                  \
    pack_strip_body<A, bytes / int(sizeof(A))>(reader, first, used, begin, count, shift, packed, \
                                               sums);                                            \
  }
INFOSLICE_PACK_ENTRY(v4, INFOSLICE_TARGET_V4, 64)
INFOSLICE_PACK_ENTRY(v3, INFOSLICE_TARGET_V3, 32)
INFOSLICE_PACK_ENTRY(base, , 16)
#undef INFOSLICE_PACK_ENTRY

template <class A, class Reader>
void pack_strip(const Reader& reader, int64_t first, int used, int64_t begin, int64_t count,
                const A* shift, const Packed<A>& packed, Sums* sums) {
  switch (cpu_level()) {
    case CpuLevel::v4:
      return pack_strip_v4(reader, first, used, begin, count, shift, packed, sums);
    case CpuLevel::v3:
      return pack_strip_v3(reader, first, used, begin, count, shift, packed, sums);
    case CpuLevel::baseline:
      return pack_strip_base(reader, first, used, begin, count, shift, packed, sums);
  }
}

// What the driver sees of an input: the number of variables and samples, and strips of it packed.
// Virtual, so that the driver is compiled once for each working type and not for each kind and type
// of input.
class Source {
 public:
  virtual ~Source() = default;
  virtual int64_t variables() const = 0;
  virtual int64_t count() const = 0;
  // At most kChunk<double> samples.
  virtual void read(int64_t variable, int64_t begin, int64_t count, double* to) const = 0;
  // How many samples a line holds before it breaks off.
  virtual int64_t run() const = 0;
  // Where part `part` of `variables()` equal parts of the samples [begin, begin + count) is.
  virtual Ahead ahead(int64_t part, int64_t begin, int64_t count, int64_t blocks) const = 0;
  virtual void pack(int64_t first, int used, int64_t begin, int64_t count, const float* shift,
                    const Packed<float>& packed, Sums* sums) const = 0;
  virtual void pack(int64_t first, int used, int64_t begin, int64_t count, const double* shift,
                    const Packed<double>& packed, Sums* sums) const = 0;
};

template <class Reader>
class PackedSource final : public Source {
 public:
  using T = typename Reader::T;
  explicit PackedSource(const Reader& reader) : reader_(reader) {}
  int64_t variables() const override { return reader_.variables(); }
  int64_t count() const override { return reader_.count(); }
  int64_t run() const override { return reader_.run(); }
  void read(int64_t variable, int64_t begin, int64_t count, double* to) const override {
    T scratch[kChunk<double>];
    const T* from = reader_.line(variable, begin, count, scratch);
    for (int64_t k = 0; k < count; ++k) to[k] = static_cast<double>(widen(from[k]));
  }
  Ahead ahead(int64_t part, int64_t begin, int64_t count, int64_t blocks) const override {
    const T* at = reader_.part(part, begin, count);
    return {reinterpret_cast<const char*>(at), at ? count * int64_t(sizeof(T)) / blocks : 0};
  }
  void pack(int64_t first, int used, int64_t begin, int64_t count, const float* shift,
            const Packed<float>& packed, Sums* sums) const override {
    // Double inputs have double tiles.
    if constexpr (!std::is_same_v<T, double>)
      pack_strip(reader_, first, used, begin, count, shift, packed, sums);
  }
  void pack(int64_t first, int used, int64_t begin, int64_t count, const double* shift,
            const Packed<double>& packed, Sums* sums) const override {
    pack_strip(reader_, first, used, begin, count, shift, packed, sums);
  }

 private:
  const Reader reader_;
};

}  // namespace infoslice::cpu
