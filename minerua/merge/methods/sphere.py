"""Coefficients of means on a sphere, from nothing but the models' inner products: pure functions in float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def slerp(gram: np.ndarray, t: float) -> np.ndarray:
    """Returns the coefficients of the point at t of the arc from x_0 to x_1.

    With θ the angle between them, c_0 = sin((1 − t) θ) ÷ sin θ and c_1 = sin(t θ) ÷ sin θ; where |cos θ| > 0.9995, so
    that they are almost on a line, c_0 = 1 − t and c_1 = t. A vector not longer than 1e-8 is at a right angle to every
    other.

    Args:
        gram: Shape (2, 2), float64; inner products of x_0 and x_1.
        t: The place on the arc; beyond [0, 1] the arc goes on.

    Returns:
        Shape (2,), float64.

    Example:
        >>> import numpy as np
        >>> slerp(np.eye(2), 0.5).round(4).tolist()
        [0.7071, 0.7071]
    """
    import numpy as np

    lengths = np.sqrt(np.diag(gram))
    lengths = np.where(lengths > 1e-8, lengths, 1.0)
    cosine = np.clip(gram[0, 1] / (lengths[0] * lengths[1]), -1.0, 1.0)
    if abs(cosine) > 0.9995:
        return np.array([1 - t, t])
    angle = np.arccos(cosine)
    return np.array([np.sin((1 - t) * angle), np.sin(t * angle)]) / np.sin(angle)


def nuslerp(gram: np.ndarray, t: float) -> np.ndarray:
    """Returns the coefficients of the point at t of the arc from x_0 to x_1, for many pairs at once.

    As `slerp`, but straight only where 1 − cos² θ <= 1e-16, and lengths are at least 1e-7.

    Args:
        gram: Shape (R, 2, 2), float64; inner products of R pairs.
        t: The place on the arc; beyond [0, 1] the arc goes on.

    Returns:
        Shape (R, 2), float64.

    Example:
        >>> import numpy as np
        >>> nuslerp(np.stack([np.eye(2), np.ones((2, 2))]), 0.5).round(4).tolist()
        [[0.7071, 0.7071], [0.5, 0.5]]
    """
    import numpy as np

    lengths = np.maximum(np.sqrt(np.diagonal(gram, axis1=1, axis2=2)), 1e-7)  # (R, 2)
    cosine = np.clip(gram[:, 0, 1] / (lengths[:, 0] * lengths[:, 1]), -1.0, 1.0)
    straight = 1 - cosine**2 <= 1e-16
    angle = np.arccos(np.where(straight, 0.0, cosine))[:, None]  # (R, 1)
    curved = np.concatenate([np.sin((1 - t) * angle), np.sin(t * angle)], axis=1) / np.sin(angle)
    return np.where(straight[:, None], np.array([1 - t, t]), curved)


def multislerp(gram: np.ndarray, weights: Sequence[float], *, eps: float) -> np.ndarray | None:
    """Returns the coefficients of the weighted mean direction m ÷ ‖m‖, m = Σ w_k u_k, times the length Σ w_k ‖x_k‖.

    u_k = x_k ÷ (‖x_k‖ + eps). The method is told as a step on the sphere: project the u_k to the plane that touches it
    at m, take their weighted mean there, and go that way. That mean is Σ w_k (u_k − (u_k·m) m), which for m along Σ w_k
    u_k is zero: what a step by step computation finds is its own rounding, and the result is the mean direction, times
    the cosine of eps.

    Args:
        gram: Shape (K, K), float64; inner products of the x_k.
        weights: K numbers.
        eps: Keeps lengths from zero; `None` is returned where ‖m‖ is below it.

    Returns:
        Shape (K,), float64; `None` where the experts cancel out: ‖m‖ is below eps, or below 1e-7 of the u_k's lengths,
        where the rounding of float32 decides where it points.

    Source: Goddard 2025, https://goddard.blog/posts/multislerp-wow-what-a-cool-idea

    Example:
        >>> import numpy as np
        >>> multislerp(np.diag([1.0, 4.0]), [0.5, 0.5], eps=0.0).round(4).tolist()
        [1.0607, 0.5303]
    """
    import numpy as np

    lengths = np.sqrt(np.diag(gram))
    with np.errstate(all="ignore"):
        units = np.where(lengths + eps > 0, np.asarray(weights) / (lengths + eps), 0.0)  # m = Σ units_k x_k
    square = units @ gram @ units
    reach = float(np.abs(weights).sum())
    if square < max(eps, 1e-7 * reach) ** 2 or square == 0:
        return None
    return units / np.sqrt(square) * (np.asarray(weights) @ lengths) * np.cos(eps)


def karcher(gram: np.ndarray, *, max_iter: int, tol: float) -> np.ndarray:
    """Returns the coefficients of the Karcher mean of the directions u_k = x_k ÷ ‖x_k‖, times the mean length.

    From the mean direction m, step by step: τ = Σ a_k θ_k ÷ sin θ_k (u_k − cos θ_k m) with cos θ_k = u_k·m, then
    m ← cos ‖τ‖ m + sin ‖τ‖ τ ÷ ‖τ‖. Vectors not longer than `tol` have no direction and take no part in it, the others
    the same share; a u_k opposite to m has no arc to it and is left out of that step.

    Args:
        gram: Shape (K, K), float64; inner products of the x_k.
        max_iter: Most steps.
        tol: Where to stop: lengths, angles and steps below it are zero.

    Returns:
        Shape (K,), float64: of the x_k.

    Source: Karcher 1977, Riemannian center of mass and mollifier smoothing.

    Example:
        >>> import numpy as np
        >>> karcher(np.diag([1.0, 4.0]), max_iter=10, tol=1e-5).round(4).tolist()
        [1.0607, 0.5303]
    """
    import numpy as np

    lengths = np.sqrt(np.diag(gram))
    valid = ~(lengths <= tol)  # so that NaN stays, and is seen
    if not valid.any():
        return np.zeros(len(gram))
    inverse = np.where(valid, 1 / np.where(valid, lengths, 1.0), 0.0)
    cosines = gram * inverse[:, None] * inverse[None, :]  # u_k · u_l
    shares = valid / valid.sum()
    mean = shares / _length(shares, cosines) if _length(shares, cosines) >= tol else np.eye(len(gram))[valid.argmax()]
    for _ in range(max_iter):
        step = _tangent(mean, cosines, shares, tol)
        length = _length(step, cosines)
        if length < tol:
            break
        mean = np.cos(length) * mean + np.sin(length) / length * step
        mean = mean / _length(mean, cosines)
    return mean * inverse * lengths.mean()


def model_stock(gram: np.ndarray, *, least_product: float) -> np.ndarray:
    """Returns t ÷ K for every expert, t = K c ÷ (1 + (K − 1) c), c the mean cosine of pairs of task vectors.

    t is zero, and with it the merge the base, where its denominator is below 1e-6.

    Args:
        gram: Shape (R, K, K), float64; inner products of the task vectors.
        least_product: The least that the product of two lengths counts for in a cosine.

    Returns:
        Shape (R, K), float64.

    Source: Jang 2024, arXiv 2403.19522, equation 7.

    Example:
        >>> import numpy as np
        >>> model_stock(np.float64([[[2, 1], [1, 2]]]), least_product=0.0).round(4).tolist()
        [[0.3333, 0.3333]]
    """
    import numpy as np

    count = gram.shape[1]
    lengths = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))  # (R, K)
    one, other = np.triu_indices(count, 1)
    products = np.maximum(lengths[:, one] * lengths[:, other], least_product)
    products = np.where(products == 0, 1.0, products)  # then the inner product is zero as well
    cosine = np.clip(gram[:, one, other] / products, -1.0, 1.0).mean(axis=1)
    below = 1 + (count - 1) * cosine
    singular = np.abs(below) < 1e-6
    share = np.where(singular, 0.0, cosine / np.where(singular, 1.0, below))  # t ÷ K
    return np.repeat(share[:, None], count, axis=1)


def _length(coefficients: np.ndarray, gram: np.ndarray) -> float:
    import numpy as np

    return float(np.sqrt(np.maximum(coefficients @ gram @ coefficients, 0.0)))


def _tangent(mean: np.ndarray, cosines: np.ndarray, shares: np.ndarray, tol: float) -> np.ndarray:
    """Returns the coefficients of one step of the Karcher mean."""
    import numpy as np

    along = np.clip(cosines @ mean, -1.0, 1.0)
    angles = np.arccos(along)
    has_arc = ~((angles < tol) | (angles > np.pi - tol))
    pull = np.where(has_arc, shares * angles / np.where(has_arc, np.sin(angles), 1.0), 0.0)
    return pull - (pull @ along) * mean
