#include "cholesky.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "common/parallel.h"
#include "cpu/dense.h"
#include "cpu/widest.h"

namespace infoslice::cpu {
namespace {

// Up to this order a batch is factored with one matrix per lane: no shuffles, no tails, no short
// loops. Above it the interleaved matrices fall out of L2 and one matrix alone fills the registers.
constexpr int64_t kInterleavedOrder = 64;
constexpr int kTile = 4;  // rows and columns of a register tile of the interleaved kernel

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

// ---- one matrix per lane ------------------------------------------------------------------------

template <class T>
struct Batch {
  const T* a;
  int64_t count;
  int64_t d;
  T* factor;  // null where only the log-determinant is wanted
  T* logdet;  // null where only the factor is wanted
  int32_t* info;
};

constexpr int64_t tiled(int64_t d) { return (d + kTile - 1) / kTile * kTile; }

/// u[j][i] = lane by lane element (i, j) of the lower triangle; the border up to a whole tile is
/// the identity.
template <class V, int L, class T>
INFOSLICE_INLINE void interleave(const T* a, int64_t count, int64_t d, V* u) {
  const int64_t order = tiled(d);
  const T* source[L];  // idle lanes repeat the last matrix
  for (int l = 0; l < L; ++l) source[l] = a + std::min<int64_t>(l, count - 1) * d * d;
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      T* to = reinterpret_cast<T*>(u + j * order + i);
      for (int l = 0; l < L; ++l) to[l] = source[l][i * d + j];
    }
  }
  for (int64_t i = d; i < order; ++i) {
    for (int64_t j = 0; j <= i; ++j) u[j * order + i] = V{} + (i == j ? T(1) : T(0));
  }
}

/// Factors the interleaved matrices in place (u upper triangular, u'u = A) and collects what the
/// pivots tell.
template <class V, int L, class T>
INFOSLICE_INLINE void factor_lanes(V* u, int64_t d, bool want_logdet, Product (&product)[L],
                                   int32_t (&info)[L]) {
  const int64_t order = tiled(d);
  for (int64_t k = 0; k < order; k += kTile) {
    V scale[kTile];
    for (int64_t c = k; c < order; c += kTile) {
      V acc[kTile][kTile];
      for (int i = 0; i < kTile; ++i) {
        for (int j = 0; j < kTile; ++j) acc[i][j] = u[(k + i) * order + c + j];
      }
      for (int64_t r = 0; r < k; ++r) {
        const V* row = u + r * order;
        for (int i = 0; i < kTile; ++i) {
          for (int j = 0; j < kTile; ++j) acc[i][j] -= row[k + i] * row[c + j];
        }
      }
      for (int i = 0; i < kTile; ++i) {
        for (int t = 0; t < i; ++t) {
          const V multiplier = c == k ? acc[t][i] : u[(k + t) * order + k + i];
          for (int j = 0; j < kTile; ++j) acc[i][j] -= multiplier * acc[t][j];
        }
        if (c == k) {
          T pivot[L], inverse_root[L];
          std::memcpy(pivot, &acc[i][i], sizeof(pivot));
          for (int l = 0; l < L; ++l) inverse_root[l] = T(1) / std::sqrt(pivot[l]);
          std::memcpy(&scale[i], inverse_root, sizeof(inverse_root));
          for (int l = 0; l < L; ++l) {
            const bool good = pivot[l] > T(0) && pivot[l] <= std::numeric_limits<T>::max();
            info[l] = info[l] == 0 && !good ? static_cast<int32_t>(k + i + 1) : info[l];
          }
          if (want_logdet) {
            for (int l = 0; l < L; ++l) product[l].multiply(pivot[l]);
          }
        }
        for (int j = 0; j < kTile; ++j) {
          acc[i][j] *= scale[i];
          u[(k + i) * order + c + j] = acc[i][j];
        }
      }
    }
  }
}

