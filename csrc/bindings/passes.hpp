/// @file passes.hpp
/// The passes over tensors, as functions of the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace minerua::bindings {

/// Adds them to the module, and what turns std::system_error into OSError with the system's number.
void define_passes(pybind11::module_& module);

}  // namespace minerua::bindings
