"""Merges that look at the singular values of weight matrices: TSV-M, Iso-C, Iso-CTS, subspace boosting.

Each merges a matrix of two axes from its task vectors τ_k, weighted first. Nothing else is a map between two spaces, so
other tensors, and matrices whose parameter `spectral` is false, take the weighted mean Σ w_k τ_k ÷ K, as the authors'
programs do; subspace boosting, which is task arithmetic and a step more, their sum. The result is scaled by `lambda`.

No full SVD is made: the eigenvectors of the Gram matrix of the shorter side, in float64, give the right singular
vectors, and a product the left ones. Squaring costs half of the digits of float64 and leaves what float32 can hold.
Singular directions below `DEPENDENT` times the largest singular value are rounding noise: they stay zero, where a full
SVD would give them arbitrary vectors, which a flat spectrum would then blow up. So matrices of low rank, equal experts
and experts that change nothing are harmless. Equal singular values at a cut are taken in the order that LAPACK gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from minerua.values import MergeMethodSpec, MergeParameter, MergeTensors

if TYPE_CHECKING:
    import numpy as np

    from minerua.kernels.sources import Source, Target

DEPENDENT = 1e-6
"""Singular values below this share of the largest hold nothing that float32 weights can tell from rounding."""

_BLOCK_ROWS = 512
"""Rows of a matrix that are in float64 at a time."""

Triplets = tuple["np.ndarray", "np.ndarray", "np.ndarray"]
"""Left singular vectors (m, k), singular values (k,), and right singular vectors (n, k). Those of the longer side are
float32, the rest float64."""


# ── the methods ──────────────────────────────────────────────────────────────────────────────────────────────────────


def merge_task_singular_vectors(tensors: MergeTensors, target: Target) -> np.ndarray:
    """TSV-M: the leading singular vectors of every task vector, made orthogonal to each other, with their own values.

    With τ_k ≈ U_k S_k V_kᵀ, its k-th share of the matrix's directions, U = [U_1 … U_K], V alike, and P(X) the polar
    factor of X, the orthonormal matrix nearest to it:

        τ = P(U) diag(S_1 … S_K) P(V)ᵀ

    Args:
        tensors: One tensor of all models; its parameter `rank_budget` is how many directions all experts keep together,
            as a share of all that the matrix has: each keeps ⌊budget · min(m, n) ÷ K⌋, at least one.
        target: Takes the merged weights.

    Returns:
        Shape (K + 2,), int64: how many numbers of each expert, of the base, and of the result are not finite. Where
        any of an input is not, all of a matrix's result is NaN.

    Source: Gargiulo 2024, Task singular vectors, arXiv 2412.00081, section 3.3; `rank_budget` is 1 there.
    """
    return _merge(tensors, target, _task_singular_vectors, elsewhere=1 / len(tensors.experts))


def merge_isotropic(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Iso-C: the sum of the task vectors with all its singular values replaced by their mean.

    Args:
        tensors: One tensor of all models.
        target: Takes the merged weights.

    Returns:
        As `merge_task_singular_vectors`.

    Source: Marczak 2025, No task left behind, arXiv 2502.04959, equation 7; the mean is over the singular values that
    are not zero (`DEPENDENT`), which in a matrix of full rank are all.
    """
    return _merge(tensors, target, _isotropic, elsewhere=1 / len(tensors.experts))


