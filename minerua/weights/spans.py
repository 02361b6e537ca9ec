"""From founders to bases: what a subspace needs to hold them, found in one pass over their changes.

Of each tensor the founders' changes are read, spanned, encoded and dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from minerua.errors import CheckpointError
from minerua.weights.adapter import Factors
from minerua.weights.bases import Layout, Naming, Shelf, key
from minerua.weights.checkpoint import Checkpoint
from minerua.weights.header import capped, shown
from minerua.weights.segments import Core, Mix, Segment, arrays_of
from minerua.weights.task_vector import Delta, TaskVector, dense, is_floating

Deltas = Iterator["Delta | None"]
"""The founders' changes of one tensor, in their order, read when they are asked for."""


_MAX_FAULTS = 100


def span(base: Checkpoint, founders: Mapping[str, TaskVector], shelf: Shelf, naming: Naming) -> list[Layout]:
    """Puts the bases and the founders' genomes on a shelf, one tensor after the other; returns the genome's layout."""
    faults = [fault for name, vector in founders.items() for fault in _stranger_faults(name, vector, base)]
    layouts: list[Layout] = []
    start = 0
    for name in base.specs:
        deltas = (_checked(founder, vector, name, base, faults) for founder, vector in founders.items())
        if faults or not is_floating(base, name):
            list(deltas)  # for their faults only
            continue
        shape = tuple(map(int, base.specs[name].shape))
        found = _Part(name, shape, start, naming.dtype, len(founders)).span(deltas, shelf)
        if found is not None:
            naming.add(name, found.part, arrays_of(found))
            layouts.append(Layout(name, found.shape if isinstance(found, Core) else None))
            start = found.part.stop
    if faults:
        raise CheckpointError(f"founders do not fit the base at {base.path}", capped(faults, limit=_MAX_FAULTS))
    if not layouts:
        raise CheckpointError(
            f"no founder differs from the base at {base.path}: {', '.join(founders)}; "
            "name the checkpoint that the experts were fine-tuned from as the base, and their own files as experts"
        )
    return layouts


def _checked(founder: str, vector: TaskVector, name: str, base: Checkpoint, faults: list[str]) -> Delta | None:
    """Returns a founder's change of a tensor; `None` where it changes nothing, or is at fault."""
    delta = vector.get(name)
    if delta is None or _is_zero(delta):
        return None
    fault = _fault(name, delta, base)
    if fault:
        faults.append(f"founder {founder!r}: tensor {shown(name)}: {fault}")
    return None if fault else delta


def _stranger_faults(founder: str, vector: TaskVector, base: Checkpoint) -> Iterator[str]:
    """Yields what tells that a founder was made for another base."""
    if vector.base is not None and vector.base is not base and vector.base.digest != base.digest:
        there = f"{vector.base.path} ({vector.base.digest})"
        yield f"founder {founder!r} is a change of another base, {there}; here it is {base.path} ({base.digest})"
    for name in vector:
        if name not in base.specs:
            yield f"founder {founder!r} changes tensor {shown(name)}, which the base lacks"


def _fault(name: str, delta: Delta, base: Checkpoint) -> str | None:
    """Returns why a change cannot be used; one NaN could reach every genome through the bases."""
    spec = base.specs[name]
    if not is_floating(base, name):
        return f"it is changed, the base holds {spec.dtype}, and only floating-point tensors can be merged"
    arrays = delta if isinstance(delta, Factors) else (delta,)
    if isinstance(delta, Factors):
        columns = math.prod(map(int, spec.shape[1:]))
        left, right = (list(array.shape) for array in delta)
        if left[1:] != right[:1] or len(spec.shape) < 2 or [left[0], *right[1:]] != [spec.shape[0], columns]:
            return f"its factors are {left} and {right}, the base has {list(spec.shape)}"
    elif delta.shape != spec.shape:
        return f"its change has shape {list(delta.shape)}, the base has {list(spec.shape)}"
    wrong = sum(int(np.count_nonzero(~np.isfinite(array))) for array in arrays)
    return f"{wrong} of {sum(array.size for array in arrays)} numbers are NaN or infinite" if wrong else None


def _is_zero(delta: Delta) -> bool:
    if isinstance(delta, Factors):
        return not (delta.left.any() and delta.right.any())
    return not delta.any()


