// Launches the fused merge.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>

#include "cuda/check.hpp"
#include "cuda/merge_kernel.hpp"

namespace minerua::cuda {
namespace {

template <DType from, DType start, DType to>
void launch(const MergeRequest& request, cudaStream_t stream) {
  constexpr int lanes = packet_lanes<from, start, to>();
  const bool packed = fits_packets<lanes>(request, from, start, to);
  const std::int64_t threads = packed ? (request.size + lanes - 1) / lanes : request.size;
  const std::int64_t blocks = (threads + merge_threads - 1) / merge_threads;
  const auto grid = static_cast<unsigned>(std::min<std::int64_t>(blocks, 1 << 20));  // the kernel strides over the rest
  if (packed)
    merge_kernel<from, start, to, lanes><<<grid, merge_threads, 0, stream>>>(request);
  else
    merge_kernel<from, start, to, 1><<<grid, merge_threads, 0, stream>>>(request);
  CUDA_TRY(cudaGetLastError());
}

template <DType from, DType start>
void launch_to(const MergeRequest& request, int to, cudaStream_t stream) {
  if (to == MINERUA_FLOAT32) return launch<from, start, DType::float32>(request, stream);
  if (to == MINERUA_FLOAT16) return launch<from, start, DType::float16>(request, stream);
  launch<from, start, DType::bfloat16>(request, stream);
}

template <DType from>
void launch_start(const MergeRequest& request, int start, int to, cudaStream_t stream) {
  if (start == MINERUA_FLOAT32) return launch_to<from, DType::float32>(request, to, stream);
  if (start == MINERUA_FLOAT16) return launch_to<from, DType::float16>(request, to, stream);
  launch_to<from, DType::bfloat16>(request, to, stream);
}

void launch_from(const MergeRequest& request, int from, int start, int to, cudaStream_t stream) {
  if (from == MINERUA_FLOAT32) return launch_start<DType::float32>(request, start, to, stream);
  if (from == MINERUA_FLOAT16) return launch_start<DType::float16>(request, start, to, stream);
  launch_start<DType::bfloat16>(request, start, to, stream);
}

bool is_dtype(int code) { return code >= MINERUA_FLOAT32 && code <= MINERUA_BFLOAT16; }

}  // namespace
}  // namespace minerua::cuda

extern "C" int minerua_cuda_merge(const void* const* experts, int expert_count, int expert_dtype, const void* base,
                                  int base_dtype, const float* coefficients, int children, int64_t size, void* out,
                                  int out_dtype, void* stream) {
  using namespace minerua::cuda;
  return guarded([=] {
    MINERUA_CUDA_EXPECTS(expert_count >= 1 && expert_count <= MINERUA_CUDA_MAX_EXPERTS,
                         "merge: " << expert_count << " experts; takes 1 to " << MINERUA_CUDA_MAX_EXPERTS);
    MINERUA_CUDA_EXPECTS(children >= 1 && size >= 0, "merge: " << children << " children of " << size << " elements");
    MINERUA_CUDA_EXPECTS(is_dtype(expert_dtype) && is_dtype(base_dtype) && is_dtype(out_dtype),
                         "merge: dtypes " << expert_dtype << ", " << base_dtype << ", " << out_dtype
                                          << "; each must be 0, 1 or 2");
    if (size == 0) return;
    MINERUA_CUDA_EXPECTS(experts != nullptr && coefficients != nullptr && out != nullptr, "merge: a pointer is null");
    MergeRequest request{{}, expert_count, base, coefficients, children, size, out};
    for (int k = 0; k < expert_count; ++k) {
      MINERUA_CUDA_EXPECTS(experts[k] != nullptr, "merge: expert " << k << " is null");
      request.experts.data[k] = experts[k];
    }
    // Without a base its type does not matter; the experts' own keeps the packets wide.
    launch_from(request, expert_dtype, base == nullptr ? expert_dtype : base_dtype, out_dtype,
                static_cast<cudaStream_t>(stream));
  });
}
