#include "cpu/dense.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "common/parallel.h"
#include "cpu/widest.h"

namespace infoslice::cpu {
namespace {

// A tile of kGroup rows and kVectors registers a row is what the register file holds: 8 x 3 take 11
// loads for 24 multiplications.
constexpr int kVectors = 3;
template <int Bytes>
constexpr int kGroup = Bytes == 64 ? 8 : 4;

constexpr int64_t kPack = 8;        // multipliers side by side in memory: the largest group
constexpr int64_t kRowBlock = 192;  // rows finished together, a multiple of every strip and group
// Rows summed in one go: their strip stays in L2 for a block of rows, and rounding errors stay those of
// short sums.
constexpr int64_t kDepth = 192;

template <class T, int Bytes>
constexpr int kLanes = Bytes / static_cast<int>(sizeof(T));
template <class T, int Bytes>
using Lanes = Vec<T, kLanes<T, Bytes>>;
template <int N>
using Constant = std::integral_constant<int, N>;

/// Registers of the next tile for the columns from `column` to `last`.
template <class T, int Bytes>
INFOSLICE_INLINE int64_t tile_width(int64_t column, int64_t last) {
  constexpr int64_t L = kLanes<T, Bytes>;
  return std::min<int64_t>(kVectors, (last - column + L - 1) / L);
}

/// acc[i][:] += sign * sum_j left[j][i] * right[j][:], the inner loop of everything.
template <class T, int Bytes, int Sign, int Group, int Vectors>
INFOSLICE_INLINE void accumulate(Lanes<T, Bytes> (&acc)[Group][Vectors], const T* left,
                                 int64_t left_stride, const T* right, int64_t right_stride,
                                 int64_t count) {
  using V = Lanes<T, Bytes>;
  for (int64_t j = 0; j < count; ++j, left += left_stride, right += right_stride) {
    V value[Vectors];
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) value[v] = load<V>(right + v * kLanes<T, Bytes>);
#pragma GCC unroll 8
    for (int i = 0; i < Group; ++i) {
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) {
        if (Sign < 0) {
          acc[i][v] -= value[v] * left[i];
        } else {
          acc[i][v] += value[v] * left[i];
        }
      }
    }
  }
}

/// Calls tile(row, Group, vector, Vectors) for the tiles of `rows` rows and `vectors` registers that
/// reach the diagonal through element (offset, 0) or lie above it.
template <class T, int Bytes, class Tile>
INFOSLICE_INLINE void for_tiles(int64_t rows, int64_t offset, int64_t vectors, const Tile& tile) {
  constexpr int64_t L = kLanes<T, Bytes>;
  constexpr int group = kGroup<Bytes>;
  const auto wide = [&](int64_t row, auto count) __attribute__((always_inline)) {
    const int64_t vector = std::max<int64_t>(0, (row - offset) / L);
    if (vectors - vector == 3) tile(row, count, vector, Constant<3>());
    if (vectors - vector == 2) tile(row, count, vector, Constant<2>());
    if (vectors - vector == 1) tile(row, count, vector, Constant<1>());
  };
  rows = std::min(rows, offset + vectors * L);
  int64_t row = 0;
  for (; row + group <= rows; row += group) wide(row, Constant<group>());
  for (; row < rows; ++row) wide(row, Constant<1>());
}

// ---- products -----------------------------------------------------------------------------------

/// A block of rows of c += sign * left' right.
template <class T>
struct Product {
  const T* left;  ///< as pack() leaves it
  const T* right;
  int64_t stride;  ///< of right
  int64_t depth;   ///< rows of left and right
  int64_t rows;    ///< of c: columns of left
  T sign;          ///< 1 or -1
};

/// `columns` columns of `rows` rows as [column / kPack][row][kPack]: one stream for a tile.
template <class T>
void pack(const T* from, int64_t rows, int64_t columns, int64_t stride, T* packed) {
  for (int64_t i = 0; i < columns; i += kPack) {
    for (int64_t j = 0; j < rows; ++j, packed += kPack) {
      std::copy_n(from + j * stride + i, kPack, packed);
    }
  }
}

