/// @file check.hpp
/// Errors inside libminerua_cuda.so: thrown as a Fault, turned into a status and a text at the C boundary.
#pragma once

#include <cuda_runtime_api.h>

#include <exception>
#include <sstream>
#include <string>

#include "cuda/capi.h"

namespace minerua::cuda {

/// A status and its text on their way to the boundary.
struct Fault {
  int status;
  std::string text;
};

/// The text that minerua_cuda_last_error returns to this thread.
std::string& last_error();

/// Runs `body` and returns its status; nothing it throws gets past.
template <class Body>
int guarded(const Body& body) noexcept {
  try {
    try {
      body();
      return MINERUA_CUDA_OK;
    } catch (const Fault& fault) {
      last_error() = fault.text;
      return fault.status;
    } catch (const std::exception& error) {
      last_error() = error.what();
    }
  } catch (...) {  // even the text could not be stored: the status alone has to do
  }
  return MINERUA_CUDA_RUNTIME_ERROR;
}

}  // namespace minerua::cuda

#define MINERUA_CUDA_EXPECTS(condition, message)                                      \
  do {                                                                                \
    if (!(condition)) {                                                               \
      std::ostringstream minerua_text;                                                \
      minerua_text << message;                                                        \
      throw ::minerua::cuda::Fault{MINERUA_CUDA_INVALID_ARGUMENT, minerua_text.str()}; \
    }                                                                                 \
  } while (false)

#define CUDA_TRY(call)                                                                                            \
  do {                                                                                                            \
    const cudaError_t minerua_status = (call);                                                                    \
    if (minerua_status != cudaSuccess) {                                                                          \
      (void)cudaGetLastError(); /* reported here; must not be found again by an unrelated call */                 \
      throw ::minerua::cuda::Fault{MINERUA_CUDA_RUNTIME_ERROR, std::string(#call ": ") +                          \
                                                                   cudaGetErrorName(minerua_status) + ", " +      \
                                                                   cudaGetErrorString(minerua_status)};           \
    }                                                                                                             \
  } while (false)
