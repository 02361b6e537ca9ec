"""Task vectors of low rank: what is nearest to a full fine-tune and small enough for a population.

A matrix is replaced by its leading singular directions, found by a randomised block Krylov method: a few products with
a random block, kept all, span a space in which the leading singular vectors lie almost exactly. Where that space would
be half of the matrix, the eigenvectors of the Gram matrix are as cheap, and exact. What is left out is measured against
the matrix itself, and reported. The same matrix, rank and seed give the same factors on the same machine; LAPACK's last
digits may differ on another.

Source: Musco 2015, Randomized block Krylov methods, arXiv 1504.05477, algorithm 2; it keeps what the power iterations
of Halko 2011, Finding structure with randomness, algorithm 4.4, throw away.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np

from minerua.errors import ConfigError
from minerua.weights.adapter import Factors
from minerua.weights.checkpoint import Checkpoint
from minerua.weights.task_vector import Delta, TaskVector, difference

DEPENDENT = 1e-6
"""Singular values below this share of the largest hold nothing that float32 weights can tell from rounding."""

Triplets = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Left singular vectors (m, k), singular values (k,), and right singular vectors (n, k). Those of the longer side are
float32, the rest float64."""

_BLOCK_ROWS = 512
"""Rows of a matrix that are in float64 at a time."""

_FIRST_RANK = 64
"""The rank at which the search for an energy begins; it doubles."""


@dataclass(frozen=True)
class TruncatedMatrix:
    """What became of one weight matrix.

    Args:
        name: The tensor's name.
        shape: (m, n).
        rank: The rank of its factors; 0 for a matrix that did not change.
        squared_norm: Of its change.
        lost_fraction: The share of it that the factors leave out, in [0, 1].
    """

    name: str
    shape: tuple[int, int]
    rank: int
    squared_norm: float
    lost_fraction: float


@dataclass(frozen=True)
class TruncationReport:
    """What a truncation leaves out.

    Args:
        matrices: Every matrix, in the order of the base.
        lost_fraction: Over all matrices together, the share of the squared norm that is left out.
    """

    matrices: tuple[TruncatedMatrix, ...]
    lost_fraction: float


@final
class TruncatedVector(TaskVector):
    """A task vector whose matrices are factors of low rank, computed each time that they are asked for.

    Made by `truncated`.
    """

    def __init__(self, vector: TaskVector, deltas: _Truncation) -> None:
        digest = hashlib.blake2b(f"{vector.digest} {deltas.settings}".encode(), digest_size=16).hexdigest()
        super().__init__(digest, deltas, base=vector.base)
        self._truncation = deltas

    def report(self) -> TruncationReport:
        """Says what is left out; computes only those matrices that nobody has asked for yet."""
        for name in self._truncation.names - self._truncation.done.keys():
            self._truncation[name]
        done = self._truncation.done
        matrices = tuple(done[name] for name in self if name in done)
        total = math.fsum(matrix.squared_norm for matrix in matrices)
        lost = math.fsum(matrix.squared_norm * matrix.lost_fraction for matrix in matrices)
        return TruncationReport(matrices, lost / total if total else 0.0)


def truncated(
    expert: Checkpoint | TaskVector,
    base: Checkpoint,
    *,
    rank: int | None = None,
    energy: float | None = None,
    seed: int = 0,
) -> TruncatedVector:
    """Truncates the matrices of a task vector to a rank, or to the least rank that keeps an energy.

    All tensors of two axes are truncated, embeddings and output heads included, others stay dense. A matrix of which
    all directions are kept stays as it is. Factors of an adapter are truncated too, without their product being made.

    Args:
        expert: A full fine-tune of the base, or any task vector against it.
        base: The checkpoint that all experts share.
        rank: The most that a matrix's factors may have; in smaller matrices, as much as they hold.
        energy: The share of a matrix's squared norm that is enough, above 0 and up to 1: the rank is the least that
            keeps it, or `rank` if none does. Default: as much as the rank allows.
        seed: Of the random blocks, by Philox; at least 0.

    Returns:
        The task vector. One matrix is in memory at a time; `report` says what is left out of each and of all.

    Raises:
        ConfigError: Neither rank nor energy is given, one is out of its range, or the rank is larger than every matrix;
            lists all faults.
        CheckpointError: The expert does not fit the base, or holds NaN or infinity; lists all faults.

    Example:
        >>> import tempfile
        >>> from minerua.weights import open_checkpoint, write_checkpoint
        >>> tuned = np.diag(np.float32([3, 1, 0]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_checkpoint(f"{folder}/a.safetensors", {"q.weight": np.zeros((3, 3), np.float32)})
        ...     write_checkpoint(f"{folder}/b.safetensors", {"q.weight": tuned})
        ...     base, expert = (open_checkpoint(f"{folder}/{file}.safetensors") for file in "ab")
        ...     vector = truncated(expert, base, rank=1)
        ...     factors, report = vector["q.weight"], vector.report()
        >>> factors.left.shape, round(report.lost_fraction, 3)
        ((3, 1), 0.1)
    """
    vector = difference(expert, base) if isinstance(expert, Checkpoint) else expert
    matrices = {name for name in vector if name in base.specs and len(base.specs[name].shape) == 2}
    faults = [*_setting_faults(rank, energy, seed), *_rank_faults(rank, base, matrices)]
    if faults:
        raise ConfigError("a task vector cannot be truncated with these settings", faults)
    return TruncatedVector(vector, _Truncation(vector, frozenset(matrices), _Settings(rank, energy, seed)))


