// covariance, cross_covariance and their patch forms: second moments of channels over samples.
//
//   mean_i   = (1/n) sum_k x_ki
//   cov_ij   = (1/(n - correction)) sum_k (x_ki - mean_x_i) (y_kj - mean_y_j)       [Cx, Cy]
//
// covariance is the case y = x; it is computed as one triangle and mirrored, so exactly symmetric.
// Samples k run over any number of axes in any strides (Samples), or over the output positions of a
// convolution (Patches), where a variable is (channel, kernel row, kernel column), in the order of
// torch.nn.functional.unfold, and padding counts as zeros; the unfolded matrix is never built.
//
// Accumulation. Samples come in chunks of some hundred. Each is shifted by about the running mean,
// which makes the products as accurate for means of 100 standard deviations as for none; products
// are summed in tiles of the working type (float for float, bfloat16 and float16 inputs, double for
// double) and flushed to double after each chunk. Where the mean leaves the shift by half a
// standard deviation, the sums are moved to a new one, and slabs of samples are put together, by
// the exact formulas (Chan, Golub and LeVeque 1983), in double. Largest error, relative to the
// largest product of two standard deviations: below 2e-6 with float tiles (up to 1e-5 on heavy
// tails with registers of 16 or 32 bytes, whose partial sums are longer), 1e-13 with double. Where
// the deviations of a channel are too large or too small for float tiles (outside 1e-15 to 1e15 in
// the root mean square) everything is done in double.
//
// Failure. A NaN or Inf in the input, and a result outside the range of the output type, are found
// and told by batch item and variable; the output is then undefined. n > correction is the caller's
// to check.
//
// The result does not depend on the number of threads.
//
// Peak extra memory, with C variables (of x and y together): sums of products, 4 C^2 bytes (8 Cx Cy
// of x with y), and the chunk at hand, at most 5 KB for each variable. Up to 512 variables there are
// as many such sums as slabs, at most 8 (8.5 MB for 512 variables), and one chunk for each thread;
// of a batch, each thread holds one item.
#pragma once

#include <cstddef>
#include <cstdint>

