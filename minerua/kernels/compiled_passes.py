"""The passes of the compiled core. Twins of `reference_passes`; what comes here was checked by the door."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minerua.kernels.compiled import exported, require_core
from minerua.kernels.reference_passes import count_equal, histogram, masked_sums, merge_masked, select_largest
from minerua.kernels.sources import Mask, Source, Target, Threshold


def load(source: Source, begin: int, end: int) -> np.ndarray:
    """Returns elements, as `reference_passes.load` does, bit for bit."""
    values = np.empty(end - begin, np.float32)
    require_core().load(_source(source), begin, values)
    return values


def combine(sources: Sequence[Source], coefficients: np.ndarray, *, base: Source | None, target: Target) -> np.ndarray:
    """Writes weighted sums, as `reference_passes.combine` does, bit for bit."""
    rows = coefficients.reshape(-1, len(sources))
    return np.array(require_core().combine(_sources(sources), _base(base), rows, _target(target)), np.int64)


def gram(sources: Sequence[Source], *, base: Source | None, rows: int = 1) -> np.ndarray:
    """Returns inner products, as `reference_passes.gram` does, up to the rounding of float64."""
    products = np.empty((rows, len(sources), len(sources)), np.float64)
    require_core().gram(_sources(sources), _base(base), products)
    return products


def _source(source: Source) -> tuple[Any, ...]:
    columns = max(1, source.array.shape[-1]) if source.array.ndim else 1
    parts = (source.left, source.right, source.rows, source.extra)
    return exported(source.array), source.array.dtype.name, columns, *parts


def _sources(sources: Sequence[Source]) -> list[tuple[Any, ...]]:
    return [_source(source) for source in sources]


def _base(base: Source | None) -> tuple[Any, ...] | None:
    return None if base is None else _source(base)


def _target(target: Target) -> tuple[Any, ...]:
    array = None if target.array is None else exported(target.array)
    return target.dtype.name, array, target.file, target.offset
