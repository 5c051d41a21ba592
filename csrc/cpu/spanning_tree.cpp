#include "spanning_tree.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "common/parallel.h"
#include "common/workspace.h"
#include "cpu/widest.h"

namespace infoslice::cpu {
namespace {

// Vectors that go through the loop over coordinates together, to hide the latency of their sums.
constexpr int kAbreast = 4;
// GCC 12 takes the masks of 64-byte vectors apart lane by lane: four times slower than half as wide.
constexpr int kWidest = 32;
// Elements to which rows are padded: a step of the widest loop.
constexpr int64_t kPadding = kAbreast * kWidest / 4;

template <class T>
using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

/// One tree in the making. Rows of `padded` elements; behind the n vertices stand copies of vertex 0
/// that are in the tree from the start.
template <class T>
struct Tree {
  const T* base;  // [n, n] or null
  int64_t n, d, padded;
  T* x;            // [d, padded]
  T* nearest;      // least D to the tree; -inf for the vertices in it
  Index<T>* from;  // the vertex of the tree that has it
  int64_t* edges;
  T* squared_lengths;
};

/// Grows the tree; false where a D is not finite.
template <int Bytes, class T>
INFOSLICE_INLINE bool grow_body(const Tree<T>& tree) {
  constexpr int64_t N = std::min(Bytes, kWidest) / sizeof(T), kStep = kAbreast * N;
  using V = Vec<T, static_cast<int>(N)>;
  using I = Vec<Index<T>, static_cast<int>(N)>;
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  const int64_t n = tree.n;
  alignas(64) T tail[kPadding];  // the last step of a row of base, which may end in its midst
  alignas(64) T values[N];
  alignas(64) Index<T> places[N];
  I iota;
  for (int64_t lane = 0; lane < N; ++lane) iota[lane] = static_cast<Index<T>>(lane);
  const int64_t whole = tree.base ? n / kStep * kStep : 0;
  std::fill(tail, tail + kPadding, T(0));
  I not_finite{};
  int64_t vertex = 0;
  for (int64_t edge = 0; edge < n - 1; ++edge) {
    tree.nearest[vertex] = -kInfinity;
    const T* const row = tree.base ? tree.base + vertex * n : nullptr;
    if (row) std::copy(row + whole, row + n, tail);
    const auto here = static_cast<Index<T>>(vertex);
    V lowest = V{} + kInfinity;
    I place{}, index = iota;
    for (int64_t u = 0; u < n; u += kStep) {
      V value[kAbreast];
      const T* const start = row && u < whole ? row + u : tail;
#pragma GCC unroll 4
      for (int a = 0; a < kAbreast; ++a) value[a] = load<V>(start + a * N);
      for (int64_t k = 0; k < tree.d; ++k) {
        const T* const x = tree.x + k * tree.padded;
        const V own = V{} + x[vertex];
#pragma GCC unroll 4
        for (int a = 0; a < kAbreast; ++a) {
          const V difference = load<V>(x + u + a * N) - own;
          value[a] += difference * difference;
        }
      }
#pragma GCC unroll 4
      for (int a = 0; a < kAbreast; ++a) {
        not_finite |= value[a] - value[a] != V{};
        T* const nearest = tree.nearest + u + a * N;
        Index<T>* const from = tree.from + u + a * N;
        const V before = load<V>(nearest);
        const I nearer = value[a] < before;
        const V now = nearer ? value[a] : before;
        store(nearest, now);
        store(from, nearer ? I{} + here : load<I>(from));
        const I lower = (now < lowest) & (now != V{} - kInfinity);
        lowest = lower ? now : lowest;
        place = lower ? index : place;
        index += static_cast<Index<T>>(N);
      }
    }
    store(values, lowest);
    store(places, place);
    int64_t best = 0;
    for (int64_t lane = 1; lane < N; ++lane) {
      if (values[lane] < values[best] ||
          (values[lane] == values[best] && places[lane] < places[best]))
        best = lane;
    }
    if (!(values[best] < kInfinity)) return false;
    vertex = places[best];
    tree.edges[2 * edge] = tree.from[vertex];
    tree.edges[2 * edge + 1] = vertex;
    tree.squared_lengths[edge] = values[best];
  }
  store(places, not_finite);
  return std::all_of(places, places + N, [](Index<T> lane) { return lane == 0; });
}

INFOSLICE_WIDEST(bool, grow, (const Tree<float>& tree), grow_body, (tree))
INFOSLICE_WIDEST(bool, grow, (const Tree<double>& tree), grow_body, (tree))

template <class T>
bool one_tree(const T* points, const T* base, int64_t n, int64_t d, int64_t* edges,
              T* squared_lengths) {
  const int64_t padded = (n + kPadding - 1) / kPadding * kPadding;
  const Workspace<T> x(d * padded), nearest(padded);
  const Workspace<Index<T>> from(padded);
  for (int64_t k = 0; k < d; ++k) {
    T* const row = x.get() + k * padded;
    for (int64_t i = 0; i < n; ++i) row[i] = points[i * d + k];
    std::fill(row + n, row + padded, points[k]);
  }
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  std::fill(nearest.begin(), nearest.begin() + n, kInfinity);
  std::fill(nearest.begin() + n, nearest.end(), -kInfinity);
  std::fill(from.begin(), from.end(), Index<T>(0));
  return grow(
      Tree<T>{base, n, d, padded, x.get(), nearest.get(), from.get(), edges, squared_lengths});
}

}  // namespace

template <class T>
void spanning_tree(const T* points, const T* base, int64_t batch, int64_t n, int64_t d,
                   int64_t* edges, T* squared_lengths, int32_t* info, int threads) {
  const double pairs = static_cast<double>(batch) * static_cast<double>(n) * static_cast<double>(n);
  threads = threads_for(threads, pairs * static_cast<double>(d + 8) * sizeof(T) / 50.0);
  parallel_for(threads, batch, [&](int64_t b) {
    int64_t* const to = edges + b * (n - 1) * 2;
    T* const lengths = squared_lengths + b * (n - 1);
    const bool finite = one_tree(points + b * n * d, base, n, d, to, lengths);
    if (!finite) {
      std::fill(to, to + (n - 1) * 2, int64_t{-1});
      std::fill(lengths, lengths + n - 1, std::numeric_limits<T>::quiet_NaN());
    }
    info[b] = finite ? 0 : 1;
  });
}

template void spanning_tree(const float*, const float*, int64_t, int64_t, int64_t, int64_t*, float*,
                            int32_t*, int);
template void spanning_tree(const double*, const double*, int64_t, int64_t, int64_t, int64_t*,
                            double*, int32_t*, int);

}  // namespace infoslice::cpu