def _setting_faults(rank: int | None, energy: float | None, seed: int) -> Iterator[str]:
    if rank is None and energy is None:
        yield "neither rank nor energy is given; name one of them, or both"
    if rank is not None and rank < 1:
        yield f"rank is {rank}; factors have at least 1"
    if energy is not None and not 0 < energy <= 1:
        yield f"energy is {energy}; it is a share, above 0 and up to 1"
    if seed < 0:
        yield f"seed is {seed}; it counts from 0"


def _rank_faults(rank: int | None, base: Checkpoint, matrices: set[str]) -> Iterator[str]:
    shapes = {name: sorted(map(int, base.specs[name].shape)) for name in matrices}
    if rank is None or not shapes:
        return
    name = max(sorted(shapes), key=lambda name: shapes[name][0])
    if rank > shapes[name][0]:
        shape = list(base.specs[name].shape)
        yield f"rank is {rank}, and the largest matrix, {name!r}, is {shape}: no matrix has more than {shapes[name][0]}"


@dataclass(frozen=True)
class _Settings:
    rank: int | None
    energy: float | None
    seed: int


class _Truncation(Mapping[str, Delta]):
    """The changes, truncated when they are asked for, with a record of what each left out."""

    def __init__(self, vector: TaskVector, names: frozenset[str], settings: _Settings) -> None:
        self._vector, self.names, self.settings = vector, names, settings
        self.done: dict[str, TruncatedMatrix] = {}

    def __getitem__(self, name: str) -> Delta:
        delta = self._vector[name]
        if name not in self.names:
            return delta
        if isinstance(delta, Factors):
            shape = (len(delta.left), delta.right.shape[1])
            kept, total, lost = _factors_truncated(delta, self.settings)
        else:
            shape = (delta.shape[0], delta.shape[1])
            kept, total, lost = _matrix_truncated(delta, self.settings)
        rank = kept.left.shape[1] if isinstance(kept, Factors) else min(shape)
        share = min(1.0, lost / total) if total else 0.0
        self.done[name] = TruncatedMatrix(name, shape, rank if total else 0, total, share)
        return kept

    def __iter__(self) -> Iterator[str]:
        return iter(self._vector)

    def __len__(self) -> int:
        return len(self._vector)


# ── one matrix ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _matrix_truncated(delta: np.ndarray, settings: _Settings) -> tuple[Delta, float, float]:
    """Returns a matrix's factors, or itself where they would be no smaller; its squared norm, and that of the rest."""
    total = squared_norm(delta)
    if not math.isfinite(total) or total == 0:
        return delta, total, 0.0  # whoever takes it refuses NaN and infinity, by its name
    left, sigma, right = _enough(delta, total, settings)
    if len(sigma) >= min(delta.shape):
        return delta, total, 0.0
    pair = balanced(left, sigma, right)
    return pair, total, squared_rest(delta, pair)


def _factors_truncated(delta: Factors, settings: _Settings) -> tuple[Delta, float, float]:
    """The same for a product, from its own small core."""
    (Q, R), (P, S) = np.linalg.qr(delta.left.astype(np.float64)), np.linalg.qr(delta.right.T.astype(np.float64))
    U, sigma, V = np.linalg.svd(R @ S.T)
    total = float((sigma**2).sum())
    count = _count(sigma, total, settings)
    if count >= len(sigma) or total == 0 or not math.isfinite(total):
        return delta, total, 0.0
    pair = balanced(Q @ U[:, :count], sigma[:count], P @ V[:count].T)
    return pair, total, float((sigma[count:] ** 2).sum())


def _enough(delta: np.ndarray, total: float, settings: _Settings) -> Triplets:
    """Returns as many leading triplets as the settings ask for; the search for an energy doubles its rank."""
    side = min(delta.shape)
    most = side if settings.rank is None else min(settings.rank, side)
    rank = most if settings.energy is None else min(most, _FIRST_RANK)
    while True:
        left, sigma, right = nearest_of_rank(delta, rank, seed=settings.seed)
        is_enough = settings.energy is None or float((sigma**2).sum()) >= settings.energy * total
        if is_enough or rank >= most or len(sigma) < rank:
            count = _count(sigma, total, settings)
            return left[:, :count], sigma[:count], right[:, :count]
        rank = min(most, 2 * rank)


def _count(sigma: np.ndarray, total: float, settings: _Settings) -> int:
    most = len(sigma) if settings.rank is None else min(settings.rank, len(sigma))
    return most if settings.energy is None else min(most, enough_for(settings.energy, sigma, total))


def enough_for(energy: float, sigma: np.ndarray, total: float) -> int:
    """Returns how many singular values, descending, hold a share of a squared norm; one more than all if all do not."""
    return int((np.cumsum(sigma**2) < energy * total).sum()) + 1


