// The torch route: every Op becomes a torch operator infoslice::<name> for CPU and CUDA tensors.
#include <dlfcn.h>

#include <cstring>
#include <mutex>

#include "bindings/host.h"
#include "bindings/torch_abi.h"
#include "common/workspace.h"

namespace infoslice {
namespace {

using torch_abi::AtenTensor;
using torch_abi::StableList;
using torch_abi::Value;

torch_abi::Functions torch;
std::string torch_directory;
bool registered = false;

// The codes of this torch, asked for once.
struct Codes {
  int32_t dtypes[static_cast<int>(Dtype::other)];
  int32_t cpu, cuda;
} codes;

void check(int32_t error, const char* what) {
  if (error != 0) throw DeviceError(std::string("torch refused to ") + what);
}

// A library of the running torch: by its place, or, where a distribution keeps it elsewhere, by
// name.
void* loaded_library(const std::string& name) {
  if (void* handle = dlopen((torch_directory + "/" + name).c_str(), RTLD_NOW | RTLD_NOLOAD))
    return handle;
  return dlopen(name.c_str(), RTLD_NOW | RTLD_NOLOAD);
}

template <class Pointer>
bool look_up(void* library, const char* name, Pointer& pointer) {
  pointer = library ? reinterpret_cast<Pointer>(dlsym(library, name)) : nullptr;
  return pointer != nullptr;
}

void load_cuda_functions() {
  static std::once_flag once;
  static bool complete = true;
  std::call_once(once, [] {
    void* library = loaded_library("libtorch_cuda.so");
#define INFOSLICE_LOOK_UP(result, name, parameters) complete &= look_up(library, #name, torch.name);
    INFOSLICE_TORCH_CUDA_FUNCTIONS(INFOSLICE_LOOK_UP)
#undef INFOSLICE_LOOK_UP
#define INFOSLICE_LOOK_UP(result, name, parameters) look_up(library, #name, torch.name);
    INFOSLICE_TORCH_OPTIONAL_CUDA_FUNCTIONS(INFOSLICE_LOOK_UP)
#undef INFOSLICE_LOOK_UP
  });
  if (!complete)
    throw DeviceError(
        "infoslice: this torch has CUDA tensors, but no stream functions were found in "
        "libtorch_cuda; install torch >= 2.10 with CUDA");
}

template <class T>
T from_bits(Value value) {
  T result;
  std::memcpy(&result, &value, sizeof(T));
  return result;
}

Dtype dtype_of(int32_t code) {
  for (int i = 0; i < static_cast<int>(Dtype::other); ++i)
    if (codes.dtypes[i] == code) return static_cast<Dtype>(i);
  return Dtype::other;
}

class TorchCall final : public Call {
 public:
  TorchCall(const Op& which, Value* stack) : Call(which), stack_(stack) {
    // The stack owns its inputs, and an error may leave this at any point: take everything first.
    arguments_.reserve(op.parameters.size());
    for (size_t i = 0; i < op.parameters.size(); ++i) take(op.parameters[i].type, stack[i]);
    view_tensors();
    if (on_cuda_) prepare_cuda();
    uint32_t threads = 1;
    check(torch.torch_get_num_threads(&threads), "tell its number of threads");
    threads_ = static_cast<int>(threads);
  }

  ~TorchCall() override {
    for (AtenTensor* tensor : owned_)
      if (tensor) torch.aoti_torch_delete_tensor_object(tensor);
    if (guard_) torch.aoti_torch_delete_cuda_guard(guard_);
  }

  Tensor empty(Dtype dtype, const Dims& sizes) override {
    return allocate(codes.dtypes[static_cast<int>(dtype)], sizes, sizes.contiguous_strides());
  }

  Tensor empty_like(const Tensor& model, const Dims& sizes, const Dims& strides) override {
    int32_t code = 0;
    check(torch.aoti_torch_get_dtype(static_cast<AtenTensor*>(model.object), &code),
          "tell a dtype");
    return allocate(code, sizes, strides);
  }

  void resize(const Tensor& changed, const Dims& sizes, const Dims& strides) override {
    const int dims = sizes.size();
    const bool channels_last = dims >= 4 && !(strides == sizes.contiguous_strides());
    int32_t format = dims == 4 ? torch.aoti_torch_memory_format_channels_last()
                               : torch.aoti_torch_memory_format_channels_last_3d();
    const auto resize = on_cuda_ ? torch.aoti_torch_cuda_resize_ : torch.aoti_torch_cpu_resize_;
    if (!resize)
      throw DeviceError(op.name +
                        ": this torch cannot give a CUDA tensor a smaller shape "
                        "(aoti_torch_cuda_resize_ is missing in libtorch_cuda); install a newer "
                        "one, or make new tensors");
    check(resize(static_cast<AtenTensor*>(changed.object), sizes.data(), dims,
                 channels_last ? &format : nullptr),
          "give a tensor a smaller shape");
  }

  void start() override {}  // torch has released Python's lock; the device guard is set

