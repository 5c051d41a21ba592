// A block to a tree. Vertex u belongs to thread u % kThreads, which alone reads and writes what is
// known of it; a step of Prim's algorithm is a pass over the row of the vertex gained last and a
// search for the nearest vertex over the block, with one barrier.
#include "spanning_tree.h"

#include <cmath>

#include "cuda/block.cuh"
#include "cuda/grid.h"

namespace infoslice::cuda {
namespace {

constexpr int kWarpsOfBlock = kThreads / 32;

template <class T>
struct Candidate {
  T value;  // +inf: none
  int vertex;
  /// The nearer one, of two as near the one of the lower index.
  __device__ void compare(T other, int other_vertex) {
    if (other < value || (other == value && other_vertex < vertex)) {
      value = other;
      vertex = other_vertex;
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads)
    prim_kernel(const T* points, const T* base, int64_t batch, int n, int64_t d, int64_t* edges,
                T* squared_lengths, int32_t* info, double* workspace) {
  __shared__ T values[2][kWarpsOfBlock];
  __shared__ int vertices[2][kWarpsOfBlock];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const T infinity = static_cast<T>(INFINITY);
  T* const nearest = reinterpret_cast<T*>(workspace + int64_t{blockIdx.x} * 2 * n);
  int* const from = reinterpret_cast<int*>(workspace + (int64_t{blockIdx.x} * 2 + 1) * n);
  for (int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
    const T* const x = points + b * n * d;
    int64_t* const to = edges + b * (n - 1) * 2;
    T* const lengths = squared_lengths + b * (n - 1);
    for (int u = thread; u < n; u += kThreads) nearest[u] = infinity;
    bool finite = true;
    int vertex = 0;
    for (int edge = 0; edge < n - 1; ++edge) {
      const T* const row = base ? base + int64_t{vertex} * n : nullptr;
      const T* const own = x + vertex * d;
      Candidate<T> best{infinity, n};
      for (int u = thread; u < n; u += kThreads) {
        T value = row ? row[u] : T(0);
        for (int64_t k = 0; k < d; ++k) {
          const T difference = x[u * d + k] - own[k];
          value += difference * difference;
        }
        finite = finite && isfinite(value);
        T now = nearest[u];
        if (u == vertex) {
          nearest[u] = now = -infinity;  // in the tree
        } else if (value < now) {
          nearest[u] = now = value;
          from[u] = vertex;
        }
        if (now != -infinity) best.compare(now, u);
      }
#pragma unroll
      for (int offset = 16; offset > 0; offset /= 2) {
        const T other = __shfl_xor_sync(kAll, best.value, offset);
        best.compare(other, __shfl_xor_sync(kAll, best.vertex, offset));
      }
      // Two buffers in turn: one may be read still when the next step writes.
      if (lane == 0) {
        values[edge % 2][warp] = best.value;
        vertices[edge % 2][warp] = best.vertex;
      }
      __syncthreads();
      best = {infinity, n};
#pragma unroll
      for (int w = 0; w < kWarpsOfBlock; ++w)
        best.compare(values[edge % 2][w], vertices[edge % 2][w]);
      if (!(best.value < infinity)) {  // so says every thread
        finite = false;
        break;
      }
      vertex = best.vertex;
      if (vertex % kThreads == thread) {
        to[2 * edge] = from[vertex];
        to[2 * edge + 1] = vertex;
        lengths[edge] = best.value;
      }
    }
    const bool refused = __syncthreads_or(!finite) != 0;
    if (refused) {
      for (int edge = thread; edge < n - 1; edge += kThreads) {
        to[2 * edge] = to[2 * edge + 1] = -1;
        lengths[edge] = not_a_number<T>();
      }
    }
    if (thread == 0) info[b] = refused ? 1 : 0;
  }
}

}  // namespace

size_t spanning_tree_workspace(int64_t batch, int64_t n) {
  return static_cast<size_t>((batch < kMaxGrid ? batch : kMaxGrid) * n * 2) * sizeof(double);
}

template <class T>
int spanning_tree(const T* points, const T* base, int64_t batch, int64_t n, int64_t d,
                  int64_t* edges, T* squared_lengths, int32_t* info, void* workspace,
                  void* stream) {
  if (batch == 0) return cudaSuccess;
  const auto grow = prim_kernel<T>;
  INFOSLICE_LAUNCH(grow, grid(batch), kThreads, 0, stream, points, base, batch, static_cast<int>(n),
                   d, edges, squared_lengths, info, static_cast<double*>(workspace));
  return cudaGetLastError();
}

template int spanning_tree(const float*, const float*, int64_t, int64_t, int64_t, int64_t*, float*,
                           int32_t*, void*, void*);
template int spanning_tree(const double*, const double*, int64_t, int64_t, int64_t, int64_t*,
                           double*, int32_t*, void*, void*);

}  // namespace infoslice::cuda
