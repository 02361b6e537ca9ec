/// @file buffers.hpp
/// Python's buffers as the core wants them: contiguous, of the right type.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "core/dtype.hpp"
#include "core/error.hpp"

namespace minerua::bindings {

namespace py = pybind11;

inline DType dtype_named(const std::string& name) {
  if (name == "float32") return DType::float32;
  if (name == "float16") return DType::float16;
  MINERUA_EXPECTS(name == "bfloat16", "dtype " << name << " is not one of float32, float16, bfloat16");
  return DType::bfloat16;
}

inline py::buffer_info contiguous(const py::buffer& buffer, std::size_t item_bytes, bool writable) {
  py::buffer_info taken = buffer.request(writable);
  MINERUA_EXPECTS(static_cast<std::size_t>(taken.itemsize) == item_bytes,
                  "an array has items of " << taken.itemsize << " bytes, its dtype needs " << item_bytes);
  py::ssize_t expected = taken.itemsize;
  for (py::ssize_t axis = taken.ndim; axis-- > 0; expected *= taken.shape[axis])
    MINERUA_EXPECTS(taken.size == 0 || taken.shape[axis] == 1 || taken.strides[axis] == expected,
                    "an array is not contiguous in row-major order");
  return taken;
}

inline py::buffer_info floats(const py::buffer& buffer, py::ssize_t dimensions, bool writable) {
  py::buffer_info taken = contiguous(buffer, sizeof(float), writable);
  MINERUA_EXPECTS(taken.ndim == dimensions && taken.format == py::format_descriptor<float>::format(),
                  "an array has " << taken.ndim << " dimensions and format " << taken.format << ", must have "
                                  << dimensions << " and float32");
  return taken;
}

}  // namespace minerua::bindings
