// The two hot loops of covariance: packing panels of 16 variables, and tiles of products.
//
// A panel holds a chunk of samples of 16 variables, the variables of a sample side by side. A tile
// is the 16 x 16 products of two panels summed over the chunk: MR rows at a time stay in registers,
// a row being 16 / W vectors of W lanes. W and MR are chosen for each CPU level: 16 accumulators of
// 64 bytes, 8 of 32, 8 of 16.
#pragma once

#include <type_traits>

#include "common/numeric.h"
#include "common/simd.h"

namespace infoslice::cpu {

constexpr int kPanel = 16;

// Samples in a chunk: a panel is 16 KB, so two of them stay in the first-level cache.
template <class A>
constexpr int64_t kChunk = 16384 / (kPanel * sizeof(A));

// What packing tells of the 16 variables of a panel: sums over the chunk of the shifted samples.
template <class A>
struct PanelSums {
  A sum[kPanel];
  A magnitude[kPanel];  // of absolute values; not finite exactly if a sample is not (or they
                        // overflow)
};

template <class V>
INFOSLICE_INLINE V magnitude_of(const V& value) {
  return value < 0 ? -value : value;
}

// Blocks of 4 x 4 (float) or 2 x 2 (double): rows[c * kChunk + k] -> panel[k * kPanel + c].
INFOSLICE_INLINE void transpose_block(const float* rows, float* panel) {
  using V = Vec<float, 4>;
  constexpr int64_t n = kChunk<float>;
  const V a = load<V>(rows), b = load<V>(rows + n), c = load<V>(rows + 2 * n),
          d = load<V>(rows + 3 * n);
  const V ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const V ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const V cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const V cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  store(panel, V(__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5)));
  store(panel + kPanel, V(__builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7)));
  store(panel + 2 * kPanel, V(__builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5)));
  store(panel + 3 * kPanel, V(__builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)));
}
INFOSLICE_INLINE void transpose_block(const double* rows, double* panel) {
  using V = Vec<double, 2>;
  const V a = load<V>(rows), b = load<V>(rows + kChunk<double>);
  store(panel, V(__builtin_shufflevector(a, b, 0, 2)));
  store(panel + kPanel, V(__builtin_shufflevector(a, b, 1, 3)));
}

// Subtracts the shift from rows of a panel and sums them up.
template <class A, int W>
class Centring {
 public:
  INFOSLICE_INLINE explicit Centring(const A* shift) {
    for (int v = 0; v < kVectors; ++v) {
      shift_[v] = load<V>(shift + v * W);
      sum_[v] = magnitude_[v] = V{};
    }
  }
  INFOSLICE_INLINE void centre(const A* from, A* to) {
    for (int v = 0; v < kVectors; ++v) {
      const V value = load<V>(from + v * W) - shift_[v];
      store(to + v * W, value);
      sum_[v] += value;
      magnitude_[v] += magnitude_of(value);
    }
  }
  INFOSLICE_INLINE void finish(PanelSums<A>& sums) const {
    for (int v = 0; v < kVectors; ++v) {
      store(sums.sum + v * W, sum_[v]);
      store(sums.magnitude + v * W, magnitude_[v]);
    }
  }

 private:
  using V = Vec<A, W>;
  static constexpr int kVectors = kPanel / W;
  V shift_[kVectors], sum_[kVectors], magnitude_[kVectors];
};

// Packs `count` samples of the variables [first, first + used) minus their shift, which is zero for
// the unused rest of the panel, as its samples are.
template <class A, int W, class Reader>
INFOSLICE_INLINE void pack_panel_body(const Reader& reader, int64_t first, int used, int64_t begin,
                                      int64_t count, const A* shift, A* panel, PanelSums<A>& sums) {
  Centring<A, W> centring(shift);
  if (reader.by_rows()) {
    A row[kPanel] = {};
    for (int64_t k = 0; k < count;) {
      int64_t length, stride;
      const auto* from = reader.row(begin + k, length, stride) + first;
      length = length < count - k ? length : count - k;
      for (const int64_t end = k + length; k < end; ++k, from += stride) {
        if (used == kPanel) {
          for (int c = 0; c < kPanel; ++c) row[c] = static_cast<A>(widen(from[c]));
        } else {
          for (int c = 0; c < used; ++c) row[c] = static_cast<A>(widen(from[c]));
        }
        centring.centre(row, panel + k * kPanel);
      }
    }
  } else {
    constexpr int kBlock = 16 / sizeof(A);  // variables transposed together
    A rows[kBlock * kChunk<A>];
    for (int block = 0; block < kPanel; block += kBlock) {
      for (int r = 0; r < kBlock; ++r) {
        A* to = rows + r * kChunk<A>;
        if (block + r < used) {
          reader.read(first + block + r, begin, count, to);
        } else {
          for (int64_t k = 0; k < count; ++k) to[k] = 0;
        }
      }
      int64_t k = 0;
      for (; k + kBlock <= count; k += kBlock)
        transpose_block(rows + k, panel + k * kPanel + block);
      for (; k < count; ++k)
        for (int r = 0; r < kBlock; ++r) panel[k * kPanel + block + r] = rows[r * kChunk<A> + k];
    }
    for (int64_t k = 0; k < count; ++k) centring.centre(panel + k * kPanel, panel + k * kPanel);
  }
  centring.finish(sums);
}

// The rank-one terms of a chunk's merge, 16 entries for each panel: moments += products +
// a_i deviation_j + b_i step_j.
struct MergeRows {
  const double *a, *b;
};
struct MergeColumns {
  const double *deviation, *step;
};

