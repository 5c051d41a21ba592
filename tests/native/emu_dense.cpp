#include "cuda/dense.h"

#include <vector>

#include "emu.h"

namespace infoslice {
namespace {

// m [count, rows or more, stride], changed in place. floors [count, pivots], or empty.
template <class T>
Array<int32_t> eliminate(Array<T> m, int64_t rows, int64_t columns, int64_t pivots,
                         int64_t identity, const Array<T>& floors, uint64_t seed) {
  prepare(seed);
  Array<int32_t> info(m.shape(0));
  const cuda::Batch<T> batch{m.mutable_data(),        m.shape(0), rows, columns, pivots, m.shape(2),
                             m.shape(1) * m.shape(2), identity};
  check(cuda::eliminate(batch, floors.size() == 0 ? nullptr : floors.data(), info.mutable_data(),
                        nullptr));
  return info;
}

}  // namespace

void bind_dense(py::module_& module) {
  module.def("eliminate", &eliminate<float>, py::arg().noconvert(), py::arg(), py::arg(), py::arg(),
             py::arg(), py::arg(), py::arg());
  module.def("eliminate", &eliminate<double>, py::arg().noconvert(), py::arg(), py::arg(),
             py::arg(), py::arg(), py::arg(), py::arg());
}

}  // namespace infoslice
