#include "cholesky.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/parallel.h"
#include "cpu/dense.h"
#include "cpu/interleaved.h"
#include "cpu/transpose.h"
#include "cpu/widest.h"

namespace infoslice::cpu {
namespace {

// Up to these orders matrices are factored one per lane of a register. Small ones always, if there
// are two: alone they leave most of a register empty. Larger ones in whole groups, the rest one by
// one: above the second limit the interleaved matrices of a group fall out of the caches.
constexpr int64_t kInterleavedOrder = 64;
constexpr int64_t kInterleavedGroupOrder = 192;
constexpr int64_t kGroup = 16;  // the most lanes there are

/// A product of positive numbers as mantissa and exponent.
struct Product {
  double mantissa = 1;
  int64_t exponent = 0;

  INFOSLICE_INLINE void multiply(double factor) {
    // A subnormal has no implicit leading one: scale it into the normal range first.
    const bool subnormal = factor < std::numeric_limits<double>::min();
    mantissa *= split(subnormal ? factor * 0x1p54 : factor);
    exponent -= subnormal ? 54 : 0;
  }
  /// To be called before 1000 mantissas below 2 can overflow.
  INFOSLICE_INLINE void normalise() { mantissa = split(mantissa); }
  double log() const {
    return std::log(mantissa) + static_cast<double>(exponent) * 0.69314718055994530942;
  }

 private:
  INFOSLICE_INLINE double split(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    exponent += static_cast<int64_t>(bits >> 52) - 1023;
    bits = (bits & 0x000fffffffffffffu) | 0x3ff0000000000000u;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
  }
};

INFOSLICE_WIDEST(void, interleaved, (const Batch<float>& batch, float* workspace), interleaved_body,
                 (batch, workspace))
INFOSLICE_WIDEST(void, interleaved, (const Batch<double>& batch, double* workspace),
                 interleaved_body, (batch, workspace))

// ---- one matrix at a time -----------------------------------------------------------------------

/// The upper triangle of `to`, zeros in its padding, from the lower triangle of matrix b of the batch.
template <class T>
void load_matrix(const Batch<T>& batch, int64_t b, T* to, int64_t stride) {
  const int64_t d = batch.d;
  for (int64_t i = 0; i < d; ++i) std::fill(to + i * stride + d, to + (i + 1) * stride, T(0));
  if (!batch.index) return load_upper(batch.a + b * d * d, d, to, stride);
  const int64_t* index = batch.index + b * d;
  for (int64_t i = 0; i < d; ++i) {
    std::fill(to + i * stride, to + i * stride + i, T(0));
    for (int64_t j = i; j < d; ++j)
      to[i * stride + j] =
          batch.a[lower_offset(index[i] * batch.n, index[i], index[j] * batch.n, index[j])];
    if (std::find(index, index + i, index[i]) != index + i)
      to[i * stride + i] = std::numeric_limits<T>::quiet_NaN();
  }
}

/// Matrix b; `next` as in Rows.
template <class T>
void one_matrix(const Batch<T>& batch, int64_t b, const T* next, T* workspace, int threads) {
  const int64_t d = batch.d, stride = padded_stride<T>(d);
  load_matrix(batch, b, workspace, stride);
  const int64_t info = eliminate(Rows<T>{workspace, 0, d, d, stride, d, next}, threads);
  const T failed = std::numeric_limits<T>::quiet_NaN();
  batch.info[b] = static_cast<int32_t>(info);
  if (batch.logdet) {
    Product product;
    for (int64_t i = 0; i < d && info == 0; ++i) {
      product.multiply(workspace[i * stride + i]);
      if (i % 512 == 511) product.normalise();
    }
    batch.logdet[b] = info ? failed : static_cast<T>(2 * product.log());
  }
  if (!batch.factor) return;
  T* const factor = batch.factor + b * d * d;
  if (info == 0) {
    store_lower(workspace, d, stride, factor);
  } else {
    for (int64_t i = 0; i < d; ++i) {
      std::fill(factor + i * d, factor + i * d + i + 1, failed);
      std::fill(factor + i * d + i + 1, factor + (i + 1) * d, T(0));
    }
  }
}

template <class T>
void run(const Batch<T>& batch, int threads) {
  const int64_t d = batch.d;
  if (batch.count == 0 || d == 0) return;
  const double square = static_cast<double>(d) * d, gathering = batch.index ? 0.6 : 0;
  const double nanoseconds = sizeof(T) / 4.0 * (d / 240.0 + 1.0 / 6) * square + gathering * square;
  threads = threads_for(threads, static_cast<double>(batch.count) * nanoseconds);
  // The first `laned` matrices are interleaved. Tasks are whole groups of them, so that the company
  // of a matrix in its register does not depend on the number of threads.
  const int64_t laned = d <= kInterleavedOrder && batch.count > 1 ? batch.count
                        : d <= kInterleavedGroupOrder             ? batch.count / kGroup * kGroup
                                                                  : 0;
  const int64_t groups = (laned + kGroup - 1) / kGroup;
  const int64_t units = groups + batch.count - laned;
  // A few large matrices one after the other, each on all threads.
  const bool in_turn = d >= 2048 && batch.count < threads;
  const int64_t tasks = in_turn ? 1 : std::min<int64_t>(units, 4 * threads);
  const auto start = [&](int64_t unit) {
    return unit < groups ? unit * kGroup : laned + unit - groups;
  };
  parallel_for(threads, tasks, [&](int64_t task) {
    const int64_t begin = start(units * task / tasks), end = start(units * (task + 1) / tasks);
    if (begin < laned) {
      const int64_t bytes = interleaved_workspace(d, batch.index != nullptr);
      Workspace<T> workspace(bytes / static_cast<int64_t>(sizeof(T)));
      interleaved(batch.part(begin, std::min(end, laned)), workspace.get());
    }
    if (end > laned) {
      Workspace<T> workspace(d * padded_stride<T>(d));
      const bool ahead =  // fits L2 beside this
          !batch.index && d * d * static_cast<int64_t>(sizeof(T)) <= 3 << 17;
      for (int64_t b = std::max(begin, laned); b < end; ++b) {
        const T* next = ahead && b + 1 < end ? batch.a + (b + 1) * d * d : nullptr;
        one_matrix(batch, b, next, workspace.get(), threads);
      }
    }
  });
}

}  // namespace

template <class T>
void cholesky(const T* a, int64_t batch, int64_t d, T* factor, int32_t* info, int threads) {
  run(Batch<T>{a, batch, d, factor, nullptr, info}, threads);
}

template <class T>
void logdet(const T* a, int64_t batch, int64_t d, T* logdet, int32_t* info, int threads) {
  run(Batch<T>{a, batch, d, nullptr, logdet, info}, threads);
}

template <class T>
void submatrix_logdet(const T* cov, int64_t n, const int64_t* index, int64_t count, int64_t k,
                      T* logdet, int32_t* info, int threads) {
  run(Batch<T>{cov, count, k, nullptr, logdet, info, index, n}, threads);
}

template void cholesky(const float*, int64_t, int64_t, float*, int32_t*, int);
template void cholesky(const double*, int64_t, int64_t, double*, int32_t*, int);
template void logdet(const float*, int64_t, int64_t, float*, int32_t*, int);
template void logdet(const double*, int64_t, int64_t, double*, int32_t*, int);
template void submatrix_logdet(const float*, int64_t, const int64_t*, int64_t, int64_t, float*,
                               int32_t*, int);
template void submatrix_logdet(const double*, int64_t, const int64_t*, int64_t, int64_t, double*,
                               int32_t*, int);

}  // namespace infoslice::cpu
