// Module _core: every op as a function of NumPy arrays, build_info(), and torch's registration.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/cuda_kernels.h"
#include "bindings/host.h"
#include "common/simd.h"

namespace py = pybind11;

namespace infoslice {
namespace {

Dtype dtype_of(const py::dtype& dtype) {
  switch (dtype.kind()) {
    case 'f':
      return dtype.itemsize() == 8   ? Dtype::float64
             : dtype.itemsize() == 4 ? Dtype::float32
             : dtype.itemsize() == 2 ? Dtype::float16
                                     : Dtype::other;
    case 'i':
      return dtype.itemsize() == 8   ? Dtype::int64
             : dtype.itemsize() == 4 ? Dtype::int32
                                     : Dtype::other;
    default:
      return Dtype::other;
  }
}

py::dtype numpy_dtype(Dtype dtype) {
  switch (dtype) {
    case Dtype::float64:
      return py::dtype::of<double>();
    case Dtype::float32:
      return py::dtype::of<float>();
    case Dtype::int64:
      return py::dtype::of<int64_t>();
    case Dtype::int32:
      return py::dtype::of<int32_t>();
    case Dtype::float16:
      return py::dtype("float16");
    default:
      throw TypeError(std::string("NumPy has no ") + dtype_name(dtype));
  }
}

class NumpyCall final : public Call {
 public:
  NumpyCall(const Op& which, const py::args& args) : Call(which) {
    if (args.size() != op.parameters.size())
      throw TypeError(op.name + ": expected " + std::to_string(op.parameters.size()) +
                      " arguments, got " + std::to_string(args.size()));
    arguments_.reserve(args.size());
    for (size_t i = 0; i < args.size(); ++i) take(static_cast<int>(i), args[i]);
    threads_ = torch_threads();
  }

  Tensor empty(Dtype dtype, const Dims& sizes) override {
    return allocate(numpy_dtype(dtype), sizes, sizes.contiguous_strides());
  }

  Tensor empty_like(const Tensor& model, const Dims& sizes, const Dims& strides) override {
    return allocate(py::reinterpret_borrow<py::array>(static_cast<PyObject*>(model.object)).dtype(),
                    sizes, strides);
  }

  void resize(const Tensor&, const Dims&, const Dims&) override {}

  void start() override { released_.emplace(); }

  py::object finish() {
    released_.reset();
    py::list results;
    for (const Tensor& result : results_)
      results.append(py::reinterpret_borrow<py::object>(static_cast<PyObject*>(result.object)));
    if (op.returns_list) return std::move(results);
    if (results.size() == 1) return results[0];
    return py::tuple(results);
  }

 private:
  void take(int i, py::handle value) {
    switch (op.parameters[i].type) {
      case Parameter::tensor:
        arguments_.emplace_back(view(i, value));
        break;
      case Parameter::tensors: {
        std::vector<Tensor> tensors;
        for (py::handle item : list(i, value)) tensors.push_back(view(i, item));
        arguments_.emplace_back(std::move(tensors));
        break;
      }
      case Parameter::integers: {
        std::vector<int64_t> integers;
        for (py::handle item : list(i, value)) integers.push_back(integer_of(i, item));
        arguments_.emplace_back(std::move(integers));
        break;
      }
      case Parameter::integer:
      case Parameter::boolean:
        arguments_.emplace_back(integer_of(i, value));
        break;
      case Parameter::real:
        if (!PyFloat_Check(value.ptr()) && !PyIndex_Check(value.ptr()))
          type_error(i, "a number", type_name(value));
        arguments_.emplace_back(value.cast<double>());
        break;
      case Parameter::dtype: {
        std::optional<Dtype> dtype;
        if (!value.is_none()) dtype = dtype_of(py::dtype::from_args(value.cast<py::object>()));
        arguments_.emplace_back(dtype);
        break;
      }
    }
  }

  static std::string type_name(py::handle value) { return Py_TYPE(value.ptr())->tp_name; }

  py::sequence list(int i, py::handle value) const {
    if (!py::isinstance<py::list>(value) && !py::isinstance<py::tuple>(value))
      type_error(i, "a list", type_name(value));
    return value.cast<py::sequence>();
  }

  int64_t integer_of(int i, py::handle value) const {
    if (!PyIndex_Check(value.ptr())) type_error(i, "an integer", type_name(value));
    const Py_ssize_t integer = PyNumber_AsSsize_t(value.ptr(), PyExc_OverflowError);
    if (integer == -1 && PyErr_Occurred()) {
      PyErr_Clear();
      value_error(i, "an integer of 64 bits", "a larger one");
    }
    return integer;
  }

