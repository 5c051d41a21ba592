// torch's stable C ABI (torch >= 2.10): the only file that states any of it.
//
// The functions are looked up in the libraries of the torch that the process has loaded, so nothing
// of torch is needed to build and one binary serves every supported version. Declarations follow
// torch/csrc/stable/c/shim.h, torch/csrc/inductor/aoti_torch/c/shim.h and, for resize_,
// torch/csrc/inductor/aoti_torch/generated/c_shim_{cpu,cuda}.h, which promise not to change them. All
// return 0 for success unless they return a value.
#pragma once

#include <cstddef>
#include <cstdint>

namespace infoslice::torch_abi {

struct AtenTensor;       // an owned reference to an at::Tensor
struct TorchLibrary;     // registrations in one namespace
struct StableList;       // a list argument or result
using Value = uint64_t;  // an argument or result on the boxed stack: number, bits or pointer
using Kernel = void (*)(Value* stack, uint64_t inputs, uint64_t outputs);

// The version of the ABI that this file was written for: 2.10.
constexpr uint64_t kVersion = (2ULL << 56) | (10ULL << 48);

// X(result, name, parameters), from libtorch_cpu
#define INFOSLICE_TORCH_FUNCTIONS(X)                                                    \
  X(int32_t, aoti_torch_library_init_fragment,                                          \
    (const char*, const char*, uint32_t, TorchLibrary**))                               \
  X(int32_t, aoti_torch_library_init_impl,                                              \
    (const char*, const char*, const char*, uint32_t, TorchLibrary**))                  \
  X(int32_t, aoti_torch_library_def, (TorchLibrary*, const char*))                      \
  X(int32_t, torch_library_impl, (TorchLibrary*, const char*, Kernel, uint64_t))        \
  X(int32_t, aoti_torch_delete_tensor_object, (AtenTensor*))                            \
  X(int32_t, aoti_torch_get_data_ptr, (AtenTensor*, void**))                            \
  X(int32_t, aoti_torch_get_dim, (AtenTensor*, int64_t*))                               \
  X(int32_t, aoti_torch_get_sizes, (AtenTensor*, int64_t**))                            \
  X(int32_t, aoti_torch_get_strides, (AtenTensor*, int64_t**))                          \
  X(int32_t, aoti_torch_get_dtype, (AtenTensor*, int32_t*))                             \
  X(int32_t, aoti_torch_get_device_type, (AtenTensor*, int32_t*))                       \
  X(int32_t, aoti_torch_get_device_index, (AtenTensor*, int32_t*))                      \
  X(int32_t, aoti_torch_empty_strided,                                                  \
    (int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, AtenTensor**)) \
  X(int32_t, torch_new_list_reserve_size, (size_t, StableList**))                       \
  X(int32_t, torch_list_size, (StableList*, size_t*))                                   \
  X(int32_t, torch_list_get_item, (StableList*, size_t, Value*))                        \
  X(int32_t, torch_list_push_back, (StableList*, Value))                                \
  X(int32_t, torch_delete_list, (StableList*))                                          \
  X(int32_t, torch_get_num_threads, (uint32_t*))                                        \
  X(size_t, aoti_torch_dtype_element_size, (int32_t))                                   \
  X(int32_t, aoti_torch_cpu_resize_, (AtenTensor*, const int64_t*, int64_t, int32_t*))  \
  X(int32_t, aoti_torch_memory_format_channels_last, ())                                \
  X(int32_t, aoti_torch_memory_format_channels_last_3d, ())                             \
  X(int32_t, aoti_torch_dtype_float64, ())                                              \
  X(int32_t, aoti_torch_dtype_float32, ())                                              \
  X(int32_t, aoti_torch_dtype_bfloat16, ())                                             \
  X(int32_t, aoti_torch_dtype_float16, ())                                              \
  X(int32_t, aoti_torch_dtype_int64, ())                                                \
  X(int32_t, aoti_torch_dtype_int32, ())                                                \
  X(int32_t, aoti_torch_device_type_cpu, ())                                            \
  X(int32_t, aoti_torch_device_type_cuda, ())

// From libtorch_cpu of torch >= 2.13; null before. An optional argument is a heap-allocated Value
// that the kernel frees: by this function, before it by operator delete.
#define INFOSLICE_TORCH_OPTIONAL_FUNCTIONS(X) X(int32_t, torch_delete_stable_ivalue, (Value*))

// From libtorch_cuda, when there is a CUDA tensor.
#define INFOSLICE_TORCH_CUDA_FUNCTIONS(X)                           \
  X(int32_t, aoti_torch_get_current_cuda_stream, (int32_t, void**)) \
  X(int32_t, aoti_torch_create_cuda_guard, (int32_t, void**))       \
  X(int32_t, aoti_torch_delete_cuda_guard, (void*))

// The same, but only some ops need them.
#define INFOSLICE_TORCH_OPTIONAL_CUDA_FUNCTIONS(X) \
  X(int32_t, aoti_torch_cuda_resize_, (AtenTensor*, const int64_t*, int64_t, int32_t*))

#define INFOSLICE_TORCH_MEMBER(result, name, parameters) result(*name) parameters = nullptr;
struct Functions {
  INFOSLICE_TORCH_FUNCTIONS(INFOSLICE_TORCH_MEMBER)
  INFOSLICE_TORCH_OPTIONAL_FUNCTIONS(INFOSLICE_TORCH_MEMBER)
  INFOSLICE_TORCH_CUDA_FUNCTIONS(INFOSLICE_TORCH_MEMBER)
  INFOSLICE_TORCH_OPTIONAL_CUDA_FUNCTIONS(INFOSLICE_TORCH_MEMBER)
};
#undef INFOSLICE_TORCH_MEMBER

}  // namespace infoslice::torch_abi
