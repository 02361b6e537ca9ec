"""How alike genomes are: inner products, norms, cosines, distances and spectra, from cores alone.

Bases are orthonormal, so ⟨Q_B C₁ Q_Aᵀ, Q_B C₂ Q_Aᵀ⟩ = ⟨C₁, C₂⟩: the cores of two members say all about their task
vectors, and no weight matrix is expanded. Small tensors (norms, biases) carry coefficients of directions that are not
orthonormal; they are weighed with the directions' Gram matrix. Everything is summed in float64, whatever the genomes
are stored in, in blocks of bounded size; the same genomes give the same bits.

Example:
    >>> import tempfile
    >>> from minerua.weights.checkpoint import open_checkpoint
    >>> from minerua.weights.task_vector import TaskVector
    >>> from minerua.weights.writer import write_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_checkpoint(f"{folder}/base.safetensors", {"w": np.zeros((2, 2), np.float32)})
    ...     base = open_checkpoint(f"{folder}/base.safetensors")
    ...     deltas = {"a": np.float32([[3, 0], [0, 4]]), "b": np.float32([[0, 4], [3, 0]])}
    ...     subspace = Subspace(base, {name: TaskVector(name, {"w": delta}) for name, delta in deltas.items()})
    >>> a, b = subspace.founders.values()
    >>> inner_products(subspace, [a, b])
    array([[25.,  0.],
           [ 0., 25.]])
    >>> norms(subspace, [a, b]).tolist(), cosines(subspace, [a, b])[0, 1].item()
    ([5.0, 5.0], 0.0)
    >>> round(distances(subspace, [a, b])[0, 1].item(), 6)  # the square root of 50
    7.071068
    >>> {name: sigma.round(6).tolist() for name, sigma in spectra(subspace, a).items()}
    {'w': [4.0, 3.0]}
    >>> round(spectral_similarity(subspace, a, b), 6)  # other directions, the same spectrum
    1.0
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import numpy as np

from minerua.errors import CheckpointError
from minerua.values import Genome
from minerua.weights.subspace import Core, Mix, Subspace

BLOCK_VALUES: Final = 1 << 22
"""Values in float64 that are held at once: 32 MiB."""

NEAR: Final = 1e-6
"""Two members whose squared distance is below this share of their squared norms are subtracted value by value: in
inner products their difference would be lost in the last digits."""

NEGLIGIBLE: Final = 1e-5
"""A singular value below this share of the largest is no rank: float32 cores are not surer than that. The cosine of two
spectra without it is one up to 1e-10, so what is left out could not have told two matrices apart."""

Read = Callable[[slice], np.ndarray]
"""Maps a part of the genome to its values in all members, shape (K, values), float64."""


def inner_products(subspace: Subspace, genomes: Sequence[Genome]) -> np.ndarray:
    """Returns the inner products of the task vectors that genomes stand for, over all their tensors.

    Args:
        subspace: The space that they live in.
        genomes: K genomes of it.

    Returns:
        Shape (K, K), float64, symmetric; on the diagonal the squared norms.

    Raises:
        CheckpointError: If a genome belongs to another subspace or holds NaN or infinity.

    Source: Core Space Merging, arXiv 2509.17786: orthonormal bases keep inner products.
    """
    _check(subspace, genomes)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite shows on the diagonal, and is named there
        products = _products(subspace, len(genomes), lambda part: _stack(genomes, part))
    broken = [
        genome.digest for genome, square in zip(genomes, products.diagonal(), strict=True) if not np.isfinite(square)
    ]
    if broken:
        raise CheckpointError(
            f"{len(broken)} of {len(genomes)} genomes hold NaN or infinity and cannot be measured; "
            "leave out the models that they stand for",
            [f"genome {digest}" for digest in broken],
        )
    return products


def norms(subspace: Subspace, genomes: Sequence[Genome]) -> np.ndarray:
    """Returns the norm of each genome's task vector, over all its tensors.

    Args:
        subspace: The space that they live in.
        genomes: K genomes of it.

    Returns:
        Shape (K,), float64; 0 for the base itself.

    Raises:
        CheckpointError: If a genome belongs to another subspace or holds NaN or infinity.
    """
    return np.asarray(np.sqrt(inner_products(subspace, genomes).diagonal()))


def cosines(subspace: Subspace, genomes: Sequence[Genome]) -> np.ndarray:
    """Returns the cosines between the task vectors that genomes stand for.

    Args:
        subspace: The space that they live in.
        genomes: K genomes of it.

    Returns:
        Shape (K, K), float64, in [−1, 1], symmetric, 1 on the diagonal. The base itself has no direction: its cosines
        are 0, with itself too.

    Raises:
        CheckpointError: If a genome belongs to another subspace or holds NaN or infinity.
    """
    return _cosines(inner_products(subspace, genomes))


def _cosines(products: np.ndarray) -> np.ndarray:
    lengths = np.sqrt(products.diagonal())
    inverse = np.divide(1.0, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    cosines = (products * inverse[:, None] * inverse[None]).clip(-1.0, 1.0)
    np.fill_diagonal(cosines, lengths > 0)
    return np.asarray(cosines)


def distances(subspace: Subspace, genomes: Sequence[Genome]) -> np.ndarray:
    """Returns the distances between the task vectors that genomes stand for: the norms of their differences.

    They come from the inner products, so that a population costs one product; only members that nearly coincide are
    subtracted from each other.

    Args:
        subspace: The space that they live in.
        genomes: K genomes of it.

    Returns:
        Shape (K, K), float64, symmetric, 0 on the diagonal and between equal genomes.

    Raises:
        CheckpointError: If a genome belongs to another subspace or holds NaN or infinity.
    """
    products = inner_products(subspace, genomes)
    sums = products.diagonal()[:, None] + products.diagonal()[None]  # (K, K)
    squares = sums - 2 * products
    for i, j in zip(*np.nonzero(np.triu(squares <= NEAR * sums, 1)), strict=True):
        squares[i, j] = squares[j, i] = _squared_difference(subspace, genomes[i], genomes[j])
    np.fill_diagonal(squares, 0.0)
    return np.asarray(np.sqrt(squares))


def _squared_difference(subspace: Subspace, a: Genome, b: Genome) -> float:
    def read(part: slice) -> np.ndarray:
        return np.asarray(a.values[part].astype(np.float64) - b.values[part])[None]

    return float(_products(subspace, 1, read)[0, 0])


def spectra(subspace: Subspace, genome: Genome, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """Returns the singular values of the task vector of every matrix.

    They are the roots of the eigenvalues of the core's smaller Gram matrix, in float64: several times faster than an
    SVD, and off by less than 1e-7 of the largest, which is what float32 cores know.

    Args:
        subspace: The space that the genome lives in.
        genome: A genome of it.
        names: The matrices that are wanted; default: all that have a core. Small tensors have no spectrum.

    Returns:
        Tensor name → shape (min(R, R'),), float64, descending; what the matrix itself has beyond that is 0.

    Raises:
        CheckpointError: If the genome belongs to another subspace, a name has no core there, or the genome holds NaN or
            infinity.
    """
    _check(subspace, [genome])
    cores = {segment.name: segment for segment in subspace.segments if isinstance(segment, Core)}
    unknown = [] if names is None else sorted(set(names) - set(cores))
    if unknown:
        raise CheckpointError(
            f"{len(unknown)} of {len(set(names or ()))} tensors have no core in this subspace, and so no spectrum; "
            f"it has {len(cores)} cores",
            unknown,
        )
    wanted = [core for name, core in cores.items() if names is None or name in names]
    return {core.name: _spectrum(core, genome) for core in wanted}


def _spectrum(core: Core, genome: Genome) -> np.ndarray:
    matrix = genome.values[core.part].reshape(core.shape).astype(np.float64)
    largest = np.abs(matrix).max()
    if not np.isfinite(largest):
        raise CheckpointError(
            f"genome {genome.digest} holds NaN or infinity in {core.name}, which has no spectrum then"
        )
    if largest == 0:
        return np.zeros(min(core.shape))
    matrix /= largest  # squares then neither overflow nor vanish
    gram = matrix @ matrix.T if core.shape[0] <= core.shape[1] else matrix.T @ matrix
    return np.asarray(largest * np.sqrt(np.linalg.eigvalsh(gram)[::-1].clip(0.0)))


def spectral_similarity(subspace: Subspace, a: Genome, b: Genome) -> float | None:
    """Returns how alike two task vectors' spectra are: s = (1/L) Σ_l cos(σ_l(A), σ_l(B)).

    The sum runs over the L matrices in which both task vectors have a rank above one. Directions play no part: s says
    whether two experts changed the matrices in equally many directions with equal shares.

    Args:
        subspace: The space that they live in.
        a: A genome of it.
        b: Another; their order makes no difference.

    Returns:
        In (0, 1]; `None` where no matrix has a rank above one in both: with adapters of rank one, with the base itself,
        or where the two changed different matrices. A mean over nothing says nothing, neither alike nor unlike.

    Raises:
        CheckpointError: If a genome belongs to another subspace or holds NaN or infinity.

    Source: CycleQD, arXiv 2410.14735, section 4.2.
    """
    return compare_spectra(spectra(subspace, a), spectra(subspace, b))


def compare_spectra(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> float | None:
    """Returns s of two members' `spectra`, for a caller who compares many; see `spectral_similarity`.

    Args:
        a: Tensor name → singular values.
        b: The same of another member, equally many per name. A name that only one of them has is left out.

    Example:
        >>> compare_spectra({"w": np.array([3.0, 4.0])}, {"w": np.array([4.0, 3.0]), "v": np.array([1.0])})
        0.96
        >>> compare_spectra({"w": np.array([3.0, 0.0])}, {"w": np.array([4.0, 3.0])}) is None
        True
    """
    both = [(a[name], b[name]) for name in a if name in b and _rank(a[name]) > 1 and _rank(b[name]) > 1]
    if not both:
        return None
    return float(np.mean([x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for x, y in both]).clip(None, 1.0))


def _rank(sigma: np.ndarray) -> int:
    return int((sigma > NEGLIGIBLE * sigma.max(initial=0.0)).sum())


# ── sums over segments ───────────────────────────────────────────────────────────────────────────────────────────────


def _products(subspace: Subspace, count: int, read: Read) -> np.ndarray:
    """Sums X M Xᵀ over the segments, X (count, values); M is the identity, or the Gram matrix of directions."""
    total = np.zeros((count, count))
    step = max(1, BLOCK_VALUES // max(count, 1))
    for segment in subspace.segments:
        if isinstance(segment, Mix):
            coefficients = read(segment.part)
            total += coefficients @ _gram(segment) @ coefficients.T
            continue
        for start in range(segment.part.start, segment.part.stop, step):
            block = read(slice(start, min(start + step, segment.part.stop)))
            total += block @ block.T
    return np.asarray((total + total.T) / 2)  # the products with a Gram matrix are symmetric up to the last digit only


def _gram(mix: Mix) -> np.ndarray:
    directions = mix.directions.reshape(len(mix.directions), -1).astype(np.float64)  # (founders, values)
    return np.asarray(directions @ directions.T)


def _stack(genomes: Sequence[Genome], part: slice) -> np.ndarray:
    rows = np.empty((len(genomes), part.stop - part.start))
    for row, genome in zip(rows, genomes, strict=True):
        row[:] = genome.values[part]
    return rows


def _check(subspace: Subspace, genomes: Sequence[Genome]) -> None:
    strangers = [g for g in genomes if g.subspace != subspace.digest or g.values.shape != (subspace.size,)]
    if strangers:
        here = f"here {subspace.digest} with {subspace.size}"
        raise CheckpointError(
            f"{len(strangers)} of {len(genomes)} genomes belong to another subspace and cannot be measured in this one",
            [f"subspace {g.subspace} with {g.values.size} values, {here}" for g in strangers],
        )
