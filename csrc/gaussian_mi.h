// Gaussian information in nats between variables picked out of a covariance matrix, for a batch of
// matrices.
//
// S = cov + noise_variance * (1 on the diagonal of the y block): Y = f(X) + N, N ~ N(0,
// noise_variance I). The noise is part of the definition: without it a deterministic Y has infinite
// information. x is cut into G = nx / group_size groups of consecutive entries; X_g are the
// variables of group g, X_-g all other variables of x.
//
//   marginal     I(X_g; Y)        = 1/2 [log det S_gg + log det S_yy - log det S_(g,y)]
//                                 = -1/2 log det(I - R_g R_g'),   R_g = C_g^-1 S_gy L^-T,
//                                   with S_yy = L L' and S_gg = C_g C_g'. One factorisation of S_yy
//                                   for all groups.
//   conditional  I(X_g; Y | X_-g) = 1/2 [log det (S^-1)_gg - log det (S_xx^-1)_gg],
//                                   S the joint matrix of x and y. One factorisation of S ordered
//                                   x, y: the first nx rows of W = L^-1 give S_xx^-1, the others
//                                   what Y adds to it.
//   pairwise     sum_j I(X_g; Y_j)
// gaussian_mi(x; y) is marginal with one group.
//
// cov    [batch, n, n]  row-major, contiguous; only the lower triangle is read
// x, y   disjoint, without repetition, in [0, n), each with at least one entry; group_size divides
//        nx
// nats   [batch, G]
// info   [batch, G]     0: good. k > 0: to working precision, variable k (1-based, in the order
//                       below) is a linear function of the variables before it, or the matrix is
//                       not a covariance (indefinite, NaN, Inf); nats is NaN then. "To working
//                       precision": the share of its variance that the variables before it leave
//                       unexplained is at most 4 k eps. In all three, an information that would be
//                       infinite (R^2 = 1) ends here and not as Inf.
//   marginal     order y, X_g: k <= ny means S_yy is singular (all groups fail alike), k > ny that
//                X_g is redundant in itself or given Y
//   conditional  order x, y (all groups fail alike); k > nx + ny: the k - nx - ny th variable of
//                X_g became redundant only by rounding in its precision block
//   pairwise     order X_g, y: k > group_size means that X_g determines that Y_j
//
// Constants: a variable with zero variance and zero covariance with all variables involved is a
// constant and carries no information. In marginal and pairwise it is left out, on either side; a
// group (or y) of constants only has 0 nats. In conditional it makes S singular: info > 0 at its
// place.
//
// Peak extra memory on the CPU, of a thread, in doubles, g = group_size, n = nx + ny:
//   marginal     ny (ny + nx), and with g > 1 another 2 g (g + ny)
//   conditional  n (n + nx), and with g > 1 another g (2 nx + 3 g + 3 ny)
//   pairwise     (15 + g) ny, and with g > 1 another g (g + ny)
// where more than 192 rows are eliminated together, 192 times their number is added.
//
// On CUDA the items of a batch are eliminated together (cuda/dense.h), two kernels for every 64
// variables: marginal as [S_yy; S_xy] -> S_xy L^-T, conditional as [S; 1] -> (L^-1)', whose row sums
// of squares are the scores of single variables. Groups g > 1 follow as a batch of items x groups:
// [S_gg; L^-1 S_yg], or for conditional [(S_xx^-1)_gg; W_yg], with W_yg the rows of y in W, becomes
// [C; K], and the scores are the logarithms of the pivots of 1 - K'K, or 1 + K'K; for pairwise
// [S_gg; S_yg] becomes [C; K], and the row sums of squares of K are the explained shares of S_jj. A
// constant stays in its place as a row of the identity, so that all items have one shape. Results
// and info are those of the CPU, to rounding. The order of all sums depends on the sizes alone.
// Workspace in bytes, all items at once:
//   marginal     batch (8 ny (n + 1) + 8 n + 4), and with g > 1 another batch (nx / g) (8 g (g + ny
//                + 1) + 8)
//   conditional  batch (8 n (n + nx + 1) + 4), and with g > 1 the same as marginal
//   pairwise     batch 8 n, and with g > 1 the same as marginal
// and 4 n. Both products with batch are cut into passes whose matrices have at most 256 MiB, or
// are one.
//
// Computed in double whatever T is, rounded to T at the end; never clamped. marginal, pairwise, and
// conditional with group_size 1 are >= 0 by construction, conditional of larger groups up to
// rounding. Error: c n eps cond(S) nats, eps that of double, cov taken as exact. Source: Cover &
// Thomas, Elements of Information Theory, 8.4-8.5; block inverse: Zhang, The Schur Complement,
// 2005.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>

namespace infoslice {

struct MutualInformation {
  const int64_t* x;
  int64_t nx;
  const int64_t* y;
  int64_t ny;
  int64_t group_size;
  double noise_variance;  // >= 0, finite
};

/// The largest unexplained share of a variance that rounding alone can leave over for the k-th
/// variable, or among k of them.
inline double rounding_floor(int64_t k) {
  return 4 * static_cast<double>(k) * std::numeric_limits<double>::epsilon();
}

namespace cpu {

template <class T>  // float, double
void marginal_mi(const T* cov, int64_t batch, int64_t n, const MutualInformation& of, T* nats,
                 int32_t* info, int threads);

template <class T>
void conditional_mi(const T* cov, int64_t batch, int64_t n, const MutualInformation& of, T* nats,
                    int32_t* info, int threads);

template <class T>
void pairwise_mi(const T* cov, int64_t batch, int64_t n, const MutualInformation& of, T* nats,
                 int32_t* info, int threads);

}  // namespace cpu

namespace cuda {

// cov, nats, info and workspace are device memory of the current device, x and y are the host's;
// `stream` is a cudaStream_t. Work is only enqueued: the functions never synchronise. They return a
// cudaError_t (0 = success) and do nothing where batch is 0. The workspace, aligned to 8 bytes,
// has the bytes that *_workspace tells.

size_t marginal_mi_workspace(int64_t batch, const MutualInformation& of);
size_t conditional_mi_workspace(int64_t batch, const MutualInformation& of);
size_t pairwise_mi_workspace(int64_t batch, const MutualInformation& of);

template <class T>  // float, double
int marginal_mi(const T* cov, int64_t batch, int64_t n, const MutualInformation& of, T* nats,
                int32_t* info, void* workspace, void* stream);

template <class T>
int conditional_mi(const T* cov, int64_t batch, int64_t n, const MutualInformation& of, T* nats,
                   int32_t* info, void* workspace, void* stream);

template <class T>
int pairwise_mi(const T* cov, int64_t batch, int64_t n, const MutualInformation& of, T* nats,
                int32_t* info, void* workspace, void* stream);

}  // namespace cuda
}  // namespace infoslice
