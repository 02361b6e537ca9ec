// Launches the SVD mutation.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/check.hpp"
#include "cuda/svd_mutation_kernel.hpp"

namespace minerua::cuda {
namespace {

std::int64_t block_count(std::int64_t batch) { return std::min(batch, max_blocks); }

int padded_side(std::int64_t rows, std::int64_t columns) {
  const auto small = static_cast<int>(std::min(rows, columns));
  return small + small % 2;
}

void expect_shape(std::int64_t batch, std::int64_t rows, std::int64_t columns) {
  MINERUA_CUDA_EXPECTS(batch >= 1 && rows >= 1 && columns >= 1,
                       "svd_mutation: " << batch << " matrices of " << rows << " x " << columns);
  MINERUA_CUDA_EXPECTS(std::min(rows, columns) <= max_side, "svd_mutation: the smaller side of "
                                                                << rows << " x " << columns << " is above " << max_side);
}

/// Dynamic shared memory that a block may have on the current device: up to 227 KiB on an H100, 99 KiB on an RTX 4090.
int shared_bytes_limit() {
  int device = 0, bytes = 0;
  CUDA_TRY(cudaGetDevice(&device));
  CUDA_TRY(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
}

void launch(const SvdRequest& request, cudaStream_t stream) {
  const int bytes = svd_shared_bytes(padded_side(request.rows, request.columns)), limit = shared_bytes_limit();
  MINERUA_CUDA_EXPECTS(bytes <= limit, "svd_mutation: " << request.rows << " x " << request.columns << " needs " << bytes
                                                        << " bytes of shared memory, the device has " << limit);
  // More than 48 KiB must be asked for, per device. Always the same number: threads that set different ones would undo
  // each other's between the setting and the launch.
  const int largest = std::min(limit, svd_shared_bytes(max_side));
  CUDA_TRY(cudaFuncSetAttribute(svd_mutation_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, largest));
  svd_mutation_kernel<<<static_cast<unsigned>(block_count(request.batch)), svd_threads,
                        static_cast<std::size_t>(bytes), stream>>>(request);
  CUDA_TRY(cudaGetLastError());
}

}  // namespace
}  // namespace minerua::cuda

extern "C" int minerua_cuda_svd_mutation_side(int* side) {
  using namespace minerua::cuda;
  return guarded([=] {
    MINERUA_CUDA_EXPECTS(side != nullptr, "svd_mutation_side: side is null");
    cudaFuncAttributes attributes;  // fails where the library has no code for the device
    CUDA_TRY(cudaFuncGetAttributes(&attributes, svd_mutation_kernel));
    const int limit = shared_bytes_limit();
    int largest = max_side;
    while (largest > 0 && svd_shared_bytes(largest) > limit) largest -= 2;
    *side = largest;
  });
}

extern "C" int minerua_cuda_svd_mutation_workspace(int64_t batch, int64_t rows, int64_t columns, int64_t* bytes) {
  using namespace minerua::cuda;
  return guarded([=] {
    expect_shape(batch, rows, columns);
    MINERUA_CUDA_EXPECTS(bytes != nullptr, "svd_mutation_workspace: bytes is null");
    const std::int64_t side = padded_side(rows, columns);
    *bytes = block_count(batch) * side * side * static_cast<std::int64_t>(sizeof(double));
  });
}

extern "C" int minerua_cuda_svd_mutation(const float* matrices, const float* multipliers, float* out, int64_t batch,
                                         int64_t rows, int64_t columns, void* workspace, int* outcomes, void* stream) {
  using namespace minerua::cuda;
  return guarded([=] {
    expect_shape(batch, rows, columns);
    MINERUA_CUDA_EXPECTS(matrices != nullptr && multipliers != nullptr && out != nullptr && workspace != nullptr &&
                             outcomes != nullptr,
                         "svd_mutation: a pointer is null");
    launch({matrices, multipliers, out, batch, rows, columns, static_cast<double*>(workspace), outcomes},
           static_cast<cudaStream_t>(stream));
  });
}
