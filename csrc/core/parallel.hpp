/// @file parallel.hpp
/// The core's own thread pool. It blocks instead of spinning, so that a loaded machine stays usable, and it is not OpenMP,
/// so that it never meets a second OpenMP runtime in the process (pytorch #98836).
#pragma once

#include <cstddef>
#include <functional>

namespace minerua {

/// Calls body(0) … body(count - 1), each once, in any order, on the calling thread and the pool; returns when all are done.
///
/// An exception does not stop the other calls; the one of the smallest index is thrown again here, so that the same fault
/// gives the same error for any number of threads. May be called from several threads at once and from within a body.
/// Memory written by a body is visible to the caller afterwards. A body must not fork.
void parallel_for(std::size_t count, const std::function<void(std::size_t)>& body);

/// Sets how many threads, the caller included, one parallel_for may use from now on. Calls in flight keep their pool.
/// @throws InvalidArgument unless 1 <= count <= 1024.
void set_num_threads(std::size_t count);

/// The number in force: what set_num_threads was given, else the size of the process's affinity mask.
std::size_t num_threads();

}  // namespace minerua
