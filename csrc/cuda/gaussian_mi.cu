// A pass takes some items of the batch, as many as its memory holds: their joint matrices are
// gathered and eliminated together. Groups of more than one variable have a second stage, in passes
// of their own: for every group [S_gg; Z'] -> [C; K] by one elimination, then the pivots of 1 -+ K'K
// by another. Scores end in sums over rows, a warp to each.
#include "gaussian_mi.h"

#include <algorithm>
#include <vector>

#include "cuda/gaussian_mi_scores.cuh"
#include "cuda/grid.h"
#include "cuda/upload.cuh"

namespace infoslice::cuda {
namespace {

// Bytes of the matrices of a pass; one matrix may be larger. Under test a few are too many.
#ifdef INFOSLICE_EMULATION
constexpr int64_t kPassBytes = 1 << 16;
#else
constexpr int64_t kPassBytes = 1 << 28;
#endif

// ---- groups -------------------------------------------------------------------------------------

/// Rows [size, size + ny) of the matrix of every group: the transpose of the rows of the group in
/// `joint`, from row `row` and column `column` on.
__global__ void __launch_bounds__(kThreads)
    transpose_kernel(const Batch<double> joint, int64_t row, int64_t column, int64_t first,
                     int64_t per_item, const Batch<double> groups) {
  constexpr int kSide = 32;
  __shared__ double tile[kSide][kSide + 1];
  const int64_t size = groups.columns, ny = groups.rows - size;
  const int64_t across = (size + kSide - 1) / kSide, tiles = (ny + kSide - 1) / kSide * across;
  for (int64_t b = blockIdx.y; b < groups.count; b += gridDim.y) {
    const int64_t item = (first + b) / per_item, group = (first + b) % per_item;
    const double* const from =
        joint.data + item * joint.step + (row + group * size) * joint.stride + column;
    double* const to = groups.data + b * groups.step + size * groups.stride;
    for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
      const int64_t r0 = t / across * kSide, i0 = t % across * kSide;
      __syncthreads();  // the tile before is done with
      for (int e = static_cast<int>(threadIdx.x); e < kSide * kSide; e += kThreads) {
        const int i = e / kSide, r = e % kSide;
        if (i0 + i < size && r0 + r < ny) tile[i][r] = from[(i0 + i) * joint.stride + r0 + r];
      }
      __syncthreads();
      for (int e = static_cast<int>(threadIdx.x); e < kSide * kSide; e += kThreads) {
        const int r = e / kSide, i = e % kSide;
        if (i0 + i < size && r0 + r < ny) to[(r0 + r) * groups.stride + i0 + i] = tile[i][r];
      }
    }
  }
}

/// A factor B for each of the matrices number first, first + 1, ...: element (k, i) of the one of
/// group h of an item is data[item * item_step + h * group_step + k * along + i * across], and its k
/// run from h * skip to end.
struct Factor {
  const double* data;
  int64_t first, per_item, item_step, group_step, along, across, skip, end;
};

/// Lower triangle of diagonal * 1 + sign * B'B, and floors [count, order] (or null) for variances
/// that are 1 or, without a diagonal, the result's own. 16 x 16 threads, kSide x kSide sums to each.
template <int kSide>
__global__ void __launch_bounds__(kThreads)
    gram_kernel(const Factor b, double diagonal, double sign, const Batch<double> out,
                int64_t before, double* floors) {
  constexpr int kWidth = 16 * kSide, kDepth = 16;
  __shared__ double left[kDepth][kWidth + 1], right[kDepth][kWidth + 1];
  const int thread = static_cast<int>(threadIdx.x), ti = thread / 16, tj = thread % 16;
  const int64_t order = out.columns, across = (order + kWidth - 1) / kWidth;
  for (int64_t q = blockIdx.y; q < out.count; q += gridDim.y) {
    const int64_t item = (b.first + q) / b.per_item, group = (b.first + q) % b.per_item;
    const double* const from = b.data + item * b.item_step + group * b.group_step;
    for (int64_t t = blockIdx.x; t < across * across; t += gridDim.x) {
      const int64_t i0 = t / across * kWidth, j0 = t % across * kWidth;
      if (j0 > i0) continue;  // above the diagonal
      double sums[kSide][kSide] = {};
      for (int64_t k0 = group * b.skip; k0 < b.end; k0 += kDepth) {
        __syncthreads();  // the operands before are done with
#pragma unroll
        for (int e = thread; e < kDepth * kWidth; e += kThreads) {
          // Threads run along the rows of memory.
          const int k = b.along == 1 ? e % kDepth : e / kWidth;
          const int i = b.along == 1 ? e / kDepth : e % kWidth;
          const bool inside = k0 + k < b.end;
          const double* const at = from + (k0 + k) * b.along;
          left[k][i] = inside && i0 + i < order ? at[(i0 + i) * b.across] : 0.0;
          right[k][i] = inside && j0 + i < order ? at[(j0 + i) * b.across] : 0.0;
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < kDepth; ++k) {
          double l[kSide], r[kSide];
#pragma unroll
          for (int s = 0; s < kSide; ++s) {
            l[s] = left[k][ti + 16 * s];
            r[s] = right[k][tj + 16 * s];
          }
#pragma unroll
          for (int s = 0; s < kSide; ++s) {
#pragma unroll
            for (int c = 0; c < kSide; ++c) sums[s][c] += l[s] * r[c];
          }
        }
      }
#pragma unroll
      for (int s = 0; s < kSide; ++s) {
#pragma unroll
        for (int c = 0; c < kSide; ++c) {
          const int64_t i = i0 + ti + 16 * s, j = j0 + tj + 16 * c;
          if (i >= order || j > i) continue;
          const double value = (i == j ? diagonal : 0.0) + sign * sums[s][c];
          out.data[q * out.step + i * out.stride + j] = value;
          if (i == j && floors != nullptr) {
            floors[q * order + i] =
                rounding_floor(before + i + 1) * (diagonal == 0 ? value : diagonal);
          }
        }
      }
    }
  }
}

// ---- host ---------------------------------------------------------------------------------------

enum class Kind { marginal, conditional, pairwise };

/// Warps of one block, for `count` rows.
unsigned warps(int64_t count) { return grid(divide_up(count, kThreads / 32)); }

/// Sizes, and where everything lies in the workspace.
struct Plan {
  Plan(Kind which, int64_t batch, const MutualInformation& of, void* workspace)
      : kind(which),
        nx(of.nx),
        ny(of.ny),
        size(of.group_size),
        per_item(of.nx / of.group_size),
        places(of.nx + of.ny),
        columns(kind == Kind::conditional ? places
                : kind == Kind::marginal  ? ny
                                          : 0),
        rows(kind == Kind::conditional ? places + nx
             : kind == Kind::marginal  ? places
                                       : 0),
        group_rows(size > 1 ? size + ny : 0) {
    items = pass(batch, rows * columns);
    groups = pass(items * per_item, group_rows * size);
    const auto take = [&](auto*& array, int64_t count) {
      using Element = std::remove_reference_t<decltype(*array)>;
      array = workspace == nullptr
                  ? nullptr
                  : reinterpret_cast<Element*>(static_cast<char*>(workspace) + bytes);
      bytes += static_cast<size_t>(count) * sizeof(Element);
    };
    take(joint, items * rows * columns);
    take(floors, items * columns);
    take(scales, kind == Kind::conditional ? 0 : items * places);
    take(group, groups * group_rows * size);
    take(group_floors, group_rows == 0 ? 0 : groups * size);
    take(info, columns == 0 ? 0 : items);
    take(group_info, group_rows == 0 ? 0 : 2 * groups);
    take(order, places);
  }

