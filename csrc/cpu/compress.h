// Compression: the chosen blocks of a row packed side by side, with one bit for each lane of the
// row, made once and applied to every row.
//
//   target[block j] = source[block keep[j] - keep[0]],  j = 0 ... count - 1,  keep ascending
//
// The row is read front to back in windows of one register. The bits of a window tell which of its
// lanes are brought to the front (vpcompress, or a permutation looked up by the bits) and stored
// where the previous ones end. What is stored behind them is overwritten by the next store; the
// last stores of a row, where they would write too far, go through a buffer. So nothing is read
// outside the source row from its first chosen block to its last, nothing is written behind the
// target row or the limit, and a row can be compressed onto itself or any earlier place: no store
// reaches what is still to be read.
//
// For GCC on x86-64 from v3 on. Elsewhere there is no Compression, and the caller copies blocks.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "common/simd.h"

#if INFOSLICE_MULTIVERSION
#include <immintrin.h>
#endif

namespace infoslice {

// Where a row has got to: the bits, the source and the target of the next window.
struct CompressionPlace {
  const uint8_t* bits;
  const char* source;
  char* target;
};

struct Compression {
  // Packs windows until the bits end or the target passes `last`.
  using Pack = CompressionPlace (*)(CompressionPlace at, const uint8_t* end, const char* last);

  std::vector<uint8_t> bits;  // of every lane from the first chosen one to the last, in windows
  int64_t full = 0;           // whole windows, in bytes of bits
  int64_t row_bytes = 0, packed_bytes = 0;
  int64_t width = 0;  // bytes of a window
  Pack pack = nullptr;

  explicit operator bool() const { return pack != nullptr; }
};

#if INFOSLICE_MULTIVERSION

template <class Bits>
INFOSLICE_INLINE Bits bits_at(const uint8_t* from) {
  Bits bits;
  std::memcpy(&bits, from, sizeof(bits));
  return bits;
}

template <class Bits>
INFOSLICE_INLINE CompressionPlace next(CompressionPlace at, Bits bits, int64_t lane) {
  return {at.bits + sizeof(Bits), at.source + 8 * sizeof(Bits) * lane,
          at.target + __builtin_popcountll(bits) * lane};
}

INFOSLICE_TARGET_V4 inline CompressionPlace pack_32_v4(CompressionPlace at, const uint8_t* end,
                                                       const char* last) {
  while (at.bits != end && at.target <= last) {
    const auto bits = bits_at<uint16_t>(at.bits);
    const __m512i lanes = _mm512_loadu_si512(at.source);
    _mm512_storeu_si512(at.target, _mm512_maskz_compress_epi32(bits, lanes));
    at = next(at, bits, 4);
  }
  return at;
}

// 16-bit and 8-bit lanes are compressed by VBMI2, which is not part of x86-64-v4 but of all its
// CPUs after the first generation; without it the bodies for v3 are used.
#define INFOSLICE_TARGET_VBMI2 __attribute__((target("arch=x86-64-v4,avx512vbmi2")))

INFOSLICE_TARGET_VBMI2 inline CompressionPlace pack_16_vbmi2(CompressionPlace at,
                                                             const uint8_t* end, const char* last) {
  while (at.bits != end && at.target <= last) {
    const auto bits = bits_at<uint32_t>(at.bits);
    const __m512i lanes = _mm512_loadu_si512(at.source);
    _mm512_storeu_si512(at.target, _mm512_maskz_compress_epi16(bits, lanes));
    at = next(at, bits, 2);
  }
  return at;
}

INFOSLICE_TARGET_VBMI2 inline CompressionPlace pack_8_vbmi2(CompressionPlace at, const uint8_t* end,
                                                            const char* last) {
  while (at.bits != end && at.target <= last) {
    const auto bits = bits_at<uint64_t>(at.bits);
    const __m512i lanes = _mm512_loadu_si512(at.source);
    _mm512_storeu_si512(at.target, _mm512_maskz_compress_epi8(bits, lanes));
    at = next(at, bits, 1);
  }
  return at;
}

// Of 8 lanes, those whose bits are set, in order.
struct ChosenOf8 {
  uint8_t lanes[256][8] = {};
  constexpr ChosenOf8() {
    for (int bits = 0; bits < 256; ++bits)
      for (int lane = 0, count = 0; lane < 8; ++lane)
        if (bits >> lane & 1) lanes[bits][count++] = static_cast<uint8_t>(lane);
  }
};
inline constexpr ChosenOf8 kChosenOf8;

INFOSLICE_TARGET_V3 inline __m128i chosen_of_8(uint8_t bits) {
  return _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kChosenOf8.lanes[bits]));
}

