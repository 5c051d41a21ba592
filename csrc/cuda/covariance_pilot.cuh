// The shift of a variable: one of its own samples, or zero.
#pragma once

#include "cuda/covariance_finish.cuh"
#include "cuda/samples.cuh"

namespace infoslice::cuda {

/// x and y, or x twice.
template <class Source>
struct Inputs {
  Source side[2];
};

/// The pilot of a variable: of kPilots samples from all over the input, the one nearest their mean;
/// or zero if that will do and is preferred.
template <int kPilots, bool kPrefersZero, class Source, class T>
__device__ inline T choose_pilot(const Source& source, const T* from,
                                 typename Source::Place variable, int64_t n) {
  T values[kPilots];
#pragma unroll
  for (int s = 0; s < kPilots; ++s)
    values[s] = source.read(from, variable, source.sample(s * n / kPilots));
  auto mean = widened(values[0]) / kPilots;
#pragma unroll
  for (int s = 1; s < kPilots; ++s) mean += widened(values[s]) / kPilots;
  T nearest = values[0];
  auto squares = mean * 0;
#pragma unroll
  for (int s = 0; s < kPilots; ++s) {
    const auto distance = widened(values[s]) - mean;
    if (fabs(distance) < fabs(widened(nearest) - mean)) nearest = values[s];
    squares += distance * distance;
  }
  return kPrefersZero && mean * mean <= 4 * squares / kPilots ? T{} : nearest;
}

/// A thread for each variable of each item, those of x first. 16-bit types prefer zero; that a mean
/// of zero looks like two standard deviations happens once in a million to 16 samples.
template <class T, class Source, class A>
__global__ void __launch_bounds__(kThreads)
    pilots_kernel(const __grid_constant__ Inputs<Source> inputs, const __grid_constant__ Plan plan,
                  Parts<A> parts) {
  constexpr bool kPrefersZero = sizeof(T) == 2;
  const int64_t of_x = plan.items * plan.variables[0];
  const int64_t all = of_x + (plan.symmetric ? 0 : plan.items * plan.variables[1]);
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < all;
       i += int64_t{gridDim.x} * kThreads) {
    const int side = i < of_x ? 0 : 1;
    const int64_t rest = i - side * of_x, item = rest / plan.variables[side];
    const Source& source = inputs.side[side];
    parts.pilots[i] = widened(choose_pilot<kPrefersZero ? 16 : 8, kPrefersZero>(
        source, static_cast<const T*>(source.data) + source.item(item),
        source.variable(rest - item * plan.variables[side]), plan.samples));
  }
}

}  // namespace infoslice::cuda