  // Hands the results over; the references leave owned_.
  void finish() {
    StableList* list = nullptr;
    if (op.returns_list) {
      check(torch.torch_new_list_reserve_size(results_.size(), &list), "make a list");
      stack_[0] = reinterpret_cast<Value>(list);
    }
    auto owner = owned_.begin();  // results mostly come in the order in which they were made
    for (size_t i = 0; i < results_.size(); ++i) {
      auto* tensor = static_cast<AtenTensor*>(results_[i].object);
      owner = std::find(owner, owned_.end(), tensor);
      if (owner == owned_.end()) owner = std::find(owned_.begin(), owned_.end(), tensor);
      *owner = nullptr;
      if (list)
        check(torch.torch_list_push_back(list, reinterpret_cast<Value>(tensor)), "fill a list");
      else
        stack_[i] = reinterpret_cast<Value>(tensor);
    }
  }

 private:
  void take(Parameter::Type type, Value value) {
    switch (type) {
      case Parameter::tensor:
        arguments_.emplace_back(own(value));
        break;
      case Parameter::tensors:
        arguments_.emplace_back(list<Tensor>(value, [this](Value item) { return own(item); }));
        break;
      case Parameter::integers:
        arguments_.emplace_back(list<int64_t>(value, from_bits<int64_t>));
        break;
      case Parameter::integer:
        arguments_.emplace_back(from_bits<int64_t>(value));
        break;
      case Parameter::boolean:
        arguments_.emplace_back(static_cast<int64_t>(from_bits<bool>(value)));
        break;
      case Parameter::real:
        arguments_.emplace_back(from_bits<double>(value));
        break;
      case Parameter::dtype: {
        std::optional<Dtype> dtype;
        if (auto* boxed = reinterpret_cast<Value*>(value)) {
          dtype = dtype_of(from_bits<int32_t>(*boxed));
          if (torch.torch_delete_stable_ivalue)
            torch.torch_delete_stable_ivalue(boxed);
          else
            delete boxed;
        }
        arguments_.emplace_back(dtype);
        break;
      }
    }
  }

  Tensor own(Value value) {
    auto* tensor = reinterpret_cast<AtenTensor*>(value);
    owned_.push_back(tensor);
    Tensor view;
    view.object = tensor;
    return view;
  }

  template <class T, class F>
  std::vector<T> list(Value value, const F& convert) {
    auto* list = reinterpret_cast<StableList*>(value);
    std::vector<T> items;
    size_t size = 0;
    int32_t error = torch.torch_list_size(list, &size);
    items.reserve(size);
    for (size_t i = 0; i < size && error == 0; ++i) {
      Value item = 0;
      error = torch.torch_list_get_item(list, i, &item);
      if (error == 0) items.push_back(convert(item));
    }
    torch.torch_delete_list(list);
    check(error, "read a list");
    return items;
  }

  void view_tensors() {
    bool first = true;
    for (size_t i = 0; i < arguments_.size(); ++i) {
      if (auto* single = std::get_if<Tensor>(&arguments_[i])) view(*single, i, first);
      if (auto* several = std::get_if<std::vector<Tensor>>(&arguments_[i]))
        for (Tensor& tensor : *several) view(tensor, i, first);
    }
  }

  void view(Tensor& tensor, size_t argument, bool& first) {
    auto* handle = static_cast<AtenTensor*>(tensor.object);
    int64_t dims = 0, *sizes = nullptr, *strides = nullptr;
    int32_t code = 0, device = 0, index = 0;
    int32_t error = torch.aoti_torch_get_dim(handle, &dims);
    error |= torch.aoti_torch_get_sizes(handle, &sizes);
    error |= torch.aoti_torch_get_strides(handle, &strides);
    error |= torch.aoti_torch_get_dtype(handle, &code);
    error |= torch.aoti_torch_get_device_type(handle, &device);
    error |= torch.aoti_torch_get_device_index(handle, &index);
    error |= torch.aoti_torch_get_data_ptr(handle, &tensor.data);
    check(error, "describe a tensor");
    const int i = static_cast<int>(argument);
    if (dims > kMaxDims) value_error(i, "at most 12 dimensions", std::to_string(dims));
    for (int64_t d = 0; d < dims; ++d) {
      tensor.sizes.push_back(sizes[d]);
      tensor.strides.push_back(strides[d]);
    }
    tensor.dtype = dtype_of(code);
    tensor.itemsize = static_cast<int64_t>(torch.aoti_torch_dtype_element_size(code));
    if (i == op.on_host) {
      if (device != codes.cpu)
        throw DeviceError(text(op.parameters[i].name, "CPU tensors", "one of another device"));
      return;
    }
    if (first) {
      device_ = device;
      device_index_ = index;
      on_cuda_ = device == codes.cuda;
      first = false;
    }
    if (device != device_ || index != device_index_)
      throw DeviceError(text(op.parameters[i].name, "all tensors on one device", "several"));
    if (device != codes.cpu && device != codes.cuda)
      throw DeviceError(text(op.parameters[i].name, "a CPU or CUDA tensor", "another device"));
  }