namespace infoslice {

// One batch item: variable v of sample (k_0, ..., k_{axes-1}) is at data[v * stride + sum k_a *
// stride_a]. Strides count elements. The last axis is the innermost.
struct Samples {
  struct Axis {
    int64_t size, stride;
  };
  const void* data;
  int64_t variables, stride;
  Axis axes[12];
  int axes_count;
  int64_t count() const {
    int64_t n = 1;
    for (int a = 0; a < axes_count; ++a) n *= axes[a].size;
    return n;
  }
};

// Variables (channel, kh, kw) at the output positions (image, oh, ow) of a convolution.
struct Patches {
  const void* data;
  int64_t images, channels, size[2];                            // N, C, H, W
  int64_t image_stride, channel_stride, pixel_stride[2];        // elements
  int64_t kernel[2], step[2], padding[2], dilation[2], out[2];  // height, width
  int64_t variables() const { return channels * kernel[0] * kernel[1]; }
  int64_t count() const { return images * out[0] * out[1]; }
};

struct CovarianceOutcome {
  enum Kind { ok, not_finite, out_of_range } kind = ok;
  bool in_y = false;  // which of x and y
  int64_t item = 0;   // batch item
  int64_t variable = 0;
};

namespace cpu {

// T: double, float, bfloat16, float16 (common/numeric.h), the type of the input. Out: double,
// float. `items` problems, one after the other in the contiguous outputs.
template <class T, class Out>
CovarianceOutcome covariance(const Samples* x, int64_t items, int64_t correction, Out* cov,
                             Out* mean, int threads);
template <class T, class Out>
CovarianceOutcome cross_covariance(const Samples* x, const Samples* y, int64_t items,
                                   int64_t correction, Out* cov, Out* mean_x, Out* mean_y,
                                   int threads);
template <class T, class Out>
CovarianceOutcome patch_covariance(const Patches& x, int64_t correction, Out* cov, Out* mean,
                                   int threads);
template <class T, class Out>
CovarianceOutcome patch_cross_covariance(const Patches& x, const Samples& y, int64_t correction,
                                         Out* cov, Out* mean_x, Out* mean_y, int threads);

}  // namespace cpu

// Inputs of the CUDA bodies: the first of a batch and the axes along which the others follow.
struct SampleBatch {
  Samples first;
  Samples::Axis axes[12];
  int axes_count;
  int64_t items() const {
    int64_t n = 1;
    for (int a = 0; a < axes_count; ++a) n *= axes[a].size;
    return n;
  }
};

// CUDA, compute capability 8.0 or more.
//
// A first kernel chooses a shift for each variable. A block of the second reads two tiles of variables
// once over a stretch of the samples, copied ahead to shared memory, shifts, sums and multiplies them
// on the tensor cores; of a covariance only the tiles of the lower triangle. A third adds the stretches
// up in a fixed order, takes the rank-one term of the sums off, divides and mirrors. The result depends
// on the shape and on the number of multiprocessors, not on the scheduling.
//
// Accumulation. The shift is a pilot: of some samples from all over the input, the one nearest their
// mean; it has no more digits than the data.
// - bfloat16 and float16: products are exact. A variable whose mean is less than about two standard
//   deviations keeps the pilot zero, and a deviation that is no number of the type is multiplied in two
//   parts that are, so that nothing is rounded before it is summed.
// - float: a deviation a is split into two tf32 numbers (3xTF32), a1 the nearest, a2 most of the rest;
//   what they leave is at most 2^-22 of a and of either sign. a1 b1 + a1 b2 + a2 b1 is summed; what is
//   left out, a2 b2, is on average 2^-24.5 of a square.
// - Tensor cores truncate where they add floats: with compute capability 8, each addend 24 bits below
//   the leading bit of the largest, and the sum to 24 bits. Their sums therefore begin at zero for every
//   32 samples (16 bits) or 8 samples (float, the small products first): variances of normal data come
//   out too small by 1.7e-7 (float16), 0.7e-7 (bfloat16), 1.0e-7 (float) of themselves. These sums are
//   added to float sums, rounded to nearest, over 4096 or 2048 samples, which adds about 1.6e-7 or
//   2.3e-7 in the root mean square; those to sums over the stretch in float, and the stretches in
//   double.
// - double: fused multiply-adds (on the tensor cores too), all in double.
// In all below 2e-6 of the largest product of two standard deviations, or 1e-13 for double, as on the
// CPU.
//
// Failure. Nothing is synchronised, so nothing is raised. NaN are: the rows and columns of a variable
// with a NaN or Inf in the input, or whose deviations from the pilot lie outside 1e-15 to 1e15 on
// average (1e-150 to 1e150 for double inputs) and are not all zero; entries that the output type
// cannot hold.
//
// Patches. An element is read at the sum of its variable's and its sample's place in the image, or is
// zero where that lies outside; the products are the same.
//
// Memory: the workspace. 4 bytes (8 for double inputs) for each entry of the tiles of each stretch,
// 16 for each variable of each stretch, and 8 for each variable. A stretch is as long as keeps the
// device busy: few variables have two or three for each multiprocessor (tens of megabytes at most),
// thousands have one, two or, at the worst, eight.
//
// Returns a cudaError_t. y null: the covariance of x; mean_y is then not used.
namespace cuda {

template <class T>
size_t covariance_workspace(const SampleBatch& x, const SampleBatch* y);
template <class T, class Out>
int covariance(const SampleBatch& x, const SampleBatch* y, int64_t correction, Out* cov,
               Out* mean_x, Out* mean_y, void* workspace, void* stream);

// covariance of bfloat16 and float16, of more than 64 variables, by Hopper's bulk copies and warpgroup
// products (cuda/hopper.cu); no device has run it, so covariance() does not call it yet. Tiles of 128
// variables all of which keep the pilot zero are multiplied as they are, summed over 128 samples in the tensor cores, over 16384 in float registers, over the
// stretch in memory; the others are left to the portable kernel. Both work in the same workspace (4
// bytes for each tile of variables more) and give NaN for the same. cudaErrorNotSupported, and nothing
// done, where the device is not of compute capability 9.0, the build is not for it, or TMA cannot read
// x: variables or innermost samples contiguous, all else at multiples of 16 bytes, five axes in all.
template <class T, class Out>
int covariance_hopper(const SampleBatch& x, int64_t correction, Out* cov, Out* mean,
                      void* workspace, void* stream);

// y as patches of kernels of one pixel.
template <class T>
size_t patch_covariance_workspace(const Patches& x, const Patches* y);
template <class T, class Out>
int patch_covariance(const Patches& x, const Patches* y, int64_t correction, Out* cov, Out* mean_x,
                     Out* mean_y, void* workspace, void* stream);

}  // namespace cuda
}  // namespace infoslice
