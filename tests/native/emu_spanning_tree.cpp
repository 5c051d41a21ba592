#include "spanning_tree.h"

#include <vector>

#include "emu.h"

namespace infoslice {
namespace {

/// base: [n, n], or of no element: none.
template <class T>
py::tuple spanning_tree(const Array<T>& points, const Array<T>& base, uint64_t seed) {
  prepare(seed);
  const int64_t batch = points.shape(0), n = points.shape(1), d = points.shape(2);
  Array<int64_t> edges({batch, n - 1, int64_t{2}});
  Array<T> lengths({batch, n - 1});
  Array<int32_t> info(batch);
  std::vector<double> workspace(cuda::spanning_tree_workspace(batch, n) / sizeof(double));
  check(cuda::spanning_tree(points.data(), base.size() == 0 ? nullptr : base.data(), batch, n, d,
                            edges.mutable_data(), lengths.mutable_data(), info.mutable_data(),
                            workspace.data(), nullptr));
  return py::make_tuple(edges, lengths, info);
}

}  // namespace

void bind_spanning_tree(py::module_& module) {
  module.def("spanning_tree", &spanning_tree<float>);
  module.def("spanning_tree", &spanning_tree<double>);
}

}  // namespace infoslice