INFOSLICE_TARGET_V3 inline CompressionPlace pack_32_v3(CompressionPlace at, const uint8_t* end,
                                                       const char* last) {
  while (at.bits != end && at.target <= last) {
    const __m256i lanes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at.source));
    const __m256i order = _mm256_cvtepu8_epi32(chosen_of_8(*at.bits));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at.target),
                        _mm256_permutevar8x32_epi32(lanes, order));
    at = next(at, *at.bits, 4);
  }
  return at;
}

INFOSLICE_TARGET_V3 inline CompressionPlace pack_16_v3(CompressionPlace at, const uint8_t* end,
                                                       const char* last) {
  while (at.bits != end && at.target <= last) {
    const __m128i lanes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at.source));
    const __m128i order = _mm_cvtepu8_epi16(chosen_of_8(*at.bits));
    // The bytes of lane l are 2 l and 2 l + 1.
    const __m128i bytes =
        _mm_add_epi16(_mm_mullo_epi16(order, _mm_set1_epi16(0x0202)), _mm_set1_epi16(0x0100));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at.target), _mm_shuffle_epi8(lanes, bytes));
    at = next(at, *at.bits, 2);
  }
  return at;
}

INFOSLICE_TARGET_V3 inline CompressionPlace pack_8_v3(CompressionPlace at, const uint8_t* end,
                                                      const char* last) {
  while (at.bits != end && at.target <= last) {
    const __m128i lanes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(at.source));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(at.target),
                     _mm_shuffle_epi8(lanes, chosen_of_8(*at.bits)));
    at = next(at, *at.bits, 1);
  }
  return at;
}

#endif

// For rows of contiguous blocks of so many bytes, of which keep[0] ... keep[count - 1] are chosen;
// none where the row is shorter than a register or the machine has no such instructions.
inline Compression compression_of(const int64_t* keep, int64_t count, int64_t block) {
  Compression by;
#if INFOSLICE_MULTIVERSION
  by.row_bytes = count ? (keep[count - 1] - keep[0] + 1) * block : 0;
  if (cpu_level() == CpuLevel::baseline || by.row_bytes < 64) return by;
  const bool v4 = cpu_level() == CpuLevel::v4;
  const bool vbmi2 = v4 && __builtin_cpu_supports("avx512vbmi2");
  const int64_t lane = block % 4 == 0 ? 4 : block % 2 == 0 ? 2 : 1;
  if (lane == 4)
    by.pack = v4 ? pack_32_v4 : pack_32_v3, by.width = v4 ? 64 : 32;
  else if (vbmi2)
    by.pack = lane == 2 ? pack_16_vbmi2 : pack_8_vbmi2, by.width = 64;
  else
    by.pack = lane == 2 ? pack_16_v3 : pack_8_v3, by.width = 8 * lane;
  by.packed_bytes = count * block;

  const int64_t window = by.width / lane / 8;  // bytes of its bits
  by.full = by.row_bytes / by.width * window;
  by.bits.resize(static_cast<size_t>(by.full + window));
  const int64_t lanes = by.row_bytes / lane, last = lanes % (8 * window);
  // The last window, if there is one that is not full, ends with the row: its bits come last.
  const int64_t shift = last ? 8 * window - last : 0;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t first = (keep[j] - keep[0]) * (block / lane);
    for (int64_t at = first; at < first + block / lane; ++at) {
      const int64_t bit = at < lanes - last ? at : at + shift;
      by.bits[static_cast<size_t>(bit / 8)] |= static_cast<uint8_t>(1 << bit % 8);
    }
  }
#else
  (void)keep, (void)count, (void)block;
#endif
  return by;
}

// source: the first chosen block of the row. What lies between the end of the target row and
// `limit`
// may be overwritten: the beginning of a row that is compressed next.
inline void compress_row(const Compression& by, const char* source, char* target,
                         const char* limit) {
  const uint8_t *bits = by.bits.data(), *full = bits + by.full, *all = bits + by.bits.size();
  const char* const last = source + by.row_bytes - by.width;  // the window that ends with the row
  const char* const end = target + by.packed_bytes;
  CompressionPlace at = by.pack({bits, source, target}, full, limit - by.width);
  if (at.target == end) return;
  if (at.bits == full && at.target <= limit - by.width) {
    by.pack({full, last, at.target}, all, at.target);
    return;
  }
  char buffer[128];
  char* const begin = at.target;
  at = by.pack({at.bits, at.source, buffer}, full, buffer + by.width);
  by.pack({at.bits, last, at.target}, all, buffer + by.width);
  std::memcpy(begin, buffer, static_cast<size_t>(end - begin));
}

}  // namespace infoslice
