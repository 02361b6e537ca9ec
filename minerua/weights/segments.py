"""The parts of a genome: the core of a weight matrix, or a small tensor's coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minerua.weights.adapter import Factors
from minerua.weights.bases import Layout, key
from minerua.weights.task_vector import Delta

_ALL = slice(None)


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
        if self.right is not None:
            right = self.right if right is None else right @ self.right
        return np.asarray(left if right is None else left @ right)

    def expand(self, core: np.ndarray, rows: slice = _ALL) -> np.ndarray:
        """Returns rows of Q_B C Q_Aᵀ, (m, n): of the change that a core stands for; all of them by default."""
        inner = core[rows] if self.left is None else self.left[rows] @ core
        return inner if self.right is None else inner @ self.right.T


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

    def expand(self, coefficients: np.ndarray, rows: slice = _ALL) -> np.ndarray:
        """Returns the change that the coefficients stand for, in the tensor's shape; or some of its rows."""
        directions = self.directions if rows == _ALL else self.directions[:, rows]
        return np.tensordot(coefficients, directions, axes=1)


Segment = Core | Mix


def segments_of(layouts: Sequence[Layout], arrays: Mapping[str, np.ndarray]) -> tuple[Segment, ...]:
    """Returns the parts of a genome, end to end."""
    segments: list[Segment] = []
    start = 0
    for layout in layouts:
        segments.append(_segment(layout, start, arrays))
        start = segments[-1].part.stop
    return tuple(segments)


def arrays_of(segment: Segment) -> list[np.ndarray | None]:
    """Returns what gives a segment its meaning: two bases, `None` for the identity, or directions."""
    return [segment.directions] if isinstance(segment, Mix) else [segment.left, segment.right]


def _segment(layout: Layout, start: int, arrays: Mapping[str, np.ndarray]) -> Segment:
    if layout.core is None:
        return Mix(layout.name, start, arrays[key(layout.name, "directions")])
    left, right = (arrays.get(key(layout.name, side)) for side in ("left", "right"))
    return Core(layout.name, start, layout.core, left, right)
