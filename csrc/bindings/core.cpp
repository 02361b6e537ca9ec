// Python's door to the core: unpack, release the lock, call. Checks that need more than sizes are made in minerua.kernels.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "bindings/buffers.hpp"
#include "bindings/passes.hpp"
#include "bindings/pool.hpp"
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

/// Matrices of any shapes, each with its multipliers and the place of its result, which may be the matrix itself.
std::vector<std::size_t> svd_mutation(const std::vector<py::buffer>& matrices, const std::vector<py::buffer>& multipliers,
                                      const std::vector<py::buffer>& outs, bool twofold) {
  MINERUA_EXPECTS(multipliers.size() == matrices.size() && outs.size() == matrices.size(),
                  "svd_mutation: " << matrices.size() << " matrices, " << multipliers.size() << " multipliers and "
                                   << outs.size() << " places for results");
  std::vector<py::buffer_info> held;  // keeps every buffer exported until the call is over
  held.reserve(3 * matrices.size());
  std::vector<minerua::SpectrumChange> changes;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    const py::buffer_info& from = held.emplace_back(floats(matrices[i], 2, false));
    const py::buffer_info& weights = held.emplace_back(floats(multipliers[i], 1, false));
    const py::buffer_info& to = held.emplace_back(floats(outs[i], 2, true));
    MINERUA_EXPECTS(weights.size == std::min(from.shape[0], from.shape[1]) && to.shape == from.shape,
                    "svd_mutation: matrix " << i << " is " << from.shape[0] << " x " << from.shape[1] << " with "
                                            << weights.size << " multipliers and a result of " << to.size << " elements");
    changes.push_back({static_cast<const float*>(from.ptr), static_cast<const float*>(weights.ptr),
                       static_cast<float*>(to.ptr), static_cast<std::size_t>(from.shape[0]),
                       static_cast<std::size_t>(from.shape[1])});
  }
  const py::gil_scoped_release unlocked;
  return minerua::svd_mutation(changes, twofold ? minerua::GramPrecision::twofold : minerua::GramPrecision::single);
}

}  // namespace

PYBIND11_MODULE(_core, module, py::mod_gil_not_used()) {
  module.doc() = "The compiled core of minerua. Private: use minerua.kernels, which checks what it passes.";
  module.attr("compiler") = MINERUA_COMPILER;
  module.def("merge", &merge, py::arg("experts"), py::arg("expert_dtype"), py::arg("base"), py::arg("base_dtype"),
             py::arg("coefficients"), py::arg("out"), py::arg("out_dtype"),
             "Fills `out` with the children; 16-bit arrays come as any 2-byte type, named by their dtype.");
  minerua::bindings::define_passes(module);
  minerua::bindings::define_pool(module);
  module.def("svd_mutation", &svd_mutation, py::arg("matrices"), py::arg("multipliers"), py::arg("outs"),
             py::arg("twofold"), "Fills `outs` with the matrices whose singular values were multiplied; returns which did not converge.");
  module.def("set_num_threads", &minerua::set_num_threads, py::arg("count"), "Sets the threads of one operation.");
  module.def("num_threads", &minerua::num_threads, "The threads of one operation.");
  module.def("instruction_set", [] { return std::string(minerua::isa::loops().name); },
             "The instruction set of the loops in use.");
}
