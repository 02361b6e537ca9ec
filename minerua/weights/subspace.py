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

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike

from minerua import kernels
from minerua.errors import CheckpointError
from minerua.values import Genome
from minerua.weights.atomic import partial_folder
from minerua.weights.bases import InFolder, InMemory, Kept, Naming, read_folder
from minerua.weights.checkpoint import Checkpoint
from minerua.weights.segments import Core as Core
from minerua.weights.segments import Mix as Mix
from minerua.weights.segments import Segment, arrays_of, segments_of
from minerua.weights.spans import span
from minerua.weights.task_vector import TaskVector


class Subspace:
    """The space that a population lives in; built once from its founders, then immutable.

    Built in one pass: of each tensor the founders' changes are read, spanned, encoded and dropped, so that never more
    than one tensor's changes are in memory, beside the bases and the founders' genomes; of full fine-tunes one
    founder's change of one tensor.

    Args:
        base: The checkpoint that all members share.
        founders: Name → task vector; experts first, then merges. Every founder lies in the subspace exactly, up to the
            rounding of `dtype`.
        folder: A folder to make, where the bases and the founders' genomes are kept as they are found, and read back
            through maps; `None` keeps them in memory.
        dtype: float32, or float64 for bases and genomes of twice the size and twice the digits.

    Attributes:
        segments: The genome's parts in order: one per tensor that any founder changes.
        size: Length of a genome.
        dtype: Of the bases and of every genome.
        digest: 32 hexadecimal digits that name the space: its base, its layout and its bases.
        sources: Name → digest of the weights of every founder.

    Raises:
        CheckpointError: If there is no founder, none changes anything, or a founder does not fit the base or holds NaN
            or infinity; all faults at once.
        StorageError: If the folder exists and is not empty, or cannot be written.
    """

    segments: tuple[Segment, ...]
    size: int
    digest: str

    def __init__(
        self,
        base: Checkpoint,
        founders: Mapping[str, TaskVector],
        *,
        folder: str | Path | None = None,
        dtype: DTypeLike = np.float32,
    ) -> None:
        if not founders:
            raise CheckpointError("a subspace needs at least one founder, and there is none")
        self.base: Final = base
        self.dtype: Final[np.dtype[Any]] = np.dtype(dtype)
        if self.dtype not in (np.float32, np.float64):
            raise CheckpointError(f"a subspace of {self.dtype} cannot be built; float32 and float64 are known")
        self.sources: Final = MappingProxyType({name: vector.digest for name, vector in founders.items()})
        naming = Naming(base.digest, self.dtype)
        kept = self._kept(founders, naming) if folder is None else self._kept_in(Path(folder), founders, naming)
        self._take(kept, naming.hexdigest())

    @classmethod
    def open(cls, folder: str | Path, base: Checkpoint) -> Subspace:
        """Opens a subspace that was built with this folder; every byte is read once, to verify it.

        Args:
            folder: The folder.
            base: The checkpoint that it was built with.

        Raises:
            CheckpointError: If the folder holds no subspace, one of another base, or was altered.
        """
        record = read_folder(Path(folder))
        if record.base != base.digest:
            raise CheckpointError(
                f"the subspace in {folder} was built with the base {record.base}, and {base.path} is {base.digest}; "
                "open it with its own base, or build it again"
            )
        subspace = cls.__new__(cls)
        subspace.__dict__.update(base=base, dtype=record.dtype, sources=MappingProxyType(dict(record.founders)))
        subspace._take(record.kept, record.digest)
        naming = Naming(base.digest, record.dtype)
        for segment in subspace.segments:
            naming.add(segment.name, segment.part, arrays_of(segment))
        if naming.hexdigest() != record.digest:
            found = f"{naming.hexdigest()} and is said to be {record.digest}"
            raise CheckpointError(f"the subspace in {folder} is {found}: it was altered; build it again")
        record.bases.release_pages()  # all of them were read for the digest
        return subspace

    def _kept(self, founders: Mapping[str, TaskVector], naming: Naming) -> Kept:
        shelf = InMemory(len(founders))
        return shelf.kept(span(self.base, founders, shelf, naming))

    def _kept_in(self, folder: Path, founders: Mapping[str, TaskVector], naming: Naming) -> Kept:
        with (
            partial_folder(folder, needed_bytes=0) as partial,  # how much it will be is known when it is done
            InFolder(partial, self.base, self.sources, self.dtype) as shelf,
        ):
            layouts = span(self.base, founders, shelf, naming)
            shelf.finish(layouts, base=self.base.digest, digest=naming.hexdigest())
        return read_folder(folder).kept

    def _take(self, kept: Kept, digest: str) -> None:
        self.segments, self.digest = segments_of(kept.layouts, kept.arrays), digest
        self.size = self.segments[-1].part.stop
        self._founders = dict(zip(self.sources, kept.genomes, strict=True))

    @property
    def founders(self) -> Mapping[str, Genome]:
        """Name → genome of every founder, in the order in which they were given."""
        return {name: self._genome(values) for name, values in self._founders.items()}

    def _genome(self, values: np.ndarray) -> Genome:
        values.flags.writeable = False
        return Genome(self.digest, values)

    def zero(self) -> Genome:
        """Returns the genome that changes nothing: the base itself."""
        return self._genome(np.zeros(self.size, self.dtype))

    def combine(self, genomes: Sequence[Genome], coefficients: np.ndarray) -> Genome:
        """Returns a linear combination of genomes: of whole models, or with coefficients of its own for every tensor.

        Args:
            genomes: P genomes of this subspace.
            coefficients: Shape (1, P) for the whole model, or (segments, P).

        Raises:
            CheckpointError: If a genome belongs to another subspace or the coefficients have another shape.
        """
        self.check(genomes)
        if coefficients.shape not in ((1, len(genomes)), (len(self.segments), len(genomes))):
            raise CheckpointError(
                f"coefficients need the shape (1, {len(genomes)}) or ({len(self.segments)}, {len(genomes)}), "
                f"found {coefficients.shape}"
            )
        if len(coefficients) == 1:
            return self._genome(_mixed([genome.values for genome in genomes], coefficients))
        values = np.empty(self.size, self.dtype)
        for segment, row in zip(self.segments, coefficients, strict=True):
            values[segment.part] = _mixed([genome.values[segment.part] for genome in genomes], row[None])
        return self._genome(values)

    def add_noise(self, genome: Genome, generator: np.random.Generator, deviation: float) -> Genome:
        """Returns the genome with Gaussian noise added to every value of its cores."""
        self.check([genome])
        values, scale = genome.values.copy(), np.asarray(deviation, self.dtype)
        dtype = np.float32 if self.dtype == np.float32 else np.float64
        for segment in self.segments:
            if isinstance(segment, Core):
                noise = generator.standard_normal(segment.shape[0] * segment.shape[1], dtype)
                values[segment.part] += scale * noise
        return self._genome(values)

    def task_vector(self, genome: Genome) -> dict[str, np.ndarray]:
        """Returns the dense task vector that a genome stands for: tensor name → array of the tensor's shape.

        Raises:
            CheckpointError: If the genome belongs to another subspace.
        """
        self.check([genome])
        return {segment.name: self._expand(segment, genome) for segment in self.segments}

    def _expand(self, segment: Segment, genome: Genome) -> np.ndarray:
        values = genome.values[segment.part]
        if isinstance(segment, Mix):
            return segment.expand(values)
        return segment.expand(values.reshape(segment.shape)).reshape(self.base.tensor(segment.name).shape)

    def check(self, genomes: Sequence[Genome]) -> None:
        """Refuses genomes of another subspace.

        Raises:
            CheckpointError: If there is one; names them all.
        """
        strangers = [g for g in genomes if g.subspace != self.digest or g.values.shape != (self.size,)]
        if strangers:
            here = f"here {self.digest} with {self.size}"
            raise CheckpointError(
                "genomes of another subspace cannot be used here",
                [f"subspace {g.subspace} with {g.values.size} values, {here}" for g in strangers],
            )


def _mixed(parents: Sequence[np.ndarray], coefficients: np.ndarray) -> np.ndarray:
    """Returns a linear combination; the kernel knows float32, and rounds coefficients to it."""
    if parents[0].dtype == np.float32:
        return np.asarray(kernels.merge(parents, coefficients)[0])
    total = np.zeros_like(parents[0])
    for parent, coefficient in zip(parents, coefficients[0], strict=True):
        total += coefficient * parent
    return total
