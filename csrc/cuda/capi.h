/** @file capi.h
 * The C ABI of libminerua_cuda.so: opened at run time, links cudart statically, knows neither Python nor torch.
 *
 * Every function returns 0, or a negative status whose text minerua_cuda_last_error gives; none throws. Work is queued on
 * the given stream of the current device and nothing synchronises: memory must stay valid, and results must not be read,
 * until the stream has come that far. All functions may be called from several threads at once.
 */
#ifndef MINERUA_CUDA_CAPI_H
#define MINERUA_CUDA_CAPI_H

#include <stdint.h>

#if defined(__GNUC__)
#define MINERUA_API __attribute__((visibility("default")))
#else
#define MINERUA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/** Changes whenever a signature or a meaning below does; the caller refuses a library with another number. */
#define MINERUA_CUDA_ABI 2

/** Experts that one call of minerua_cuda_merge takes. */
#define MINERUA_CUDA_MAX_EXPERTS 64

/** The largest min(rows, columns) that minerua_cuda_svd_mutation takes on any device. */
#define MINERUA_CUDA_MAX_SIDE 128

enum minerua_cuda_status {
  MINERUA_CUDA_OK = 0,
  MINERUA_CUDA_INVALID_ARGUMENT = -1,
  MINERUA_CUDA_RUNTIME_ERROR = -2
};

/** Element types, as DType in dtype.hpp. */
enum minerua_dtype { MINERUA_FLOAT32 = 0, MINERUA_FLOAT16 = 1, MINERUA_BFLOAT16 = 2 };

/** What minerua_cuda_svd_mutation writes per matrix. */
enum minerua_outcome { MINERUA_DONE = 0, MINERUA_NOT_FINITE = 1, MINERUA_NOT_CONVERGED = 2 };

/** Returns MINERUA_CUDA_ABI as it was when the library was built. */
MINERUA_API int minerua_cuda_abi(void);

/** Why the last failing call of this thread failed; never null, valid until this thread's next failing call. */
MINERUA_API const char* minerua_cuda_last_error(void);

/** Writes the number of devices; fails where the driver is missing or too old. */
MINERUA_API int minerua_cuda_device_count(int* count);

/** Merges as core/merge.hpp, on device memory.
 *
 * @param experts Host array of expert_count device pointers (1 to MINERUA_CUDA_MAX_EXPERTS), size elements each.
 * @param base Device pointer to size elements, or null.
 * @param coefficients Device pointer to (children, expert_count) floats.
 * @param out Device pointer to (children, size) elements; overlaps no input.
 * @param stream A cudaStream_t of the current device; null is the default stream.
 * Pointers must be aligned to their element type; 16-byte loads are used where everything is aligned to 16 bytes.
 */
MINERUA_API int minerua_cuda_merge(const void* const* experts, int expert_count, int expert_dtype, const void* base,
                                   int base_dtype, const float* coefficients, int children, int64_t size, void* out,
                                   int out_dtype, void* stream);

/** Writes the largest min(rows, columns) that minerua_cuda_svd_mutation takes on the current device: MINERUA_CUDA_MAX_SIDE,
 * or less where a block has little shared memory. Fails where the library has no code for the device, or the driver is too
 * old for the library: then nothing here works, and the text says why. */
MINERUA_API int minerua_cuda_svd_mutation_side(int* side);

/** Writes the bytes of device memory that minerua_cuda_svd_mutation needs as `workspace`. */
MINERUA_API int minerua_cuda_svd_mutation_workspace(int64_t batch, int64_t rows, int64_t columns, int64_t* bytes);

/** SVD mutation as core/svd_mutation.hpp, on device memory, for min(rows, columns) up to what minerua_cuda_svd_mutation_side says.
 *
 * @param matrices Device pointer to (batch, rows, columns) floats.
 * @param multipliers Device pointer to (batch, min(rows, columns)) floats.
 * @param out Like matrices; must not overlap it. NaN throughout for a matrix whose outcome is not MINERUA_DONE.
 * @param workspace Device memory of the size above, aligned to 16 bytes.
 * @param outcomes Device pointer to batch ints, one minerua_outcome each.
 */
MINERUA_API int minerua_cuda_svd_mutation(const float* matrices, const float* multipliers, float* out, int64_t batch,
                                          int64_t rows, int64_t columns, void* workspace, int* outcomes, void* stream);

#ifdef __cplusplus
}
#endif

#endif
