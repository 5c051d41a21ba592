// Greedy choice of channels, one after the other, always the best given those before it. A channel
// is a block of r variables.
//
//   forward_selection    Adds the group g of x with the largest gain
//     y given:  I(X_g; Y | X_S) = 1/2 [log det S_gg|S - log det S_gg|S,y]
//     y empty:  1/2 log det S_gg|S, the entropy of X_g given X_S less a constant (D-optimal design,
//               MAP of a determinantal point process)
//     with S the groups that are in, and S_gg|S the covariance of X_g given X_S. As in
//     gaussian_mi.h, noise_variance is added to the diagonal of the y block and constants in y are
//     left out. `start` are groups that are in from the beginning.
//   backward_elimination  Removes the channel with the least loss
//     sum_l 1/2 [log det (B_l)_cc - log det (A_l)_cc]
//     with A_l, B_l precision matrices of the channels not yet removed. A of X and B of X given Y:
//     the loss is I(X_c; Y | all channels that are left). Several layers l read the same channels,
//     each with a number of variables of its own.
//   obs_elimination       Removes the channel with the least loss
//     sum_l tr((P_l)_cc^-1 (G_l)_cc)
//     with P = (covariance of X)^-1 and G = W'W for a reader Y = W X: the squared error of Y after
//     the rest of W was fitted anew by least squares (structured optimal brain surgeon). Only G is
//     carried, so that the work does not depend on the number of outputs: with t = G_c: and
//     Z = P_cc^-1 P_c:, G <- G - Z't - t'Z + Z' G_cc Z.
// To eliminate a block c is P <- P - P_:c P_cc^-1 P_c:, in all three: a covariance is conditioned on
// c, a precision matrix forgets it.
//
// order  [count]  groups of x, or channels, in the order of the choice
// values [count]  gains or losses, double; the gains of a forward selection add up to
//                 I(X_S; Y) - I(X_start; Y), the losses of a backward elimination to what all the
//                 removed channels told
// info            0: good. k > 0: step k could not be made (k = 1 also: the elimination of y or of
//                 start failed); order is -1 and values are NaN from there on, all before is good.
//
// Ties go to the lowest number. Rounding: with n variables of x and y (or of the channels that may
// go), a pivot of at most 4 n eps of what it was before all eliminations is nothing but rounding.
// Forward, a variable of x of which no more is left is redundant (as constants and repeated
// variables are): it has gain 0 in an information and makes the entropy of its group -inf, and is
// never divided by. Everything else that is not positive, is NaN or leaves the range of double is
// refused by info: an infinite information (X_g a function of Y and X_S), a matrix that is not
// positive (semi)definite, a redundant variable in y or in a precision matrix. A rank-deficient
// covariance is well-behaved by entropies, but an information of nearly redundant variables is
// refused where rounding, eps times the condition number of what was chosen, passes that floor: add
// a ridge. Never read: what is above the diagonal, the variables that are not asked for, and those
// of `keep` (they stay given in a precision matrix, and nothing else is needed of them). NaN is
// refused at the step whose choice depends on it. Nothing is clamped: a gain or loss near zero can
// be negative by rounding, of the order of eps times the condition number.
//
// Computed in double whatever T is. Each matrix is kept as a triangle in bands (4 n^2 bytes for n
// variables that may be chosen: as much as all of it in float32) and brought up to date by products
// of matrices after every 64 variables (see cpu/downdate.h): n^3 / 6 multiplications and additions
// per matrix if all are eliminated (W'W: n^3 / 3). A few (64 variables, y no more) are chosen
// without a copy, in O(n) memory for each. Peak extra memory: per matrix 4 n^2 + 8 n (64 + r) bytes,
// two matrices per layer, forward one if y is empty, and for y 8 ny (ny + 2 n); layers are held side
// by side. Partitions do not touch rounding.
//
// CUDA: the same choice, floors and refusals; near ties may fall otherwise within rounding. One
// launch per layer and step, in which every block finds the best channel in what the launch before
// left, forms its part of the rows that are eliminated, brings its diagonal blocks up to date and
// scores its channels; and a product of matrices after every 64 variables, as on the CPU. All
// launches are enqueued at once and nothing is read back: their number depends on the arguments
// alone, a CUDA graph can capture the op, and after a step that could not be made the others do
// nothing. Channels that are gone are not scored, but stay in the matrices: n^2 / 2 multiplications
// and additions per variable eliminated (W'W: n^2) for each matrix. Nothing is added atomically: the
// same bits in every run. Workspace: per matrix about 4 n^2 + 8 n (35 + max(64, r) + 2 r) bytes, two
// matrices per layer, forward one if y is empty, and for y 8 ny (ny + nx); few channels are chosen
// from a copy like many. No other memory.
// Sources: Chen, Zhang & Zhou 2018, Fast Greedy MAP Inference for DPP; Hassibi & Stork 1993,
// Second order derivatives for network pruning; Kurtic et al. 2023, ZipLM; blocked pivoting:
// Hammarling, Higham & Lucas 2007, LAPACK-style codes for pivoted Cholesky.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "gaussian_mi.h"

namespace infoslice {

/// A matrix of float32 or float64, any strides (in elements), of which the lower triangle is read.
template <class T>
struct MatrixView {
  const T* data;
  int64_t row_stride, column_stride;
  double operator()(int64_t i, int64_t j) const {
    return static_cast<double>(i < j ? data[j * row_stride + i * column_stride]
                                     : data[i * row_stride + j * column_stride]);
  }
};

struct Choice {
  int64_t count;
  int64_t* order;  // [count]
  double* values;  // [count]
  int32_t* info;
};

/// Two matrices of [channels * r] variables: A and B, or P and G.
template <class T>
struct LayerPair {
  MatrixView<T> first, second;
  int64_t r;
};

namespace cpu {

template <class T>  // float, double
void forward_selection(const MatrixView<T>& cov, const MutualInformation& of,
                       const std::vector<int64_t>& start, const Choice& choice, int threads);

/// `keep`: channels that are never removed.
template <class T>
void backward_elimination(const std::vector<LayerPair<T>>& layers, int64_t channels,
                          const std::vector<int64_t>& keep, const Choice& choice, int threads);

template <class T>
void obs_elimination(const std::vector<LayerPair<T>>& layers, int64_t channels,
                     const std::vector<int64_t>& keep, const Choice& choice, int threads);

}  // namespace cpu

// All pointers to elements are to device memory, lists (`of.x`, `of.y`, `start`, `keep`) on the
// host; they may go as soon as a call returns. workspace: device memory of as many bytes as the
// function beside tells, 16-byte aligned. Returns a cudaError_t; a choice that could not be made is
// told by info only.
namespace cuda {

size_t forward_selection_workspace(const MutualInformation& of);

template <class T>
int forward_selection(const MatrixView<T>& cov, const MutualInformation& of,
                      const std::vector<int64_t>& start, const Choice& choice, void* workspace,
                      void* stream);

/// Of backward_elimination and obs_elimination; `open` channels are not in `keep`.
size_t elimination_workspace(const std::vector<int64_t>& group_sizes, int64_t open);

template <class T>
int backward_elimination(const std::vector<LayerPair<T>>& layers, int64_t channels,
                         const std::vector<int64_t>& keep, const Choice& choice, void* workspace,
                         void* stream);

template <class T>
int obs_elimination(const std::vector<LayerPair<T>>& layers, int64_t channels,
                    const std::vector<int64_t>& keep, const Choice& choice, void* workspace,
                    void* stream);

}  // namespace cuda
}  // namespace infoslice
