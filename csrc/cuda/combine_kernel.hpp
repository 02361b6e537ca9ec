/// @file combine_kernel.hpp
/// The device code of `combine` and `gram`: weighted sums of tensors, and their inner products.
#pragma once

#include "cuda/pass_terms.hpp"

namespace minerua::cuda {
namespace {

struct CombineRequest {
  minerua_pass pass;
  const float* coefficients;
  std::int64_t* counts;
};

/// Adds the terms of the sources that were loaded ahead, `first` and those behind it.
__device__ inline void add_ahead(const minerua_pass& pass, const minerua_tensor& tensor, const Ahead& ahead, int first,
                                 const Run& run, const Lanes& base, const float* coefficients, std::int64_t* counts,
                                 Lanes& sums) {
#pragma unroll
  for (int j = 0; j < sources_ahead; ++j) {
    const int k = first + j;
    if (k >= tensor.source_count) break;
    Lanes values;
    finish_ahead(pass, tensor, ahead, first, j, run, values);
    count_not_finite(values, run.count, counts + k);
    if (tensor.has_base) subtract(base, values);
    const float c = __ldg(coefficients + k);
#pragma unroll
    for (int i = 0; i < pass_lanes; ++i) {
      const float product = __fmul_rn(c, values[i]);  // never contracted with the addition: the bits are the CPU's
      sums[i] = k == 0 && !tensor.has_base ? product : __fadd_rn(sums[i], product);
    }
  }
}

__device__ inline void combine_run(const minerua_pass& pass, const minerua_tensor& tensor, const Run& run,
                                   const float* coefficients, std::int64_t* counts) {
  Ahead ahead;
  Raw raw_base{};
  minerua_source start{};
  if (tensor.has_base) {
    start = pass.sources[tensor.first_source + tensor.source_count];
    raw_base = load_raw(start, run);
  }
  load_ahead(pass, tensor, 0, run, ahead);
  Lanes base = {};
  if (tensor.has_base) {
    finish_values(start, tensor.columns, run, raw_base, base);
    count_not_finite(base, run.count, counts + tensor.source_count);
  }
  Lanes sums;
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i) sums[i] = base[i];
  for (int first = 0;;) {
    add_ahead(pass, tensor, ahead, first, run, base, coefficients, counts, sums);
    first += sources_ahead;
    if (first >= tensor.source_count) break;
    load_ahead(pass, tensor, first, run, ahead);
  }
  store_results(tensor, run, sums, counts + tensor.source_count + 1);
}

__global__ void __launch_bounds__(pass_threads, 2) combine_kernel(const __grid_constant__ CombineRequest request) {
  const minerua_piece piece = request.pass.pieces[blockIdx.x];
  const minerua_tensor tensor = request.pass.tensors[piece.tensor];
  const std::int64_t end = piece.begin + piece.count, step = static_cast<std::int64_t>(blockDim.x) * pass_lanes;
  for (std::int64_t first = piece.begin + threadIdx.x * pass_lanes; first < end; first += step)
    combine_run(request.pass, tensor, run_at(first, end), request.coefficients + piece.at,
                request.counts + tensor.first_result);
}

// ── inner products ───────────────────────────────────────────────────────────────────────────────────────────────────

/// Sources in one side of a square of inner products: what a thread's registers hold.
constexpr int gram_side = 4;

struct GramRequest {
  minerua_pass pass;
  double* partial;
};

/// Squares on and above the diagonal for the largest number of sources.
MINERUA_HOST_DEVICE static inline constexpr int gram_squares(int most_sources) {
  const int sides = (most_sources + gram_side - 1) / gram_side;
  return sides * (sides + 1) / 2;
}

/// The first source of the rows and of the columns of a square, counted row by row.
struct Square {
  int rows, columns;
};

__device__ inline Square square_at(int index, int most_sources) {
  int row = 0, length = (most_sources + gram_side - 1) / gram_side;
  const int sides = length;
  for (; index >= length; ++row) index -= length--;
  return {row * gram_side, (sides - length + index) * gram_side};
}

/// The inner product of row a and column b is sums[a * gram_side + b].
using Sums = double[gram_side * gram_side];
constexpr int gram_shared_bytes = sums_shared_bytes(gram_side * gram_side, pass_threads);

/// The terms of the sources of a side; zeros where there are none.
__device__ inline void load_side(const minerua_pass& pass, const minerua_tensor& tensor, int first, const Run& run,
                                 const Lanes& base, Lanes (&terms)[gram_side]) {
  static_assert(gram_side == sources_ahead, "a side is what is loaded ahead");
  Ahead ahead;
  load_ahead(pass, tensor, first, run, ahead);
#pragma unroll
  for (int j = 0; j < gram_side; ++j) {
    const bool is_there = first + j < tensor.source_count;
    if (is_there) finish_ahead(pass, tensor, ahead, first, j, run, terms[j]);
#pragma unroll
    for (int i = 0; i < pass_lanes; ++i) terms[j][i] = is_there ? __fsub_rn(terms[j][i], base[i]) : 0.0f;
  }
}

/// Column b of a square: products of two floats are exact in double precision, so that a fused addition rounds as a separate
/// one would. On the diagonal only what is not below it.
template <bool is_diagonal>
__device__ inline void add_column(const Lanes (&rows)[gram_side], const Lanes& column, int b, Sums& sums) {
#pragma unroll
  for (int i = 0; i < pass_lanes; ++i)
#pragma unroll
    for (int a = 0; a < gram_side; ++a)
      if (!is_diagonal || a <= b)
        sums[a * gram_side + b] =
            fma(static_cast<double>(rows[a][i]), static_cast<double>(column[i]), sums[a * gram_side + b]);
}

__device__ inline void add_square(const minerua_pass& pass, const minerua_tensor& tensor, const Square& at,
                                  const Run& run, Sums& sums) {
  Lanes base = {};
  if (tensor.has_base) {
    const minerua_source start = pass.sources[tensor.first_source + tensor.source_count];
    finish_values(start, tensor.columns, run, load_raw(start, run), base);
  }
  Lanes rows[gram_side];
  load_side(pass, tensor, at.rows, run, base, rows);
#pragma unroll
  for (int b = 0; b < gram_side; ++b) {
    if (at.columns == at.rows) {
      add_column<true>(rows, rows[b], b, sums);
    } else if (at.columns + b < tensor.source_count) {
      const minerua_source source = pass.sources[tensor.first_source + at.columns + b];
      Lanes column;
      finish_values(source, tensor.columns, run, load_raw(source, run), column);
      subtract(base, column);
      add_column<false>(rows, column, b, sums);
    }
  }
}

__global__ void __launch_bounds__(pass_threads) gram_kernel(const __grid_constant__ GramRequest request) {
  extern __shared__ double block_memory[];
  const int squares = gram_squares(request.pass.most_sources);
  const minerua_piece piece = request.pass.pieces[blockIdx.x / squares];
  const minerua_tensor tensor = request.pass.tensors[piece.tensor];
  const Square at = square_at(static_cast<int>(blockIdx.x % squares), request.pass.most_sources);
  const int count = tensor.source_count;
  if (at.columns >= count) return;  // another tensor of this pass has more sources
  Sums sums = {};
  const std::int64_t end = piece.begin + piece.count, step = static_cast<std::int64_t>(blockDim.x) * pass_lanes;
  for (std::int64_t first = piece.begin + threadIdx.x * pass_lanes; first < end; first += step)
    add_square(request.pass, tensor, at, run_at(first, end), sums);
  block_sums(sums, block_memory);
  if (threadIdx.x != 0) return;
  double* const products = request.partial + piece.at;
#pragma unroll
  for (int a = 0; a < gram_side; ++a)
#pragma unroll
    for (int b = 0; b < gram_side; ++b) {
      const int k = at.rows + a, l = at.columns + b;
      if (k < count && l < count && k <= l)
        products[k * count + l] = products[l * count + k] = sums[a * gram_side + b];
    }
}

// ── sums of what pieces have left ────────────────────────────────────────────────────────────────────────────────────

struct SumRequest {
  const minerua_sum* sums;
  const double* partial;
  double* out;
};

__global__ void __launch_bounds__(pass_threads) sum_kernel(const __grid_constant__ SumRequest request) {
  extern __shared__ double block_memory[];
  const minerua_sum sum = request.sums[blockIdx.x];
  for (std::int64_t v = 0; v < sum.width; ++v) {
    double total = 0.0;
    for (std::int64_t p = threadIdx.x; p < sum.pieces; p += blockDim.x)
      total += request.partial[sum.first + p * sum.width + v];
    const double whole = sum.pieces > 1 ? block_sum(total, block_memory) : total;
    if (threadIdx.x == 0) request.out[sum.out + v] = whole;
  }
}

}  // namespace
}  // namespace minerua::cuda