/// The strip of `vectors` registers at `column` of right, which is zero before row `first`.
template <class T, int Bytes>
INFOSLICE_INLINE void multiply_strip(const Product<T>& p, int64_t column, int64_t first,
                                     int64_t offset, int64_t vectors, T* c, int64_t c_stride) {
  constexpr int L = kLanes<T, Bytes>;
  using V = Lanes<T, Bytes>;
  for (int64_t j = first; j < p.depth; j += kDepth) {
    const T* const right = p.right + j * p.stride + column;
    const int64_t count = std::min(kDepth, p.depth - j);
    for_tiles<T, Bytes>(
        p.rows, offset, vectors,
        [&](int64_t row, auto group, int64_t vector, auto wide) __attribute__((always_inline)) {
          constexpr int Group = decltype(group)::value, Vectors = decltype(wide)::value;
          T* const own = c + row * c_stride + vector * L;
#pragma GCC unroll 8
          for (int i = 0; i < Group; ++i) {
            // The tile to the right comes next: c may be larger than any cache.
            for (int v = 0; v < Vectors; v += 64 / Bytes) {
              __builtin_prefetch(own + i * c_stride + (Vectors + v) * L, 1, 2);
            }
          }
          V acc[Group][Vectors] = {};
          const T* const left = p.left + (row / kPack * p.depth + j) * kPack + row % kPack;
          accumulate<T, Bytes, 1>(acc, left, kPack, right + vector * L, p.stride, count);
#pragma GCC unroll 8
          for (int i = 0; i < Group; ++i) {
#pragma GCC unroll 3
            for (int v = 0; v < Vectors; ++v) {
              T* const to = own + i * c_stride + v * L;
              store(to, load<V>(to) + acc[i][v] * p.sign);
            }
          }
        });
  }
}

template <int Bytes>
INFOSLICE_INLINE void add_gram_body(const double* b, int64_t rows, int64_t columns, int64_t stride,
                                    double* c, int64_t c_stride) {
  const Workspace<double> packed(rows * kRowBlock);
  for (int64_t block = 0; block < columns; block += kRowBlock) {
    const int64_t height = std::min(kRowBlock, columns - block);
    pack(b + block, rows, height, stride, packed.get());
    const Product<double> product{packed.get(), b, stride, rows, height, 1};
    int64_t vectors;
    for (int64_t s = block; s < columns; s += vectors * kLanes<double, Bytes>) {
      vectors = tile_width<double, Bytes>(s, columns);
      multiply_strip<double, Bytes>(product, s, 0, s - block, vectors, c + block * c_stride + s,
                                    c_stride);
    }
  }
}

// ---- elimination --------------------------------------------------------------------------------

/// The rows of A from `begin` to `end`, to be finished with those above.
template <class T>
struct RowBlock {
  const Rows<T>& m;
  int64_t begin, end;
  const T* multipliers;  ///< packed columns begin ... end of the rows above
  T* scale;              ///< reciprocals of the diagonal, from row `begin` on

  T* row(int64_t r) const { return m.data + (m.prior + r) * m.stride; }
  Product<T> above() const {
    return {multipliers, m.data, m.stride, m.prior + begin, end - begin, T(-1)};
  }
  /// Rows of A that are zero from `column` on.
  int64_t zeros(int64_t column) const { return column < m.identity ? 0 : column - m.identity; }
};

/// Finishes `Group` rows from k on of `Vectors` registers from column c on, of which everything
/// above the block is subtracted already. Returns 0 or the 1-based row whose pivot failed.
template <class T, int Bytes, int Group, int Vectors, bool Diagonal>
INFOSLICE_INLINE int64_t finish_tile(const RowBlock<T>& block, int64_t k, int64_t c) {
  using V = Lanes<T, Bytes>;
  constexpr int L = kLanes<T, Bytes>;
  const int64_t stride = block.m.stride;
  T* const own = block.row(k);
  T* const scale = block.scale + (k - block.begin);
  if (block.m.next) {  // the tile's place in a triangle that is turned by half a turn
    const int64_t d = block.m.rows;
    for (int i = 0; i < Group; ++i) {
      for (int v = 0; v < Vectors; v += 64 / Bytes) {
        __builtin_prefetch(block.m.next + (d - k - i) * d - 1 - c - v * L, 0, 2);
      }
    }
  }
  V acc[Group][Vectors];
#pragma GCC unroll 8
  for (int i = 0; i < Group; ++i) {
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) acc[i][v] = load<V>(own + i * stride + c + v * L);
  }
  const int64_t first = std::max(block.begin, std::min(k, block.zeros(c)));
  accumulate<T, Bytes, -1>(acc, block.row(first) + k, stride, block.row(first) + c, stride,
                           k - first);