def balanced(left: np.ndarray, sigma: np.ndarray, right: np.ndarray) -> Factors:
    """Returns U diag(σ) Vᵀ as two factors of equal norm, float32."""
    roots = np.sqrt(sigma)
    return Factors((left * roots).astype(np.float32), np.ascontiguousarray((right * roots).T, dtype=np.float32))


def squared_norm(matrix: np.ndarray) -> float:
    """Returns the squared Frobenius norm, summed in float64."""
    blocks = range(0, len(matrix), _BLOCK_ROWS)
    return float(sum(np.square(matrix[start : start + _BLOCK_ROWS], dtype=np.float64).sum() for start in blocks))


def squared_rest(matrix: np.ndarray, pair: Factors) -> float:
    """Returns the squared norm of what factors leave out of a matrix."""
    return sum(
        squared_norm(matrix[start : start + _BLOCK_ROWS] - pair.left[start : start + _BLOCK_ROWS] @ pair.right)
        for start in range(0, len(matrix), _BLOCK_ROWS)
    )


# ── leading singular vectors ─────────────────────────────────────────────────────────────────────────────────────────


def nearest_of_rank(
    matrix: np.ndarray, rank: int, *, seed: int = 0, oversampling: int = 10, iterations: int = 3
) -> Triplets:
    """Returns the leading singular values and vectors of a matrix, found in a random Krylov space.

    Args:
        matrix: Shape (m, n), float32, finite.
        rank: How many at most; those below 1e-6 of the largest are left out.
        seed: Of the random block, by Philox; at least 0.
        oversampling: By how many columns the block is wider than the rank.
        iterations: How many pairs of products follow the first.

    Returns:
        U (m, k), σ (k,), descending, and V (n, k). σ is never above the true values but for rounding. Exact where the
        Krylov space would be half of the matrix or more.

    Example:
        >>> left, sigma, right = nearest_of_rank(np.diag(np.float32([3, 1, 2])), 2)
        >>> sigma.round(5).tolist()
        [3.0, 2.0]
    """
    width = rank + oversampling
    if 2 * (iterations + 1) * width >= min(matrix.shape):
        return leading(matrix, rank)
    generator = np.random.Generator(np.random.Philox(seed))
    block = _orthonormal(matrix @ generator.standard_normal((matrix.shape[1], width), dtype=np.float32))
    blocks = [block]
    for _ in range(iterations):
        block = _orthonormal(matrix @ _orthonormal(matrix.T @ block))
        blocks.append(block)
    space = _orthonormal(np.concatenate(blocks, axis=1))  # (m, (iterations + 1) · width)
    right, sigma, inside = leading(matrix.T @ space, rank)
    return space @ inside.astype(np.float32), sigma, right


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """Returns orthonormal columns that span the given ones, float32."""
    return leading(columns, columns.shape[1])[0].astype(np.float32)


def leading(matrix: np.ndarray, count: int, *, noise: float = 0.0) -> Triplets:
    """Returns the largest singular values of a matrix with their vectors, from the Gram matrix of its shorter side.

    Args:
        matrix: Shape (m, n), finite, any floating dtype.
        count: How many at most; those below `DEPENDENT` times the largest are left out.
        noise: Those up to here are left out too: for a matrix that is the difference of larger ones.

    Returns:
        U (m, k), σ (k,), descending, and V (n, k): U diag(σ) Vᵀ is the nearest matrix of rank k. The sign of a pair of
        vectors is LAPACK's. The vectors of the longer side are float32, the rest float64.

    Example:
        >>> left, sigma, right = leading(np.diag([3.0, 0.0, 5.0]), 3)
        >>> sigma.round(6).tolist(), left.shape, right.shape
        ([5.0, 3.0], (3, 2), (3, 2))
    """
    if matrix.shape[0] < matrix.shape[1]:
        right, sigma, left = leading(matrix.T, count, noise=noise)
        return left, sigma, right
    values, vectors = np.linalg.eigh(_gram(matrix))  # ascending
    sigma = np.sqrt(np.maximum(values[::-1], 0))
    present = (sigma > 0) & (sigma > DEPENDENT * sigma[:1]) & (sigma > noise)
    count = min(count, int(present.sum()))
    sigma, right = sigma[:count], vectors[:, ::-1][:, :count].copy()  # a view would keep all of them in memory
    return _product(matrix, right / sigma), sigma, right


def _gram(matrix: np.ndarray) -> np.ndarray:
    """Returns XᵀX in float64, a block of rows at a time."""
    gram = np.zeros((matrix.shape[1],) * 2)
    for start in range(0, len(matrix), _BLOCK_ROWS):
        rows = matrix[start : start + _BLOCK_ROWS].astype(np.float64)
        gram += rows.T @ rows
    return gram


def _product(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns X R, computed in float64 a block of rows at a time, and rounded to float32."""
    product = np.empty((len(matrix), right.shape[1]), np.float32)
    for start in range(0, len(matrix), _BLOCK_ROWS):
        product[start : start + _BLOCK_ROWS] = matrix[start : start + _BLOCK_ROWS].astype(np.float64) @ right
    return product
