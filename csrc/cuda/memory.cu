// Memory for leases: pinned host memory, and device memory from a pool of CUDA's stream-ordered allocator.
#include <cuda_runtime_api.h>

#include "cuda/capi.h"
#include "cuda/check.hpp"

namespace {

/// Makes a device the current one while it lives.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    CUDA_TRY(cudaGetDevice(&before_));
    CUDA_TRY(cudaSetDevice(device));
  }
  ~OnDevice() { (void)cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

/// What `pool` of the C ABI points to.
struct DevicePool {
  cudaMemPool_t pool;
  int device;
};

}  // namespace

extern "C" int minerua_cuda_pinned_allocate(int64_t bytes, void** address) {
  return minerua::cuda::guarded([=] {
    MINERUA_CUDA_EXPECTS(bytes > 0 && address != nullptr, "minerua_cuda_pinned_allocate: " << bytes << " bytes");
    CUDA_TRY(cudaHostAlloc(address, static_cast<size_t>(bytes), cudaHostAllocPortable));
  });
}

extern "C" int minerua_cuda_pinned_free(void* address) {
  return minerua::cuda::guarded([=] { CUDA_TRY(cudaFreeHost(address)); });
}

extern "C" int minerua_cuda_pool_create(int device, int64_t keep_bytes, void** pool) {
  return minerua::cuda::guarded([=] {
    MINERUA_CUDA_EXPECTS(keep_bytes >= 0 && pool != nullptr, "minerua_cuda_pool_create: keeps " << keep_bytes << " bytes");
    cudaMemPoolProps wanted{};
    wanted.allocType = cudaMemAllocationTypePinned;
    wanted.location.type = cudaMemLocationTypeDevice;
    wanted.location.id = device;
    auto made = new DevicePool{nullptr, device};
    const cudaError_t status = cudaMemPoolCreate(&made->pool, &wanted);
    if (status != cudaSuccess) delete made;
    CUDA_TRY(status);
    auto threshold = static_cast<uint64_t>(keep_bytes);
    CUDA_TRY(cudaMemPoolSetAttribute(made->pool, cudaMemPoolAttrReleaseThreshold, &threshold));
    *pool = made;
  });
}

extern "C" int minerua_cuda_pool_destroy(void* pool) {
  return minerua::cuda::guarded([=] {
    auto* const its = static_cast<DevicePool*>(pool);
    const cudaError_t status = cudaMemPoolDestroy(its->pool);
    delete its;
    CUDA_TRY(status);
  });
}

extern "C" int minerua_cuda_allocate(void* pool, int64_t bytes, void* stream, void** address) {
  return minerua::cuda::guarded([=] {
    MINERUA_CUDA_EXPECTS(pool != nullptr && bytes > 0 && address != nullptr, "minerua_cuda_allocate: " << bytes << " bytes");
    const auto* const its = static_cast<const DevicePool*>(pool);
    const OnDevice current(its->device);
    CUDA_TRY(cudaMallocFromPoolAsync(address, static_cast<size_t>(bytes), its->pool, static_cast<cudaStream_t>(stream)));
  });
}

extern "C" int minerua_cuda_free(void* pool, void* address, void* stream) {
  return minerua::cuda::guarded([=] {
    MINERUA_CUDA_EXPECTS(pool != nullptr, "minerua_cuda_free: the pool is null");
    const OnDevice current(static_cast<const DevicePool*>(pool)->device);  // whose default stream null is
    CUDA_TRY(cudaFreeAsync(address, static_cast<cudaStream_t>(stream)));
  });
}
