/// @file svd_mutation_kernel.hpp
/// The device code of `svd_mutation`: one block per matrix. The Gram matrix of the smaller side lies in shared memory, in
/// double precision, and is diagonalised by parallel cyclic Jacobi; the eigenvectors, as rows, lie in the workspace, which
/// the L2 cache holds.
///
/// Without the toolkit's headers, so that tests/cpp can run these very lines on the CPU (tests/cpp/cuda_emulation.hpp).
#pragma once

#include <cmath>
#include <cstdint>

#include "core/jacobi.hpp"
#include "cuda/capi.h"

namespace minerua::cuda {
namespace {

constexpr int svd_threads = 512;
constexpr int max_side = MINERUA_CUDA_MAX_SIDE;
constexpr int max_pairs = max_side / 2;

/// Most blocks in flight; each has its own workspace and strides over the batch.
constexpr std::int64_t max_blocks = 528;

/// Doubles of the Gram matrix in shared memory: rows are one double apart, so that columns spread over the banks.
MINERUA_HOST_DEVICE static inline constexpr int gram_doubles(int side) { return side * (side + 1); }

/// A matrix seen in tall form: `rows` >= `columns`, transposed where it is wide.
struct Tall {
  const float* data;
  std::int64_t rows;
  int columns;
  bool wide;

