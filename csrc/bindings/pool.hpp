/// @file pool.hpp
/// The resource pool as types of the Python module, written against Python's C API: a lease is taken and given back in less
/// time than pybind11 needs to make an instance. What is refused is said by the Python class above (`_refusal`).
#pragma once

#include <pybind11/pybind11.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <string_view>
#include <vector>

#include "core/arena.hpp"
#include "core/ledger.hpp"

namespace minerua::bindings {

namespace py = pybind11;

struct PyBlock;

/// A pool: the ledger, and the memory behind those of its resources that are bytes.
struct PyPool {
  PyObject_HEAD
  Ledger* ledger;   // null before __init__
  PyObject* names;  // a tuple of str: the resources in the ledger's order
  std::vector<std::unique_ptr<Memory>>* memories;
  std::atomic<std::int64_t> task_leases;  // held by asyncio tasks: while there are any, acquire asks whose they are
};

/// Requirements whose names were looked up.
struct PyRequirements {
  PyObject_HEAD
  PyPool* pool;
  PyObject* amounts;  // a dict: resource → amount
  Needs* needs;
};

/// A lease. Its mutex guards the claim, the list of blocks and what they sum up to; no Python runs while it is held.
struct PyLease {
  PyObject_HEAD
  PyPool* pool;
  PyObject* name;
  PyObject* weak_references;
  std::mutex mutex;
  std::atomic<Claim*> claim;  // null once released
  PyBlock* blocks;
  std::vector<Amount> allocated;  // per resource; empty before the first block
  bool is_a_task_s;
};

extern PyTypeObject* pool_type;
extern PyTypeObject* requirements_type;
extern PyTypeObject* lease_type;

/// Makes a type and puts it into the module.
PyTypeObject* make_type(PyType_Spec& spec, py::module_& module, const char* name);

/// Makes the lease of a granted claim; on failure the claim is released and an error is set.
PyObject* lease_of(PyPool* pool, Claim& claim, PyObject* name);

/// Releases; does nothing where that was done already.
void release_lease(PyLease* lease, bool leaked);

/// Marks a lease as nobody's: whoever took it may acquire again.
void hand_over(PyLease* lease);

/// Sets the error that the pool's `_refusal(what, subject, detail)` returns; returns null. Takes `detail` over.
PyObject* refuse(PyPool* pool, const char* what, PyObject* subject, PyObject* detail);

/// Requirements of this pool, prepared where they are not; a new reference, or null with an error set.
PyRequirements* prepared(PyPool* pool, PyObject* given);

/// The place of a resource among the names; -1 where there is none.
Py_ssize_t place_of(PyPool* pool, PyObject* resource);

/// Whether a call may go on: the pool was made, and not before a fork. Else an error is set.
bool usable(PyPool* pool);

/// Unpacks a fast call: positional arguments first, then those by name; sets a TypeError and returns false where it cannot.
/// Values that are not given stay as they are.
bool unpack(const char* function, PyObject* const* given, Py_ssize_t count, PyObject* keywords, const char* const* names,
            PyObject** values, Py_ssize_t positional, Py_ssize_t required, Py_ssize_t total);

/// What acquire, try_acquire and request are given.
struct Ask {
  PyRequirements* requirements = nullptr;  // owned
  PyObject* name = nullptr;                // borrowed; null where there is none
  std::string_view text{};
  std::int64_t priority = 0;
  bool nested = false;
  ~Ask() { Py_XDECREF(requirements); }
};

/// Reads what every way to ask is given; false with an error set.
bool read_ask(PyPool* pool, Ask& ask, PyObject* requirements, PyObject* name, PyObject* priority, PyObject* nested);

/// Sets the error for an outcome that is no grant; returns null.
PyObject* refuse_outcome(PyPool* pool, Outcome outcome, const Ask& ask, double seconds);

/// A function of Python's fast calling convention, as tables of methods want it.
template <class Function>
PyCFunction method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(function));
}

/// The method `request` of a pool.
PyObject* pool_request(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords);

/// Calls what may throw; turns what is thrown into a Python error.
template <class Body>
PyObject* guarded(const Body& body) noexcept {
  try {
    return body();
  } catch (py::error_already_set& error) {
    error.restore();
  } catch (const std::bad_alloc& error) {
    PyErr_SetString(PyExc_MemoryError, error.what());
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
  return nullptr;
}

/// Adds the types to the module.
void define_pool(py::module_& module);
void define_leases(py::module_& module);
void define_requests(py::module_& module);

}  // namespace minerua::bindings
