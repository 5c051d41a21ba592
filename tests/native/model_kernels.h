// Small CUDA kernels that test the emulation itself: right ones, and ones broken in one known way.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace infoslice::model {

struct Outcome {
  int error;           // cudaError_t of the launch
  std::string report;  // what the emulation says of it
  std::vector<float> values;
};

// Runs the kernel of this name (see model_kernels.cu) in one block of `threads`, or throws
// std::invalid_argument where there is none.
Outcome run(const std::string& name, int threads, uint64_t seed);

}  // namespace infoslice::model