@dataclass(frozen=True)
class _Part:
    """One tensor, on its way to a segment."""

    name: str
    shape: tuple[int, ...]
    start: int
    dtype: np.dtype[Any]
    founders: int

    def span(self, deltas: Deltas, shelf: Shelf) -> Segment | None:
        """Returns the segment that the founders' changes need, if any; its arrays and their values are on the shelf."""
        if len(self.shape) < 2:
            return self._mix(list(deltas), shelf)
        held: list[Delta | None] = []
        for delta in deltas:
            held.append(delta)
            if isinstance(delta, np.ndarray):
                del delta  # held alone keeps it, until its turn comes
                return self._dense(_first(held, deltas), shelf)
        return self._core(held, shelf) if any(delta is not None for delta in held) else None

    def _mix(self, deltas: Sequence[Delta | None], shelf: Shelf) -> Segment | None:
        if all(delta is None for delta in deltas):
            return None
        zero = np.zeros(self.shape, self.dtype)
        directions = np.stack([zero if delta is None else dense(delta).astype(self.dtype) for delta in deltas])
        shelf.put(key(self.name, "directions"), directions)
        for founder, row in enumerate(np.eye(self.founders, dtype=self.dtype)):
            shelf.extend(founder, row)
        return Mix(self.name, self.start, directions)

    def _dense(self, deltas: Deltas, shelf: Shelf) -> Core:
        """Spans full changes by the identity, one founder at a time."""
        rows = self.shape[0]
        core = Core(self.name, self.start, (rows, math.prod(self.shape[1:])), None, None)
        for founder, delta in enumerate(deltas):
            shelf.extend(founder, self._values(core, delta))
            del delta  # before the next one is read
        return core

    def _core(self, deltas: Sequence[Delta | None], shelf: Shelf) -> Core:
        pairs = [delta for delta in deltas if isinstance(delta, Factors)]
        rows, columns = self.shape[0], math.prod(self.shape[1:])
        left = _basis([pair.left for pair in pairs], rows, self.dtype)
        right = _basis([pair.right.T for pair in pairs], columns, self.dtype)
        shape = (rows if left is None else left.shape[1], columns if right is None else right.shape[1])
        for side, basis in (("left", left), ("right", right)):
            if basis is not None:
                shelf.put(key(self.name, side), basis)
        core = Core(self.name, self.start, shape, left, right)
        for founder, delta in enumerate(deltas):
            shelf.extend(founder, self._values(core, delta))
        return core

    def _values(self, core: Core, delta: Delta | None) -> np.ndarray:
        if delta is None:
            return np.zeros(core.shape[0] * core.shape[1], self.dtype)
        return np.asarray(core.project(delta), self.dtype).ravel()


def _first(held: list[Delta | None], rest: Deltas) -> Deltas:
    """Yields what is held, letting go of each, then the rest."""
    while held:
        yield held.pop(0)
    yield from rest


DEPENDENT: Final[Mapping[str, float]] = MappingProxyType({"float32": 1e-6, "float64": 1e-13})
"""A direction of which the spans hold less than this, every column scaled to length one, adds nothing in that dtype."""

WELL_CONDITIONED = 1e-8
"""The least share that the smallest eigenvalue of a Gram matrix in float64 has of the largest, for eigenvectors that
give orthonormal columns: their error is float64's rounding divided by it."""


def _basis(spans: Iterable[np.ndarray], size: int, dtype: np.dtype[Any]) -> np.ndarray | None:
    """Returns orthonormal columns that span all given columns, or `None` (the identity) if that takes all `size`."""
    columns = np.concatenate([span.astype(np.float64) for span in spans], axis=1)
    lengths = np.linalg.norm(columns, axis=0)
    columns = columns[:, lengths > 0] / lengths[lengths > 0]
    directions = _independent(columns) if dtype == np.float32 else None
    if directions is None:
        directions, sigma, _ = np.linalg.svd(columns, full_matrices=False)
        directions = directions[:, sigma > DEPENDENT[dtype.name] * sigma[:1]]
    return None if directions.shape[1] >= size else np.ascontiguousarray(directions, dtype=dtype)


def _independent(columns: np.ndarray) -> np.ndarray | None:
    """Returns the left singular vectors of tall columns by way of their Gram matrix, some ten times sooner than LAPACK.

    That loses the square of the condition: `None` where they would not be orthonormal to float32's rounding.
    """
    if columns.shape[1] > len(columns):
        return None
    values, vectors = np.linalg.eigh(columns.T @ columns)  # ascending
    if values[0] < WELL_CONDITIONED * values[-1]:
        return None
    return np.asarray(columns @ (vectors / np.sqrt(values))[:, ::-1])
