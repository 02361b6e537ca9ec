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
#define MINERUA_CUDA_ABI 3

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

/* Passes over many tensors at once, on device memory: the twins of minerua/kernels/reference_passes.py.
 *
 * A pass goes over pieces: every block of threads takes one, whatever tensor it is of, so that a whole model goes in one
 * launch. The tables below lie in device memory; minerua_pass itself lies in host memory and is copied by the call.
 */

/** One source: stored elements, and, where `left` is not null, the products of low-rank factors that are added to them:
 * size / columns x rank floats and rank x columns floats, one after another in the order of rank. */
typedef struct minerua_source {
  const void* data; /* aligned to its elements; read 16 bytes at once where it is aligned to 16 bytes */
  const float* left;
  const float* right;
  int32_t rank;
  int32_t dtype; /* minerua_dtype */
} minerua_source;

/** Who takes part in an element of minerua_cuda_merge_masked, and whether there is a divisor. */
enum minerua_election { MINERUA_ALL = 0, MINERUA_SIGNS = 1, MINERUA_SIGNS_AND_SHARES = 2 };

/** One tensor: sources first_source, first_source + 1, ..., and behind them its base, if it has one. */
typedef struct minerua_tensor {
  int64_t size;
  int64_t columns;      /* elements of a row of the tensor; matters to low-rank factors only */
  void* out;            /* overlaps no source */
  int64_t first_number; /* where minerua_cuda_merge_masked finds this tensor's numbers */
  int64_t first_result; /* where a pass puts this tensor's results; each says in what unit */
  int32_t first_source;
  int32_t source_count;
  int32_t has_base;
  int32_t out_dtype; /* minerua_dtype */
  int32_t election;  /* minerua_election */
  int32_t reserved;
} minerua_tensor;

/** Elements [begin, begin + count) of a tensor, 1 or more. */
typedef struct minerua_piece {
  int64_t begin;
  int64_t at; /* where this piece's numbers are, or go; each pass says what */
  int32_t count;
  int32_t tensor;
} minerua_piece;

/** What every pass is told. */
typedef struct minerua_pass {
  const minerua_source* sources;
  const minerua_tensor* tensors;
  const minerua_piece* pieces;
  int64_t piece_count;
  int32_t most_sources; /* the largest source_count */
  int32_t reserved;
} minerua_pass;

/** Which numbers of a source are its largest. At first `key` is 0 and `remaining` says how many are wanted; in the end
 * numbers with a greater key are among them, and the first `remaining`, by index, of those with this very key. */
typedef struct minerua_selection {
  int64_t remaining;
  uint32_t key;
  uint32_t reserved;
} minerua_selection;

/** A key of one source of a tensor, in the pieces from first_piece on, and how many numbers with it are wanted. */
typedef struct minerua_place {
  int64_t equal;
  int64_t first_piece;
  int32_t piece_count;
  int32_t tensor;
  int32_t source; /* from 0 on, within the tensor */
  uint32_t key;
  int32_t is_top; /* whether it is `top`, or `but`, of the mask */
  int32_t reserved;
} minerua_place;

/** Which elements of one source are kept: those among `top`, not among `but`, and drawn. Masks stand in the order of
 * sources; the one in the place of a base is not looked at. A key is among the largest of a threshold if it is greater, or
 * equal and at an index below the cut. */
typedef struct minerua_mask {
  int64_t top_cut;
  int64_t but_cut;
  uint64_t seed;
  const float* probabilities; /* one per element, or null: `probability` for all */
  uint32_t top_key;
  uint32_t but_key;
  uint32_t model; /* in the counter of the random numbers, as `tensor` */
  uint32_t tensor;
  uint32_t limit; /* words below it keep; without `probabilities` */
  float probability;
  int32_t draws; /* whether anything is drawn */
  int32_t inverse; /* divide what is kept by its probability */
} minerua_mask;

/** Values first, first + 1, ... (`width` of them) of `pieces` pieces, to be added up in a fixed order. */
typedef struct minerua_sum {
  int64_t first;
  int64_t pieces;
  int64_t width;
  int64_t out;
} minerua_sum;

/** Writes the sum over k of c_k x_k, or with a base b + the sum of c_k (x_k - b), in float in the order of k, rounded once.
 *
 * @param coefficients Device floats; those of a piece are at its `at`, one for each source.
 * @param counts Device numbers, zero before; at a tensor's first_result how many numbers of each source, of the base, and of
 *     the result are not finite are added to source_count + 2 numbers.
 */
