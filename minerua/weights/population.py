"""Populations: many genomes of one subspace in one array, crossed in one pass and mutated in one call.

A member is a row; its cores are parts of the row, so the same core of all members is a view, and nothing is copied to
decompose them. Every operation treats each member by itself: a population of many gives the bits of many populations
of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from minerua import kernels
from minerua.errors import CheckpointError
from minerua.values import Genome
from minerua.weights.subspace import Core, Subspace

Draw = Callable[[int, int, int], np.ndarray]
"""Maps (member, number of the segment, rank) to that many multipliers, for singular values in descending order."""


class Population:
    """P genomes of one subspace, end to end in one array that belongs to the population and is changed in place.

    Args:
        subspace: The space of all members.
        genomes: P >= 1 genomes of it, all float32 or all float64; copied.

    Attributes:
        values: Shape (P, size); a member per row.

    Raises:
        CheckpointError: If there is no genome, or one belongs to another subspace or has another dtype.

    Example:
        >>> import tempfile
        >>> from minerua.weights import open_checkpoint, open_expert, write_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_checkpoint(f"{folder}/base.safetensors", {"w": np.zeros((2, 2), np.float32)})
        ...     write_checkpoint(f"{folder}/expert.safetensors", {"w": np.eye(2, dtype=np.float32)})
        ...     base = open_checkpoint(f"{folder}/base.safetensors")
        ...     expert = open_expert("expert", f"{folder}/expert.safetensors", base)
        ...     subspace = Subspace(base, {"expert": expert.task_vector})
        >>> children = Population(subspace, [subspace.founders["expert"]]).crossover([[0.5], [3.0]])
        >>> children.mutate(lambda member, number, rank: np.full(rank, 2.0), members=[0])
        >>> children.core("w").tolist()
        [[[1.0, 0.0], [0.0, 1.0]], [[3.0, 0.0], [0.0, 3.0]]]
    """

    def __init__(self, subspace: Subspace, genomes: Sequence[Genome]) -> None:
        _check(subspace, genomes)
        self.subspace: Final = subspace
        self.values: Final = np.stack([genome.values for genome in genomes])

    @classmethod
    def crossed(cls, subspace: Subspace, parents: Sequence[Genome], coefficients: ArrayLike) -> Population:
        """Returns C linear combinations of P parents, read where they are: nothing is stacked first.

        Args:
            subspace: The space of all parents.
            parents: P >= 1 genomes of it.
            coefficients: Shape (C, P) for whole models, or (C, segments, P); rounded to the genomes' dtype.

        Returns:
            C children, in the order of the coefficients; each depends on its own coefficients alone.

        Raises:
            CheckpointError: If there is no parent, one belongs to another subspace, or the coefficients have another
                shape or are not finite.
        """
        _check(subspace, parents)
        return cls._of(
            subspace, _combined(subspace, [parent.values for parent in parents], np.asarray(coefficients, np.float64))
        )

    @classmethod
    def _of(cls, subspace: Subspace, values: np.ndarray) -> Population:
        """Takes an array over instead of copying it."""
        population = cls.__new__(cls)
        population.__dict__.update(subspace=subspace, values=values)
        return population

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def _cores(self) -> tuple[tuple[int, Core], ...]:
        """The cores with their numbers among the segments."""
        return tuple((i, segment) for i, segment in enumerate(self.subspace.segments) if isinstance(segment, Core))

    def core(self, name: str) -> np.ndarray:
        """Returns the core of a tensor in every member: shape (P, R, R'), a view that writes through.

        Raises:
            CheckpointError: If the subspace has no core of that name.
        """
        for _, core in self._cores:
            if core.name == name:
                return self.values[:, core.part].reshape(len(self), *core.shape)  # a view: an axis is only split
        known = ", ".join(core.name for _, core in self._cores)
        raise CheckpointError(f"no matrix of this subspace is named {name!r}; known: {known or 'none'}")

    def genome(self, member: int) -> Genome:
        """Returns a copy of one member, which later changes of the population do not reach."""
        return _genome(self.subspace, self.values[member].copy())

    def genomes(self) -> tuple[Genome, ...]:
        """Hands all members over without a copy; from then on the population cannot be changed."""
        self.values.flags.writeable = False
        return tuple(_genome(self.subspace, row) for row in self.values)

    def crossover(self, coefficients: ArrayLike) -> Population:
        """Returns C linear combinations of the members, all of them in one pass over each part.

        Args:
            coefficients: Shape (C, P) for whole models, or (C, segments, P).

        Raises:
            CheckpointError: If the coefficients have another shape or are not finite.
        """
        return self._of(
            self.subspace, _combined(self.subspace, list(self.values), np.asarray(coefficients, np.float64))
        )

    def mutate(self, multipliers_of: Draw, *, members: Iterable[int] | None = None, precision: str = "float32") -> None:
        """Multiplies the singular values of every matrix of every member, in place and in one call of the kernel.

        Tensors without a spectrum stay as they are.

        Args:
            multipliers_of: Asked for member after member, in the order of the segments.
            members: Which members to change; all of them by default. The others are not looked at.
            precision: That of the kernel: `float32` or `float64`.

        Raises:
            KernelError: If a member to change holds NaN or infinity, or the multipliers do not fit; nothing is changed.

        Source: CycleQD, arXiv 2410.14735, section 3.3; on cores, the SVD of which is that of the task vector.
        """
        chosen = range(len(self)) if members is None else list(members)
        stacks = [self.core(core.name) for _, core in self._cores]
        matrices = [stack[member] for member in chosen for stack in stacks]
        scales = [multipliers_of(member, number, min(core.shape)) for member in chosen for number, core in self._cores]
        if matrices:
            kernels.svd_mutation(matrices, scales, precision=precision, out=matrices)

    def add_cores(self, increments: Population) -> None:
        """Adds another population's cores to this one's, member by member, in place; small tensors stay as they are.

        Raises:
            CheckpointError: If the other population is of another subspace, or has another number of members.
        """
        if increments.subspace.digest != self.subspace.digest or len(increments) != len(self):
            raise CheckpointError(
                f"cannot add the cores of {len(increments)} members of subspace {increments.subspace.digest} "
                f"to {len(self)} of {self.subspace.digest}; both must be of one subspace and one size"
            )
        for _, core in self._cores:
            self.values[:, core.part] += increments.values[:, core.part]


def _genome(subspace: Subspace, values: np.ndarray) -> Genome:
    values.flags.writeable = False
    return Genome(subspace.digest, values)


def _check(subspace: Subspace, genomes: Sequence[Genome]) -> None:
    """Refuses genomes that have no meaning in the subspace, or not the same dtype."""
    if not genomes:
        raise CheckpointError("a population needs at least one genome, and there is none")
    dtype = genomes[0].values.dtype
    faults = [
        f"genome {i} belongs to subspace {g.subspace} and has {g.values.size} values of {g.values.dtype}; "
        f"here it is {subspace.digest} with {subspace.size} of {dtype}"
        for i, g in enumerate(genomes)
        if g.subspace != subspace.digest or g.values.shape != (subspace.size,) or g.values.dtype != dtype
    ]
    if faults:
        raise CheckpointError("genomes of another subspace or dtype cannot form this population", faults)


def _combined(subspace: Subspace, rows: Sequence[np.ndarray], coefficients: np.ndarray) -> np.ndarray:
    """Returns the combinations, shape (C, size)."""
    parents, segments = len(rows), len(subspace.segments)
    if coefficients.shape[1:] not in ((parents,), (segments, parents)) or not len(coefficients):
        raise CheckpointError(
            f"coefficients for the children of {parents} parents need the shape (C, {parents}) or "
            f"(C, {segments}, {parents}), found {coefficients.shape}"
        )
    if not np.isfinite(coefficients).all():
        raise CheckpointError(f"coefficients must be finite, found {coefficients[~np.isfinite(coefficients)][0]}")
    if coefficients.ndim == 2:
        return _merged(rows, coefficients)
    values = np.empty((len(coefficients), subspace.size), rows[0].dtype)
    for number, segment in enumerate(subspace.segments):
        values[:, segment.part] = _merged([row[segment.part] for row in rows], coefficients[:, number])
    return values


def _merged(rows: Sequence[np.ndarray], coefficients: np.ndarray) -> np.ndarray:
    """Returns all children of one part; float64, which the kernel does not take, in the same order of parents."""
    if rows[0].dtype != np.float64:
        return kernels.merge(rows, coefficients)
    children = np.zeros((len(coefficients), len(rows[0])))
    for parent, row in enumerate(rows):
        children += coefficients[:, parent, None] * row
    return children
