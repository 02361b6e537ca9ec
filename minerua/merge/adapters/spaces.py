"""LoRA adapters merged into a LoRA adapter, in a small space that all of them share.

The task vectors of one weight matrix, B_k A_k of any ranks r_k, lie in the space of the products L diag(s) X R with X
as small as their ranks together. Every adapter is one such X, and any merge method runs on these as it would on weights
with a base of zeros. Nothing of the size of the weights is made, but in the space of all matrices.

| space | L | s | R | X_k |
|---|---|---|---|---|
| `core_space` | orthonormal, spans all B_k | 1 | orthonormal, spans all A_k | LᵀB_k A_kRᵀ, (R, R') |
| `knots_space` | U of the SVD of [B_1A_1 … B_KA_K] | Σ of it | the identity | V_k of it, (R, n) |
| `full_space` | the identity | 1 | the identity | B_k A_k, (m, n) |

All are exact up to float32: a linear merge of the X_k is the same merge of the task vectors. An adapter that does not
change the matrix is zero in its space. All work is in float64, rounded once. Deterministic, but for LAPACK's signs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minerua.errors import CheckpointError
from minerua.weights import Factors

DEPENDENT = 1e-6
"""A direction of which the factors hold less than this, every column scaled to length one, adds nothing in float32."""


@dataclass(frozen=True, eq=False)
class SharedSpace:
    """What the adapters of one weight matrix have in common, and each adapter's own part in it.

    Args:
        left: Shape (m, R), float32, orthonormal columns.
        scales: Shape (R,), float32, positive or zero: what the left columns are multiplied with.
        right: Shape (R', n), float32, orthonormal rows; or `None` for the identity, R' = n.
        arrays: K arrays of shape (R, R'), float32, contiguous: the adapters, in their order.
    """

    left: np.ndarray
    scales: np.ndarray
    right: np.ndarray | None
    arrays: tuple[np.ndarray, ...]

    def factors(self, merged: np.ndarray, *, rank: int | None = None) -> tuple[Factors, float]:
        """Turns a merged array back into the factors of an adapter.

        Args:
            merged: Shape (R, R'), any floating dtype, finite.
            rank: The most that the factors may have: the largest singular values are kept. Default: all that are
                more than the rounding of the largest.

        Returns:
            Factors of float32, both with the same norm, of rank one at least; and the share of the squared norm that
            the rank leaves out, in [0, 1].

        Raises:
            CheckpointError: If the array has another shape than the space's, holds NaN or infinity, or the rank is
                below one.

        Example:
            >>> pair = Factors(np.float32([[1], [2]]), np.float32([[3, 4]]))
            >>> space = core_space([pair, None])
            >>> merged, lost = space.factors(space.arrays[0] / 2)
            >>> (merged.left @ merged.right).round(5).tolist(), lost
            ([[1.5, 2.0], [3.0, 4.0]], 0.0)
        """
        faults = _merged_faults(merged, self.arrays[0].shape, rank)
        if faults:
            raise CheckpointError("a merged array cannot be turned into factors", faults)
        inner = self.scales.astype(np.float64)[:, None] * merged
        U, sigma, V = np.linalg.svd(inner, full_matrices=False)
        present = max(1, int((sigma > np.finfo(np.float32).eps * sigma[0]).sum()))
        count = present if rank is None else min(rank, present)
        roots = np.sqrt(sigma[:count])
        right = roots[:, None] * V[:count]
        factors = Factors(
            (self.left @ (U[:, :count] * roots)).astype(np.float32),
            (right if self.right is None else right @ self.right).astype(np.float32),
        )
        total = float((sigma**2).sum())
        return factors, float((sigma[count:] ** 2).sum()) / total if total and count < present else 0.0


Build = Callable[[Sequence["Factors | None"]], SharedSpace]
"""A way to build a space from the factors of one matrix: `core_space` or `knots_space`, or one of your own."""


@dataclass(frozen=True, eq=False)
class MergedAdapter:
    """An adapter that was merged from others.

    Args:
        factors: Base tensor name → the merged factors, sorted by name.
        lost: Base tensor name → the share of the merged task vector's squared norm that its rank leaves out.
        lost_fraction: That share over all matrices.
    """

    factors: Mapping[str, Factors]
    lost: Mapping[str, float]
    lost_fraction: float


def core_space(factors: Sequence[Factors | None]) -> SharedSpace:
    """Returns the smallest space of matrices that holds the task vectors of all adapters: orthonormal bases, and cores.

    Args:
        factors: K adapters' factors of one matrix, of any ranks; `None` for one that does not change it.

    Returns:
        A space with `scales` of one; an adapter's array is its core, LᵀB_k A_kRᵀ.

    Raises:
        CheckpointError: If no adapter changes the matrix, or their factors are not of one m × n, or not finite.

    Source: Panariello 2025, Accurate and efficient low-rank model merging in core space, arXiv 2509.17786, equation 5.

    Example:
        >>> pairs = [Factors(np.eye(4, 1, dtype=np.float32), np.ones((1, 3), np.float32)) for _ in range(2)]
        >>> core_space(pairs).arrays[0].shape
        (1, 1)
    """
    rows, columns = _shape(factors)
    pairs = [_wide(pair, rows, columns) for pair in factors]
    left = _orthonormal(np.concatenate([pair.left for pair in pairs], axis=1))  # (m, R)
    right = _orthonormal(np.concatenate([pair.right for pair in pairs], axis=0).T)  # (n, R')
    cores = [(left.T @ pair.left) @ (pair.right @ right) for pair in pairs]
    return SharedSpace(
        left.astype(np.float32),
        np.ones(left.shape[1], np.float32),
        np.ascontiguousarray(right.T, dtype=np.float32),
        tuple(core.astype(np.float32) for core in cores),
    )


def knots_space(factors: Sequence[Factors | None], *, scaled: bool = False) -> SharedSpace:
    """Returns the space of KnOTS: all task vectors side by side, [τ_1 … τ_K] = U Σ [V_1 … V_K], with U and Σ shared.

    The SVD is made from the thin factors: with B = Q T for all left factors together and A_k = L_k Q_kᵀ for each right
    one, it is that of [T_1 L_1 … T_K L_K], which is as small as the ranks.

    Args:
        factors: K adapters' factors of one matrix, of any ranks; `None` for one that does not change it.
        scaled: Whether an adapter's array is Σ V_k and the scales are one, as in the authors' program, instead of V_k,
            as in the paper. What does not look at magnitudes merges to the same.

    Returns:
        A space without `right`; an adapter's array is as wide as the matrix.

    Raises:
        CheckpointError: If no adapter changes the matrix, or their factors are not of one m × n, or not finite.

    Source: Stoica 2024, Model merging with SVD to tie the knots, arXiv 2410.19735, section 4.

    Example:
        >>> pairs = [Factors(np.eye(4, 1, dtype=np.float32), np.ones((1, 3), np.float32)) for _ in range(2)]
        >>> space = knots_space(pairs)
        >>> space.arrays[0].shape, round(float(space.scales[0]), 4)
        ((1, 3), 2.4495)
    """
    rows, columns = _shape(factors)
    pairs = [_wide(pair, rows, columns) for pair in factors]
    left = _orthonormal(np.concatenate([pair.left for pair in pairs], axis=1))  # (m, R)
    bases = [np.linalg.qr(pair.right.T) for pair in pairs]  # (n, r_k), (r_k, r_k)
    inner = [(left.T @ pair.left) @ base.R.T for pair, base in zip(pairs, bases, strict=True)]
    U, sigma, V = np.linalg.svd(np.concatenate(inner, axis=1), full_matrices=False)
    kept = slice(0, max(1, int((sigma > DEPENDENT * sigma[0]).sum())))
    ends = np.cumsum([base.R.shape[0] for base in bases])[:-1]
    V = V[kept] * (sigma[kept, None] > 0)  # of nothing but zeros LAPACK makes arbitrary vectors
    blocks = [part @ base.Q.T for part, base in zip(np.split(V, ends, axis=1), bases, strict=True)]  # (R, n)
    inside = sigma[kept, None] if scaled else 1.0
    return SharedSpace(
        (left @ U[:, kept]).astype(np.float32),
        np.ones(len(sigma[kept]), np.float32) if scaled else sigma[kept].astype(np.float32),
        None,
        tuple((inside * block).astype(np.float32) for block in blocks),
    )


def full_space(factors: Sequence[Factors | None]) -> SharedSpace:
    """Returns the space of all matrices: an adapter's array is its task vector itself, in full.

    For methods that look at single weights, such as masks by magnitude, and are to see what full fine-tunes would show
    them. Takes K + 2 matrices of memory and a full SVD.

    Args:
        factors: K adapters' factors of one matrix, of any ranks; `None` for one that does not change it.

    Returns:
        A space without `right` whose `left` is the identity.

    Raises:
        CheckpointError: If no adapter changes the matrix, or their factors are not of one m × n, or not finite.

    Example:
        >>> pair = Factors(np.eye(2, 1, dtype=np.float32), np.ones((1, 3), np.float32))
        >>> full_space([pair]).arrays[0].tolist()
        [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
    """
    rows, columns = _shape(factors)
    pairs = [_wide(pair, rows, columns) for pair in factors]
    arrays = tuple((pair.left @ pair.right).astype(np.float32) for pair in pairs)
    return SharedSpace(np.eye(rows, dtype=np.float32), np.ones(rows, np.float32), None, arrays)


def merge_adapters(
    adapters: Sequence[Mapping[str, Factors]],
    merge: Callable[[str, tuple[np.ndarray, ...]], np.ndarray],
    *,
    space: Build = core_space,
    rank: int | None = None,
) -> MergedAdapter:
    """Merges adapters matrix by matrix in the space that they share.

    Args:
        adapters: K adapters: base tensor name → factors, of any ranks; they need not change the same matrices.
        merge: `merge(name, arrays)` merges K arrays of one shape, float32; returns one of that shape.
        space: How the spaces are built.
        rank: The most that a merged matrix may have. Default: as much as its adapters together, exact.

    Returns:
        The merged adapter; write it with `minerua.weights.write_adapter`.

    Raises:
        CheckpointError: If the factors do not fit together, a merge returned NaN or infinity or another shape, or the
            rank is below one; all faults at once.

    Example:
        >>> pair = Factors(np.float32([[1], [2]]), np.float32([[3, 4]]))
        >>> done = merge_adapters([{"q.weight": pair}, {}], lambda name, arrays: sum(arrays) / 2)
        >>> left, right = done.factors["q.weight"]
        >>> (left @ right).round(5).tolist()
        [[1.5, 2.0], [3.0, 4.0]]
    """
    names = sorted({name for adapter in adapters for name in adapter})
    found = {name: _merge_matrix(name, adapters, merge, space, rank) for name in names}
    faults = [f"{name!r}: {fault}" for name, one in found.items() if isinstance(one, list) for fault in one]
    if faults:
        raise CheckpointError(f"{len(adapters)} adapters cannot be merged into one", faults)
    merged = {name: one for name, one in found.items() if not isinstance(one, list)}
    norms = {name: _squared_norm(pair) for name, (pair, _) in merged.items()}
    dropped = sum(norms[name] * lost / (1 - lost) for name, (_, lost) in merged.items())
    total = sum(norms.values()) + dropped
    return MergedAdapter(
        {name: pair for name, (pair, _) in merged.items()},
        {name: lost for name, (_, lost) in merged.items()},
        dropped / total if total else 0.0,
    )


def _merge_matrix(
    name: str,
    adapters: Sequence[Mapping[str, Factors]],
    merge: Callable[[str, tuple[np.ndarray, ...]], np.ndarray],
    space: Build,
    rank: int | None,
) -> tuple[Factors, float] | list[str]:
    """Returns the merged factors of one matrix and the share that their rank leaves out, or what is wrong with it."""
    try:
        shared = space([adapter.get(name) for adapter in adapters])
        return shared.factors(merge(name, shared.arrays), rank=rank)
    except CheckpointError as error:
        return list(error.faults)


# ── checks ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _merged_faults(merged: np.ndarray, shape: tuple[int, ...], rank: int | None) -> list[str]:
    faults = []
    if merged.shape != shape:
        faults.append(f"it has the shape {list(merged.shape)}, the adapters' arrays have {list(shape)}")
    if not np.isfinite(merged).all():
        faults.append(f"{np.count_nonzero(~np.isfinite(merged))} of its {merged.size} merged numbers are not finite")
    if rank is not None and rank < 1:
        faults.append(f"rank {rank}: an adapter needs at least 1")
    return faults


def _shape(factors: Sequence[Factors | None]) -> tuple[int, int]:
    """Returns the rows and columns of the matrix that all factors change; refuses factors that do not fit together."""
    faults, shapes = [], {}
    for number, pair in enumerate(factors, 1):
        if pair is None:
            continue
        if pair.left.ndim != 2 or pair.right.ndim != 2 or pair.left.shape[1] != pair.right.shape[0]:
            found = f"left {list(pair.left.shape)} and right {list(pair.right.shape)}"
            faults.append(f"adapter {number} has {found}, which cannot be multiplied: expected (m, r) and (r, n)")
            continue
        shapes[number] = (pair.left.shape[0], pair.right.shape[1])
        if not (np.isfinite(pair.left).all() and np.isfinite(pair.right).all()):
            faults.append(f"the factors of adapter {number} hold NaN or infinity")
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"adapter {number} of {list(shape)}" for number, shape in shapes.items())
        faults.append(f"the adapters change matrices of different shapes: {found}; they need one base")
    if not shapes and not faults:
        faults.append(f"none of {len(factors)} adapters changes this matrix")
    if faults:
        raise CheckpointError("factors do not share a space", faults)
    return next(iter(shapes.values()))


# ── arithmetic ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _wide(pair: Factors | None, rows: int, columns: int) -> Factors:
    """Returns factors in float64; rank zero for an adapter that does not change the matrix."""
    if pair is None:
        return Factors(np.zeros((rows, 0)), np.zeros((0, columns)))
    return Factors(pair.left.astype(np.float64), pair.right.astype(np.float64))


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """Returns orthonormal columns, at least one, that span the given ones; each counts whatever its length."""
    lengths = np.linalg.norm(columns, axis=0)
    if not lengths.any():
        return np.eye(len(columns), 1)
    U, sigma, _ = np.linalg.svd(columns[:, lengths > 0] / lengths[lengths > 0], full_matrices=False)
    return U[:, sigma > DEPENDENT * sigma[0]]


def _squared_norm(pair: Factors) -> float:
    """Returns the squared Frobenius norm of left @ right without making the product."""
    left, right = pair.left.astype(np.float64), pair.right.astype(np.float64)
    return max(0.0, float(np.sum((left.T @ left) * (right @ right.T))))
