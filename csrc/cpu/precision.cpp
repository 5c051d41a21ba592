#include "precision.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "common/parallel.h"
#include "cpu/dense.h"

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

template <class T>
void one_matrix(const T* a, int64_t d, int64_t block, T* blocks, int32_t* info) {
  const int64_t stride = padded_stride<double>(2 * d);
  const Workspace<double> m(d * stride);
  load_upper(a, d, m.get(), stride, stride);
  for (int64_t i = 0; i < d; ++i) m.get()[i * stride + d + i] = 1;
  *info = static_cast<int32_t>(eliminate(Rows<double>{m.get(), 0, d, 2 * d, stride, d}));
  if (*info) {
    std::fill(blocks, blocks + d * block, std::numeric_limits<T>::quiet_NaN());
    return;
  }
  const double* w = m.get() + d;
  if (block == 1) {
    std::vector<double> norms(static_cast<size_t>(d));
    column_norms(w, d, stride, norms.data());
    std::transform(norms.begin(), norms.end(), blocks, [](double v) { return static_cast<T>(v); });
    return;
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
}

}  // namespace

template <class T>
void precision_blocks(const T* a, int64_t batch, int64_t d, int64_t block, T* blocks, int32_t* info,
                      int threads) {
  if (d == 0) return;
  const double nanoseconds = static_cast<double>(batch) * d * d * (d / 30.0 + block / 15.0 + 1);
  threads = threads_for(threads, nanoseconds);
  parallel_for(threads, batch, [&](int64_t b) {
    one_matrix(a + b * d * d, d, block, blocks + b * d * block, info + b);
  });
}

template void precision_blocks(const float*, int64_t, int64_t, int64_t, float*, int32_t*, int);
template void precision_blocks(const double*, int64_t, int64_t, int64_t, double*, int32_t*, int);

}  // namespace infoslice::cpu