  __device__ std::int64_t offset(std::int64_t i, int j) const { return wide ? j * rows + i : i * columns + j; }
  __device__ double at(std::int64_t i, int j, double factor) const {
    return factor * static_cast<double>(data[offset(i, j)]);
  }
};

/// What all threads of a block share; it lies behind the Gram matrix in the block's dynamic shared memory.
struct Shared {
  double partial[svd_threads];
  Rotation rotations[max_pairs];
  int rank[max_side];
  int rotated;
};

/// Sum, or maximum, over the block, in a fixed tree; every thread gets it.
template <class Combine>
__device__ double reduce(double value, double (&partial)[svd_threads], Combine combine) {
  __syncthreads();
  partial[threadIdx.x] = value;
  __syncthreads();
  for (int half = svd_threads / 2; half > 0; half /= 2) {
    if (static_cast<int>(threadIdx.x) < half)
      partial[threadIdx.x] = combine(partial[threadIdx.x], partial[threadIdx.x + half]);
    __syncthreads();
  }
  return partial[0];
}

struct Sum {
  __device__ double operator()(double x, double y) const { return x + y; }
};

/// A NaN anywhere becomes infinity, so that one test finds both.
struct Largest {
  __device__ double operator()(double x, double y) const { return x > y ? x : y; }
};

__device__ double largest_entry(const float* values, std::int64_t count, Shared& shared) {
  double largest = 0.0;
  for (std::int64_t i = threadIdx.x; i < count; i += svd_threads) {
    const float size = fabsf(values[i]);
    const double seen = isfinite(size) ? static_cast<double>(size) : static_cast<double>(INFINITY);
    largest = seen > largest ? seen : largest;
  }
  return reduce(largest, shared.partial, Largest());
}

__device__ void fill(float* out, std::int64_t count, float value) {
  for (std::int64_t i = threadIdx.x; i < count; i += svd_threads) out[i] = value;
}

/// gram = TᵀT, padded with zeros to an even side; row stride `side` + 1 spreads columns over the banks.
__device__ void form_gram(const Tall& tall, double factor, int side, double* gram) {
  for (int entry = threadIdx.x; entry < side * side; entry += svd_threads) {
    const int p = entry / side, q = entry % side;
    if (q < p) continue;
    double sum = 0.0;
    if (q < tall.columns)
      for (std::int64_t i = 0; i < tall.rows; ++i) sum += tall.at(i, p, factor) * tall.at(i, q, factor);
    gram[p * (side + 1) + q] = sum;
    gram[q * (side + 1) + p] = sum;
  }
}

__device__ double frobenius(const double* gram, int side, Shared& shared) {
  double sum = 0.0;
  for (int entry = threadIdx.x; entry < side * side; entry += svd_threads) {
    const double value = gram[entry / side * (side + 1) + entry % side];
    sum += value * value;
  }
  return sqrt(reduce(sum, shared.partial, Sum()));
}

/// (x, y) becomes (c x - s y, s x + c y).
__device__ void rotate(const Rotation& r, double& x, double& y) {
  const double before = x;
  x = r.cosine * before - r.sine * y;
  y = r.sine * before + r.cosine * y;
}

/// One round: side / 2 disjoint rotations, applied to rows of the Gram matrix and of the vectors, then to its columns.
__device__ void run_round(int round, int side, double threshold, double* gram, double* vectors, Shared& shared) {
  const int pairs = side / 2, stride = side + 1;
  if (static_cast<int>(threadIdx.x) < pairs) {
    const Pair at = pair_of(threadIdx.x, round, side);
    const Rotation r = rotation_for(gram[at.low * stride + at.low], gram[at.low * stride + at.high],
                                    gram[at.high * stride + at.high], threshold);
    shared.rotations[threadIdx.x] = r;
    if (r.sine != 0.0) shared.rotated = 1;  // every writer writes the same
  }
  __syncthreads();
  for (int work = threadIdx.x; work < pairs * side; work += svd_threads) {
    const Rotation r = shared.rotations[work / side];
    if (r.sine == 0.0) continue;
    const Pair at = pair_of(work / side, round, side);
    const int column = work % side;
    rotate(r, gram[at.low * stride + column], gram[at.high * stride + column]);
    rotate(r, vectors[at.low * side + column], vectors[at.high * side + column]);
  }
  __syncthreads();
  for (int work = threadIdx.x; work < pairs * side; work += svd_threads) {
    const Rotation r = shared.rotations[work / side];
    if (r.sine == 0.0) continue;
    const Pair at = pair_of(work / side, round, side);
    const int row = work % side;
    rotate(r, gram[row * stride + at.low], gram[row * stride + at.high]);
  }
  __syncthreads();
}

/// Diagonalises the Gram matrix; row k of `vectors` becomes the eigenvector of entry (k, k).
__device__ bool diagonalise(int side, double* gram, double* vectors, Shared& shared) {
  for (int entry = threadIdx.x; entry < side * side; entry += svd_threads)
    vectors[entry] = entry / side == entry % side ? 1.0 : 0.0;
  const double threshold = jacobi_tolerance * frobenius(gram, side, shared);
  for (int sweep = 0; sweep < jacobi_max_sweeps; ++sweep) {
    __syncthreads();
    if (threadIdx.x == 0) shared.rotated = 0;
    __syncthreads();
    for (int round = 0; round < side - 1; ++round) run_round(round, side, threshold, gram, vectors, shared);
    if (shared.rotated == 0) return true;  // the last barrier of run_round makes it the same for all
  }
  return false;
}

/// rank[k]: how many eigenvalues come before the k-th in descending order; equal ones keep their order.
__device__ void rank_eigenvalues(const double* gram, int columns, int side, Shared& shared) {
  for (int k = threadIdx.x; k < columns; k += svd_threads) {
    const double own = gram[k * (side + 1) + k];
    int before = 0;
    for (int j = 0; j < columns; ++j) {
      const double other = gram[j * (side + 1) + j];
      before += other > own || (other == own && j < k) ? 1 : 0;
    }
    shared.rank[k] = before;
  }
  __syncthreads();
}

/// gram = V diag(w) Vᵀ; the eigenvalues in it are no longer needed.
__device__ void form_operator(const float* multipliers, const double* vectors, int columns, int side, double* gram,
                              const Shared& shared) {
  for (int entry = threadIdx.x; entry < columns * columns; entry += svd_threads) {
    const int p = entry / columns, q = entry % columns;
    double sum = 0.0;
    for (int k = 0; k < columns; ++k)
      sum += static_cast<double>(multipliers[shared.rank[k]]) * vectors[k * side + p] * vectors[k * side + q];
    gram[p * (side + 1) + q] = sum;
  }
  __syncthreads();
}

__device__ void write_product(const Tall& tall, double factor, const double* gram, int side, float* out) {
  const std::int64_t count = tall.rows * tall.columns;
  for (std::int64_t entry = threadIdx.x; entry < count; entry += svd_threads) {
    const std::int64_t i = tall.wide ? entry % tall.rows : entry / tall.columns;
    const int j = static_cast<int>(tall.wide ? entry / tall.rows : entry % tall.columns);
    double sum = 0.0;
    for (int k = 0; k < tall.columns; ++k) sum += tall.at(i, k, factor) * gram[k * (side + 1) + j];
    out[entry] = static_cast<float>(sum / factor);  // a power of two: exact
  }
}

__device__ int mutate_single(const Tall& tall, const float* multipliers, double* gram, double* vectors, float* out,
                             Shared& shared) {
  const std::int64_t count = tall.rows * tall.columns;
  const int side = tall.columns + tall.columns % 2;
  const double largest = largest_entry(tall.data, count, shared);
  const double widest = largest_entry(multipliers, tall.columns, shared);
  if (isinf(largest) || isinf(widest)) return MINERUA_NOT_FINITE;
  if (largest == 0.0) {
    fill(out, count, 0.0f);
    return MINERUA_DONE;
  }
  int exponent = 0;
  (void)frexp(largest, &exponent);
  const double factor = ldexp(1.0, -exponent);
  form_gram(tall, factor, side, gram);
  __syncthreads();
  if (!diagonalise(side, gram, vectors, shared)) return MINERUA_NOT_CONVERGED;
  rank_eigenvalues(gram, tall.columns, side, shared);
  form_operator(multipliers, vectors, tall.columns, side, gram, shared);
  write_product(tall, factor, gram, side, out);
  return MINERUA_DONE;
}

struct SvdRequest {
  const float* matrices;
  const float* multipliers;
  float* out;
  std::int64_t batch, rows, columns;
  double* workspace;
  int* outcomes;
};

__global__ void __launch_bounds__(svd_threads) svd_mutation_kernel(const __grid_constant__ SvdRequest request) {
  extern __shared__ double block_memory[];
  const bool wide = request.rows < request.columns;
  const std::int64_t count = request.rows * request.columns;
  const int small = static_cast<int>(wide ? request.rows : request.columns);
  const int side = small + small % 2;
  double* const gram = block_memory;
  Shared& shared = *reinterpret_cast<Shared*>(block_memory + gram_doubles(side));
  double* const vectors = request.workspace + static_cast<std::int64_t>(blockIdx.x) * side * side;
  for (std::int64_t b = blockIdx.x; b < request.batch; b += gridDim.x) {
    const Tall tall{request.matrices + b * count, wide ? request.columns : request.rows, small, wide};
    float* const out = request.out + b * count;
    const int outcome = mutate_single(tall, request.multipliers + b * small, gram, vectors, out, shared);
    if (outcome != MINERUA_DONE) fill(out, count, NAN);
    if (threadIdx.x == 0) request.outcomes[b] = outcome;
    __syncthreads();
  }
}

/// Bytes of dynamic shared memory that a block needs.
constexpr int svd_shared_bytes(int side) {
  return gram_doubles(side) * static_cast<int>(sizeof(double)) + static_cast<int>(sizeof(Shared));
}

}  // namespace
}  // namespace minerua::cuda