// moments (16 x 16, row major) += the tile of two panels and the rank-one terms.
template <class A, int W, int MR>
INFOSLICE_INLINE void tile_body(const A* left, const A* right, int64_t count, MergeRows rows,
                                MergeColumns columns, double* moments) {
  using V = Vec<A, W>;
  constexpr int kVectors = kPanel / W;
  A tile[kPanel * kPanel];
  for (int r0 = 0; r0 < kPanel; r0 += MR) {
    V sums[MR][kVectors] = {};
    for (int64_t k = 0; k < count; ++k) {
      V b[kVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) b[v] = load<V>(right + k * kPanel + v * W);
#pragma GCC unroll 16
      for (int r = 0; r < MR; ++r) {
        const A a = left[k * kPanel + r0 + r];
#pragma GCC unroll 16
        for (int v = 0; v < kVectors; ++v) sums[r][v] += a * b[v];
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVectors; ++v) store(tile + (r0 + r) * kPanel + v * W, sums[r][v]);
    }
  }
  for (int r = 0; r < kPanel; ++r)
    for (int c = 0; c < kPanel; ++c)
      moments[r * kPanel + c] += static_cast<double>(tile[r * kPanel + c]) +
                                 rows.a[r] * columns.deviation[c] + rows.b[r] * columns.step[c];
}

// Thin entries, one for each CPU level.
#define INFOSLICE_PACK_ENTRY(suffix, target, bytes)                                              \
  template <class A, class Reader>                                                               \
  target void pack_panel_##suffix(const Reader& reader, int64_t first, int used, int64_t begin,  \
                                  int64_t count, const A* shift, A* panel, PanelSums<A>& sums) { \
    pack_panel_body<A, bytes / int(sizeof(A))>(reader, first, used, begin, count, shift, panel,  \
                                               sums);                                            \
  }
INFOSLICE_PACK_ENTRY(v4, INFOSLICE_TARGET_V4, 64)
INFOSLICE_PACK_ENTRY(v3, INFOSLICE_TARGET_V3, 32)
INFOSLICE_PACK_ENTRY(base, , 16)
#undef INFOSLICE_PACK_ENTRY

#define INFOSLICE_TILES_ENTRY(suffix, target, bytes, accumulators)                          \
  template <class A>                                                                        \
  target void tile_##suffix(const A* left, const A* right, int64_t count, MergeRows rows,   \
                            MergeColumns columns, double* moments) {                        \
    constexpr int kLanes = bytes / int(sizeof(A));                                          \
    tile_body<A, kLanes, accumulators * kLanes / kPanel>(left, right, count, rows, columns, \
                                                         moments);                          \
  }
INFOSLICE_TILES_ENTRY(v4, INFOSLICE_TARGET_V4, 64, 16)
INFOSLICE_TILES_ENTRY(v3, INFOSLICE_TARGET_V3, 32, 8)
INFOSLICE_TILES_ENTRY(base, , 16, 8)
#undef INFOSLICE_TILES_ENTRY

template <class A, class Reader>
void pack_panel(const Reader& reader, int64_t first, int used, int64_t begin, int64_t count,
                const A* shift, A* panel, PanelSums<A>& sums) {
  switch (cpu_level()) {
    case CpuLevel::v4:
      return pack_panel_v4(reader, first, used, begin, count, shift, panel, sums);
    case CpuLevel::v3:
      return pack_panel_v3(reader, first, used, begin, count, shift, panel, sums);
    case CpuLevel::baseline:
      return pack_panel_base(reader, first, used, begin, count, shift, panel, sums);
  }
}

// What the driver sees of an input: the number of variables and samples, and panels of it. Virtual,
// so that the driver is compiled once for each working type and not for each kind and type of
// input.
class Source {
 public:
  virtual ~Source() = default;
  virtual int64_t variables() const = 0;
  virtual int64_t count() const = 0;
  virtual void read(int64_t variable, int64_t begin, int64_t count, float* to) const = 0;
  virtual void read(int64_t variable, int64_t begin, int64_t count, double* to) const = 0;
  virtual void pack(int64_t first, int used, int64_t begin, int64_t count, const float* shift,
                    float* panel, PanelSums<float>& sums) const = 0;
  virtual void pack(int64_t first, int used, int64_t begin, int64_t count, const double* shift,
                    double* panel, PanelSums<double>& sums) const = 0;
};

template <class Reader>
class PackedSource final : public Source {
 public:
  explicit PackedSource(const Reader& reader) : reader_(reader) {}
  int64_t variables() const override { return reader_.variables(); }
  int64_t count() const override { return reader_.count(); }
  void read(int64_t variable, int64_t begin, int64_t count, float* to) const override {
    reader_.read(variable, begin, count, to);
  }
  void read(int64_t variable, int64_t begin, int64_t count, double* to) const override {
    reader_.read(variable, begin, count, to);
  }
  void pack(int64_t first, int used, int64_t begin, int64_t count, const float* shift, float* panel,
            PanelSums<float>& sums) const override {
    // Double inputs have double tiles.
    if constexpr (!std::is_same_v<typename Reader::T, double>)
      pack_panel(reader_, first, used, begin, count, shift, panel, sums);
  }
  void pack(int64_t first, int used, int64_t begin, int64_t count, const double* shift,
            double* panel, PanelSums<double>& sums) const override {
    pack_panel(reader_, first, used, begin, count, shift, panel, sums);
  }

 private:
  const Reader reader_;
};

template <class A>
void tile(const A* left, const A* right, int64_t count, MergeRows rows, MergeColumns columns,
          double* moments) {
  switch (cpu_level()) {
    case CpuLevel::v4:
      return tile_v4(left, right, count, rows, columns, moments);
    case CpuLevel::v3:
      return tile_v3(left, right, count, rows, columns, moments);
    case CpuLevel::baseline:
      return tile_base(left, right, count, rows, columns, moments);
  }
}

}  // namespace infoslice::cpu
