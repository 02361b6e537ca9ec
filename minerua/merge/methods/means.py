"""Merges that look at one tensor at a time: weighted means of task vectors, and RegMean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def mean(task_vectors: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Returns the weighted mean of task vectors, Σ w_i τ_i ÷ Σ w_i.

    Args:
        task_vectors: K arrays of one shape, float32.
        weights: K numbers whose sum is not zero.

    Example:
        >>> import numpy as np
        >>> mean([np.float32([0, 2]), np.float32([4, 4])], [1.0, 1.0]).tolist()
        [2.0, 3.0]
    """
    return task_arithmetic(task_vectors, [weight / sum(weights) for weight in weights])


def task_arithmetic(task_vectors: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Returns the weighted sum of task vectors, Σ w_i τ_i.

    Args:
        task_vectors: K arrays of one shape, float32.
        weights: K numbers.

    Source: Ilharco 2023, Editing models with task arithmetic, arXiv 2212.04089.

    Example:
        >>> import numpy as np
        >>> task_arithmetic([np.float32([0, 2]), np.float32([4, 4])], [0.5, 0.25]).tolist()
        [1.0, 2.0]
    """
    import numpy as np

    from minerua import kernels

    arrays = [np.asarray(vector) for vector in task_vectors]  # numpy makes arithmetic on 0-d arrays a number
    return np.asarray(kernels.merge(arrays, [list(weights)])[0])


def regmean(
    task_vectors: Sequence[np.ndarray], weights: Sequence[float], grams: Sequence[np.ndarray] | None
) -> np.ndarray:
    """Returns the task vector whose layer answers the experts' inputs most as the experts do: (Σ w τ G)(Σ w G)⁻¹.

    G_i = X_iᵀX_i holds the inputs of expert i's layer on its own task; no labels are needed. The solve is in float64
    with a ridge of 1e-6 of the mean diagonal, since inputs may not span every direction. Without Gram matrices (biases,
    norms) the weighted mean is returned.

    Args:
        task_vectors: K matrices (m × n), float32.
        weights: K positive numbers.
        grams: K symmetric matrices (n × n), or `None`.

    Source: Jin 2023, Dataless knowledge fusion by merging weights of language models, arXiv 2212.09849, equation 2;
    here without its shrinking of off-diagonal entries, and written for task vectors: the base cancels.

    Example:
        >>> import numpy as np
        >>> one, two = np.float32([[1, 0]]), np.float32([[0, 2]])
        >>> regmean([one, two], [1, 1], [np.diag([1.0, 0.0]), np.diag([0.0, 1.0])]).round(3).tolist()
        [[1.0, 2.0]]
    """
    import numpy as np

    if grams is None:
        return mean(task_vectors, weights)
    total, pulled = np.zeros(grams[0].shape), np.zeros(task_vectors[0].shape)
    for weight, vector, gram in zip(weights, task_vectors, grams, strict=True):
        wide = weight * gram.astype(np.float64)
        total += wide
        pulled += vector.astype(np.float64) @ wide
    ridge = 1e-6 * float(np.trace(total)) / len(total) or 1.0  # all inputs zero: any answer serves, this one is zero
    total.reshape(-1)[:: len(total) + 1] += ridge
    return np.linalg.solve(total, pulled.T).T.astype(np.float32)
