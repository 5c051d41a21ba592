#include "greedy.h"

#include <algorithm>
#include <cmath>

#include "bindings/cuda_kernels.h"
#include "bindings/matrices.h"

namespace infoslice {
namespace {

std::string number(int64_t value) { return std::to_string(value); }

void check_square(const Call& call, int i, const Tensor& x) {
  if (x.dtype != Dtype::float32 && x.dtype != Dtype::float64)
    call.type_error(i, "float32 or float64", dtype_name(x.dtype));
  if (x.dims() != 2 || x.sizes[0] != x.sizes[1] || x.sizes[0] == 0)
    call.value_error(i, "square matrices [d, d] with d >= 1", "shape " + to_string(x.sizes));
}

template <class T>
MatrixView<T> view(const Tensor& x) {
  return {x.as<const T>(), x.strides[0], x.strides[1]};
}

// The results: order and values [count], info.
struct Results {
  Results(Call& call, int64_t count)
      : order(call.empty(Dtype::int64, {count})),
        values(call.empty(Dtype::float64, {count})),
        info(call.empty(Dtype::int32, {})),
        choice{count, order.as<int64_t>(), values.as<double>(), info.as<int32_t>()} {}
  void give(Call& call) const {
    for (const Tensor& result : {order, values, info}) call.give(result);
  }
  Tensor order, values, info;
  Choice choice;
};

void check_count(const Call& call, int i, int64_t most, const char* what) {
  const int64_t count = call.integer(i);
  if (count < 0 || count > most)
    call.value_error(i, "0 to " + number(most) + ", " + what, number(count));
}

Tensor workspace(Call& call, size_t bytes) {
  return call.empty(Dtype::float64, {static_cast<int64_t>((bytes + 7) / 8)});
}

template <class T>
void select(Call& call, const MutualInformation& of) {
  const MatrixView<T> cov = view<T>(call.tensor(0));
  const std::vector<int64_t>& start = call.integers(5);
  const Results results(call, call.integer(3));
  if (call.on_cuda()) {
    const CudaKernels& cuda = call.cuda_kernels();
    const Tensor scratch = workspace(call, cuda.forward_selection_workspace(of));
    call.start();
    call.check_launch(cuda.of<T>().forward_selection(cov, of, start, results.choice, scratch.data,
                                                     call.stream()));
  } else {
    call.start();
    cpu::forward_selection(cov, of, start, results.choice, call.threads());
  }
  results.give(call);
}

void forward_selection(Call& call) {
  const Tensor& cov = call.tensor(0);
  check_square(call, 0, cov);
  std::vector<char> taken(static_cast<size_t>(cov.sizes[0]), 0);
  check_indices(call, 1, cov.sizes[0], taken);
  check_indices(call, 2, cov.sizes[0], taken);
  const std::vector<int64_t>&x = call.integers(1), &y = call.integers(2), &start = call.integers(5);
  const int64_t nx = static_cast<int64_t>(x.size()), size = call.integer(4);
  if (nx == 0) call.value_error(1, "at least one index", "none");
  if (size < 1 || nx % size != 0)
    call.value_error(4, "a divisor of the " + number(nx) + " entries of x", number(size));
  std::vector<char> started(static_cast<size_t>(nx / size), 0);
  check_indices(call, 5, nx / size, started);
  const int64_t left = nx / size - static_cast<int64_t>(start.size());
  check_count(call, 3, left, "the groups that are not in start");
  const double noise = call.real(6);
  if (!(noise >= 0 && std::isfinite(noise)))
    call.value_error(6, "a finite variance >= 0", std::to_string(noise));
  const MutualInformation of{x.data(), nx, y.data(), static_cast<int64_t>(y.size()), size, noise};
  cov.dtype == Dtype::float32 ? select<float>(call, of) : select<double>(call, of);
}

template <class T>
std::vector<LayerPair<T>> pairs(const Call& call) {
  std::vector<LayerPair<T>> result;
  for (size_t l = 0; l < call.tensors(0).size(); ++l) {
    const Tensor &first = call.tensors(0)[l], &second = call.tensors(1)[l];
    result.push_back({view<T>(first), view<T>(second), call.integers(3)[l]});
  }
  return result;
}

// Arguments: two lists of matrices, count, group_size, keep. Returns the number of channels.
int64_t check_layers(const Call& call) {
  const std::vector<Tensor>&first = call.tensors(0), &second = call.tensors(1);
  const std::vector<int64_t>& sizes = call.integers(3);
  if (first.empty()) call.value_error(0, "at least one matrix", "none");
  if (first.size() != second.size())
    call.value_error(1, number(static_cast<int64_t>(first.size())) + " matrices",
                     number(static_cast<int64_t>(second.size())));
  if (first.size() != sizes.size())
    call.value_error(3,
                     "one size, or one for each of the " +
                         number(static_cast<int64_t>(first.size())) + " layers",
                     number(static_cast<int64_t>(sizes.size())) + " sizes");
  int64_t channels = 0;
  for (size_t l = 0; l < first.size(); ++l) {
    check_square(call, 0, first[l]);
    check_square(call, 1, second[l]);
    const int64_t d = first[l].sizes[0];
    if (second[l].sizes[0] != d)
      call.value_error(1, "a matrix of order " + number(d), "shape " + to_string(second[l].sizes));
    for (const Tensor* x : {&first[l], &second[l]}) {
      if (x->dtype != first[0].dtype)
        call.type_error(x == &first[l] ? 0 : 1, "one dtype", "float32 and float64");
    }
    if (sizes[l] < 1 || d % sizes[l] != 0)
      call.value_error(3, "a divisor of the order " + number(d), number(sizes[l]));
    if (l > 0 && d / sizes[l] != channels)
      call.value_error(3, "the same number of channels in all layers",
                       number(channels) + " and " + number(d / sizes[l]));
    channels = d / sizes[l];
  }
  return channels;
}

template <bool obs, class T>
void eliminate_as(Call& call, int64_t channels) {
  const std::vector<LayerPair<T>> layers = pairs<T>(call);
  const std::vector<int64_t>& keep = call.integers(4);
  const Results results(call, call.integer(2));
  if (call.on_cuda()) {
    const CudaKernels& cuda = call.cuda_kernels();
    const int64_t open = channels - static_cast<int64_t>(keep.size());
    const Tensor scratch = workspace(call, cuda.elimination_workspace(call.integers(3), open));
    const auto body = obs ? cuda.of<T>().obs_elimination : cuda.of<T>().backward_elimination;
    call.start();
    call.check_launch(body(layers, channels, keep, results.choice, scratch.data, call.stream()));
  } else {
    const auto body = obs ? cpu::obs_elimination<T> : cpu::backward_elimination<T>;
    call.start();
    body(layers, channels, keep, results.choice, call.threads());
  }
  results.give(call);
}

template <bool obs>
void eliminate(Call& call) {
  const int64_t channels = check_layers(call);
  std::vector<char> kept(static_cast<size_t>(channels), 0);
  check_indices(call, 4, channels, kept);
  const int64_t left = channels - static_cast<int64_t>(call.integers(4).size());
  check_count(call, 2, left, "the channels that are not in keep");
  call.tensors(0)[0].dtype == Dtype::float32 ? eliminate_as<obs, float>(call, channels)
                                             : eliminate_as<obs, double>(call, channels);
}

const Op forward_op(
    "forward_selection(Tensor cov, int[] x, int[] y, int count, int group_size, int[] start, "
    "float noise_variance) -> (Tensor, Tensor, Tensor)",
    forward_selection, Bodies::cpu_and_cuda);
const Op backward_op(
    "backward_elimination(Tensor[] precision, Tensor[] given_y, int count, int[] group_size, "
    "int[] keep) -> (Tensor, Tensor, Tensor)",
    eliminate<false>, Bodies::cpu_and_cuda);
const Op obs_op(
    "obs_elimination(Tensor[] precision, Tensor[] gram, int count, int[] group_size, int[] keep) "
    "-> (Tensor, Tensor, Tensor)",
    eliminate<true>, Bodies::cpu_and_cuda);

}  // namespace
}  // namespace infoslice