MINERUA_API int minerua_cuda_combine(const minerua_pass* pass, const float* coefficients, int64_t* counts, void* stream);

/** Writes at each piece's `at` the source_count x source_count inner products of its part of x_k, or with a base of x_k - b
 * (in float), in double precision, in a fixed order. */
MINERUA_API int minerua_cuda_gram(const minerua_pass* pass, double* partial, void* stream);

/** Adds up what pieces have left, in a fixed order: value v of sum s goes to out[sums[s].out + v].
 * @param sums Device table. Value v of piece p of a sum lies at partial[first + p * width + v]. */
MINERUA_API int minerua_cuda_sum_pieces(const minerua_sum* sums, int64_t sum_count, const double* partial, double* out,
                                        void* stream);

/** Counts the keys of x_k, or with a base of x_k - b: the 31 bits of a magnitude.
 *
 * @param selections Null: counts key >> 16, in 32768 bins. Else, at first_result + k, whose key >> 16 is that of selections:
 *     of the keys with it key & 0xffff is counted, in 65536 bins.
 * @param counts Device numbers, zero before; the bins of source k of a tensor are row first_result + k.
 * Pieces of at most 2^30 elements; the longer the better.
 */
MINERUA_API int minerua_cuda_histogram(const minerua_pass* pass, const minerua_selection* selections, int64_t* counts,
                                       void* stream);

/** Takes selections from what is wanted to the upper half of their keys, or on to the lower half and what remains.
 * @param counts What minerua_cuda_histogram counted: without, or with these selections. */
MINERUA_API int minerua_cuda_narrow(minerua_selection* selections, int64_t selection_count, const int64_t* counts,
                                    int is_lower, void* stream);

/** Counts, per piece, the numbers that have the key of a place.
 * @param places Device table; a piece's `tensor` is the number of its place.
 * @param counts As many device numbers as there are pieces. */
MINERUA_API int minerua_cuda_count_equal(const minerua_pass* pass, const minerua_place* places, int64_t* counts,
                                         void* stream);

/** Finds where the equal numbers that are wanted end, and writes it into the masks' cuts.
 * @param counts What minerua_cuda_count_equal counted. */
MINERUA_API int minerua_cuda_cut_ties(const minerua_pass* pass, const minerua_place* places, int64_t place_count,
                                      const int64_t* counts, minerua_mask* masks, void* stream);

/** Writes at each piece's `at`, for every source, the sum of magnitudes of its part of x_k, or x_k - b, and that of what its
 * mask keeps (`inverse` is not applied), in double precision, in a fixed order. Pieces begin at multiples of 64. */
MINERUA_API int minerua_cuda_masked_sums(const minerua_pass* pass, const minerua_mask* masks, double* partial,
                                         void* stream);

/** Writes b + scale * the sum of f_k d_k / divisor, of the kept parts d_k, as reference_passes.merge_masked defines it.
 *
 * @param numbers Device floats: at a tensor's first_number its factors, votes and shares (source_count each; those that its
 *     election does not use are not looked at), then the scale.
 * @param counts As for minerua_cuda_combine.
 * Pieces begin at multiples of 64.
 */
MINERUA_API int minerua_cuda_merge_masked(const minerua_pass* pass, const minerua_mask* masks, const float* numbers,
                                          int64_t* counts, void* stream);

/* Memory for leases (core/arena.hpp). These wait for the driver where it has to fetch or give back memory. */

/** Page-locked host memory, for all devices. @param bytes 1 or more. */
MINERUA_API int minerua_cuda_pinned_allocate(int64_t bytes, void** address);
MINERUA_API int minerua_cuda_pinned_free(void* address);

/** Makes a pool of the stream-ordered allocator of a device.
 * @param keep_bytes What the pool may keep when the device is synchronised, instead of giving it back to the system. */
MINERUA_API int minerua_cuda_pool_create(int device, int64_t keep_bytes, void** pool);
MINERUA_API int minerua_cuda_pool_destroy(void* pool);

/** Takes device memory from a pool: work queued on the stream from now on may use it, other streams must wait for an event.
 * @param stream A cudaStream_t of the pool's device; null is that device's default stream. */
MINERUA_API int minerua_cuda_allocate(void* pool, int64_t bytes, void* stream, void** address);

/** Gives it back once the work queued on the stream so far is done, to the pool that it came from. */
MINERUA_API int minerua_cuda_free(void* pool, void* address, void* stream);

#ifdef __cplusplus
}
#endif

#endif
