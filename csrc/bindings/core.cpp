// Python's door to the core: unpack, release the lock, call. Checks that need more than sizes are made in minerua.kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings/buffers.hpp"
#include "bindings/passes.hpp"
#include "core/error.hpp"
#include "core/merge.hpp"
#include "core/parallel.hpp"
#include "core/svd_mutation.hpp"
#include "isa/loops.hpp"

namespace py = pybind11;

namespace {

using minerua::bindings::contiguous;
using minerua::bindings::dtype_named;
using minerua::bindings::floats;

minerua::ConstTensorView const_view(const py::buffer_info& taken, minerua::DType dtype) {
  return {taken.ptr, dtype, static_cast<std::size_t>(taken.size)};
}

void merge(const std::vector<py::buffer>& experts, const std::string& expert_dtype,
           const std::optional<py::buffer>& base, const std::string& base_dtype, const py::buffer& coefficients,
           const py::buffer& out, const std::string& out_dtype) {
  const minerua::DType from = dtype_named(expert_dtype), start = dtype_named(base_dtype), to = dtype_named(out_dtype);
  std::vector<py::buffer_info> held;  // keeps every buffer exported until the call is over
  std::vector<minerua::ConstTensorView> views;
  for (const py::buffer& expert : experts) {
    held.push_back(contiguous(expert, minerua::size_of(from), false));
    views.push_back(const_view(held.back(), from));
  }
  std::optional<minerua::ConstTensorView> base_view;
  if (base) {
    held.push_back(contiguous(*base, minerua::size_of(start), false));
    base_view = const_view(held.back(), start);
  }
  const py::buffer_info weights = floats(coefficients, 2, false);
  MINERUA_EXPECTS(static_cast<std::size_t>(weights.shape[1]) == views.size(),
                  "merge: " << weights.shape[1] << " coefficients per child for " << views.size() << " experts");
  const py::buffer_info target = contiguous(out, minerua::size_of(to), true);
  const minerua::TensorView out_view{target.ptr, to, static_cast<std::size_t>(target.size)};
  const py::gil_scoped_release unlocked;
  minerua::merge(views, base_view, static_cast<const float*>(weights.ptr), static_cast<std::size_t>(weights.shape[0]),
                 out_view);
}

template <class T>
minerua::MatrixBatchView<T> batch_view(const py::buffer_info& taken) {
  const auto extent = [&taken](std::size_t axis) { return static_cast<std::size_t>(taken.shape[axis]); };
  if (taken.ndim == 2) return {static_cast<T*>(taken.ptr), extent(0), 1, extent(1)};
  return {static_cast<T*>(taken.ptr), extent(0), extent(1), extent(2)};
}

void svd_mutation(const py::buffer& matrices, const py::buffer& multipliers, const py::buffer& out) {
  const py::buffer_info from = floats(matrices, 3, false);
  const py::buffer_info weights = floats(multipliers, 2, false);
  const py::buffer_info to = floats(out, 3, true);
  const py::gil_scoped_release unlocked;
  minerua::svd_mutation(batch_view<const float>(from), batch_view<const float>(weights), batch_view<float>(to));
}

}  // namespace

PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
  module.doc() = "The compiled core of minerua. Private: use minerua.kernels, which checks what it passes.";
  module.attr("compiler") = MINERUA_COMPILER;
  module.def("merge", &merge, py::arg("experts"), py::arg("expert_dtype"), py::arg("base"), py::arg("base_dtype"),
             py::arg("coefficients"), py::arg("out"), py::arg("out_dtype"),
             "Fills `out` with the children; 16-bit arrays come as any 2-byte type, named by their dtype.");
  minerua::bindings::define_passes(module);
  module.def("svd_mutation", &svd_mutation, py::arg("matrices"), py::arg("multipliers"), py::arg("out"),
             "Fills `out` with the matrices whose singular values were multiplied.");
  module.def("set_num_threads", &minerua::set_num_threads, py::arg("count"), "Sets the threads of one operation.");
  module.def("num_threads", &minerua::num_threads, "The threads of one operation.");
  module.def("instruction_set", [] { return std::string(minerua::isa::loops().name); },
             "The instruction set of the loops in use.");
}
