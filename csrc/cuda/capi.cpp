#include "cuda/capi.h"

#include "cuda/check.hpp"

namespace minerua::cuda {

std::string& last_error() {
  thread_local std::string text = "no error";
  return text;
}

}  // namespace minerua::cuda

extern "C" int minerua_cuda_abi(void) { return MINERUA_CUDA_ABI; }

extern "C" const char* minerua_cuda_last_error(void) { return minerua::cuda::last_error().c_str(); }

extern "C" int minerua_cuda_device_count(int* count) {
  return minerua::cuda::guarded([count] {
    MINERUA_CUDA_EXPECTS(count != nullptr, "minerua_cuda_device_count: count is null");
    CUDA_TRY(cudaGetDeviceCount(count));
  });
}
