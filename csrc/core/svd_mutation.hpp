/// @file svd_mutation.hpp
/// Scales the singular values of many matrices.
#pragma once

#include "core/tensor_view.hpp"

namespace minerua {

/// Writes out_b = U diag(w_b · σ_b) Vᵀ for every matrix τ_b = U diag(σ_b) Vᵀ, σ_b in descending order.
///
/// U is never formed and nothing is divided by a singular value, so rank deficiency and zeros are harmless:
/// out = τ V diag(w) Vᵀ, with V from the double-precision Gram matrix of the smaller side. The error is about
/// (max w - min w) · 1.5e-8 · σ_1 before the result is rounded to float, the same as that of a direct float SVD. Where
/// singular values are equal the operation itself is not unique (any basis of their subspace is valid); the basis chosen is a
/// deterministic function of the matrix. Equal eigenvalues keep the order in which the decomposition delivers them. The
/// bits do not depend on the batch, the number of threads or the instruction set. One matrix is computed by one thread.
///
/// @param matrices (batch, m, n), finite.
/// @param multipliers (batch, 1, min(m, n)), finite.
/// @param out Same shape as `matrices`; must not overlap it.
/// @throws InvalidArgument if shapes do not fit or values are not finite (names the matrices); NotConverged (names the
///     matrices) if an iteration did not converge; `out` is then undefined. std::bad_alloc.
void svd_mutation(const MatrixBatchView<const float>& matrices, const MatrixBatchView<const float>& multipliers,
                  const MatrixBatchView<float>& out);

}  // namespace minerua
