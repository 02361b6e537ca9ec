// The pool, its requirements, cancel tokens and pending requests.
#include "bindings/pool.hpp"

#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>

namespace minerua::bindings {

PyTypeObject* pool_type = nullptr;
PyTypeObject* requirements_type = nullptr;

PyTypeObject* make_type(PyType_Spec& spec, py::module_& module, const char* name) {
  const auto type = py::reinterpret_steal<py::object>(PyType_FromSpec(&spec));
  if (!type) throw py::error_already_set();
  module.attr(name) = type;
  return reinterpret_cast<PyTypeObject*>(type.inc_ref().ptr());  // lives as long as the process
}

PyObject* refuse(PyPool* pool, const char* what, PyObject* subject, PyObject* detail) {
  const auto kept = py::reinterpret_steal<py::object>(detail);
  const auto error = py::reinterpret_steal<py::object>(PyObject_CallMethod(
      reinterpret_cast<PyObject*>(pool), "_refusal", "sOO", what, subject, detail == nullptr ? Py_None : detail));
  if (error) PyErr_SetObject(reinterpret_cast<PyObject*>(Py_TYPE(error.ptr())), error.ptr());
  return nullptr;
}

bool usable(PyPool* pool) {
  if (pool->ledger == nullptr)
    PyErr_SetString(PyExc_RuntimeError, "this pool was never initialised: call __init__ of the class above");
  else if (pool->ledger->abandoned())
    refuse(pool, "forked", reinterpret_cast<PyObject*>(pool), nullptr);
  else
    return true;
  return false;
}

Py_ssize_t place_of(PyPool* pool, PyObject* resource) {
  if (!PyUnicode_Check(resource)) return -1;
  for (Py_ssize_t place = 0; place < PyTuple_GET_SIZE(pool->names); ++place)
    if (PyObject* const name = PyTuple_GET_ITEM(pool->names, place);
        name == resource || PyUnicode_Compare(name, resource) == 0)
      return place;
  return -1;
}

PyRequirements* prepared(PyPool* pool, PyObject* given) {
  if (Py_TYPE(given) == requirements_type) {
    auto* const requirements = reinterpret_cast<PyRequirements*>(given);
    if (requirements->pool != pool) {
      refuse(pool, "foreign", given, nullptr);
      return nullptr;
    }
    Py_INCREF(given);
    return requirements;
  }
  PyObject* const made = PyObject_CallMethod(reinterpret_cast<PyObject*>(pool), "prepare", "O", given);
  if (made == nullptr || Py_TYPE(made) == requirements_type) return reinterpret_cast<PyRequirements*>(made);
  Py_DECREF(made);
  PyErr_SetString(PyExc_TypeError, "prepare did not return Requirements");
  return nullptr;
}

bool unpack(const char* function, PyObject* const* given, Py_ssize_t count, PyObject* keywords, const char* const* names,
            PyObject** values, Py_ssize_t positional, Py_ssize_t required, Py_ssize_t total) {
  if (count > positional) {
    PyErr_Format(PyExc_TypeError, "%s() takes %zd positional arguments but %zd were given", function, positional, count);
    return false;
  }
  std::copy(given, given + count, values);
  for (Py_ssize_t k = 0; keywords != nullptr && k < PyTuple_GET_SIZE(keywords); ++k) {
    PyObject* const keyword = PyTuple_GET_ITEM(keywords, k);
    Py_ssize_t place = 0;
    while (place < total && PyUnicode_CompareWithASCIIString(keyword, names[place]) != 0) ++place;
    if (place == total || values[place] != nullptr) {
      PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument or one twice: %R", function, keyword);
      return false;
    }
    values[place] = given[count + k];
  }
  for (Py_ssize_t place = 0; place < required; ++place)
    if (values[place] == nullptr) {
      PyErr_Format(PyExc_TypeError, "%s() misses the argument '%s'", function, names[place]);
      return false;
    }
  return true;
}

bool read_ask(PyPool* pool, Ask& ask, PyObject* requirements, PyObject* name, PyObject* priority, PyObject* nested) {
  if (!usable(pool)) return false;
  if (name != nullptr) {
    Py_ssize_t size = 0;
    const char* const text = PyUnicode_AsUTF8AndSize(name, &size);
    if (text == nullptr) return false;
    ask.name = name;
    ask.text = {text, static_cast<std::size_t>(size)};
  }
  if (priority != nullptr) ask.priority = PyLong_AsLongLong(priority);
  if (priority != nullptr && PyErr_Occurred() != nullptr) return false;
  if (nested != nullptr) {
    const int truth = PyObject_IsTrue(nested);
    if (truth < 0) return false;
    ask.nested = truth == 1;
  }
  return (ask.requirements = prepared(pool, requirements)) != nullptr;
}

PyObject* refuse_outcome(PyPool* pool, Outcome outcome, const Ask& ask, double seconds) {
  PyObject* const subject = reinterpret_cast<PyObject*>(ask.requirements);
  switch (outcome) {
    case Outcome::timed_out: return refuse(pool, "timed_out", subject, PyFloat_FromDouble(seconds));
    case Outcome::cancelled: return refuse(pool, "cancelled", subject, nullptr);
    case Outcome::closed: return refuse(pool, "closed", subject, nullptr);
    case Outcome::nested: return refuse(pool, "nested", subject, nullptr);
    default: return refuse(pool, "too_large", subject, nullptr);
  }
}

namespace {

PyPool* as_pool(PyObject* self) { return reinterpret_cast<PyPool*>(self); }
PyRequirements* as_requirements(PyObject* self) { return reinterpret_cast<PyRequirements*>(self); }

// ── CancelToken ──────────────────────────────────────────────────────────────────────────────────────────────────────

struct PyCancelToken {
  PyObject_HEAD
  CancelToken token;
};

PyTypeObject* cancel_token_type = nullptr;
CancelToken& token_of(PyObject* self) { return reinterpret_cast<PyCancelToken*>(self)->token; }

PyObject* token_new(PyTypeObject* type, PyObject*, PyObject*) {
  PyObject* const self = type->tp_alloc(type, 0);
  if (self != nullptr) new (&token_of(self)) CancelToken;
  return self;
}

void token_dealloc(PyObject* self) {
  token_of(self).~CancelToken();
  PyTypeObject* const type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyObject* token_cancel(PyObject* self, PyObject*) {
  return guarded([self]() -> PyObject* {
    token_of(self).cancel();
    Py_RETURN_NONE;
  });
}

PyObject* token_cancelled(PyObject* self, void*) { return PyBool_FromLong(token_of(self).cancelled()); }

PyMethodDef token_methods[] = {
    {"cancel", token_cancel, METH_NOARGS, "cancel($self)\n--\n\nEnds the waiting of every acquire that was given this token."},
    {nullptr, nullptr, 0, nullptr}};
PyGetSetDef token_properties[] = {{"cancelled", token_cancelled, nullptr, "Whether cancel was called.", nullptr},
                                  {nullptr, nullptr, nullptr, nullptr, nullptr}};
PyType_Slot token_slots[] = {{Py_tp_doc, const_cast<char*>("Withdraws requests that wait; once set it stays set.")},
                             {Py_tp_new, reinterpret_cast<void*>(token_new)},
                             {Py_tp_dealloc, reinterpret_cast<void*>(token_dealloc)},
                             {Py_tp_methods, token_methods},
                             {Py_tp_getset, token_properties},
                             {0, nullptr}};
PyType_Spec token_spec = {"minerua._core.CancelToken", sizeof(PyCancelToken), 0, Py_TPFLAGS_DEFAULT, token_slots};

// ── Requirements ─────────────────────────────────────────────────────────────────────────────────────────────────────

void requirements_dealloc(PyObject* self) {
  delete as_requirements(self)->needs;
  Py_DECREF(as_requirements(self)->amounts);
  Py_DECREF(as_requirements(self)->pool);
  PyTypeObject* const type = Py_TYPE(self);
  PyObject_Free(self);
  Py_DECREF(type);
}

PyObject* requirements_amounts(PyObject* self, void*) { return PyDict_Copy(as_requirements(self)->amounts); }

PyObject* requirements_repr(PyObject* self) { return PyUnicode_FromFormat("Requirements(%R)", as_requirements(self)->amounts); }

PyGetSetDef requirements_properties[] = {{"amounts", requirements_amounts, nullptr, "Resource → amount.", nullptr},
                                         {nullptr, nullptr, nullptr, nullptr, nullptr}};
PyType_Slot requirements_slots[] = {
    {Py_tp_doc, const_cast<char*>("What a pool's prepare made of a mapping: names are looked up once.")},
    {Py_tp_dealloc, reinterpret_cast<void*>(requirements_dealloc)},
    {Py_tp_repr, reinterpret_cast<void*>(requirements_repr)},
    {Py_tp_getset, requirements_properties},
    {0, nullptr}};
PyType_Spec requirements_spec = {"minerua._core.Requirements", sizeof(PyRequirements), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, requirements_slots};

/// Amounts that were checked, by the resources' places: at least 1 each, or, for capacities, 0.
Needs needs_of(PyObject* pairs) {
  Needs needs;
  for (const auto& [place, amount] : py::cast<std::vector<std::pair<std::uint32_t, Amount>>>(py::handle(pairs)))
    needs.push_back({place, amount});
  return needs;
}

/// _requirements(pairs, amounts)
PyObject* pool_requirements(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (!usable(as_pool(self))) return nullptr;
  return guarded([&]() -> PyObject* {
    if (count != 2 || !PyDict_Check(args[1])) throw std::invalid_argument("_requirements takes pairs and a dict");
    auto needs = std::make_unique<Needs>(needs_of(args[0]));
    auto* const made = PyObject_New(PyRequirements, requirements_type);
    if (made == nullptr) return nullptr;
    Py_INCREF(self);
    made->pool = as_pool(self);
    Py_INCREF(args[1]);
    made->amounts = args[1];
    made->needs = needs.release();
    return reinterpret_cast<PyObject*>(made);
  });
}

// ── asking ───────────────────────────────────────────────────────────────────────────────────────────────────────────

/// Whether the task that runs here, if one does, may acquire; else an error is set.
bool task_may_acquire(PyPool* pool) {
  const auto answer = py::reinterpret_steal<py::object>(
      PyObject_CallMethod(reinterpret_cast<PyObject*>(pool), "_refuse_nested_task", nullptr));
  return static_cast<bool>(answer);
}

/// How long to wait: for ever, or until `until`. Python's signals are looked at between slices.
struct Patience {
  std::optional<Clock::time_point> until{};
  double seconds = 0;
  CancelToken* cancel = nullptr;
};

constexpr std::chrono::milliseconds slice(50);

/// Waits in slices, with Python's lock released. The outcome is never waiting; `interrupted` if a signal's handler raised.
Outcome wait_for(Ledger& ledger, Claim& claim, const Patience& patience, bool& interrupted) {
  const CancelToken::Watch watch(patience.cancel, ledger, claim);
  while (true) {
    Outcome outcome = Outcome::waiting;
    {
      const py::gil_scoped_release unlocked;
      const auto end_of_slice = Clock::now() + slice;
      outcome = ledger.wait(claim, patience.until ? std::min(*patience.until, end_of_slice) : end_of_slice);
    }
    if (outcome != Outcome::waiting) return outcome;
    if (PyErr_CheckSignals() != 0) {
      interrupted = true;
      return ledger.withdraw(claim, claim.serial(), Outcome::cancelled);
    }
    if (patience.until && Clock::now() >= *patience.until)
      return ledger.withdraw(claim, claim.serial(), Outcome::timed_out);
  }
}

PyObject* acquire_with(PyPool* pool, const Ask& ask, const Patience& patience) {
  Ledger& ledger = *pool->ledger;
  if (!ask.nested && pool->task_leases.load(std::memory_order_relaxed) > 0 && !task_may_acquire(pool)) return nullptr;
  Holder* const holder = ask.nested ? nullptr : &ledger.holder();
  const auto [claim, serial, at_once] = ledger.queue(*ask.requirements->needs, ask.priority, ask.text, holder);
  if (claim == nullptr) return refuse_outcome(pool, at_once, ask, 0);
  if (at_once == Outcome::granted) return lease_of(pool, *claim, ask.name);
  bool interrupted = false;
  const Outcome outcome = at_once == Outcome::waiting ? wait_for(ledger, *claim, patience, interrupted) : at_once;
  if (outcome == Outcome::granted && !interrupted) return lease_of(pool, *claim, ask.name);
  if (outcome == Outcome::granted)
    ledger.release(*claim);
  else
    ledger.forget(*claim);
  return interrupted ? nullptr : refuse_outcome(pool, outcome, ask, patience.seconds);
}

bool read_patience(PyPool* pool, Patience& patience, PyObject* seconds, PyObject* cancel) {
  if (cancel != nullptr && cancel != Py_None) {
    if (!PyObject_TypeCheck(cancel, cancel_token_type)) {
      PyErr_Format(PyExc_TypeError, "acquire() takes a CancelToken as cancel, not %R", cancel);
      return false;
    }
    patience.cancel = &token_of(cancel);
  }
  if (seconds == nullptr || seconds == Py_None) return true;
  patience.seconds = PyFloat_AsDouble(seconds);
  if (PyErr_Occurred() != nullptr) return false;
  if (!(patience.seconds >= 0)) {
    Py_INCREF(seconds);
    return refuse(pool, "bad_timeout", reinterpret_cast<PyObject*>(pool), seconds) != nullptr;
  }
  constexpr double for_ever = 3e9;  // a hundred years: beyond it the clock's numbers end
  if (patience.seconds < for_ever)
    patience.until = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(patience.seconds));
  return true;
}

/// acquire(requirements, *, timeout_seconds, priority, cancel, name, nested)
PyObject* pool_acquire(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  static const char* const names[] = {"requirements", "timeout_seconds", "priority", "cancel", "name", "nested"};
  PyObject* values[6] = {};
  Ask ask;
  Patience patience;
  if (!unpack("acquire", args, count, keywords, names, values, 1, 1, 6)) return nullptr;
  if (!read_ask(as_pool(self), ask, values[0], values[4], values[2], values[5])) return nullptr;
  if (!read_patience(as_pool(self), patience, values[1], values[3])) return nullptr;
  if (patience.cancel != nullptr && patience.cancel->cancelled())
    return refuse_outcome(as_pool(self), Outcome::cancelled, ask, 0);
  return guarded([&] { return acquire_with(as_pool(self), ask, patience); });
}

/// try_acquire(requirements, *, name)
PyObject* pool_try_acquire(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  static const char* const names[] = {"requirements", "name"};
  PyObject* values[2] = {};
  PyPool* const pool = as_pool(self);
  Ask ask;
  if (!unpack("try_acquire", args, count, keywords, names, values, 1, 1, 2)) return nullptr;
  if (!read_ask(pool, ask, values[0], values[1], nullptr, nullptr)) return nullptr;
  return guarded([&]() -> PyObject* {
    const auto [claim, serial, outcome] = pool->ledger->take(*ask.requirements->needs, ask.text, &pool->ledger->holder());
    if (outcome == Outcome::waiting) Py_RETURN_NONE;
    return claim == nullptr ? refuse_outcome(pool, outcome, ask, 0) : lease_of(pool, *claim, ask.name);
  });
}

// ── the rest of the pool ─────────────────────────────────────────────────────────────────────────────────────────────

PyObject* pool_new(PyTypeObject* type, PyObject*, PyObject*) {
  PyObject* const self = type->tp_alloc(type, 0);
  if (self == nullptr) return nullptr;
  as_pool(self)->ledger = nullptr;
  as_pool(self)->names = nullptr;
  as_pool(self)->memories = nullptr;
  new (&as_pool(self)->task_leases) std::atomic<std::int64_t>(0);
  return self;
}

/// __init__(names, capacity, backfill)
int pool_init(PyObject* self, PyObject* args, PyObject*) {
  PyObject *names = nullptr, *capacity = nullptr;
  Py_ssize_t backfill = 0;
  if (PyArg_ParseTuple(args, "O!On", &PyTuple_Type, &names, &capacity, &backfill) == 0) return -1;
  const auto done = py::reinterpret_steal<py::object>(guarded([&]() -> PyObject* {
    if (as_pool(self)->ledger != nullptr) throw std::invalid_argument("a pool is made only once");
    auto amounts = py::cast<std::vector<Amount>>(py::handle(capacity));
    auto memories = std::make_unique<std::vector<std::unique_ptr<Memory>>>(amounts.size());
    as_pool(self)->ledger = new Ledger(std::move(amounts), static_cast<std::size_t>(backfill));
    as_pool(self)->memories = memories.release();
    Py_INCREF(names);
    as_pool(self)->names = names;
    Py_RETURN_NONE;
  }));
  return done ? 0 : -1;
}

void pool_dealloc(PyObject* self) {
  PyPool* const pool = as_pool(self);
  // In a forked child locks and condition variables may be in the middle of something: they are left as they are.
  if (pool->ledger != nullptr && !pool->ledger->abandoned()) {
    delete pool->ledger;
    delete pool->memories;
  }
  Py_XDECREF(pool->names);
  PyTypeObject* const type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

/// _resize(pairs)
PyObject* pool_resize(PyObject* self, PyObject* pairs) {
  if (!usable(as_pool(self))) return nullptr;
  return guarded([&]() -> PyObject* {
    as_pool(self)->ledger->resize(needs_of(pairs));
    Py_RETURN_NONE;
  });
}

PyObject* pool_close(PyObject* self, PyObject*) {
  if (!usable(as_pool(self))) return nullptr;
  return guarded([&]() -> PyObject* {
    as_pool(self)->ledger->close();
    Py_RETURN_NONE;
  });
}

PyObject* pool_thread_holds(PyObject* self, PyObject*) {
  if (!usable(as_pool(self))) return nullptr;
  return guarded([&] { return PyBool_FromLong(as_pool(self)->ledger->holder().holds()); });
}

/// _snapshot() → a dict.
PyObject* pool_snapshot(PyObject* self, PyObject*) {
  if (!usable(as_pool(self))) return nullptr;
  return guarded([&] {
    const LedgerStatistics found = as_pool(self)->ledger->statistics();
    py::list resources;
    for (const ResourceStatistics& one : found.resources) resources.append(py::make_tuple(one.capacity, one.in_use, one.peak));
    py::dict result;
    result["resources"] = resources;
    result["granted"] = found.granted;
    result["waiting"] = found.waiting;
    result["waits"] = found.waits;
    result["wait_seconds"] = found.wait_seconds;
    result["longest_wait_seconds"] = found.longest_wait_seconds;
    result["wait_histogram"] = py::tuple(py::cast(found.wait_histogram));
    result["bypasses"] = found.bypasses;
    result["timeouts"] = found.timeouts;
    result["cancellations"] = found.cancellations;
    result["failures"] = found.failures;
    result["live"] = found.live;
    result["leaks"] = found.leaked;
    result["closed"] = found.closed;
    return result.release().ptr();
  });
}

/// _memory_snapshot(place) → reserved, used, blocks; None where nothing was opened.
PyObject* pool_memory_snapshot(PyObject* self, PyObject* place) {
  if (!usable(as_pool(self))) return nullptr;
  return guarded([&]() -> PyObject* {
    const auto& memory = as_pool(self)->memories->at(py::cast<std::size_t>(py::handle(place)));
    if (!memory) Py_RETURN_NONE;
    const MemoryStatistics found = memory->statistics();
    return py::make_tuple(found.reserved, found.used, found.blocks).release().ptr();
  });
}

CudaMemory cuda_memory(const std::vector<std::uintptr_t>& functions) {
  if (functions.size() != 7) throw std::invalid_argument("seven functions of the CUDA library are needed");
  CudaMemory memory{};
  static_assert(sizeof memory == 7 * sizeof(std::uintptr_t));
  std::memcpy(&memory, functions.data(), sizeof memory);
  return memory;
}

/// _use_memory(place, kind, capacity, device, functions): opens what a resource's blocks come from.
PyObject* pool_use_memory(PyObject* self, PyObject* args) {
  if (!usable(as_pool(self))) return nullptr;
  return guarded([&]() -> PyObject* {
    const auto [place, kind, capacity, device, functions] =
        py::cast<std::tuple<std::size_t, std::string, std::uint64_t, int, std::vector<std::uintptr_t>>>(py::handle(args));
    auto& memory = as_pool(self)->memories->at(place);
    if (memory) Py_RETURN_NONE;
    if (kind == "host")
      memory = host_memory(capacity);
    else if (kind == "pinned")
      memory = pinned_memory(cuda_memory(functions));
    else
      memory = std::make_unique<DeviceMemory>(cuda_memory(functions), device, capacity);
    Py_RETURN_NONE;
  });
}

PyObject* pool_closed(PyObject* self, void*) {
  return usable(as_pool(self)) ? PyBool_FromLong(as_pool(self)->ledger->closed()) : nullptr;
}

PyMethodDef pool_methods[] = {
    {"acquire", method(pool_acquire), METH_FASTCALL | METH_KEYWORDS,
     "acquire($self, requirements, *, timeout_seconds=None, priority=0, cancel=None, name='', nested=False)\n--\n\n"
     "Waits until everything is granted, and returns the lease."},
    {"try_acquire", method(pool_try_acquire), METH_FASTCALL | METH_KEYWORDS,
     "try_acquire($self, requirements, *, name='')\n--\n\nReturns a lease if it can be granted at once, else None."},
    {"request", method(pool_request), METH_FASTCALL | METH_KEYWORDS,
     "request($self, requirements, on_grant, on_refuse=None, *, priority=0, name='')\n--\n\n"
     "Asks without waiting; the answer is a call."},
    {"close", pool_close, METH_NOARGS, "close($self)\n--\n\nGrants nothing any more; whoever waits is told."},
    {"_requirements", method(pool_requirements), METH_FASTCALL, "_requirements($self, pairs, amounts)\n--\n\n"},
    {"_resize", pool_resize, METH_O, "_resize($self, pairs)\n--\n\n"},
    {"_thread_holds", pool_thread_holds, METH_NOARGS, "_thread_holds($self)\n--\n\n"},
    {"_snapshot", pool_snapshot, METH_NOARGS, "_snapshot($self)\n--\n\n"},
    {"_memory_snapshot", pool_memory_snapshot, METH_O, "_memory_snapshot($self, place)\n--\n\n"},
    {"_use_memory", pool_use_memory, METH_O, "_use_memory($self, arguments)\n--\n\n"},
    {nullptr, nullptr, 0, nullptr}};
PyGetSetDef pool_properties[] = {{"closed", pool_closed, nullptr, "Whether close was called.", nullptr},
                                 {nullptr, nullptr, nullptr, nullptr, nullptr}};
PyType_Slot pool_slots[] = {
    {Py_tp_doc, const_cast<char*>("The compiled half of minerua.kernels.pool.ResourcePool, which says what is refused.")},
    {Py_tp_new, reinterpret_cast<void*>(pool_new)},
    {Py_tp_init, reinterpret_cast<void*>(pool_init)},
    {Py_tp_dealloc, reinterpret_cast<void*>(pool_dealloc)},
    {Py_tp_methods, pool_methods},
    {Py_tp_getset, pool_properties},
    {0, nullptr}};
PyType_Spec pool_spec = {"minerua._core.Pool", sizeof(PyPool), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, pool_slots};

}  // namespace

void define_pool(py::module_& module) {
  pool_type = make_type(pool_spec, module, "Pool");
  requirements_type = make_type(requirements_spec, module, "Requirements");
  cancel_token_type = make_type(token_spec, module, "CancelToken");
  define_requests(module);
  define_leases(module);
}

}  // namespace minerua::bindings
