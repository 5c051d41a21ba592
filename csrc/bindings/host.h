// What a host function sees of a call, whether it came from NumPy or from torch.
//
// An op is declared once, in csrc/bindings/<op>.cpp:
//
//   void host_double(Call& call) {                       // checks, allocates, chooses the body
//     const Tensor& x = call.tensor(0);
//     call.check_float(0);
//     Tensor y = call.empty(x.dtype, x.shape());
//     call.start();                                      // from here on no Python, no allocation
//     cpu::twice(x.as<float>(), y.as<float>(), ...);
//     call.give(y);
//   }
//   const Op op("double(Tensor x) -> Tensor", host_double);   // torch schema; also _core.double(x)
//
// The schema names the arguments (error messages use the names) and gives their types, of which
// Tensor, Tensor[], int, int[], float, bool and ScalarType? are understood, and Tensor(a!)[] for
// tensors that are changed. Results are Tensors, one Tensor[], or none. Nothing in here knows Python
// or torch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace infoslice {

struct CudaKernels;

enum class Dtype : uint8_t { float64, float32, bfloat16, float16, int64, int32, other };
const char* dtype_name(Dtype dtype);

constexpr int kMaxDims = 12;

// Sizes or strides: a short list with no allocation.
class Dims {
 public:
  Dims() = default;
  Dims(std::initializer_list<int64_t> values) {
    for (int64_t value : values) push_back(value);
  }
  void push_back(int64_t value) {
    if (count_ == kMaxDims) throw std::invalid_argument("more than 12 dimensions");
    values_[count_++] = value;
  }
  int size() const { return count_; }
  int64_t operator[](int i) const { return values_[i]; }
  int64_t& operator[](int i) { return values_[i]; }
  const int64_t* begin() const { return values_; }
  const int64_t* end() const { return values_ + count_; }
  const int64_t* data() const { return values_; }
  int64_t product() const {
    int64_t result = 1;
    for (int64_t value : *this) result *= value;
    return result;
  }
  bool operator==(const Dims& other) const {
    return std::equal(begin(), end(), other.begin(), other.end());
  }
  Dims contiguous_strides() const;

 private:
  int64_t values_[kMaxDims];
  int count_ = 0;
};
std::string to_string(const Dims& dims);  // "[2, 3]"

// An array of the caller's or one allocated for a result. A plain view: the call owns the object.
struct Tensor {
  void* data = nullptr;
  Dims sizes, strides;  // strides in elements
  Dtype dtype = Dtype::other;
  int64_t itemsize = 0;    // bytes of an element, of any dtype
  void* object = nullptr;  // the framework's own: PyObject* or AtenTensorHandle
  int dims() const { return sizes.size(); }
  int64_t elements() const { return sizes.product(); }
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
};

// ValueError for shapes and values, TypeError for dtypes and types, RuntimeError for devices,
// builds and launches. Both routes hand them to Python as such.
struct ValueError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Call;

struct Parameter {
  enum Type { tensor, tensors, integer, integers, real, boolean, dtype } type;
  std::string name;
};

enum class Bodies { cpu, cpu_and_cuda };

// Registers itself; core.cpp and torch_ops.cpp walk all().
struct Op {
  using Host = void (*)(Call&);
  // on_host: the number of the argument whose tensors stay on the CPU, wherever the others are.
  Op(const char* schema, Host host, Bodies bodies = Bodies::cpu, int on_host = -1);
  static const std::vector<const Op*>& all();

  const char* schema;
  Host host;
  bool has_cuda;
  int on_host;
  std::string name;
  std::vector<Parameter> parameters;
  bool returns_list;
};

class Call {
 public:
  // Arguments, in the order of the schema. A framework's route has converted them already.
  const Tensor& tensor(int i) const { return std::get<Tensor>(arguments_[i]); }
  const std::vector<Tensor>& tensors(int i) const {
    return std::get<std::vector<Tensor>>(arguments_[i]);
  }
  int64_t integer(int i) const { return std::get<int64_t>(arguments_[i]); }
  const std::vector<int64_t>& integers(int i) const {
    return std::get<std::vector<int64_t>>(arguments_[i]);
  }
  double real(int i) const { return std::get<double>(arguments_[i]); }
  std::optional<Dtype> dtype(int i) const { return std::get<std::optional<Dtype>>(arguments_[i]); }

  // Errors: "op: argument: expected ..., got ...".
  [[noreturn]] void value_error(int i, const std::string& expected, const std::string& got) const {
    value_error(op.parameters[i].name, expected, got);
  }
  [[noreturn]] void value_error(const std::string& argument, const std::string& expected,
                                const std::string& got) const {
    throw ValueError(text(argument, expected, got));
  }
  [[noreturn]] void type_error(int i, const std::string& expected, const std::string& got) const {
    type_error(op.parameters[i].name, expected, got);
  }
  [[noreturn]] void type_error(const std::string& argument, const std::string& expected,
                               const std::string& got) const {
    throw TypeError(text(argument, expected, got));
  }
  // The usual ones.
  void check_dims(int i, int at_least, const char* layout) const;
  void check_dtype(int i, std::initializer_list<Dtype> accepted) const;

  // Results on the device of the arguments, contiguous and not initialised.
  virtual Tensor empty(Dtype dtype, const Dims& sizes) = 0;
  // The same with strides of choice and the very dtype of another tensor (any dtype).
  virtual Tensor empty_like(const Tensor& model, const Dims& sizes, const Dims& strides) = 0;

  // A torch tensor that was changed in place takes a smaller dense shape, at the same address. An
  // array of NumPy's keeps its own: the caller makes a view.
  virtual void resize(const Tensor& changed, const Dims& sizes, const Dims& strides) = 0;

  // All is checked and allocated: releases Python's lock, sets the device guard. Call it just
  // before the kernel; afterwards allocate nothing.
  virtual void start() = 0;
  int threads() const { return threads_; }  // what the caller allows: torch.get_num_threads()

  // CUDA, when on_cuda(): the body from the table, the caller's stream, and a check of its result.
  bool on_cuda() const { return on_cuda_; }
  const CudaKernels& cuda_kernels() const { return *cuda_kernels_; }
  void* stream() const { return stream_; }
  void check_launch(int cuda_error) const;

  void give(const Tensor& result) { results_.push_back(result); }

  const Op& op;
  virtual ~Call() = default;

 protected:
  explicit Call(const Op& which) : op(which) {}
  std::string text(const std::string& argument, const std::string& expected,
                   const std::string& got) const;

  using Argument = std::variant<Tensor, std::vector<Tensor>, int64_t, std::vector<int64_t>, double,
                                std::optional<Dtype>>;
  std::vector<Argument> arguments_;
  std::vector<Tensor> results_;
  int threads_ = 1;
  bool on_cuda_ = false;
  const CudaKernels* cuda_kernels_ = nullptr;
  void* stream_ = nullptr;
};

// Python's side, defined in core.cpp: throws what arrives in Python as ValueError, TypeError or
// RuntimeError; loads infoslice._cuda at the first call (null: not built).
[[noreturn]] void throw_to_python(const std::exception& error);
const CudaKernels* load_cuda_kernels();

// torch's side, defined in torch_ops.cpp.
void register_torch(const std::string& library_directory, const std::string& version);
int torch_threads();  // 1 before register_torch

}  // namespace infoslice
