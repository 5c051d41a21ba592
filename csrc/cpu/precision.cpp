#include "precision.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "cpu/dense.h"
#include "cpu/transpose.h"

namespace infoslice::cpu {
namespace {

/// out[c] = sum_r w[r][c]^2, row by row so that the loop over columns vectorises without reordering
/// a sum.
void column_norms(const double* w, int64_t d, int64_t stride, double* out) {
  std::fill(out, out + d, 0.0);
  for (int64_t r = 0; r < d; ++r) {
    const double* row = w + r * stride;
    for (int64_t c = 0; c <= r; ++c) out[c] += row[c] * row[c];
  }
}

/// Writes the blocks of one inverse unless a leading minor fails; returns which, or 0.
template <class T>
int64_t one_matrix(const T* a, int64_t d, int64_t block, T* blocks, int threads) {
  const int64_t stride = padded_stride<double>(2 * d);
  const Workspace<double> m(d * stride);
  load_upper(a, d, m.get(), stride);
  for (int64_t i = 0; i < d; ++i) {
    double* const row = m.get() + i * stride;
    std::fill(row + d, row + stride, 0.0);
    row[d + i] = 1;
  }
  if (const int64_t failed = eliminate(Rows<double>{m.get(), 0, d, 2 * d, stride, d}, threads))
    return failed;
  const double* w = m.get() + d;
  if (block == 1) {
    std::vector<double> norms(static_cast<size_t>(d));
    column_norms(w, d, stride, norms.data());
    std::transform(norms.begin(), norms.end(), blocks, [](double v) { return static_cast<T>(v); });
    return 0;
  }
  const int64_t narrow = padded_stride<double>(block);
  const Workspace<double> columns(d * narrow), product(block * narrow);
  for (int64_t first = 0; first < d; first += block) {
    const int64_t rows = d - first;  // above its block a column of W is zero
    for (int64_t r = 0; r < rows; ++r) {
      const double* source = w + (first + r) * stride + first;
      double* row = columns.get() + r * narrow;
      std::fill(std::copy(source, source + block, row), row + narrow, 0.0);
    }
    gram(columns.get(), rows, block, narrow, product.get(), narrow);
    T* out = blocks + first * block;
    for (int64_t i = 0; i < block; ++i) {
      for (int64_t j = i; j < block; ++j) {
        out[i * block + j] = out[j * block + i] = static_cast<T>(product.get()[i * narrow + j]);
      }
    }
  }
  return 0;
}

}  // namespace

template <class T>
void precision_blocks(const T* a, int64_t batch, int64_t d, int64_t block, T* blocks, int32_t* info,
                      int threads) {
  if (d == 0) return;
  const double nanoseconds = static_cast<double>(batch) * d * d * (d / 30.0 + block / 15.0 + 1);
  threads = threads_for(threads, nanoseconds);
  parallel_for(threads, batch, [&](int64_t b) {
    T* const begin = blocks + b * d * block;
    T* const end = begin + d * block;
    int64_t failed = one_matrix(a + b * d * d, d, block, begin, threads);
    const auto finite = [](T value) { return std::isfinite(value); };
    if (failed == 0 && !std::all_of(begin, end, finite)) failed = d + 1;
    if (failed != 0) std::fill(begin, end, std::numeric_limits<T>::quiet_NaN());
    info[b] = static_cast<int32_t>(failed);
  });
}

template void precision_blocks(const float*, int64_t, int64_t, int64_t, float*, int32_t*, int);
template void precision_blocks(const double*, int64_t, int64_t, int64_t, double*, int32_t*, int);

}  // namespace infoslice::cpu