template <int Bytes, class T>
INFOSLICE_INLINE void interleaved_body(const Batch<T>& batch, T* workspace) {
  constexpr int L = Bytes / static_cast<int>(sizeof(T));
  using V = Vec<T, L>;
  const int64_t d = batch.d, order = tiled(d);
  V* u = reinterpret_cast<V*>(workspace);
  for (int64_t begin = 0; begin < batch.count; begin += L) {
    const int lanes = static_cast<int>(std::min<int64_t>(L, batch.count - begin));
    Product product[L];
    int32_t info[L] = {};
    interleave<V, L>(batch.a + begin * d * d, lanes, d, u);
    factor_lanes<V, L, T>(u, d, batch.logdet != nullptr, product, info);
    for (int l = 0; l < lanes; ++l) {
      const T failed = std::numeric_limits<T>::quiet_NaN();
      batch.info[begin + l] = info[l];
      if (batch.logdet)
        batch.logdet[begin + l] = info[l] ? failed : static_cast<T>(product[l].log());
      if (!batch.factor) continue;
      T* out = batch.factor + (begin + l) * d * d;
      for (int64_t i = 0; i < d; ++i) {
        for (int64_t j = 0; j <= i; ++j) {
          out[i * d + j] = info[l] ? failed : reinterpret_cast<const T*>(u + j * order + i)[l];
        }
        std::fill(out + i * d + i + 1, out + (i + 1) * d, T(0));
      }
    }
  }
}

INFOSLICE_WIDEST(void, interleaved, (const Batch<float>& batch, float* workspace), interleaved_body,
                 (batch, workspace))
INFOSLICE_WIDEST(void, interleaved, (const Batch<double>& batch, double* workspace),
                 interleaved_body, (batch, workspace))

// ---- one matrix at a time -----------------------------------------------------------------------

template <class T>
void one_matrix(const T* a, int64_t d, T* factor, T* logdet, int32_t* info, T* workspace) {
  const int64_t stride = padded_stride<T>(d);
  load_upper(a, d, workspace, stride, stride);
  *info = static_cast<int32_t>(eliminate(Rows<T>{workspace, 0, d, d, stride, d}));
  const T failed = std::numeric_limits<T>::quiet_NaN();
  if (logdet) {
    Product product;
    for (int64_t i = 0; i < d && *info == 0; ++i) {
      product.multiply(workspace[i * stride + i]);
      product.normalise();
    }
    *logdet = *info ? failed : static_cast<T>(2 * product.log());
  }
  if (factor) {
    for (int64_t i = 0; i < d; ++i) std::fill(factor + i * d + i, factor + (i + 1) * d, T(0));
    if (*info) {
      for (int64_t i = 0; i < d; ++i) std::fill(factor + i * d, factor + i * d + i + 1, failed);
    } else {
      transpose_upper(workspace, d, stride, factor, d);
    }
  }
}

template <class T>
void run(const Batch<T>& batch, int threads) {
  const int64_t d = batch.d;
  if (batch.count == 0 || d == 0) return;
  const double flops = static_cast<double>(d) * d * d / 3 + 10.0 * d * d;
  threads = threads_for(threads, static_cast<double>(batch.count) * flops / 20);
  const bool small = d <= kInterleavedOrder && batch.count > 1;
  const int64_t tasks = std::min<int64_t>(batch.count, 4 * threads);
  parallel_for(threads, tasks, [&](int64_t task) {
    // Whole groups of 16 lanes per task, so that the lanes of a matrix do not depend on the number
    // of threads.
    const int64_t unit = small ? 16 : 1;
    const int64_t units = (batch.count + unit - 1) / unit;
    const int64_t begin = units * task / tasks * unit;
    const int64_t end = std::min(batch.count, units * (task + 1) / tasks * unit);
    if (begin >= end) return;
    if (small) {
      Workspace<T> workspace(tiled(d) * tiled(d) * 64 / static_cast<int64_t>(sizeof(T)));
      interleaved(Batch<T>{batch.a + begin * d * d, end - begin, d,
                           batch.factor ? batch.factor + begin * d * d : nullptr,
                           batch.logdet ? batch.logdet + begin : nullptr, batch.info + begin},
                  workspace.get());
    } else {
      Workspace<T> workspace(d * padded_stride<T>(d));
      for (int64_t b = begin; b < end; ++b) {
        one_matrix(batch.a + b * d * d, d, batch.factor ? batch.factor + b * d * d : nullptr,
                   batch.logdet ? batch.logdet + b : nullptr, batch.info + b, workspace.get());
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

template void cholesky(const float*, int64_t, int64_t, float*, int32_t*, int);
template void cholesky(const double*, int64_t, int64_t, double*, int32_t*, int);
template void logdet(const float*, int64_t, int64_t, float*, int32_t*, int);
template void logdet(const double*, int64_t, int64_t, double*, int32_t*, int);

}  // namespace infoslice::cpu
