"""The definition of correct: every operation of the core in plain numpy.

Twins share names with the compiled operations. `merge` agrees with them bit for bit; `svd_mutation` to the rounding of
float32 wherever the operation is unique.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def merge(
    experts: Sequence[np.ndarray], coefficients: np.ndarray, *, base: np.ndarray | None = None, out_dtype: np.dtype
) -> np.ndarray:
    """Returns children of the experts: base + Σ_k c[p, k] (x_k − base), or Σ_k c[p, k] x_k without a base.

    Everything is computed in float32, in the order of k, and rounded once to `out_dtype` at the end (to nearest, ties
    to even; overflow gives infinity).

    Args:
        experts: K arrays of one shape and dtype (bfloat16, float16 or float32).
        coefficients: Shape (P, K), float32, finite.
        base: The same shape, any of the three dtypes; or `None`.
        out_dtype: One of the three dtypes.

    Returns:
        Shape (P, *shape), `out_dtype`.

    Raises:
        Nothing of its own: `minerua.kernels.merge` checks what it passes.

    Example:
        >>> experts = [np.array([1.0, 2.0], np.float32), np.array([3.0, 6.0], np.float32)]
        >>> merge(experts, np.array([[0.5, 0.5]], np.float32), out_dtype=np.dtype(np.float32))
        array([[2., 4.]], dtype=float32)
    """
    children = np.empty((len(coefficients), *experts[0].shape), out_dtype)
    start = None if base is None else base.astype(np.float32)
    with np.errstate(all="ignore"):  # values that are not finite travel on, as IEEE 754 says
        for p, row in enumerate(coefficients):
            total = start
            for c, expert in zip(row, experts, strict=True):
                x = expert.astype(np.float32)
                product = c * (x if start is None else x - start)
                total = product if total is None else total + product
            children[p] = total
    return children


def svd_mutation(matrices: np.ndarray, multipliers: np.ndarray) -> np.ndarray:
    """Returns U diag(w · σ) Vᵀ for every matrix U diag(σ) Vᵀ, σ in descending order, computed in float64.

    Where singular values are equal the result depends on the basis that LAPACK picks for their subspace; any is right.

    Args:
        matrices: Shape (B, m, n), float32 or float64, finite.
        multipliers: Shape (B, min(m, n)), finite; w.

    Returns:
        Shape (B, m, n), of the matrices' dtype.

    Raises:
        np.linalg.LinAlgError: LAPACK's iteration did not converge.

    Example:
        >>> svd_mutation(np.diag([3.0, 2.0]).astype(np.float32)[None], np.array([[2.0, 0.0]], np.float32))
        array([[[6., 0.],
                [0., 0.]]], dtype=float32)
    """
    u, sigma, vt = np.linalg.svd(matrices.astype(np.float64), full_matrices=False)
    scaled = u * (multipliers * sigma)[:, None, :]  # (B, m, r)
    with np.errstate(over="ignore"):  # overflow gives infinity, like everywhere
        return np.asarray(scaled @ vt, matrices.dtype)
