// Requests whose answer is a call.
#include <memory>

#include "bindings/pool.hpp"

namespace minerua::bindings {
namespace {

PyPool* as_pool(PyObject* self) { return reinterpret_cast<PyPool*>(self); }

/// A request whose answer is a call.
struct PyPending {
  PyObject_HEAD
  PyPool* pool;
  Claim* claim;
  std::uint64_t serial;
};

PyTypeObject* pending_type = nullptr;

PyPending* as_pending(PyObject* self) { return reinterpret_cast<PyPending*>(self); }

void pending_dealloc(PyObject* self) {
  Py_DECREF(as_pending(self)->pool);
  PyTypeObject* const type = Py_TYPE(self);
  PyObject_Free(self);
  Py_DECREF(type);
}

PyObject* withdraw(PyObject* self, Outcome why) {
  PyPending* const pending = as_pending(self);
  if (!usable(pending->pool)) return nullptr;
  return guarded([&] {
    return PyBool_FromLong(pending->pool->ledger->withdraw(*pending->claim, pending->serial, why) == why);
  });
}

PyObject* pending_cancel(PyObject* self, PyObject*) { return withdraw(self, Outcome::cancelled); }
PyObject* pending_time_out(PyObject* self, PyObject*) { return withdraw(self, Outcome::timed_out); }

PyMethodDef pending_methods[] = {
    {"cancel", pending_cancel, METH_NOARGS,
     "cancel($self)\n--\n\nWithdraws the request: true if it was waiting, so that no call will come."},
    {"_time_out", pending_time_out, METH_NOARGS, "_time_out($self)\n--\n\nThe same, counted as a timeout."},
    {nullptr, nullptr, 0, nullptr}};
PyType_Slot pending_slots[] = {{Py_tp_doc, const_cast<char*>("A request that waits for its turn.")},
                               {Py_tp_dealloc, reinterpret_cast<void*>(pending_dealloc)},
                               {Py_tp_methods, pending_methods},
                               {0, nullptr}};
PyType_Spec pending_spec = {"minerua._core.Pending", sizeof(PyPending), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, pending_slots};

/// The Python side of a notice. Whichever thread drops the last copy takes Python's lock for it.
struct Callbacks {
  PyPool* pool;
  PyObject* requirements;
  PyObject* name;
  PyObject* on_grant;
  PyObject* on_refuse;  // null where nobody wants to know

  Callbacks(PyPool* pool_, const Ask& ask, PyObject* grant, PyObject* refusal)
      : pool(pool_), requirements(reinterpret_cast<PyObject*>(ask.requirements)), name(ask.name), on_grant(grant), on_refuse(refusal) {
    Py_INCREF(pool);
    Py_INCREF(requirements);
    Py_XINCREF(name);
    Py_INCREF(on_grant);
    Py_XINCREF(on_refuse);
  }
  ~Callbacks() {
    const py::gil_scoped_acquire locked;
    const py::error_scope kept;
    Py_XDECREF(on_refuse);
    Py_DECREF(on_grant);
    Py_XDECREF(name);
    Py_DECREF(requirements);
    Py_DECREF(pool);
  }
  Callbacks(const Callbacks&) = delete;
  Callbacks& operator=(const Callbacks&) = delete;

  void granted(Claim& claim) const {
    const auto lease = py::reinterpret_steal<py::object>(lease_of(pool, claim, name));
    const auto done = lease ? py::reinterpret_steal<py::object>(PyObject_CallOneArg(on_grant, lease.ptr())) : lease;
    if (done) return;
    if (lease) {
      const py::error_scope kept;
      release_lease(reinterpret_cast<PyLease*>(lease.ptr()), false);
    }
    PyErr_WriteUnraisable(on_grant);
  }

  void refused(Outcome outcome) const {
    if (on_refuse == nullptr) return;
    refuse(pool, outcome == Outcome::closed ? "closed" : "too_large", requirements, nullptr);
    const auto error = fetched();
    const auto done = py::reinterpret_steal<py::object>(PyObject_CallOneArg(on_refuse, error.ptr()));
    if (!done) PyErr_WriteUnraisable(on_refuse);
  }

 private:
  /// The error that is set, as an object; none is set afterwards.
  static py::object fetched() {
    py::error_already_set error;
    return error.value() ? py::reinterpret_borrow<py::object>(error.value()) : py::none();
  }
};

}  // namespace

/// request(requirements, on_grant, on_refuse, *, priority, name)
PyObject* pool_request(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  static const char* const names[] = {"requirements", "on_grant", "on_refuse", "priority", "name"};
  PyObject* values[5] = {};
  PyPool* const pool = as_pool(self);
  Ask ask;
  if (!unpack("request", args, count, keywords, names, values, 3, 2, 5)) return nullptr;
  if (values[2] == Py_None) values[2] = nullptr;
  for (PyObject* const callback : {values[1], values[2]})
    if (callback != nullptr && PyCallable_Check(callback) == 0) {
      PyErr_Format(PyExc_TypeError, "request() calls what it is given, and %R cannot be called", callback);
      return nullptr;
    }
  if (!read_ask(pool, ask, values[0], values[4], values[3], nullptr)) return nullptr;
  return guarded([&]() -> PyObject* {
    auto* const pending = PyObject_New(PyPending, pending_type);
    if (pending == nullptr) return nullptr;
    Py_INCREF(pool);
    pending->pool = pool;
    const auto kept = py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(pending));
    const auto callbacks = std::make_shared<const Callbacks>(pool, ask, values[1], values[2]);
    const auto [claim, serial, outcome] =
        pool->ledger->queue(*ask.requirements->needs, ask.priority, ask.text, nullptr, [callbacks](Claim& its, Outcome its_outcome) {
          const py::gil_scoped_acquire locked;
          const py::error_scope scope;
          if (its_outcome == Outcome::granted)
            callbacks->granted(its);
          else
            callbacks->refused(its_outcome);
        });
    pending->claim = claim;
    pending->serial = serial;
    return claim == nullptr ? refuse_outcome(pool, outcome, ask, 0) : kept.inc_ref().ptr();
  });
}

void define_requests(py::module_& module) { pending_type = make_type(pending_spec, module, "Pending"); }

}  // namespace minerua::bindings