#pragma GCC unroll 8
  for (int i = 0; i < Group; ++i) {
    T* const row = own + i * stride;
#pragma GCC unroll 8
    for (int t = 0; t < i; ++t) {
      const T multiplier = own[t * stride + k + i];
#pragma GCC unroll 3
      for (int v = 0; v < Vectors; ++v) acc[i][v] -= acc[t][v] * multiplier;
    }
    T root = 0;
    if (Diagonal) {
      constexpr int holders = std::min((Group + L - 1) / L, Vectors);  // of the diagonal
#pragma GCC unroll 2
      for (int v = 0; v < holders; ++v) store(row + c + v * L, acc[i][v]);
      const T pivot = row[k + i];
      if (!(pivot > T(0) && pivot <= std::numeric_limits<T>::max())) return k + i + 1;
      root = std::sqrt(pivot);
      scale[i] = T(1) / root;
    }
#pragma GCC unroll 3
    for (int v = 0; v < Vectors; ++v) {
      acc[i][v] *= scale[i];
      store(row + c + v * L, acc[i][v]);
    }
    if (Diagonal) row[k + i] = root;
  }
  return 0;
}

template <class T, int Bytes, int Group, bool Diagonal>
INFOSLICE_INLINE int64_t finish_tile(const RowBlock<T>& block, int64_t k, int64_t c,
                                     int64_t vectors) {
  if (vectors == 3) return finish_tile<T, Bytes, Group, 3, Diagonal>(block, k, c);
  if (vectors == 2) return finish_tile<T, Bytes, Group, 2, Diagonal>(block, k, c);
  return finish_tile<T, Bytes, Group, 1, Diagonal>(block, k, c);
}

/// `Group` rows from k on up to column `last`.
template <class T, int Bytes, int Group>
INFOSLICE_INLINE int64_t finish_rows(const RowBlock<T>& block, int64_t k, int64_t last) {
  constexpr int64_t L = kLanes<T, Bytes>;
  int64_t c = block.begin + (k - block.begin) / L * L;
  int64_t vectors = tile_width<T, Bytes>(c, last);
  const int64_t failed = finish_tile<T, Bytes, Group, true>(block, k, c, vectors);
  if (failed != 0) return failed;
  for (c += vectors * L; c < last; c += vectors * L) {
    vectors = tile_width<T, Bytes>(c, last);
    finish_tile<T, Bytes, Group, false>(block, k, c, vectors);
  }
  return 0;
}

/// The square that holds the diagonal: columns [block.begin, last). Returns like eliminate(). Goes
/// group by group, so that the sums of the next strip fill the waits for the pivots of this one.
template <int Bytes, class T>
INFOSLICE_INLINE int64_t finish_square_body(const RowBlock<T>& block, int64_t last) {
  constexpr int group = kGroup<Bytes>;
  int64_t vectors;
  for (int64_t c = block.begin; c < last; c += vectors * kLanes<T, Bytes>) {
    vectors = tile_width<T, Bytes>(c, last);
    multiply_strip<T, Bytes>(block.above(), c, 0, c - block.begin, vectors,
                             block.row(block.begin) + c, block.m.stride);
  }
  int64_t failed = 0, k = block.begin;
  for (; failed == 0 && k + group <= block.end; k += group) {
    failed = finish_rows<T, Bytes, group>(block, k, last);
  }
  for (; failed == 0 && k < block.end; ++k) failed = finish_rows<T, Bytes, 1>(block, k, last);
  return failed;
}

