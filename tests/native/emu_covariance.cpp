#include "covariance.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>

#include "common/numeric.h"
#include "emu.h"

namespace infoslice {
namespace {

// Any strides, which NumPy counts in bytes; bfloat16 comes as uint16.
SampleBatch batch_of(const py::array& x, int channel, int batch_dims) {
  SampleBatch batch{};
  const auto axis = [&](int d) {
    return Samples::Axis{x.shape(d), x.strides(d) / static_cast<int64_t>(x.itemsize())};
  };
  batch.first.data = x.data();
  batch.first.variables = axis(channel).size;
  batch.first.stride = axis(channel).stride;
  for (int d = 0; d < x.ndim(); ++d) {
    if (d < batch_dims)
      batch.axes[batch.axes_count++] = axis(d);
    else if (d != channel)
      batch.first.axes[batch.first.axes_count++] = axis(d);
  }
  return batch;
}

// x [N, C, H, W]; kernel, step, padding, dilation, each of height and width.
Patches patches_of(const py::array& x, const std::vector<int64_t>& geometry) {
  const auto stride = [&](int d) { return x.strides(d) / static_cast<int64_t>(x.itemsize()); };
  Patches p{};
  p.data = x.data();
  p.images = x.shape(0);
  p.channels = x.shape(1);
  p.image_stride = stride(0);
  p.channel_stride = stride(1);
  for (size_t d = 0; d < 2; ++d) {
    p.size[d] = x.shape(static_cast<int>(d) + 2);
    p.pixel_stride[d] = stride(static_cast<int>(d) + 2);
    p.kernel[d] = geometry[d];
    p.step[d] = geometry[2 + d];
    p.padding[d] = geometry[4 + d];
    p.dilation[d] = geometry[6 + d];
    p.out[d] =
        (p.size[d] + 2 * p.padding[d] - p.dilation[d] * (p.kernel[d] - 1) - 1) / p.step[d] + 1;
  }
  return p;
}

template <class T, class Out>
py::tuple patches_as(const py::array& x, const py::object& y, const std::vector<int64_t>& geometry,
                     int64_t correction) {
  const bool cross = !y.is_none();
  const Patches left = patches_of(x, geometry);
  const Patches right = cross ? patches_of(y.cast<py::array>(), {1, 1, 1, 1, 0, 0, 1, 1}) : left;
  Array<Out> cov({left.variables(), right.variables()}), mean_x(left.variables()),
      mean_y(right.variables());
  std::fill_n(cov.mutable_data(), cov.size(), Out(-7));
  const size_t bytes = cuda::patch_covariance_workspace<T>(left, cross ? &right : nullptr);
  const std::unique_ptr<double[]> workspace(new double[(bytes + 7) / 8]);
  std::memset(workspace.get(), 0xff, bytes);
  check(cuda::patch_covariance<T, Out>(left, cross ? &right : nullptr, correction,
                                       cov.mutable_data(), mean_x.mutable_data(),
                                       mean_y.mutable_data(), workspace.get(), nullptr));
  return py::make_tuple(cov, mean_x, mean_y, bytes);
}

template <class T, class Out>
py::tuple covariance_as(const py::array& x, const py::object& y, int channel, int batch_dims,
                        int64_t correction) {
  const bool cross = !y.is_none();
  const py::array other = cross ? y.cast<py::array>() : x;
  const SampleBatch left = batch_of(x, channel, batch_dims),
                    right = batch_of(other, channel, batch_dims);
  const int64_t rows = left.first.variables, columns = right.first.variables;
  Array<Out> cov({left.items(), rows, columns}), mean_x({left.items(), rows}),
      mean_y({left.items(), columns});
  std::fill_n(cov.mutable_data(), cov.size(), Out(-7));  // what is not written shows
  // Of the exact size, so that a sanitizer sees its end, and not initialised.
  const size_t bytes = cuda::covariance_workspace<T>(left, cross ? &right : nullptr);
  const std::unique_ptr<double[]> workspace(new double[(bytes + 7) / 8]);
  std::memset(workspace.get(), 0xff, bytes);
  check(cuda::covariance<T, Out>(left, cross ? &right : nullptr, correction, cov.mutable_data(),
                                 mean_x.mutable_data(), mean_y.mutable_data(), workspace.get(),
                                 nullptr));
  return py::make_tuple(cov, mean_x, mean_y, bytes);
}

// Also tells, for each item and tile of 128 variables, whether it was left to the portable kernel.
template <class T>
py::tuple hopper_as(const py::array& x, int channel, int batch_dims, int64_t correction) {
  const SampleBatch batch = batch_of(x, channel, batch_dims);
  const int64_t variables = batch.first.variables, tiles = (variables + 127) / 128;
  Array<float> cov({batch.items(), variables, variables}), mean({batch.items(), variables});
  std::fill_n(cov.mutable_data(), cov.size(), -7.0f);
  const size_t bytes = cuda::covariance_workspace<T>(batch, nullptr);
  const std::unique_ptr<double[]> workspace(new double[(bytes + 7) / 8]);
  std::memset(workspace.get(), 0xff, bytes);
  const int error = cuda::covariance_hopper<T, float>(
      batch, correction, cov.mutable_data(), mean.mutable_data(), workspace.get(), nullptr);
  if (error == cudaErrorNotSupported) throw py::value_error("not supported");
  check(error);
  Array<int> shifted({batch.items(), tiles});
  const auto* end = reinterpret_cast<const char*>(workspace.get()) + bytes;
  std::memcpy(shifted.mutable_data(), end - shifted.nbytes(),
              static_cast<size_t>(shifted.nbytes()));
  return py::make_tuple(cov, mean, shifted);
}

/// f of an element and of a result.
template <class F>
py::tuple with_types(const std::string& dtype, bool wide, const F& f) {
  const auto run = [&](auto element) { return wide ? f(element, double{}) : f(element, float{}); };
  if (dtype == "float64") return run(double{});
  if (dtype == "float32") return run(float{});
  if (dtype == "bfloat16") return run(bfloat16{});
  return run(float16{});
}

py::tuple covariance(const py::array& x, const py::object& y, const std::string& dtype, bool wide,
                     int channel, int batch_dims, int64_t correction, uint64_t seed) {
  prepare(seed);
  return with_types(dtype, wide, [&](auto element, auto out) {
    return covariance_as<decltype(element), decltype(out)>(x, y, channel, batch_dims, correction);
  });
}

py::tuple patch_covariance(const py::array& x, const py::object& y, const std::string& dtype,
                           bool wide, const std::vector<int64_t>& geometry, int64_t correction,
                           uint64_t seed) {
  prepare(seed);
  return with_types(dtype, wide, [&](auto element, auto out) {
    return patches_as<decltype(element), decltype(out)>(x, y, geometry, correction);
  });
}

py::tuple covariance_hopper(const py::array& x, const std::string& dtype, int channel,
                            int batch_dims, int64_t correction, uint64_t seed) {
  prepare(seed);
  return dtype == "bfloat16" ? hopper_as<bfloat16>(x, channel, batch_dims, correction)
                             : hopper_as<float16>(x, channel, batch_dims, correction);
}

}  // namespace

void bind_covariance(py::module_& module) {
  module.def("covariance", &covariance);
  module.def("patch_covariance", &patch_covariance);
  module.def("covariance_hopper", &covariance_hopper);
}

}  // namespace infoslice