  static int64_t pass(int64_t count, int64_t doubles) {
    if (doubles == 0) return count;
    return std::min(count, std::max<int64_t>(1, kPassBytes / (8 * doubles)));
  }

  Kind kind;
  int64_t nx, ny, size, per_item, places, columns, rows, group_rows;
  int64_t items = 0, groups = 0;  // of a pass
  size_t bytes = 0;
  double *joint = nullptr, *floors = nullptr, *scales = nullptr, *group = nullptr,
         *group_floors = nullptr;
  int32_t *info = nullptr, *group_info = nullptr, *order = nullptr;
};

cudaError_t gram(const Factor& b, double diagonal, double sign, const Batch<double>& out,
                 int64_t before, double* floors, void* stream) {
  const unsigned count = grid(out.count);
  if (out.columns <= 16) {
    const auto gram_small = gram_kernel<1>;
    INFOSLICE_LAUNCH(gram_small, dim3(1, count), kThreads, 0, stream, b, diagonal, sign, out,
                     before, floors);
  } else {
    const auto gram_large = gram_kernel<4>;
    const int64_t across = divide_up(out.columns, 64);
    INFOSLICE_LAUNCH(gram_large, dim3(grid(across * across), count), kThreads, 0, stream, b,
                     diagonal, sign, out, before, floors);
  }
  return cudaGetLastError();
}

template <class T>
cudaError_t gather(const Joint<T>& s, const Places& from, const Batch<double>& m, double* floors,
                   void* stream) {
  const auto gather_matrices = gather_kernel<T>;
  const dim3 blocks(grid(divide_up(m.rows, 32) * divide_up(m.columns, 32)), grid(m.count));
  INFOSLICE_LAUNCH(gather_matrices, blocks, kThreads, 0, stream, s, from, m, floors);
  return cudaGetLastError();
}

/// The groups of the items of a pass, whose joint matrices are eliminated.
template <class T>
cudaError_t score_groups(const Plan& plan, const Joint<T>& s, const Batch<double>& joint,
                         const Scores<T>& scores, void* stream) {
  const int64_t size = plan.size, ny = plan.ny, all = joint.count * plan.per_item;
  const bool marginal = plan.kind == Kind::marginal, pairwise = plan.kind == Kind::pairwise;
  const int64_t before = marginal ? ny : pairwise ? 0 : plan.places;
  cudaError_t error = cudaSuccess;
  for (int64_t first = 0; first < all && error == cudaSuccess; first += plan.groups) {
    const int64_t count = std::min(plan.groups, all - first);
    const Batch<double> m{plan.group, count, plan.group_rows,        size,
                          size,       size,  plan.group_rows * size, plan.group_rows};
    Batch<double> own = m;  // S_gg alone, or what comes in its place
    own.rows = own.identity = size;
    if (plan.kind == Kind::conditional) {  // the precision of the group among x, of its columns W
      const Factor w{joint.data + plan.places * joint.stride,
                     first,
                     plan.per_item,
                     joint.step,
                     size * joint.stride,
                     1,
                     joint.stride,
                     size,
                     plan.nx};
      error = gram(w, 0, 1, own, before, plan.group_floors, stream);
    } else {
      const Places from{first, plan.per_item, marginal ? ny : 0, size,
                        size,  plan.nx,       plan.group_rows,   before};
      error = gather(s, from, pairwise ? m : own, plan.group_floors, stream);
    }
    if (error != cudaSuccess) return error;
    if (!pairwise) {
      const auto transpose_rows = transpose_kernel;
      const dim3 blocks(grid(divide_up(ny, 32) * divide_up(size, 32)), grid(count));
      INFOSLICE_LAUNCH(transpose_rows, blocks, kThreads, 0, stream, joint,
                       marginal ? ny : plan.places, marginal ? 0 : plan.nx, first, plan.per_item,
                       m);
      error = cudaGetLastError();
      if (error != cudaSuccess) return error;
    }
    error = static_cast<cudaError_t>(eliminate(m, plan.group_floors, plan.group_info, stream));
    if (error != cudaSuccess) return error;
    if (pairwise) {
      int shift = 0;
      while (shift < 5 && 1 << shift < size) ++shift;
      const auto score_pairs = group_pairs_kernel<T>;
      INFOSLICE_LAUNCH(score_pairs, warps(count), kThreads, 0, stream, s, m, first, plan.per_item,
                       shift, plan.group_info, scores);
      error = cudaGetLastError();
      continue;
    }
    // C is done with: 1 -+ K'K, whose pivots are at most (at least) 1, takes its place.
    const Factor k{plan.group + size * size, 0, 1, m.step, 0, size, 1, 0, ny};
    double* const floors = marginal ? plan.group_floors : nullptr;
    error = gram(k, 1, marginal ? -1 : 1, own, before, floors, stream);
    if (error != cudaSuccess) return error;
    error = static_cast<cudaError_t>(eliminate(own, floors, plan.group_info + count, stream));
    if (error != cudaSuccess) return error;
    const auto score = group_kernel<T>;
    INFOSLICE_LAUNCH(score, warps(count), kThreads, 0, stream, own, first, plan.per_item,
                     marginal ? -1.0 : 1.0, before, plan.info, plan.group_info, scores);
    error = cudaGetLastError();
  }
  return error;
}

/// The items of a pass.
template <class T>
cudaError_t score_items(const Plan& plan, const Joint<T>& s, int64_t items, const Scores<T>& scores,
                        void* stream) {
  cudaError_t error = cudaSuccess;
  if (s.scales != nullptr) {
    const auto scale = scales_kernel<T>;
    INFOSLICE_LAUNCH(scale, dim3(warps(plan.places), grid(items)), kThreads, 0, stream, s, items,
                     plan.scales);
    error = cudaGetLastError();
    if (error != cudaSuccess) return error;
  }
  if (plan.kind == Kind::pairwise && plan.size == 1) {
    const auto score_pairs = pairs_kernel<T>;
    INFOSLICE_LAUNCH(score_pairs, dim3(warps(plan.nx), grid(items)), kThreads, 0, stream, s, items,
                     scores);
    return cudaGetLastError();
  }
  const Batch<double> joint{plan.joint,
                            items,
                            plan.rows,
                            plan.columns,
                            plan.columns,
                            plan.columns,
                            plan.rows * plan.columns,
                            plan.kind == Kind::conditional ? plan.columns : plan.rows};
  if (plan.kind != Kind::pairwise) {
    error =
        gather(s, Places{0, 1, 0, 0, plan.places, 0, plan.places, 0}, joint, plan.floors, stream);
    if (error != cudaSuccess) return error;
    error = static_cast<cudaError_t>(eliminate(joint, plan.floors, plan.info, stream));
    if (error != cudaSuccess) return error;
  }
  if (plan.size > 1) return score_groups(plan, s, joint, scores, stream);
  if (plan.kind == Kind::marginal) {
    const auto score = single_marginal_kernel<T>;
    INFOSLICE_LAUNCH(score, warps(items * plan.nx), kThreads, 0, stream, s, joint, plan.info,
                     scores);
  } else {
    const auto score = single_conditional_kernel<T>;
    INFOSLICE_LAUNCH(score, warps(items * plan.nx), kThreads, 0, stream, joint, plan.nx, plan.info,
                     scores);
  }
  return cudaGetLastError();
}

template <class T>
int run(Kind kind, const T* cov, int64_t batch, int64_t n, const MutualInformation& of, T* nats,
        int32_t* info, void* workspace, void* stream) {
  if (batch == 0) return cudaSuccess;
  const Plan plan(kind, batch, of, workspace);
  const int64_t x = kind == Kind::marginal ? of.ny : 0, y = kind == Kind::marginal ? 0 : of.nx;
  std::vector<int32_t> order(static_cast<size_t>(plan.places));
  for (int64_t i = 0; i < of.nx; ++i)
    order[static_cast<size_t>(x + i)] = static_cast<int32_t>(of.x[i]);
  for (int64_t j = 0; j < of.ny; ++j)
    order[static_cast<size_t>(y + j)] = static_cast<int32_t>(of.y[j]);
  cudaError_t error = upload(order.data(), order.size() * sizeof(int32_t), plan.order, stream);
  for (int64_t b = 0; b < batch && error == cudaSuccess; b += plan.items) {
    const Joint<T> s{cov + b * n * n,
                     n,
                     plan.order,
                     plan.places,
                     y,
                     of.ny,
                     of.noise_variance,
                     kind == Kind::conditional ? nullptr : plan.scales};
    const Scores<T> scores{nats + b * plan.per_item, info + b * plan.per_item};
    error = score_items(plan, s, std::min(plan.items, batch - b), scores, stream);
  }
  return error;
}

}  // namespace

#define INFOSLICE_BODY(kind)                                                                  \
  size_t kind##_mi_workspace(int64_t batch, const MutualInformation& of) {                    \
    return Plan(Kind::kind, batch, of, nullptr).bytes;                                        \
  }                                                                                           \
  template <class T>                                                                          \
  int kind##_mi(const T* cov, int64_t batch, int64_t n, const MutualInformation& of, T* nats, \
                int32_t* info, void* workspace, void* stream) {                               \
    return run(Kind::kind, cov, batch, n, of, nats, info, workspace, stream);                 \
  }                                                                                           \
  template int kind##_mi(const float*, int64_t, int64_t, const MutualInformation&, float*,    \
                         int32_t*, void*, void*);                                             \
  template int kind##_mi(const double*, int64_t, int64_t, const MutualInformation&, double*,  \
                         int32_t*, void*, void*);
INFOSLICE_BODY(marginal)
INFOSLICE_BODY(conditional)
INFOSLICE_BODY(pairwise)
#undef INFOSLICE_BODY

}  // namespace infoslice::cuda
