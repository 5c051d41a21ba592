#include "covariance.h"

#include <algorithm>
#include <cstdlib>
#include <tuple>

#include "bindings/cuda_kernels.h"
#include "bindings/host.h"
#include "common/numeric.h"

namespace infoslice {
namespace {

std::string text(int64_t value) { return std::to_string(value); }

// Calls f with a value of the input's element type.
template <class F>
auto with_element(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::float64:
      return f(double{});
    case Dtype::float32:
      return f(float{});
    case Dtype::bfloat16:
      return f(bfloat16{});
    default:
      return f(float16{});
  }
}

// float64 for float64 inputs and float32 otherwise, unless asked for.
Dtype result_dtype(const Call& call, int argument) {
  call.check_dtype(0, {Dtype::float64, Dtype::float32, Dtype::bfloat16, Dtype::float16});
  const Dtype by_input = call.tensor(0).dtype == Dtype::float64 ? Dtype::float64 : Dtype::float32;
  const Dtype dtype = call.dtype(argument).value_or(by_input);
  if (dtype != Dtype::float64 && dtype != Dtype::float32)
    call.type_error(argument, "float64 or float32", dtype_name(dtype));
  return dtype;
}

void check_same_dtype(const Call& call) {
  if (call.tensor(1).dtype != call.tensor(0).dtype)
    call.type_error(1, std::string("the dtype of x, ") + dtype_name(call.tensor(0).dtype),
                    dtype_name(call.tensor(1).dtype));
}

void check_samples(const Call& call, int64_t samples, int correction) {
  const int64_t c = call.integer(correction);
  if (c < 0) call.value_error(correction, "0 or more", text(c));
  if (samples - c < 1)
    call.value_error(0, "at least " + text(c + 1) + " samples for correction " + text(c),
                     text(samples) + " (shape " + to_string(call.tensor(0).sizes) + ")");
}

void check_outcome(const Call& call, const CovarianceOutcome& outcome, const Dims& batch,
                   int64_t taps, int dtype_argument) {
  if (outcome.kind == CovarianceOutcome::ok) return;
  std::string where = "channel " + text(outcome.variable / (outcome.in_y ? 1 : taps));
  if (batch.size() > 0) {
    Dims index = batch;
    int64_t rest = outcome.item;
    for (int d = batch.size() - 1; d >= 0; --d) {
      index[d] = rest % batch[d];
      rest /= batch[d];
    }
    where += " of batch item " + to_string(index);
  }
  if (outcome.kind == CovarianceOutcome::not_finite)
    call.value_error(outcome.in_y ? 1 : 0, "finite values", "NaN or Inf in " + where);
  call.value_error(outcome.in_y ? 1 : 0, "moments within the range of the result's dtype",
                   "an overflow in " + where + "; scale the data or pass " +
                       call.op.parameters[static_cast<size_t>(dtype_argument)].name + "=float64");
}

// The dims of x taken apart. Sample axes are shared by x and y: put in the order of x's strides,
// since the order of samples is of no concern, and merged where both allow it.
struct Layout {
  int channel;
  Dims batch;
  std::vector<int> axes;
};

Layout layout_of(const Call& call, int channel_argument, int batch_argument) {
  const Tensor& x = call.tensor(0);
  const int64_t batch_dims = call.integer(batch_argument);
  if (batch_dims < 0) call.value_error(batch_argument, "0 or more", text(batch_dims));
  call.check_dims(0, static_cast<int>(std::min<int64_t>(batch_dims, kMaxDims)) + 2,
                  "[*batch, samples, channels]");
  int64_t channel = call.integer(channel_argument);
  if (channel < 0) channel += x.dims();
  if (channel < batch_dims || channel >= x.dims())
    call.value_error(
        channel_argument,
        "a dimension of shape " + to_string(x.sizes) + " after the first " + text(batch_dims),
        text(call.integer(channel_argument)));
  Layout layout{static_cast<int>(channel), {}, {}};
  for (int d = 0; d < x.dims(); ++d) {
    if (d < batch_dims)
      layout.batch.push_back(x.sizes[d]);
    else if (d != channel)
      layout.axes.push_back(d);
  }
  std::stable_sort(layout.axes.begin(), layout.axes.end(),
                   [&](int a, int b) { return std::abs(x.strides[a]) > std::abs(x.strides[b]); });
  if (x.sizes[layout.channel] < 1)
    call.value_error(0, "at least 1 channel", "shape " + to_string(x.sizes));
  return layout;
}

Samples samples_of(const Tensor& x, int channel, const std::vector<int>& axes,
                   const Tensor* other) {
  Samples samples{};
  samples.data = x.data;
  samples.variables = x.sizes[channel];
  // A single channel is read along the samples, whatever its stride says.
  samples.stride = samples.variables == 1 ? 0 : x.strides[channel];
  int previous = -1;
  const auto follows = [](const Tensor& tensor, int outer, int inner) {
    return tensor.strides[outer] == tensor.sizes[inner] * tensor.strides[inner];
  };
  for (int axis : axes) {
    if (x.sizes[axis] == 1) continue;
    if (previous >= 0 && follows(x, previous, axis) &&
        (!other || follows(*other, previous, axis))) {
      Samples::Axis& last = samples.axes[samples.axes_count - 1];
      last = {last.size * x.sizes[axis], x.strides[axis]};
    } else {
      samples.axes[samples.axes_count++] = {x.sizes[axis], x.strides[axis]};
    }
    previous = axis;
  }
  if (samples.axes_count == 0) samples.axes[samples.axes_count++] = {1, 0};
  return samples;
}

// One Samples for each batch item.
std::vector<Samples> batched(const Tensor& x, const Layout& layout, const Tensor* other) {
  const Samples first = samples_of(x, layout.channel, layout.axes, other);
  std::vector<Samples> items(static_cast<size_t>(layout.batch.product()), first);
  for (size_t item = 0; item < items.size(); ++item) {
    int64_t rest = static_cast<int64_t>(item), offset = 0;
    for (int d = layout.batch.size() - 1; d >= 0; --d) {
      offset += rest % layout.batch[d] * x.strides[d];
      rest /= layout.batch[d];
    }
    items[item].data = static_cast<const char*>(x.data) + offset * x.itemsize;
  }
  return items;
}

SampleBatch sample_batch(const Tensor& x, const Layout& layout, const Tensor* other) {
  SampleBatch batch{samples_of(x, layout.channel, layout.axes, other), {}, 0};
  for (int d = 0; d < layout.batch.size(); ++d)
    batch.axes[batch.axes_count++] = {x.sizes[d], x.strides[d]};
  return batch;
}

// The bodies for one kind of input, of elements of type T.
template <class T>
auto cuda_bodies(const Call& call, const SampleBatch&) {
  const auto& cuda = call.cuda_kernels().covariance_of<T>();
  return std::make_tuple(cuda.workspace, cuda.to_float32, cuda.to_float64);
}
template <class T>
auto cuda_bodies(const Call& call, const Patches&) {
  const auto& cuda = call.cuda_kernels().covariance_of<T>();
  return std::make_tuple(cuda.patch_workspace, cuda.patches_to_float32, cuda.patches_to_float64);
}

// y and mean_y: null for the covariance of x. What is not finite is told by NaN in the results.
template <class Input>
void run_on_cuda(Call& call, const Input& x, const Input* y, int64_t correction, const Tensor& cov,
                 const Tensor& mean_x, const Tensor* mean_y) {
  with_element(call.tensor(0).dtype, [&](auto element) {
    const auto [workspace_bytes, to_float32, to_float64] = cuda_bodies<decltype(element)>(call, x);
    const auto doubles = static_cast<int64_t>((workspace_bytes(x, y) + 7) / 8);
    const Tensor workspace = call.empty(Dtype::float64, {doubles});
    call.start();
    const auto run = [&](auto body, auto out) {
      using Out = decltype(out);
      call.check_launch(body(x, y, correction, cov.as<Out>(), mean_x.as<Out>(),
                             mean_y ? mean_y->as<Out>() : nullptr, workspace.data, call.stream()));
    };
    cov.dtype == Dtype::float64 ? run(to_float64, double{}) : run(to_float32, float{});
  });
}

Dims append(Dims dims, std::initializer_list<int64_t> more) {
  for (int64_t value : more) dims.push_back(value);
  return dims;
}

void covariance(Call& call) {
  const Tensor& x = call.tensor(0);
  const Dtype dtype = result_dtype(call, 4);
  const Layout layout = layout_of(call, 1, 2);
  const int64_t channels = x.sizes[layout.channel];
  check_samples(call, samples_of(x, layout.channel, layout.axes, nullptr).count(), 3);

  const Tensor cov = call.empty(dtype, append(layout.batch, {channels, channels}));
  const Tensor mean = call.empty(dtype, append(layout.batch, {channels}));
  call.give(cov);
  call.give(mean);
  if (layout.batch.product() == 0) return;
  if (call.on_cuda())
    return run_on_cuda<SampleBatch>(call, sample_batch(x, layout, nullptr), nullptr,
                                    call.integer(3), cov, mean, nullptr);
  const std::vector<Samples> items = batched(x, layout, nullptr);
  call.start();
  const auto run = [&](auto element, auto out) {
    using T = decltype(element);
    using Out = decltype(out);
    return cpu::covariance<T, Out>(items.data(), static_cast<int64_t>(items.size()),
                                   call.integer(3), cov.as<Out>(), mean.as<Out>(), call.threads());
  };
  check_outcome(call,
                with_element(x.dtype,
                             [&](auto element) {
                               return dtype == Dtype::float64 ? run(element, double{})
                                                              : run(element, float{});
                             }),
                layout.batch, 1, 4);
}

void cross_covariance(Call& call) {
  const Tensor &x = call.tensor(0), &y = call.tensor(1);
  const Dtype dtype = result_dtype(call, 5);
  check_same_dtype(call);
  const Layout layout = layout_of(call, 2, 3);
  Dims expected = x.sizes;
  if (y.dims() == x.dims()) expected[layout.channel] = y.sizes[layout.channel];
  if (!(y.sizes == expected) || y.sizes[layout.channel] < 1)
    call.value_error(1, "the shape of x, " + to_string(expected) + ", but for the channels",
                     "shape " + to_string(y.sizes));
  check_samples(call, samples_of(x, layout.channel, layout.axes, &y).count(), 4);

  const int64_t rows = x.sizes[layout.channel], columns = y.sizes[layout.channel];
  const Tensor cov = call.empty(dtype, append(layout.batch, {rows, columns}));
  const Tensor mean_x = call.empty(dtype, append(layout.batch, {rows}));
  const Tensor mean_y = call.empty(dtype, append(layout.batch, {columns}));
  call.give(cov);
  call.give(mean_x);
  call.give(mean_y);
  if (layout.batch.product() == 0) return;
  if (call.on_cuda()) {
    const SampleBatch right = sample_batch(y, layout, &x);
    const SampleBatch left = sample_batch(x, layout, &y);
    return run_on_cuda<SampleBatch>(call, left, &right, call.integer(4), cov, mean_x, &mean_y);
  }
  const std::vector<Samples> xs = batched(x, layout, &y), ys = batched(y, layout, &x);
  call.start();
  const auto run = [&](auto element, auto out) {
    using T = decltype(element);
    using Out = decltype(out);
    return cpu::cross_covariance<T, Out>(xs.data(), ys.data(), static_cast<int64_t>(xs.size()),
                                         call.integer(4), cov.as<Out>(), mean_x.as<Out>(),
                                         mean_y.as<Out>(), call.threads());
  };
  check_outcome(call,
                with_element(x.dtype,
                             [&](auto element) {
                               return dtype == Dtype::float64 ? run(element, double{})
                                                              : run(element, float{});
                             }),
                layout.batch, 1, 5);
}

// x [N, C, H, W], or [N, C, L] as an image of height 1; the geometry in four lists from `first` on.
Patches patches_of(const Call& call, int first) {
  const Tensor& x = call.tensor(0);
  if (x.dims() != 3 && x.dims() != 4)
    call.value_error(0, "[N, C, H, W] or [N, C, L]", "shape " + to_string(x.sizes));
  Patches p{};
  p.data = x.data;
  p.images = x.sizes[0];
  p.channels = x.sizes[1];
  p.image_stride = x.strides[0];
  p.channel_stride = x.strides[1];
  const int spatial = x.dims() - 2;
  for (int d = 0; d < 2; ++d) {
    p.size[d] = p.kernel[d] = p.step[d] = p.dilation[d] = 1;
    p.padding[d] = 0;
    p.pixel_stride[d] = 0;
  }
  // Products of two of them, and sums of those, fit 64 bits.
  constexpr int64_t kMost = int64_t{1} << 30;
  const auto take = [&](int argument, int64_t* to, int64_t least) {
    const auto& values = call.integers(argument);
    if (static_cast<int>(values.size()) != spatial)
      call.value_error(argument, text(spatial) + " values for x of shape " + to_string(x.sizes),
                       text(static_cast<int64_t>(values.size())));
    for (int d = 0; d < spatial; ++d) {
      if (values[static_cast<size_t>(d)] < least)
        call.value_error(argument, text(least) + " or more", text(values[static_cast<size_t>(d)]));
      if (values[static_cast<size_t>(d)] > kMost)
        call.value_error(argument, text(kMost) + " or less", text(values[static_cast<size_t>(d)]));
      to[2 - spatial + d] = values[static_cast<size_t>(d)];
    }
  };
  take(first, p.kernel, 1);
  take(first + 1, p.step, 1);
  take(first + 2, p.padding, 0);
  take(first + 3, p.dilation, 1);
  for (int d = 0; d < spatial; ++d) {
    p.size[2 - spatial + d] = x.sizes[2 + d];
    p.pixel_stride[2 - spatial + d] = x.strides[2 + d];
  }
  if (p.channels < 1) call.value_error(0, "at least 1 channel", "shape " + to_string(x.sizes));
  for (int d = 0; d < 2; ++d) {
    const int64_t reach = p.size[d] + 2 * p.padding[d] - p.dilation[d] * (p.kernel[d] - 1) - 1;
    if (reach < 0 || p.size[d] < 1)
      call.value_error(first, "a kernel within the padded input of shape " + to_string(x.sizes),
                       text(p.dilation[d] * (p.kernel[d] - 1) + 1) + " pixels");
    p.out[d] = reach / p.step[d] + 1;
  }
  return p;
}

// y [N, Cy, H, W], or [N, Cy, L], as patches of one pixel.
Patches pixels_of(const Tensor& y) {
  Patches p{};
  p.data = y.data;
  p.images = y.sizes[0];
  p.channels = y.sizes[1];
  p.image_stride = y.strides[0];
  p.channel_stride = y.strides[1];
  for (int d = 0; d < 2; ++d) {
    const int dim = y.dims() - 2 + d;
    const bool has = dim >= 2;
    p.size[d] = p.out[d] = has ? y.sizes[dim] : 1;
    p.pixel_stride[d] = has ? y.strides[dim] : 0;
    p.kernel[d] = p.step[d] = p.dilation[d] = 1;
    p.padding[d] = 0;
  }
  return p;
}

void patch_covariance(Call& call) {
  const Tensor& x = call.tensor(0);
  const Dtype dtype = result_dtype(call, 6);
  const Patches patches = patches_of(call, 1);
  check_samples(call, patches.count(), 5);
  const int64_t variables = patches.variables();
  const Tensor cov = call.empty(dtype, {variables, variables});
  const Tensor mean = call.empty(dtype, {variables});
  call.give(cov);
  call.give(mean);
  if (call.on_cuda())
    return run_on_cuda<Patches>(call, patches, nullptr, call.integer(5), cov, mean, nullptr);
  call.start();
  const auto run = [&](auto element, auto out) {
    using Out = decltype(out);
    return cpu::patch_covariance<decltype(element), Out>(patches, call.integer(5), cov.as<Out>(),
                                                         mean.as<Out>(), call.threads());
  };
  check_outcome(call,
                with_element(x.dtype,
                             [&](auto element) {
                               return dtype == Dtype::float64 ? run(element, double{})
                                                              : run(element, float{});
                             }),
                {}, patches.kernel[0] * patches.kernel[1], 6);
}

void patch_cross_covariance(Call& call) {
  const Tensor &x = call.tensor(0), &y = call.tensor(1);
  const Dtype dtype = result_dtype(call, 7);
  check_same_dtype(call);
  const Patches patches = patches_of(call, 2);
  Dims expected{patches.images, y.dims() > 1 ? y.sizes[1] : 1};
  for (int d = 4 - x.dims(); d < 2; ++d) expected.push_back(patches.out[d]);
  if (!(y.sizes == expected) || y.sizes[1] < 1)
    call.value_error(1, "the output positions of x, [N, Cy, ...] like " + to_string(expected),
                     "shape " + to_string(y.sizes));
  check_samples(call, patches.count(), 6);

  const int64_t rows = patches.variables(), columns = y.sizes[1];
  const Tensor cov = call.empty(dtype, {rows, columns});
  const Tensor mean_x = call.empty(dtype, {rows});
  const Tensor mean_y = call.empty(dtype, {columns});
  call.give(cov);
  call.give(mean_x);
  call.give(mean_y);
  if (call.on_cuda()) {
    const Patches right = pixels_of(y);
    return run_on_cuda<Patches>(call, patches, &right, call.integer(6), cov, mean_x, &mean_y);
  }
  std::vector<int> axes{0};
  for (int d = 2; d < y.dims(); ++d) axes.push_back(d);
  const Samples samples = samples_of(y, 1, axes, nullptr);
  call.start();
  const auto run = [&](auto element, auto out) {
    using Out = decltype(out);
    return cpu::patch_cross_covariance<decltype(element), Out>(patches, samples, call.integer(6),
                                                               cov.as<Out>(), mean_x.as<Out>(),
                                                               mean_y.as<Out>(), call.threads());
  };
  check_outcome(call,
                with_element(x.dtype,
                             [&](auto element) {
                               return dtype == Dtype::float64 ? run(element, double{})
                                                              : run(element, float{});
                             }),
                {}, patches.kernel[0] * patches.kernel[1], 7);
}

const Op covariance_op(
    "covariance(Tensor x, int channel_dim, int batch_dims, int correction, ScalarType? dtype)"
    " -> (Tensor, Tensor)",
    covariance, Bodies::cpu_and_cuda);
const Op cross_covariance_op(
    "cross_covariance(Tensor x, Tensor y, int channel_dim, int batch_dims, int correction,"
    " ScalarType? dtype) -> (Tensor, Tensor, Tensor)",
    cross_covariance, Bodies::cpu_and_cuda);
const Op patch_covariance_op(
    "patch_covariance(Tensor x, int[] kernel_size, int[] stride, int[] padding, int[] dilation,"
    " int correction, ScalarType? dtype) -> (Tensor, Tensor)",
    patch_covariance, Bodies::cpu_and_cuda);
const Op patch_cross_covariance_op(
    "patch_cross_covariance(Tensor x, Tensor y, int[] kernel_size, int[] stride, int[] padding,"
    " int[] dilation, int correction, ScalarType? dtype) -> (Tensor, Tensor, Tensor)",
    patch_cross_covariance, Bodies::cpu_and_cuda);

}  // namespace
}  // namespace infoslice
