#include "precision.h"

#include <vector>

#include "emu.h"

namespace infoslice {
namespace {

template <class T>
py::tuple precision_blocks(const Array<T>& a, int64_t block, uint64_t seed) {
  prepare(seed);
  const int64_t batch = a.shape(0), d = a.shape(1);
  Array<T> blocks({batch, d / block, block, block});
  Array<int32_t> info(batch);
  std::vector<char> workspace(cuda::precision_workspace(batch, d));
  check(cuda::precision_blocks(a.data(), batch, d, block, blocks.mutable_data(),
                               info.mutable_data(), workspace.data(), nullptr));
  return py::make_tuple(blocks, info);
}

}  // namespace

void bind_precision(py::module_& module) {
  module.def("precision_blocks", &precision_blocks<float>);
  module.def("precision_blocks", &precision_blocks<double>);
}

}  // namespace infoslice
