/// @file launch.hpp
/// Stands before csrc/cuda/launch.hpp on the include path: kernels run on the CPU, at once, in shuffled orders of threads.
#pragma once

#include "cuda_emulation.hpp"

#include <cstddef>
#include <cstdint>

#include "cuda/check.hpp"

namespace emulation {
inline unsigned seed = 1;  // of the order of threads; 0 is their own
}

namespace minerua::cuda {
namespace {

alignas(16) double block_memory[(96 << 10) / sizeof(double)];  // what `extern __shared__` of the kernels refers to

/// Runs a kernel as the real one does, into shared memory that holds what a block before it may have left.
template <class Request>
void launch_kernel(void (*kernel)(Request), std::int64_t blocks, int threads, int shared_bytes, void*,
                   const Request& request) {
  MINERUA_CUDA_EXPECTS(blocks < std::int64_t{1} << 31, "a pass over " << blocks << " blocks; fewer than 2^31 can be queued");
  check::that(static_cast<std::size_t>(shared_bytes) <= sizeof block_memory, "shared memory suffices");
  std::memset(block_memory, 0xff, sizeof block_memory);
  if (blocks <= 0) return;
  emulation::launch(static_cast<unsigned>(blocks), static_cast<unsigned>(threads), emulation::seed,
                    [&] { kernel(request); });
}

}  // namespace
}  // namespace minerua::cuda
