// Right-looking in panels of 64 columns, two kernels for each:
//   solve   the rows below the diagonal block: x <- x L^-T, four threads to a row, in registers
//   update  of what is right of the panel, a tile of 64 x 64 to a block; the block of the first tile
//           then factors the diagonal block of the next panel, while the others still multiply
// The first diagonal block is factored by an update of no columns.
#include "cuda/dense.h"

#include "cuda/grid.h"
#include "cuda/rows.cuh"

namespace infoslice::cuda {
namespace {

/// Factors the diagonal block at row and column q, `width` of it.
template <class T>
__device__ void factor_diagonal(const Batch<T>& m, int64_t b, int64_t q, int width, const T* floors,
                                int32_t* info) {
  __shared__ FactorBuffer<T> buffer;
  __shared__ bool over;
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();  // the matrix is written, the buffer is done with
  if (thread == 0) over = q > 0 && info[b] != 0;
  if (thread < kColumns) {
    const bool own = floors != nullptr && thread < width;
    buffer.floors[thread] = own ? floors[b * m.pivots + q + thread] : T(0);
  }
  __syncthreads();
  if (over) return;
  T* const block = m.data + b * m.step + q * (m.stride + 1);
  Row<T> row;
  row.load([&](int i, int j) {
    return i < width && j <= i ? block[i * m.stride + j] : i == j ? T(1) : T(0);
  });
  const int failed = row.factor(buffer, width);
  row.store([&](int i, int j, T value) {
    if (i < width && j <= i) block[i * m.stride + j] = value;
  });
  if (thread == 0 && (q == 0 || failed != 0))
    info[b] = failed == 0 ? 0 : static_cast<int32_t>(q) + failed;
}

/// Rows [p + width, end) of the panel of `width` columns at p.
template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 2 : 3)
    solve_kernel(const Batch<T> m, int64_t p, int width, int64_t end, const int32_t* info) {
  __shared__ Triangle<T> triangle;
  for (int64_t b = blockIdx.y; b < m.count; b += gridDim.y) {
    if (info[b] != 0) continue;  // the same for all threads
    T* const matrix = m.data + b * m.step;
    const T* const block = matrix + p * (m.stride + 1);
    __syncthreads();  // the triangle before is done with
#pragma unroll 4
    for (int e = static_cast<int>(threadIdx.x); e < kColumns * kColumns; e += kThreads) {
      const int i = e / kColumns, j = e % kColumns;
      if (j <= i) triangle.put(i, j, i < width ? block[i * m.stride + j] : i == j ? T(1) : T(0));
    }
    __syncthreads();
    for (int64_t i0 = p + width + blockIdx.x * int64_t{kColumns}; i0 < end;
         i0 += gridDim.x * int64_t{kColumns}) {
      T* const rows = matrix + i0 * m.stride + p;
      Row<T> row;
      row.load(
          [&](int i, int j) { return i0 + i < end && j < width ? rows[i * m.stride + j] : T(0); });
      row.solve(triangle, width);
      row.store([&](int i, int j, T value) {
        if (i0 + i < end && j < width) rows[i * m.stride + j] = value;
      });
    }
  }
}

/// Subtracts the products of the `depth` columns before q from the rows [q, end) right of them, and
/// factors the diagonal block at q. Only the block of the first tile of a matrix uses its info.
template <class T>
__global__ void __launch_bounds__(kThreads)
    update_kernel(const Batch<T> m, int64_t q, int depth, int64_t end, int64_t tiles,
                  const T* floors, int32_t* info) {
  __shared__ Operands<T> operands;
  const int64_t tile_columns = (m.columns - q + kColumns - 1) / kColumns;
  const int64_t triangle = tile_columns * (tile_columns + 1) / 2;  // then the rows of D
  const int64_t next = m.pivots - q;
  for (int64_t b = blockIdx.y; b < m.count; b += gridDim.y) {
    T* const matrix = m.data + b * m.step;
    const T* const panel = matrix + q - depth;
    for (int64_t n = blockIdx.x; n < tiles; n += gridDim.x) {
      const bool below = n >= triangle;
      const int64_t ti = below ? tile_columns + (n - triangle) / tile_columns : tile_row(n);
      const int64_t tj = below ? (n - triangle) % tile_columns : n - ti * (ti + 1) / 2;
      const int64_t i0 = q + ti * kColumns, j0 = q + tj * kColumns;
      if (depth > 0) {
        Tile<T> tile;
        const auto rows_from = [&](int64_t first, int64_t behind) {
          return [=](int r, int64_t k) {
            return first + r < behind ? panel[(first + r) * m.stride + k] : T(0);
          };
        };
        tile.multiply(depth, operands, rows_from(i0, end), rows_from(j0, m.columns));
        tile.store([&](int r, int c, T sum) {
          const int64_t i = i0 + r, j = j0 + c;
          if (i < end && j <= i && j < m.columns) matrix[i * m.stride + j] -= sum;
        });
      }
      if (n == 0 && next > 0)
        factor_diagonal(m, b, q, static_cast<int>(next < kColumns ? next : kColumns), floors, info);
    }
  }
}

}  // namespace

template <class T>
int eliminate(const Batch<T>& m, const T* floors, int32_t* info, void* stream) {
  if (m.count == 0 || m.pivots == 0) return cudaSuccess;
  const auto solve = solve_kernel<T>;
  const auto update = update_kernel<T>;
  const unsigned batch = grid(m.count);
  INFOSLICE_LAUNCH(update, dim3(1, batch), kThreads, 0, stream, m, int64_t{0}, 0, m.rows,
                   int64_t{1}, floors, info);
  cudaError_t error = cudaGetLastError();
  for (int64_t p = 0; p < m.pivots && error == cudaSuccess; p += kColumns) {
    const int width = static_cast<int>(m.pivots - p < kColumns ? m.pivots - p : kColumns);
    const int64_t q = p + width;
    // Rows of the identity block from r on are zero in the columns before r.
    const int64_t end = m.rows < m.identity + q ? m.rows : m.identity + q;
    if (q >= end) break;
    const int64_t row_tiles = divide_up(end - q, kColumns);
    INFOSLICE_LAUNCH(solve, dim3(grid(row_tiles), batch), kThreads, 0, stream, m, p, width, end,
                     info);
    error = cudaGetLastError();
    const int64_t columns = divide_up(m.columns - q, kColumns);
    if (columns == 0 || error != cudaSuccess) break;
    const int64_t tiles = columns * (columns + 1) / 2 + (row_tiles - columns) * columns;
    INFOSLICE_LAUNCH(update, dim3(grid(tiles), batch), kThreads, 0, stream, m, q, width, end, tiles,
                     floors, info);
    error = cudaGetLastError();
  }
  return error;
}

template int eliminate(const Batch<float>&, const float*, int32_t*, void*);
template int eliminate(const Batch<double>&, const double*, int32_t*, void*);

}  // namespace infoslice::cuda
