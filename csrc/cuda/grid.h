// Sizes of grids, for the host functions of csrc/cuda.
#pragma once

#include <cstdint>

namespace infoslice::cuda {

// Blocks of a grid dimension, as far as the device's limit of 65535 goes; the rest is walked in
// strides. Tests set it lower, so that blocks walk there too.
#ifndef INFOSLICE_MAX_GRID
#define INFOSLICE_MAX_GRID 65535
#endif
constexpr int64_t kMaxGrid = INFOSLICE_MAX_GRID;

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr unsigned grid(int64_t blocks) {
  return static_cast<unsigned>(blocks < kMaxGrid ? blocks : kMaxGrid);
}

}  // namespace infoslice::cuda