/// Columns [first, last) to the right of the square.
template <int Bytes, class T>
INFOSLICE_INLINE void finish_strips_body(const RowBlock<T>& block, int64_t first, int64_t last) {
  const int64_t rows = block.end - block.begin;
  int64_t vectors;
  for (int64_t c = first; c < last; c += vectors * kLanes<T, Bytes>) {
    vectors = tile_width<T, Bytes>(c, last);
    const int64_t zeros = block.zeros(c);
    multiply_strip<T, Bytes>(block.above(), c, c < block.m.identity ? 0 : block.m.prior + zeros,
                             rows, vectors, block.row(block.begin) + c, block.m.stride);
    for_tiles<T, Bytes>(
        rows, rows, vectors,
        [&](int64_t row, auto group, int64_t, auto wide) __attribute__((always_inline)) {
          constexpr int Group = decltype(group)::value, Vectors = decltype(wide)::value;
          const int64_t k = block.begin + row;
          if (k + Group > zeros) finish_tile<T, Bytes, Group, Vectors, false>(block, k, c);
        });
  }
}

INFOSLICE_WIDEST(int64_t, finish_square, (const RowBlock<float>& block, int64_t last),
                 finish_square_body, (block, last))
INFOSLICE_WIDEST(int64_t, finish_square, (const RowBlock<double>& block, int64_t last),
                 finish_square_body, (block, last))
INFOSLICE_WIDEST(void, finish_strips, (const RowBlock<float>& block, int64_t first, int64_t last),
                 finish_strips_body, (block, first, last))
INFOSLICE_WIDEST(void, finish_strips, (const RowBlock<double>& block, int64_t first, int64_t last),
                 finish_strips_body, (block, first, last))
INFOSLICE_WIDEST(void, add_gram,
                 (const double* b, int64_t rows, int64_t columns, int64_t stride, double* c,
                  int64_t c_stride),
                 add_gram_body, (b, rows, columns, stride, c, c_stride))

/// Block of rows by block of rows, each with everything above it at once (left-looking), so that a
/// matrix larger than the caches is written once.
template <class T>
int64_t eliminate_rows(const Rows<T>& m, int threads) {
  const int64_t last_block = (m.rows - 1) / kRowBlock * kRowBlock;
  const Workspace<T> packed((m.prior + last_block) * kRowBlock);
  T scale[kRowBlock];
  for (int64_t begin = 0; begin < m.rows; begin += kRowBlock) {
    const int64_t end = std::min(begin + kRowBlock, m.rows), depth = m.prior + begin;
    pack(m.data + begin, depth, end - begin, m.stride, packed.get());
    const RowBlock<T> block{m, begin, end, packed.get(), scale};
    const int64_t square = std::min(begin + kRowBlock, m.columns);
    if (const int64_t failed = finish_square(block, square)) return failed;
    const int64_t last = std::min(m.columns, m.identity + end);  // zeros behind it
    const int64_t columns = last - square;
    const double flops = 2.0 * static_cast<double>(end - begin) * static_cast<double>(columns) *
                         static_cast<double>(depth + (end - begin) / 2);
    const int parts = threads_for(threads, flops * static_cast<double>(sizeof(T)) / 400);
    constexpr int64_t task = 144;  // columns, a multiple of every strip
    parallel_for(parts, (columns + task - 1) / task, [&](int64_t i) {
      const int64_t first = square + i * task;
      finish_strips(block, first, std::min(first + task, last));
    });
  }
  return 0;
}

}  // namespace

int64_t eliminate(const Rows<float>& m, int threads) { return eliminate_rows(m, threads); }
int64_t eliminate(const Rows<double>& m, int threads) { return eliminate_rows(m, threads); }

void gram(const double* b, int64_t rows, int64_t columns, int64_t stride, double* c,
          int64_t c_stride) {
  for (int64_t i = 0; i < columns; ++i) std::fill_n(c + i * c_stride, (columns + 7) / 8 * 8, 0.0);
  add_gram(b, rows, columns, stride, c, c_stride);
}

}  // namespace infoslice::cpu
