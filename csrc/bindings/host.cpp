#include "bindings/host.h"

#include "bindings/cuda_kernels.h"

namespace infoslice {
namespace {

constexpr const char* kDtypes[] = {"float64", "float32", "bfloat16", "float16",
                                   "int64",   "int32",   "another"};

std::vector<const Op*>& registry() {
  static std::vector<const Op*> ops;
  return ops;
}

Parameter parse_parameter(const std::string& text) {  // "Tensor x", "int batch_dims=0"
  const size_t space = text.find(' ');
  const std::string type = text.substr(0, space);
  const std::string name = text.substr(space + 1, text.find('=') - space - 1);
  static const std::pair<const char*, Parameter::Type> kinds[] = {
      {"Tensor", Parameter::tensor},        {"Tensor[]", Parameter::tensors},
      {"Tensor(a!)[]", Parameter::tensors}, {"int", Parameter::integer},
      {"int[]", Parameter::integers},       {"float", Parameter::real},
      {"bool", Parameter::boolean},         {"ScalarType?", Parameter::dtype},
  };
  for (const auto& [spelling, kind] : kinds)
    if (type == spelling) return {kind, name};
  throw std::logic_error("unknown type in an op's schema: " + text);
}

}  // namespace

const char* dtype_name(Dtype dtype) { return kDtypes[static_cast<int>(dtype)]; }

Dims Dims::contiguous_strides() const {
  Dims strides = *this;
  int64_t stride = 1;
  for (int i = count_ - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= values_[i];
  }
  return strides;
}

std::string to_string(const Dims& dims) {
  std::string text = "[";
  for (int i = 0; i < dims.size(); ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
  return text + "]";
}

Op::Op(const char* schema_text, Host host_function, Bodies bodies, int argument_on_host)
    : schema(schema_text),
      host(host_function),
      has_cuda(bodies == Bodies::cpu_and_cuda),
      on_host(argument_on_host) {
  const std::string text = schema;
  const size_t open = text.find('('), close = text.find(") -> ");
  name = text.substr(0, open);
  returns_list = text.substr(close + 5) == "Tensor[]";
  for (size_t begin = open + 1; begin < close;) {
    const size_t end = std::min(text.find(", ", begin), close);
    parameters.push_back(parse_parameter(text.substr(begin, end - begin)));
    begin = end + 2;
  }
  registry().push_back(this);
}

const std::vector<const Op*>& Op::all() { return registry(); }

std::string Call::text(const std::string& argument, const std::string& expected,
                       const std::string& got) const {
  return op.name + ": " + argument + ": expected " + expected + ", got " + got;
}

void Call::check_dims(int i, int at_least, const char* layout) const {
  const Tensor& x = tensor(i);
  if (x.dims() < at_least)
    value_error(i, "at least " + std::to_string(at_least) + " dimensions, " + std::string(layout),
                "shape " + to_string(x.sizes));
}

void Call::check_dtype(int i, std::initializer_list<Dtype> accepted) const {
  const Tensor& x = tensor(i);
  std::string names;
  for (Dtype dtype : accepted) {
    if (x.dtype == dtype) return;
    names += (names.empty() ? "" : ", ") + std::string(dtype_name(dtype));
  }
  type_error(i, names,
             std::string(dtype_name(x.dtype)) + (x.dtype == Dtype::other ? " dtype" : ""));
}

void Call::check_launch(int cuda_error) const {
  if (cuda_error != 0)
    throw DeviceError(op.name +
                      ": the CUDA kernel failed: " + cuda_kernels_->error_string(cuda_error));
}

}  // namespace infoslice