def merge_isotropic_with_tasks(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Iso-CTS: Iso-C in which each expert's own directions take the place of the weakest common ones.

    The leading directions of the sum are the common ones; each task vector, with these columns projected out, adds an
    equal number of its own leading directions. Together, made orthogonal, they get one singular value, their mean.

    Args:
        tensors: One tensor of all models; its parameter `common` is the share of common directions.
        target: Takes the merged weights.

    Returns:
        As `merge_task_singular_vectors`.

    Source: Marczak 2025, No task left behind, arXiv 2502.04959, algorithm 2; 0.8 there.
    """
    return _merge(tensors, target, _isotropic_with_tasks, elsewhere=1 / len(tensors.experts))


def merge_boosted(tensors: MergeTensors, target: Target) -> np.ndarray:
    """Subspace boosting: the sum of the task vectors with its small singular values raised.

    The first singular value at which the running sum reaches the share `boost` of the whole sum is the least that any
    of them keeps.

    Args:
        tensors: One tensor of all models; its parameter `boost` is that share. At 1 nothing is raised.
        target: Takes the merged weights.

    Returns:
        As `merge_task_singular_vectors`.

    Source: Skorobogat 2025, Subspace-boosted model merging, arXiv 2506.16506, algorithm 1; 0.01 there.
    """
    return _merge(tensors, target, _boosted, elsewhere=1.0)


_COMMON = (
    MergeParameter("weight", per_model=True, default=1.0),
    MergeParameter("lambda", default=1.0),
    MergeParameter("spectral", kind="flag", default=True),
)

METHODS = (
    MergeMethodSpec(
        "tsv-m",
        merge_task_singular_vectors,
        uses="tensors",
        whole=True,
        parameters=(*_COMMON, MergeParameter("rank_budget", default=1.0, fewest=0.0)),
    ),
    MergeMethodSpec("iso-c", merge_isotropic, uses="tensors", parameters=_COMMON, whole=True),
    MergeMethodSpec(
        "iso-cts",
        merge_isotropic_with_tasks,
        uses="tensors",
        whole=True,
        parameters=(*_COMMON, MergeParameter("common", default=0.8, fewest=0.0, most=1.0)),
    ),
    MergeMethodSpec(
        "subspace-boosting",
        merge_boosted,
        uses="tensors",
        whole=True,
        parameters=(*_COMMON, MergeParameter("boost", default=0.01, fewest=0.0, most=1.0)),
    ),
)
"""The methods of this module, for the hook that provides them."""


def _merge(
    tensors: MergeTensors, target: Target, spectral: Callable[[MergeTensors], np.ndarray], *, elsewhere: float
) -> np.ndarray:
    """Writes base + λ · spectral(tensors) for a matrix, base + λ · elsewhere · Σ w_k τ_k for any other tensor."""
    import numpy as np

    from minerua.kernels import passes

    scale = tensors.parameters["lambda"]
    if 0 in tensors.shape:
        return np.zeros(len(tensors.experts) + 2, np.int64)
    if len(tensors.shape) != 2 or not tensors.parameters["spectral"]:
        coefficients = np.array([scale * elsewhere * w for w in tensors.parameters["weight"]], np.float32)
        return passes.combine(tensors.experts, coefficients, base=tensors.base, target=target)
    counts = np.array([*map(_count_non_finite, (*tensors.experts, tensors.base)), 0])
    if counts.any():
        merged = np.full(tensors.shape, np.nan, np.float32)
    else:
        merged = spectral(tensors)
        merged *= np.float32(scale)
        merged += _loaded(tensors.base)
    with np.errstate(over="ignore"):  # what the target's type cannot hold is counted
        counts[-1] = np.count_nonzero(~np.isfinite(merged.astype(target.dtype).astype(np.float32)))
    target.write(0, merged)
    return counts


def _task_singular_vectors(tensors: MergeTensors) -> np.ndarray:
    budget = tensors.parameters["rank_budget"] * min(tensors.shape) / len(tensors.experts)
    count = min(max(int(budget), 1), min(tensors.shape))
    left, sigma, right = _joined([leading(vector, count) for vector in _task_vectors(tensors)])
    return _composed(polar_factor(left), sigma, polar_factor(right))


def _isotropic(tensors: MergeTensors) -> np.ndarray:
    return respectrum(_sum(tensors), lambda sigma: sigma.mean())


def _boosted(tensors: MergeTensors) -> np.ndarray:
    import numpy as np

    def raised(sigma: np.ndarray) -> np.ndarray:
        reached = np.cumsum(sigma) >= tensors.parameters["boost"] * sigma.sum()
        reached[-1] = True  # whatever the running sum was rounded to
        return np.maximum(sigma, sigma[np.argmax(reached)])

    return respectrum(_sum(tensors), raised)


def _isotropic_with_tasks(tensors: MergeTensors) -> np.ndarray:
    rank, experts = min(tensors.shape), len(tensors.experts)
    own = min(rank // experts, round((rank - int(rank * tensors.parameters["common"])) / experts))
    common = leading(_sum(tensors), rank - own * experts)
    parts = [_own_directions(vector, common[0], own) for vector in _task_vectors(tensors)]
    left, sigma, right = _joined([*parts, common])
    return _composed(polar_factor(left), sigma.mean() if len(sigma) else 0.0, polar_factor(right))


def _own_directions(vector: np.ndarray, common: np.ndarray, count: int) -> Triplets:
    """Returns the leading directions of what the common columns leave of a task vector, if that is more than noise."""
    import numpy as np

    rest = vector - _composed(common, 1.0, vector.T @ common)
    return leading(rest, count, noise=DEPENDENT * float(np.linalg.norm(vector)))


# ── task vectors ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _task_vectors(tensors: MergeTensors) -> Iterator[np.ndarray]:
    """Yields the weighted task vectors, float32, in the matrix's shape; one is in memory at a time."""
    import numpy as np

    for weight, expert in zip(tensors.parameters["weight"], tensors.experts, strict=True):
        vector = _task_vector(expert, tensors.base)
        vector *= np.float32(weight)
        yield vector


def _sum(tensors: MergeTensors) -> np.ndarray:
    import numpy as np

    total = np.zeros(tensors.shape, np.float32)
    for vector in _task_vectors(tensors):
        total += vector
    return total


def _task_vector(expert: Source, base: Any) -> np.ndarray:
    """Returns expert − base; where the expert is the base with an adapter, the adapter, free of the base's rounding."""
    if expert.left is not None and expert.right is not None and base.left is None and _same_rows(expert, base):
        return expert.left @ expert.right
    return _loaded(expert) - _loaded(base)


def _same_rows(one: Source, two: Source) -> bool:
    a, b = one.array, two.array
    same = (a.ctypes.data, a.dtype, a.shape) == (b.ctypes.data, b.dtype, b.shape)
    return same and one.rows is None and two.rows is None


def _loaded(source: Any) -> np.ndarray:
    from minerua.kernels import passes

    return passes.load(source, 0, source.size).reshape(source.shape)


def _count_non_finite(source: Source) -> int:
    import numpy as np

    return int(np.count_nonzero(~np.isfinite(_loaded(source))))


# ── matrices ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def leading(matrix: np.ndarray, count: int, *, noise: float = 0.0) -> Triplets:
    """Returns the largest singular values of a matrix with their vectors.

    Args:
        matrix: Shape (m, n), finite, any floating dtype.
        count: How many at most; those below `DEPENDENT` times the largest are left out.
        noise: Those up to here are left out too: for a matrix that is the difference of larger ones.

    Returns:
        U (m, k), σ (k,), descending, and V (n, k): U diag(σ) Vᵀ is the nearest matrix of rank k. The sign of a pair of
        vectors is LAPACK's. The vectors of the longer side are float32, the rest float64.

    Example:
        >>> import numpy as np
        >>> left, sigma, right = leading(np.diag([3.0, 0.0, 5.0]), 3)
        >>> sigma.round(6).tolist(), left.shape, right.shape
        ([5.0, 3.0], (3, 2), (3, 2))
    """
    from minerua.weights import truncation  # numpy comes with it

    return truncation.leading(matrix, count, noise=noise)


def polar_factor(matrix: np.ndarray) -> np.ndarray:
    """Returns the matrix with orthonormal columns, or rows, that is nearest to a matrix: X (XᵀX)^-½.

    Args:
        matrix: Shape (m, n), finite, any floating dtype.

    Returns:
        Shape (m, n), float32. In a matrix of lower rank, U Vᵀ of its non-zero singular values (`DEPENDENT`) only: zero
        stays zero.

    Example:
        >>> import numpy as np
        >>> polar_factor(np.diag([3.0, -0.5, 0.0])).round(6).tolist()
        [[1.0, 0.0, 0.0], [0.0, -1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    return respectrum(matrix, lambda sigma: 1.0)


def respectrum(matrix: np.ndarray, spectrum: Callable[[np.ndarray], np.ndarray | float]) -> np.ndarray:
    """Returns the matrix with the same singular vectors and other singular values.

    Args:
        matrix: Shape (m, n), finite, any floating dtype.
        spectrum: Takes the non-zero singular values (`DEPENDENT`), descending, float64; returns as many, or one for
            all; none is negative.

    Returns:
        Shape (m, n), float32.

    Example:
        >>> import numpy as np
        >>> respectrum(np.diag([3.0, 1.0]), np.mean).round(6).tolist()
        [[2.0, 0.0], [0.0, 2.0]]
    """
    import numpy as np

    if matrix.shape[0] < matrix.shape[1]:
        return respectrum(matrix.T, spectrum).T
    sigma, right = _spectrum(matrix)
    if not len(sigma):
        return np.zeros(matrix.shape, np.float32)
    right *= np.sqrt(spectrum(sigma) / sigma)  # in place: of large matrices every copy counts
    return _product(matrix, right @ right.T)


def _spectrum(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the non-zero singular values of a tall matrix, descending, and its right singular vectors (n, k)."""
    import numpy as np

    gram = np.zeros((matrix.shape[1],) * 2)
    for start in range(0, len(matrix), _BLOCK_ROWS):
        rows = matrix[start : start + _BLOCK_ROWS].astype(np.float64)
        gram += rows.T @ rows
    values, vectors = np.linalg.eigh(gram)  # ascending
    del gram
    sigma = np.sqrt(np.maximum(values[::-1], 0))
    count = int(((sigma > 0) & (sigma > DEPENDENT * sigma[:1])).sum())
    return sigma[:count], vectors[:, ::-1][:, :count]


def _product(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns matrix @ right, computed in float64, a block of rows at a time, and rounded to float32."""
    import numpy as np

    product = np.empty((len(matrix), right.shape[1]), np.float32)
    for start in range(0, len(matrix), _BLOCK_ROWS):
        product[start : start + _BLOCK_ROWS] = matrix[start : start + _BLOCK_ROWS].astype(np.float64) @ right
    return product


def _joined(parts: Sequence[Triplets]) -> Triplets:
    """Returns triplets side by side."""
    import numpy as np

    left, sigma, right = zip(*parts, strict=True)
    return np.concatenate(left, axis=1), np.concatenate(sigma), np.concatenate(right, axis=1)


def _composed(left: np.ndarray, sigma: np.ndarray | float, right: np.ndarray) -> np.ndarray:
    """Returns left diag(sigma) rightᵀ, float32."""
    import numpy as np

    return (left * sigma).astype(np.float32) @ right.T.astype(np.float32)