  Tensor view(int i, py::handle value) {
    if (!py::isinstance<py::array>(value))
      type_error(i, "a NumPy array or a torch tensor", type_name(value));
    py::array array = value.cast<py::array>();
    const py::dtype dtype = array.dtype();
    constexpr uint64_t kHasObject = 1;  // NPY_ITEM_HASOBJECT
    if ((dtype.flags() & kHasObject) != 0)
      type_error(i, "an array of numbers", "one of Python objects");
    if (array.itemsize() == 0)
      type_error(i, "an array of numbers", "one whose elements have no bytes");
    if (array.ndim() > kMaxDims)
      value_error(i, "at most 12 dimensions", std::to_string(array.ndim()));
    // Views of records and arrays of foreign byte order become plain arrays first.
    bool plain = (array.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0 &&
                 (dtype.byteorder() == '=' || dtype.byteorder() == '|');
    for (py::ssize_t d = 0; d < array.ndim(); ++d)
      plain = plain && array.strides(d) % array.itemsize() == 0;
    if (!plain)
      array = array.attr("astype")(array.dtype().attr("newbyteorder")("=")).cast<py::array>();
    Tensor tensor;
    tensor.data = const_cast<void*>(array.data());
    tensor.dtype = dtype_of(array.dtype());
    tensor.itemsize = array.itemsize();
    for (py::ssize_t d = 0; d < array.ndim(); ++d) {
      tensor.sizes.push_back(array.shape(d));
      tensor.strides.push_back(array.strides(d) / array.itemsize());
    }
    return own(tensor, std::move(array));
  }

  Tensor allocate(const py::dtype& dtype, const Dims& sizes, const Dims& strides) {
    std::vector<py::ssize_t> shape(sizes.begin(), sizes.end()),
        bytes(strides.begin(), strides.end());
    for (py::ssize_t& stride : bytes) stride *= dtype.itemsize();
    py::array array(dtype, std::move(shape), std::move(bytes));
    Tensor tensor;
    tensor.data = array.mutable_data();
    tensor.dtype = dtype_of(dtype);
    tensor.itemsize = dtype.itemsize();
    tensor.sizes = sizes;
    tensor.strides = strides;
    return own(tensor, std::move(array));
  }

  Tensor own(Tensor tensor, py::array array) {
    tensor.object = array.ptr();
    owned_.push_back(std::move(array));
    return tensor;
  }

  std::vector<py::object> owned_;
  std::optional<py::gil_scoped_release> released_;  // after owned_: taken back before it is emptied
};

py::object call_numpy(const Op& op, const py::args& args) {
  try {
    NumpyCall call(op, args);
    op.host(call);
    return call.finish();
  } catch (const py::builtin_exception&) {
    throw;
  } catch (const py::error_already_set&) {
    throw;
  } catch (const std::exception& error) {
    throw_to_python(error);
  }
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

const char* level_name(CpuLevel level) {
  return level == CpuLevel::v4 ? "x86-64-v4" : level == CpuLevel::v3 ? "x86-64-v3" : "baseline";
}

py::dict build_info() {
  const std::string architectures = INFOSLICE_CUDA_ARCHITECTURES;
  py::list levels, names;
#if INFOSLICE_MULTIVERSION
  levels.append("x86-64-v4");
  levels.append("x86-64-v3");
#endif
  levels.append("baseline");
  for (const Op* op : Op::all()) names.append(op->name);
  py::dict info;
  info["version"] = INFOSLICE_VERSION;
  info["compiler"] = compiler();
  info["compiler_flags"] = INFOSLICE_COMPILER_FLAGS;
  info["cpu_levels"] = levels;
  info["cpu_level"] = level_name(cpu_level());
  info["cuda"] = !architectures.empty();
  info["cuda_architectures"] = py::str(architectures).attr("split")();
  info["ops"] = names;
  return info;
}

}  // namespace

void throw_to_python(const std::exception& error) {
  if (dynamic_cast<const ValueError*>(&error) || dynamic_cast<const std::invalid_argument*>(&error))
    throw py::value_error(error.what());
  // torch's own pybind11 catches this class by its name, which pybind11 keeps for this use.
  if (dynamic_cast<const TypeError*>(&error)) throw py::type_error(error.what());
  if (dynamic_cast<const std::bad_alloc*>(&error)) throw std::bad_alloc();
  throw std::runtime_error(error.what());
}

const CudaKernels* load_cuda_kernels() {
  if (std::string(INFOSLICE_CUDA_ARCHITECTURES).empty()) return nullptr;
  static const CudaKernels* kernels = nullptr;
  if (!kernels) {
    py::gil_scoped_acquire lock;
    kernels = py::module_::import("infoslice._cuda")
                  .attr("kernels")
                  .cast<py::capsule>()
                  .get_pointer<const CudaKernels>();
  }
  return kernels;
}

}  // namespace infoslice

PYBIND11_MODULE(_core, module) {
  using namespace infoslice;
  module.doc() =
      "CPU kernels of infoslice as functions of NumPy arrays, and their torch operators.";
  module.def("build_info", &build_info, "What was compiled and what was chosen on this machine.");
  module.def(
      "register_torch",
      [](const std::string& directory, const std::string& version) {
        try {
          register_torch(directory, version);
        } catch (const std::exception& error) {
          throw_to_python(error);
        }
      },
      "Define and implement the ops in torch's namespace 'infoslice'; once per process.",
      py::arg("library_directory"), py::arg("version"), py::call_guard<py::gil_scoped_release>());
  for (const Op* op : Op::all())
    module.def(
        op->name.c_str(), [op](const py::args& args) { return call_numpy(*op, args); }, op->schema);
}