  void prepare_cuda() {
    const std::string where = "cuda:" + std::to_string(device_index_);
    if (!op.has_cuda)
      throw DeviceError(op.name + ": no CUDA kernel exists for this op, and the tensors are on " +
                        where + "; move them with .cpu()");
    cuda_kernels_ = load_cuda_kernels();
    if (!cuda_kernels_)
      throw DeviceError(op.name + ": the tensors are on " + where +
                        ", but infoslice was built without CUDA kernels; put nvcc on PATH and run "
                        "'pip install --force-reinstall --no-deps .' in its source, or move the "
                        "tensors with .cpu()");
    load_cuda_functions();
    check(torch.aoti_torch_create_cuda_guard(device_index_, &guard_), "set the CUDA device");
    check(torch.aoti_torch_get_current_cuda_stream(device_index_, &stream_), "tell its stream");
  }

  Tensor allocate(int32_t code, const Dims& sizes, const Dims& strides) {
    AtenTensor* handle = nullptr;
    if (torch.aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), code, device_,
                                       device_index_, &handle) != 0)
      throw DeviceError("torch refused to allocate a tensor of shape " + to_string(sizes));
    owned_.push_back(handle);
    Tensor tensor;
    tensor.object = handle;
    tensor.sizes = sizes;
    tensor.strides = strides;
    tensor.dtype = dtype_of(code);
    tensor.itemsize = static_cast<int64_t>(torch.aoti_torch_dtype_element_size(code));
    check(torch.aoti_torch_get_data_ptr(handle, &tensor.data), "tell an address");
    if (device_ == codes.cpu) {
      prefer_large_pages(tensor.data, static_cast<size_t>(tensor.elements() * tensor.itemsize));
    }
    return tensor;
  }

  Value* stack_;
  std::vector<AtenTensor*> owned_;
  int32_t device_ = 0, device_index_ = 0;
  void* guard_ = nullptr;
};

// torch wants a plain function per op; the index of the op is its template argument.
template <int Index>
void kernel(Value* stack, uint64_t, uint64_t) {
  try {
    const Op& op = *Op::all()[Index];
    TorchCall call(op, stack);
    op.host(call);
    call.finish();
  } catch (const std::exception& error) {
    throw_to_python(error);
  }
}

constexpr int kMaxOps = 64;
template <int... Index>
torch_abi::Kernel kernel_of(size_t op, std::integer_sequence<int, Index...>) {
  static constexpr torch_abi::Kernel table[] = {kernel<Index>...};
  return table[op];
}

}  // namespace

int torch_threads() {
  uint32_t threads = 1;
  if (registered) torch.torch_get_num_threads(&threads);
  return static_cast<int>(threads);
}

void register_torch(const std::string& library_directory, const std::string& version) {
  if (registered) return;
  torch_directory = library_directory;
  void* library = loaded_library("libtorch_cpu.so");
  std::string missing;
#define INFOSLICE_LOOK_UP(result, name, parameters) \
  if (!look_up(library, #name, torch.name) && missing.empty()) missing = #name;
  INFOSLICE_TORCH_FUNCTIONS(INFOSLICE_LOOK_UP)
#undef INFOSLICE_LOOK_UP
  if (!missing.empty())
    throw DeviceError("infoslice needs torch >= 2.10, got torch " + version + " (" + missing +
                      " is missing in libtorch_cpu.so); run: pip install 'torch>=2.10'");
#define INFOSLICE_LOOK_UP(result, name, parameters) look_up(library, #name, torch.name);
  INFOSLICE_TORCH_OPTIONAL_FUNCTIONS(INFOSLICE_LOOK_UP)
#undef INFOSLICE_LOOK_UP

  codes = {{torch.aoti_torch_dtype_float64(), torch.aoti_torch_dtype_float32(),
            torch.aoti_torch_dtype_bfloat16(), torch.aoti_torch_dtype_float16(),
            torch.aoti_torch_dtype_int64(), torch.aoti_torch_dtype_int32()},
           torch.aoti_torch_device_type_cpu(),
           torch.aoti_torch_device_type_cuda()};

  const auto& ops = Op::all();
  if (ops.size() > kMaxOps) throw std::logic_error("more ops than kMaxOps in torch_ops.cpp");
  torch_abi::TorchLibrary *define = nullptr, *implement = nullptr;
  check(torch.aoti_torch_library_init_fragment("infoslice", __FILE__, __LINE__, &define),
        "open a namespace");
  for (const Op* op : ops)
    check(torch.aoti_torch_library_def(define, op->schema), ("define " + op->name).c_str());
  for (const char* key : {"CPU", "CUDA"}) {
    // The libraries live as long as the process: deleting them would take the ops back.
    check(torch.aoti_torch_library_init_impl("infoslice", key, __FILE__, __LINE__, &implement),
          "open a namespace");
    for (size_t i = 0; i < ops.size(); ++i)
      check(torch.torch_library_impl(implement, ops[i]->name.c_str(),
                                     kernel_of(i, std::make_integer_sequence<int, kMaxOps>()),
                                     torch_abi::kVersion),
            ("implement " + ops[i]->name).c_str());
  }
  registered = true;
}

}  // namespace infoslice
