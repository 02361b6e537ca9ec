// Leases and their blocks of memory.
#include <pybind11/stl.h>

#include <structmember.h>

#include <cstddef>
#include <utility>

#include "bindings/pool.hpp"

namespace minerua::bindings {

PyTypeObject* lease_type = nullptr;
static PyTypeObject* block_type = nullptr;

/// A block of memory. The lease's mutex guards all that changes. It is gone once it is freed and nothing views it.
struct PyBlock {
  PyObject_HEAD
  PyLease* lease;
  Memory* memory;
  Span span;
  std::uint32_t resource;
  Py_ssize_t views;
  std::atomic<bool> freed;
  Claim* remainder;  // what the ledger still counts for a block that outlives its lease
  PyBlock* before;
  PyBlock* after;
};

namespace {

// ── giving back ──────────────────────────────────────────────────────────────────────────────────────────────────────

/// Takes a block out of its lease's list and sum. With the mutex held.
void unlink(PyBlock* block) {
  (block->before == nullptr ? block->lease->blocks : block->before->after) = block->after;
  if (block->after != nullptr) block->after->before = block->before;
  block->before = block->after = nullptr;
  block->lease->allocated[block->resource] -= static_cast<Amount>(block->span.bytes);
}

/// Gives the memory of a block back, and what the ledger still counts for it; without the mutex. A device that cannot take
/// it back is reported where nobody can catch it.
void give_back(PyBlock* block, Claim* remainder) noexcept {
  Ledger& ledger = *block->lease->pool->ledger;
  if (ledger.abandoned()) return;
  try {
    block->memory->free(block->span);
  } catch (const std::exception& error) {
    const py::error_scope kept;
    PyErr_SetString(PyExc_RuntimeError, error.what());
    PyErr_WriteUnraisable(reinterpret_cast<PyObject*>(block));
  }
  if (remainder != nullptr) ledger.release(*remainder);
}

/// Ends a block: at once if nothing views it, else when the last view goes.
void free_block(PyBlock* block) {
  {
    const std::lock_guard<std::mutex> lock(block->lease->mutex);
    if (block->freed.exchange(true) || block->views > 0) return;
    unlink(block);
  }
  give_back(block, nullptr);
}

/// Ends the blocks of a lease that is being released: those that somebody views take over what they need of the claim. With
/// the mutex held. False if a device could not take something back.
bool end_blocks(PyLease* lease, Claim& claim) {
  bool done = true;
  while (PyBlock* const block = lease->blocks) {
    unlink(block);
    const bool was_freed = block->freed.exchange(true);
    if (block->views == 0 && !was_freed) {
      try {
        block->memory->free(block->span);
      } catch (const std::bad_alloc&) {
        done = false;
      }
    } else if (block->span.bytes > 0) {
      block->remainder = &lease->pool->ledger->split(claim, {{block->resource, static_cast<Amount>(block->span.bytes)}});
    }
  }
  return done;
}

}  // namespace

void release_lease(PyLease* lease, bool leaked) {
  Ledger& ledger = *lease->pool->ledger;
  if (ledger.abandoned()) {  // a child's copy: the parent's lease is as it was
    lease->claim = nullptr;
    return;
  }
  Claim* claim = nullptr;
  bool done = true;
  {
    const std::lock_guard<std::mutex> lock(lease->mutex);
    claim = lease->claim.exchange(nullptr);
    if (claim == nullptr) return;
    if (lease->blocks != nullptr) done = end_blocks(lease, *claim);
    if (std::exchange(lease->is_a_task_s, false)) --lease->pool->task_leases;
  }
  ledger.release(*claim, leaked);
  if (done) return;
  const py::error_scope kept;
  PyErr_SetString(PyExc_RuntimeError, "a device could not take back a block of a released lease");
  PyErr_WriteUnraisable(reinterpret_cast<PyObject*>(lease));
}

void hand_over(PyLease* lease) {
  const std::lock_guard<std::mutex> lock(lease->mutex);
  if (std::exchange(lease->is_a_task_s, false)) --lease->pool->task_leases;
  if (Claim* const claim = lease->claim) lease->pool->ledger->hand_over(*claim);
}

PyObject* lease_of(PyPool* pool, Claim& claim, PyObject* name) {
  auto* const lease = PyObject_New(PyLease, lease_type);
  if (lease == nullptr) {
    pool->ledger->release(claim);
    return nullptr;
  }
  Py_INCREF(pool);
  lease->pool = pool;
  Py_XINCREF(name);
  lease->name = name;
  lease->weak_references = nullptr;
  new (&lease->mutex) std::mutex;
  new (&lease->claim) std::atomic<Claim*>(&claim);
  lease->blocks = nullptr;
  new (&lease->allocated) std::vector<Amount>;
  lease->is_a_task_s = false;
  return reinterpret_cast<PyObject*>(lease);
}

namespace {

PyLease* as_lease(PyObject* self) { return reinterpret_cast<PyLease*>(self); }
PyBlock* as_block(PyObject* self) { return reinterpret_cast<PyBlock*>(self); }

// ── Lease ────────────────────────────────────────────────────────────────────────────────────────────────────────────

void lease_dealloc(PyObject* self) {
  PyLease* const lease = as_lease(self);
  if (lease->weak_references != nullptr) PyObject_ClearWeakRefs(self);
  if (lease->claim != nullptr) {
    const py::error_scope kept;
    release_lease(lease, true);
  }
  lease->allocated.~vector();
  lease->mutex.~mutex();
  Py_XDECREF(lease->name);
  Py_DECREF(lease->pool);
  PyTypeObject* const type = Py_TYPE(self);
  PyObject_Free(self);
  Py_DECREF(type);
}

PyObject* lease_release(PyObject* self, PyObject*) {
  release_lease(as_lease(self), false);
  Py_RETURN_NONE;
}

PyObject* lease_enter(PyObject* self, PyObject*) {
  if (as_lease(self)->claim == nullptr) return refuse(as_lease(self)->pool, "released", self, nullptr);
  Py_INCREF(self);
  return self;
}

PyObject* lease_exit(PyObject* self, PyObject* const*, Py_ssize_t) { return lease_release(self, nullptr); }
PyObject* lease_hand_over(PyObject* self, PyObject*) {
  hand_over(as_lease(self));
  Py_RETURN_NONE;
}

PyObject* lease_mark(PyObject* self, PyObject*) {
  PyLease* const lease = as_lease(self);
  const std::lock_guard<std::mutex> lock(lease->mutex);
  if (lease->claim != nullptr && !std::exchange(lease->is_a_task_s, true)) ++lease->pool->task_leases;
  Py_RETURN_NONE;
}

PyObject* lease_is_task_s(PyObject* self, PyObject*) {
  PyLease* const lease = as_lease(self);
  const std::lock_guard<std::mutex> lock(lease->mutex);
  return PyBool_FromLong(lease->claim != nullptr && lease->is_a_task_s);
}

PyObject* lease_try_extend(PyObject* self, PyObject* more) {
  PyLease* const lease = as_lease(self);
  if (!usable(lease->pool)) return nullptr;
  PyRequirements* const requirements = prepared(lease->pool, more);
  if (requirements == nullptr) return nullptr;
  const auto kept = py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(requirements));
  return guarded([&]() -> PyObject* {
    Outcome outcome = Outcome::cancelled;
    {
      const std::lock_guard<std::mutex> lock(lease->mutex);
      if (lease->claim != nullptr) outcome = lease->pool->ledger->extend(*lease->claim, *requirements->needs);
    }
    switch (outcome) {
      case Outcome::granted: Py_RETURN_TRUE;
      case Outcome::waiting: Py_RETURN_FALSE;
      case Outcome::too_large: return refuse(lease->pool, "extend_too_large", self, kept.inc_ref().ptr());
      case Outcome::closed: return refuse(lease->pool, "closed", kept.ptr(), nullptr);
      default: return refuse(lease->pool, "released", self, nullptr);
    }
  });
}

/// What the lease holds, now; nothing once it is released.
PyObject* lease_requirements(PyObject* self, void*) {
  PyLease* const lease = as_lease(self);
  return guarded([&] {
    Needs needs;
    if (!lease->pool->ledger->abandoned()) {
      const std::lock_guard<std::mutex> lock(lease->mutex);
      if (lease->claim != nullptr) needs = lease->claim.load()->needs();
    }
    py::dict amounts;
    for (const Need& need : needs)
      amounts[py::handle(PyTuple_GET_ITEM(lease->pool->names, static_cast<Py_ssize_t>(need.resource)))] = need.amount;
    return amounts.release().ptr();
  });
}

PyObject* lease_released(PyObject* self, void*) { return PyBool_FromLong(as_lease(self)->claim == nullptr); }

PyObject* lease_name(PyObject* self, void*) {
  PyObject* const name = as_lease(self)->name;
  if (name == nullptr) return PyUnicode_New(0, 127);
  Py_INCREF(name);
  return name;
}

PyObject* lease_pool(PyObject* self, void*) {
  Py_INCREF(as_lease(self)->pool);
  return reinterpret_cast<PyObject*>(as_lease(self)->pool);
}

PyObject* lease_repr(PyObject* self) {
  const auto name = py::reinterpret_steal<py::object>(lease_name(self, nullptr));
  const auto amounts = py::reinterpret_steal<py::object>(lease_requirements(self, nullptr));
  if (!name || !amounts) return nullptr;
  if (as_lease(self)->claim == nullptr) return PyUnicode_FromFormat("<Lease %R, released>", name.ptr());
  return PyUnicode_FromFormat("<Lease %R of %R>", name.ptr(), amounts.ptr());
}

// ── allocating ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// Counts bytes against what the lease holds. Returns what is left if that is too little, -1 if the lease was released,
/// -2 if they are counted now.
Amount charge(PyLease* lease, std::uint32_t resource, Amount bytes) {
  const std::lock_guard<std::mutex> lock(lease->mutex);
  if (lease->claim == nullptr) return -1;
  if (lease->allocated.empty()) lease->allocated.resize(static_cast<std::size_t>(PyTuple_GET_SIZE(lease->pool->names)));
  Amount held = 0;
  for (const Need& need : lease->claim.load()->needs())
    if (need.resource == resource) held = need.amount;
  const Amount left = held - lease->allocated[resource];
  if (bytes > left) return left;
  lease->allocated[resource] += bytes;
  return -2;
}

/// Puts a block that was charged into its lease's list; false if the lease was released meanwhile.
bool attach(PyLease* lease, PyBlock* block) {
  const std::lock_guard<std::mutex> lock(lease->mutex);
  if (lease->claim == nullptr) return false;
  block->after = lease->blocks;
  if (lease->blocks != nullptr) lease->blocks->before = block;
  lease->blocks = block;
  return true;
}

void discharge(PyLease* lease, std::uint32_t resource, Amount bytes) {
  const std::lock_guard<std::mutex> lock(lease->mutex);
  lease->allocated[resource] -= bytes;
}

PyBlock* new_block(PyLease* lease, Memory* memory, const Span& span, std::uint32_t resource) {
  auto* const block = PyObject_New(PyBlock, block_type);
  if (block == nullptr) return nullptr;
  Py_INCREF(lease);
  block->lease = lease;
  block->memory = memory;
  block->span = span;
  block->resource = resource;
  block->views = 0;
  new (&block->freed) std::atomic<bool>(false);
  block->remainder = nullptr;
  block->before = block->after = nullptr;
  return block;
}

struct Wanted {
  std::uint32_t resource;
  Amount bytes;
  std::uint64_t alignment;
  void* stream;
  Memory* memory;
};

/// Reads the arguments of allocate, and opens the memory where nobody did before. False with an error set.
bool read_wanted(PyLease* lease, PyObject* const* args, Py_ssize_t count, PyObject* keywords, Wanted& wanted) {
  static const char* const names[] = {"nbytes", "resource", "alignment", "stream"};
  PyObject* values[4] = {};
  if (!unpack("allocate", args, count, keywords, names, values, 3, 1, 4)) return false;
  PyPool* const pool = lease->pool;
  const auto refuse_size = [&] {
    Py_INCREF(values[0]);
    return refuse(pool, "bad_size", reinterpret_cast<PyObject*>(lease), values[0]) != nullptr;
  };
  const auto size = py::reinterpret_steal<py::object>(PyBool_Check(values[0]) ? nullptr : PyNumber_Index(values[0]));
  int overflow = 0;
  wanted.bytes = size ? PyLong_AsLongLongAndOverflow(size.ptr(), &overflow) : -1;
  if (overflow > 0) wanted.bytes = INT64_MAX;  // more than any lease has, which is what is said below
  if (wanted.bytes < 0) return PyErr_Clear(), refuse_size();
  wanted.alignment = 64;
  if (values[2] != nullptr) wanted.alignment = PyLong_AsUnsignedLongLong(values[2]);
  if (values[3] != nullptr) wanted.stream = PyLong_AsVoidPtr(values[3]);
  if (PyErr_Occurred() != nullptr) return false;
  const auto resource = values[1] != nullptr ? py::reinterpret_borrow<py::object>(values[1]) : py::str("host_bytes");
  Py_ssize_t place = place_of(pool, resource.ptr());
  if (place < 0) return refuse(pool, "unknown", reinterpret_cast<PyObject*>(lease), resource.inc_ref().ptr()) != nullptr;
  if (!(*pool->memories)[static_cast<std::size_t>(place)]) {
    const auto done = py::reinterpret_steal<py::object>(
        PyObject_CallMethod(reinterpret_cast<PyObject*>(pool), "_open_memory", "O", resource.ptr()));
    if (!done) return false;
  }
  wanted.resource = static_cast<std::uint32_t>(place);
  wanted.memory = (*pool->memories)[static_cast<std::size_t>(place)].get();
  const bool fits = wanted.alignment > 0 && (wanted.alignment & (wanted.alignment - 1)) == 0 &&
                    wanted.alignment <= wanted.memory->max_alignment();
  if (!fits)
    return refuse(pool, "bad_alignment", reinterpret_cast<PyObject*>(lease),
                  Py_BuildValue("KK", wanted.alignment, wanted.memory->max_alignment())) != nullptr;
  return true;
}

PyObject* lease_allocate(PyObject* self, PyObject* const* args, Py_ssize_t count, PyObject* keywords) {
  PyLease* const lease = as_lease(self);
  if (!usable(lease->pool)) return nullptr;
  return guarded([&]() -> PyObject* {
    Wanted wanted{};
    if (!read_wanted(lease, args, count, keywords, wanted)) return nullptr;
    const Amount left = charge(lease, wanted.resource, wanted.bytes);
    PyObject* const name = PyTuple_GET_ITEM(lease->pool->names, static_cast<Py_ssize_t>(wanted.resource));
    if (left == -1) return refuse(lease->pool, "released", self, nullptr);
    if (left >= 0) return refuse(lease->pool, "allocation", self, Py_BuildValue("OLL", name, wanted.bytes, left));
    Span span;
    std::string fault;
    try {
      const py::gil_scoped_release unlocked;  // pinning pages and opening devices takes time
      span = wanted.memory->allocate(static_cast<std::uint64_t>(wanted.bytes), wanted.alignment, wanted.stream);
    } catch (const std::bad_alloc& error) {
      fault = error.what();
    }
    PyBlock* const block = fault.empty() ? new_block(lease, wanted.memory, span, wanted.resource) : nullptr;
    if (block != nullptr && attach(lease, block)) return reinterpret_cast<PyObject*>(block);
    discharge(lease, wanted.resource, wanted.bytes);
    if (!fault.empty()) return refuse(lease->pool, "upstream", self, PyUnicode_FromString(fault.c_str()));
    wanted.memory->free(span);
    if (block == nullptr) return nullptr;
    block->freed = true;
    Py_DECREF(block);
    return refuse(lease->pool, "released", self, nullptr);
  });
}

// ── Block ────────────────────────────────────────────────────────────────────────────────────────────────────────────

void block_dealloc(PyObject* self) {
  PyBlock* const block = as_block(self);
  free_block(block);  // views hold a reference, so there are none
  Py_DECREF(block->lease);
  PyTypeObject* const type = Py_TYPE(self);
  PyObject_Free(self);
  Py_DECREF(type);
}

PyObject* block_free(PyObject* self, PyObject*) {
  free_block(as_block(self));
  Py_RETURN_NONE;
}

int block_get_buffer(PyObject* self, Py_buffer* view, int flags) {
  PyBlock* const block = as_block(self);
  view->obj = nullptr;
  if (!block->memory->on_host()) {
    PyErr_SetString(PyExc_BufferError, "this block is device memory, which the host cannot view; use its address");
    return -1;
  }
  {
    const std::lock_guard<std::mutex> lock(block->lease->mutex);
    if (!block->freed) ++block->views;
    else view = nullptr;
  }
  if (view == nullptr) {
    PyErr_SetString(PyExc_BufferError, "this block was freed, or its lease was released");
    return -1;
  }
  if (PyBuffer_FillInfo(view, self, block->span.address, static_cast<Py_ssize_t>(block->span.bytes), 0, flags) == 0) return 0;
  const std::lock_guard<std::mutex> lock(block->lease->mutex);
  --block->views;
  return -1;
}

void block_release_buffer(PyObject* self, Py_buffer*) {
  PyBlock* const block = as_block(self);
  Claim* remainder = nullptr;
  {
    const std::lock_guard<std::mutex> lock(block->lease->mutex);
    if (--block->views > 0 || !block->freed) return;
    remainder = std::exchange(block->remainder, nullptr);
    if (block->lease->claim != nullptr) unlink(block);
  }
  const py::error_scope kept;
  give_back(block, remainder);
}

PyObject* block_nbytes(PyObject* self, void*) { return PyLong_FromUnsignedLongLong(as_block(self)->span.bytes); }
PyObject* block_freed(PyObject* self, void*) { return PyBool_FromLong(as_block(self)->freed); }

PyObject* block_resource(PyObject* self, void*) {
  const PyBlock* const block = as_block(self);
  PyObject* const name = PyTuple_GET_ITEM(block->lease->pool->names, static_cast<Py_ssize_t>(block->resource));
  Py_INCREF(name);
  return name;
}

PyObject* block_address(PyObject* self, void*) {
  const PyBlock* const block = as_block(self);
  if (block->freed) return refuse(block->lease->pool, "freed", self, nullptr);
  return PyLong_FromVoidPtr(block->span.address);
}

PyObject* block_repr(PyObject* self) {
  const auto resource = py::reinterpret_steal<py::object>(block_resource(self, nullptr));
  return PyUnicode_FromFormat("<Block of %llu bytes of %U%s>", static_cast<unsigned long long>(as_block(self)->span.bytes),
                              resource.ptr(), as_block(self)->freed ? ", freed" : "");
}

// ── the types ────────────────────────────────────────────────────────────────────────────────────────────────────────

PyMethodDef lease_methods[] = {
    {"release", lease_release, METH_NOARGS, "release($self)\n--\n\nGives everything back; does nothing the second time."},
    {"allocate", method(lease_allocate), METH_FASTCALL | METH_KEYWORDS,
     "allocate($self, nbytes, resource='host_bytes', alignment=64, *, stream=0)\n--\n\nTakes a block of what the lease holds."},
    {"try_extend", lease_try_extend, METH_O, "try_extend($self, requirements)\n--\n\nTakes more if it is free now; never waits."},
    {"hand_over", lease_hand_over, METH_NOARGS,
     "hand_over($self)\n--\n\nFrom now on another thread's or task's: whoever took the lease may acquire again."},
    {"_mark_task", lease_mark, METH_NOARGS, "_mark_task($self)\n--\n\nNotes that an asyncio task holds it."},
    {"_is_task_s", lease_is_task_s, METH_NOARGS, "_is_task_s($self)\n--\n\nWhether an asyncio task holds it."},
    {"__enter__", lease_enter, METH_NOARGS, nullptr},
    {"__exit__", method(lease_exit), METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};
PyGetSetDef lease_properties[] = {
    {"requirements", lease_requirements, nullptr, "What it holds: resource → amount; empty once released.", nullptr},
    {"released", lease_released, nullptr, "Whether it was given back.", nullptr},
    {"name", lease_name, nullptr, "What statistics call it.", nullptr},
    {"pool", lease_pool, nullptr, "Where it came from.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};
PyMemberDef lease_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(PyLease, weak_references), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr}};
PyType_Slot lease_slots[] = {
    {Py_tp_doc, const_cast<char*>("What a pool granted; a context manager that gives it back.")},
    {Py_tp_dealloc, reinterpret_cast<void*>(lease_dealloc)}, {Py_tp_repr, reinterpret_cast<void*>(lease_repr)},
    {Py_tp_methods, lease_methods}, {Py_tp_getset, lease_properties}, {Py_tp_members, lease_members}, {0, nullptr}};
PyType_Spec lease_spec = {"minerua._core.Lease", sizeof(PyLease), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, lease_slots};

PyMethodDef block_methods[] = {
    {"free", block_free, METH_NOARGS, "free($self)\n--\n\nGives the memory back, or leaves that to the last view of it."},
    {nullptr, nullptr, 0, nullptr}};
PyGetSetDef block_properties[] = {
    {"nbytes", block_nbytes, nullptr, "How many bytes were asked for.", nullptr},
    {"address", block_address, nullptr, "Where it begins.", nullptr},
    {"resource", block_resource, nullptr, "Which resource of the lease it is part of.", nullptr},
    {"freed", block_freed, nullptr, "Whether it was freed, or its lease released.", nullptr},
    {nullptr, nullptr, nullptr, nullptr, nullptr}};
PyType_Slot block_slots[] = {
    {Py_tp_doc, const_cast<char*>("Memory of a lease, writable through the buffer protocol; not set to anything.")},
    {Py_tp_dealloc, reinterpret_cast<void*>(block_dealloc)}, {Py_tp_repr, reinterpret_cast<void*>(block_repr)},
    {Py_tp_methods, block_methods}, {Py_tp_getset, block_properties},
    {Py_bf_getbuffer, reinterpret_cast<void*>(block_get_buffer)},
    {Py_bf_releasebuffer, reinterpret_cast<void*>(block_release_buffer)}, {0, nullptr}};
PyType_Spec block_spec = {"minerua._core.Block", sizeof(PyBlock), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, block_slots};

}  // namespace

void define_leases(py::module_& module) {
  lease_type = make_type(lease_spec, module, "Lease");
  block_type = make_type(block_spec, module, "Block");
}

}  // namespace minerua::bindings
