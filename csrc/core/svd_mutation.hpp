/// @file svd_mutation.hpp
/// Scales the singular values of many matrices.
#pragma once

#include <cstddef>
#include <vector>

namespace minerua {

/// What is done to one matrix, row-major, rows × columns. Borrowed.
struct SpectrumChange {
  const float* matrix = nullptr;
  /// min(rows, columns) numbers, for singular values in descending order.
  const float* multipliers = nullptr;
  /// Where the result goes; may be the matrix itself.
  float* out = nullptr;
  std::size_t rows = 0, columns = 0;
};

/// In which arithmetic the Gram matrix is formed and decomposed.
enum class GramPrecision { single, twofold };

/// Writes out = U diag(w · σ) Vᵀ for every matrix τ = U diag(σ) Vᵀ, σ in descending order, whatever shapes they have.
///
/// U is never formed and nothing is divided by a singular value, so rank deficiency and zeros are harmless:
/// out = τ V diag(w) Vᵀ, with V from the Gram matrix of the smaller side. The error is about (max w - min w) · √ε · σ_1, with
/// √ε = 1.5e-8 in twofold precision, the same as that of a direct float SVD, and 3e-4 in single precision; V is orthonormal
/// to the rounding of the arithmetic in both. Where singular values are equal the operation itself is not unique (any basis
/// of their subspace is valid); the basis chosen is a deterministic function of the matrix. Equal eigenvalues keep the order
/// in which the decomposition delivers them. The bits do not depend on the other matrices, the number of threads or the
/// instruction set. One matrix is computed by one thread.
///
/// @returns Which iterations did not converge; their `out` is as it was.
/// @throws InvalidArgument if an extent is 0 or values are not finite (names the matrices); other matrices may have been
///     changed then. std::bad_alloc.
std::vector<std::size_t> svd_mutation(const std::vector<SpectrumChange>& changes, GramPrecision precision);

}  // namespace minerua
