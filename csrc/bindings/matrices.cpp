#include "bindings/matrices.h"

#include <algorithm>
#include <cstring>

namespace infoslice {
namespace {

bool is_contiguous(const Tensor& x) {
  const Dims strides = x.sizes.contiguous_strides();
  for (int i = 0; i < x.dims(); ++i) {
    if (x.sizes[i] != 1 && x.strides[i] != strides[i]) return false;
  }
  return true;
}

// Copies dimensions [dim, ...) element by element; returns the end of what it wrote.
char* copy_strided(const Tensor& x, int dim, const char* from, char* to) {
  const int64_t step = dim < x.dims() ? x.strides[dim] * x.itemsize : 0;
  if (dim == x.dims()) {
    std::memcpy(to, from, static_cast<size_t>(x.itemsize));
    return to + x.itemsize;
  }
  for (int64_t i = 0; i < x.sizes[dim]; ++i) to = copy_strided(x, dim + 1, from + i * step, to);
  return to;
}

}  // namespace

Tensor contiguous(Call& call, int i) {
  const Tensor& x = call.tensor(i);
  if (is_contiguous(x)) return x;
  if (call.on_cuda())
    call.value_error(i, "a contiguous CUDA tensor", "strides " + to_string(x.strides));
  const Tensor copy = call.empty(x.dtype, x.sizes);
  copy_strided(x, 0, x.as<char>(), copy.as<char>());
  return copy;
}

Matrices square_matrices(Call& call, int i) {
  call.check_dims(i, 2, "[..., d, d]");
  call.check_dtype(i, {Dtype::float32, Dtype::float64});
  const Tensor& x = call.tensor(i);
  Matrices result{x, {}, 1, x.sizes[x.dims() - 1]};
  if (x.sizes[x.dims() - 2] != result.d || result.d == 0) {
    call.value_error(i, "square matrices [..., d, d] with d >= 1", "shape " + to_string(x.sizes));
  }
  for (int k = 0; k < x.dims() - 2; ++k) result.batch.push_back(x.sizes[k]);
  result.count = result.batch.product();
  result.values = contiguous(call, i);
  return result;
}

void check_indices(const Call& call, int i, int64_t n, std::vector<char>& taken) {
  for (int64_t index : call.integers(i)) {
    if (index < 0 || index >= n) {
      call.value_error(i, "indices in [0, " + std::to_string(n) + ")", std::to_string(index));
    }
    char& mark = taken[static_cast<size_t>(index)];
    if (mark != 0) {
      call.value_error(i, mark == i ? "indices without repetition" : "indices disjoint from x",
                       std::to_string(index) + (mark == i ? " twice" : " in both"));
    }
    mark = static_cast<char>(i);
  }
}

}  // namespace infoslice
