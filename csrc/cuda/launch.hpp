/// @file launch.hpp
/// How a kernel is started; tests/cpp/emulated has another file of this name, with which passes.cu runs on the CPU.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cuda/check.hpp"

namespace minerua::cuda {
namespace {

/// Queues `blocks` blocks, one for each piece of the work; none if there is none.
template <class Request>
void launch_kernel(void (*kernel)(Request), std::int64_t blocks, int threads, int shared_bytes, void* stream,
                   const Request& request) {
  MINERUA_CUDA_EXPECTS(blocks < std::int64_t{1} << 31, "a pass over " << blocks << " blocks; fewer than 2^31 can be queued");
  if (blocks <= 0) return;
  if (shared_bytes > 48 << 10)  // must be asked for, per device; every kernel always asks for the same number
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  kernel<<<static_cast<unsigned>(blocks), static_cast<unsigned>(threads), static_cast<std::size_t>(shared_bytes),
           static_cast<cudaStream_t>(stream)>>>(request);
  CUDA_TRY(cudaGetLastError());
}

}  // namespace
}  // namespace minerua::cuda
