"""Genomes: a population's task vectors as small cores over bases that all its members share.

For a weight matrix W (m × n) the population shares orthonormal Q_B (m × R) and Q_A (n × R'), which span the columns and
rows of every founder's task vector; a member is the core C (R × R') and stands for W + Q_B C Q_Aᵀ. Merging cores merges
models, and the SVD of a core is the SVD of its task vector, so crossover and SVD mutation are exact on cores. With LoRA
founders of rank r, R is at most their number times r. Where that reaches the matrix size, and for full fine-tunes, a
basis is the identity: the dense case of the same code. Tensors with fewer than two axes (norms, biases) are never
mutated; they carry one coefficient per founder.

Source: Core Space Merging, arXiv 2509.17786, for merging; the same algebra carries the SVD mutation of CycleQD.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from minerua import kernels
from minerua.errors import CheckpointError
from minerua.values import Genome
from minerua.weights.adapter import Factors
from minerua.weights.checkpoint import Checkpoint
from minerua.weights.task_vector import Delta, TaskVector, dense, is_floating


@dataclass(frozen=True, eq=False)
class Core:
    """Where a weight matrix's core lies in a genome, and the bases that give it meaning.

    Args:
        name: The tensor's name in the base.
        start: Index of the core's first value in the genome.
        shape: (R, R').
        left: Shape (m, R), float32, orthonormal columns; `None` for the identity (R = m).
        right: Shape (n, R'), float32, orthonormal columns; `None` for the identity (R' = n).
    """

    name: str
    start: int
    shape: tuple[int, int]
    left: np.ndarray | None
    right: np.ndarray | None

    @property
    def part(self) -> slice:
        """The core's values in the genome, row by row."""
        return slice(self.start, self.start + self.shape[0] * self.shape[1])

    def project(self, delta: Delta) -> np.ndarray:
        """Returns Q_Bᵀ Δ Q_A: the core nearest to a change of this matrix."""
        if isinstance(delta, Factors):
            left, right = delta.left, delta.right
        else:
            left, right = delta.reshape(len(delta), -1), None
        if self.left is not None:
            left = self.left.T @ left
        if right is None:
            return left if self.right is None else left @ self.right
        return left @ (right if self.right is None else right @ self.right)

    def expand(self, core: np.ndarray) -> np.ndarray:
        """Returns Q_B C Q_Aᵀ, shape (m, n): the change that a core stands for."""
        rows = core if self.left is None else self.left @ core
        return rows if self.right is None else rows @ self.right.T


@dataclass(frozen=True, eq=False)
class Mix:
    """Where a small tensor's coefficients lie in a genome.

    Args:
        name: The tensor's name in the base.
        start: Index of the first coefficient in the genome.
        directions: Shape (founders, …), float32; each founder's change of the tensor.
    """

    name: str
    start: int
    directions: np.ndarray

    @property
    def part(self) -> slice:
        """The coefficients in the genome, one per founder."""
        return slice(self.start, self.start + len(self.directions))

    def expand(self, coefficients: np.ndarray) -> np.ndarray:
        """Returns the change that the coefficients stand for, in the tensor's shape."""
        return np.tensordot(coefficients, self.directions, axes=1)


Segment = Core | Mix


class Subspace:
    """The space that a population lives in; built once from its founders, then immutable.

    Args:
        base: The checkpoint that all members share.
        founders: Name → task vector; experts first, then merges. Every founder lies in the subspace exactly, up to
            float32.

    Attributes:
        segments: The genome's parts in order: one per tensor that any founder changes.
        size: Length of a genome.

    Raises:
        CheckpointError: If there is no founder, or none changes anything.
    """

    def __init__(self, base: Checkpoint, founders: Mapping[str, TaskVector]) -> None:
        if not founders:
            raise CheckpointError("a subspace needs at least one founder, and there is none")
        self.base: Final = base
        segments: list[Segment] = []
        start = 0
        for name in base.specs:
            deltas = [vector.get(name) for vector in founders.values()]
            if is_floating(base, name) and any(delta is not None and not _is_zero(delta) for delta in deltas):
                segment = _segment(name, start, base.tensor(name).shape, deltas)
                segments.append(segment)
                start = segment.part.stop
        if not segments:
            raise CheckpointError(
                f"no founder differs from the base at {base.path}: {', '.join(founders)}; "
                "name the checkpoint that the experts were fine-tuned from as the base, and their own files as experts"
            )
        self.segments: Final = tuple(segments)
        self.size: Final = start
        self._founders = {name: self._encode(index, vector) for index, (name, vector) in enumerate(founders.items())}

    @cached_property
    def digest(self) -> str:
        """32 hexadecimal digits that name the space: its base, its layout and its bases."""
        digest = hashlib.blake2b(self.base.digest.encode(), digest_size=16)
        for segment in self.segments:
            digest.update(f"{segment.name} {segment.part}".encode())
            parts = [segment.directions] if isinstance(segment, Mix) else [segment.left, segment.right]
            for array in parts:
                digest.update(b"identity" if array is None else array.tobytes())
        return digest.hexdigest()

    @cached_property
    def _shapes(self) -> Mapping[tuple[int, int], tuple[Core, ...]]:
        """Cores of equal shape together: one batched call serves each group."""
        groups: dict[tuple[int, int], list[Core]] = {}
        for segment in self.segments:
            if isinstance(segment, Core):
                groups.setdefault(segment.shape, []).append(segment)
        return {shape: tuple(cores) for shape, cores in groups.items()}

    @property
    def founders(self) -> Mapping[str, Genome]:
        """Name → genome of every founder, in the order in which they were given."""
        return {name: self._genome(values) for name, values in self._founders.items()}

    def _encode(self, founder: int, vector: TaskVector) -> np.ndarray:
        values = np.zeros(self.size, np.float32)
        for segment in self.segments:
            if isinstance(segment, Mix):
                values[segment.start + founder] = 1.0
            elif (delta := vector.get(segment.name)) is not None:
                values[segment.part] = segment.project(delta).ravel()
        return values

    def _genome(self, values: np.ndarray) -> Genome:
        values.flags.writeable = False
        return Genome(self.digest, values)

    def zero(self) -> Genome:
        """Returns the genome that changes nothing: the base itself."""
        return self._genome(np.zeros(self.size, np.float32))

    def combine(self, genomes: Sequence[Genome], coefficients: np.ndarray) -> Genome:
        """Returns a linear combination of genomes: of whole models, or with coefficients of its own for every tensor.

        Args:
            genomes: P genomes of this subspace.
            coefficients: Shape (1, P) for the whole model, or (segments, P).

        Raises:
            CheckpointError: If a genome belongs to another subspace or the coefficients have another shape.
        """
        self._check(genomes)
        if coefficients.shape not in ((1, len(genomes)), (len(self.segments), len(genomes))):
            raise CheckpointError(
                f"coefficients need the shape (1, {len(genomes)}) or ({len(self.segments)}, {len(genomes)}), "
                f"found {coefficients.shape}"
            )
        if len(coefficients) == 1:
            return self._genome(kernels.merge([genome.values for genome in genomes], coefficients)[0])
        values = np.empty(self.size, np.float32)
        for segment, row in zip(self.segments, coefficients, strict=True):
            values[segment.part] = kernels.merge([genome.values[segment.part] for genome in genomes], row[None])[0]
        return self._genome(values)

    def scale_spectrum(self, genome: Genome, draw: Callable[[int], np.ndarray]) -> Genome:
        """Multiplies the singular values of every matrix's task vector; tensors without a spectrum stay as they are.

        Args:
            genome: A genome of this subspace.
            draw: Maps a rank to that many multipliers, for singular values in descending order; called once per matrix,
                in the order of the segments.

        Raises:
            CheckpointError: If the genome belongs to another subspace.
            KernelError: If it holds NaN or infinity.

        Source: CycleQD, arXiv 2410.14735, section 3.3.
        """
        self._check([genome])
        multipliers = {core.name: draw(min(core.shape)) for core in self.segments if isinstance(core, Core)}
        values = genome.values.copy()
        for shape, cores in self._shapes.items():
            stack = np.stack([values[core.part].reshape(shape) for core in cores])
            scales = np.stack([multipliers[core.name] for core in cores]).astype(np.float32)
            for core, matrix in zip(cores, kernels.svd_mutation(stack, scales), strict=True):
                values[core.part] = matrix.ravel()
        return self._genome(values)

    def add_cores(self, genome: Genome, increment: Genome) -> Genome:
        """Returns the genome with another's cores added; coefficients of small tensors stay as they are."""
        self._check([genome, increment])
        values = genome.values.copy()
        for segment in self.segments:
            if isinstance(segment, Core):
                values[segment.part] += increment.values[segment.part]
        return self._genome(values)

    def add_noise(self, genome: Genome, generator: np.random.Generator, deviation: float) -> Genome:
        """Returns the genome with Gaussian noise added to every value of its cores."""
        self._check([genome])
        values = genome.values.copy()
        for segment in self.segments:
            if isinstance(segment, Core):
                noise = generator.standard_normal(segment.shape[0] * segment.shape[1], np.float32)
                values[segment.part] += np.float32(deviation) * noise
        return self._genome(values)

    def task_vector(self, genome: Genome) -> dict[str, np.ndarray]:
        """Returns the dense task vector that a genome stands for: tensor name → float32 array of the tensor's shape.

        Raises:
            CheckpointError: If the genome belongs to another subspace.
        """
        self._check([genome])
        return {segment.name: self._expand(segment, genome) for segment in self.segments}

    def _expand(self, segment: Segment, genome: Genome) -> np.ndarray:
        values = genome.values[segment.part]
        if isinstance(segment, Mix):
            return segment.expand(values)
        return segment.expand(values.reshape(segment.shape)).reshape(self.base.tensor(segment.name).shape)

    def _check(self, genomes: Sequence[Genome]) -> None:
        strangers = [g for g in genomes if g.subspace != self.digest or g.values.shape != (self.size,)]
        if strangers:
            here = f"here {self.digest} with {self.size}"
            raise CheckpointError(
                "genomes of another subspace cannot be used here",
                [f"subspace {g.subspace} with {g.values.size} values, {here}" for g in strangers],
            )


def _is_zero(delta: Delta) -> bool:
    if isinstance(delta, Factors):
        return not (delta.left.any() and delta.right.any())
    return not delta.any()


def _segment(name: str, start: int, shape: tuple[int, ...], deltas: Sequence[Delta | None]) -> Segment:
    if len(shape) < 2:
        zero = np.zeros(shape, np.float32)
        return Mix(name, start, np.stack([zero if delta is None else dense(delta) for delta in deltas]))
    rows, columns = shape[0], int(np.prod(shape[1:]))
    present = [delta for delta in deltas if delta is not None]
    left = _basis([d.left if isinstance(d, Factors) else None for d in present], rows)
    right = _basis([d.right.T if isinstance(d, Factors) else None for d in present], columns)
    core = (rows if left is None else left.shape[1], columns if right is None else right.shape[1])
    return Core(name, start, core, left, right)


DEPENDENT = 1e-6
"""A direction of which the spans hold less than this, every column scaled to length one, adds nothing in float32."""


def _basis(spans: Sequence[np.ndarray | None], size: int) -> np.ndarray | None:
    """Returns orthonormal columns that span all given columns, or `None` (the identity) if that takes all `size`."""
    present = [span.astype(np.float64) for span in spans if span is not None]
    if len(present) < len(spans):
        return None
    columns = np.concatenate(present, axis=1)
    lengths = np.linalg.norm(columns, axis=0)
    directions, sigma, _ = np.linalg.svd(columns[:, lengths > 0] / lengths[lengths > 0], full_matrices=False)
    rank = int((sigma > DEPENDENT * sigma[:1]).sum())
    return None if rank >= size else np.ascontiguousarray(directions[:, :rank], dtype=np.float32)
