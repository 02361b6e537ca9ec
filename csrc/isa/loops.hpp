/// @file loops.hpp
/// The hot loops, compiled once per instruction set (baseline.cpp, avx2.cpp, avx512.cpp) and chosen at run time.
///
/// All sets give the same bits: multiplications and additions are never contracted, and every sum has one written order.
#pragma once

#include <cstddef>

#include "core/dtype.hpp"

namespace minerua::isa {

/// What children are made of: child p is base + Σ_k coefficients[p * terms_count + k] · terms[k * stride + i], summed in the
/// order of k; without a base (null) the sum starts with the first product. `stride` is a multiple of 16, and rows and base
/// may be read up to the next multiple of 16.
struct Sums {
  const float* base;
  const float* terms;
  std::size_t stride;
  std::size_t terms_count;
  const float* coefficients;
  std::size_t children;
  std::size_t count;
};

/// Loops of one instruction set. All pointers are borrowed; nothing here allocates, throws or keeps state.
struct Loops {
  /// What `diagnose` shows: "baseline", "avx2" or "avx512".
  const char* name;

  /// terms[i] = float(source[i]) - base[i], or float(source[i]) without a base (null); indexed by DType. `terms` is filled
  /// with zeros up to the next multiple of 16.
  void (*read_terms[dtype_count])(const void* source, const float* base, float* terms, std::size_t count);

  /// Sums every child and rounds it once to nearest even, child p to `out` + p * out_stride elements; indexed by DType.
  /// Writes `count` elements per child and no more.
  void (*write_children[dtype_count])(const Sums& given, void* out, std::size_t out_stride);

  /// C (rows × columns) = A B with A given by two strides: A(i, k) = a[i * a_row + k * a_depth], B(k, j) = b[k * b_depth + j],
  /// C(i, j) = c[i * c_row + j]. Sums run in the order of k. `rows` and `columns` are multiples of 8.
  void (*multiply)(const double* a, std::size_t a_row, std::size_t a_depth, const double* b, std::size_t b_depth,
                   double* c, std::size_t c_row, std::size_t rows, std::size_t columns, std::size_t depth);

  /// Eigen-decomposition of the symmetric matrix `a` (size × size, rows `stride` apart, destroyed):
  /// eigenvalues[k], unsorted, with eigenvector k in row k of `vectors` (same stride). Entries must not exceed about 1e100,
  /// the largest should not be far below 1. `scratch` holds 6 * stride doubles; `stride` is a multiple of 8 with
  /// stride >= size, and columns from `size` on must be zero in `a`; they are zero in `vectors` afterwards.
  /// Returns false if an eigenvalue needed more than 60 QL sweeps.
  bool (*eigen)(double* a, std::size_t size, std::size_t stride, double* eigenvalues, double* vectors, double* scratch);
};

extern const Loops baseline;
#if defined(MINERUA_X86)
extern const Loops avx2;
extern const Loops avx512;
#endif

/// The widest loops that this machine runs; MINERUA_ISA=baseline|avx2|avx512 in the environment of the first call narrows
/// the choice, for tests. Thread-safe.
/// @throws InvalidArgument if MINERUA_ISA names an unknown or unsupported set.
const Loops& loops();

}  // namespace minerua::isa
