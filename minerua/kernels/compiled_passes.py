"""The passes of the compiled core. Twins of `reference_passes`; what comes here was checked by the door."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from minerua.kernels.compiled import exported, require_core
from minerua.kernels.sources import Mask, Source, Target, Threshold

_LARGEST_KEY = (1 << 31) - 1


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


def histogram(sources: Sequence[Source], *, base: Source | None, prefixes: Sequence[int] | None = None) -> np.ndarray:
    """Counts magnitudes, as `reference_passes.histogram` does."""
    lows = [0] * len(sources) if prefixes is None else [int(prefix) << 16 for prefix in prefixes]
    highs = [_LARGEST_KEY if prefixes is None else low | 0xFFFF for low in lows]
    counts = np.empty((len(sources), 1 << 15 if prefixes is None else 1 << 16), np.int64)
    require_core().count_keys(_sources(sources), _base(base), lows, highs, 16 if prefixes is None else 0, counts)
    return counts


def count_equal(sources: Sequence[Source], *, base: Source | None, keys: Sequence[int]) -> np.ndarray:
    """Counts equal keys, as `reference_passes.count_equal` does."""
    counts, same = np.empty((len(sources), 1), np.int64), [int(key) for key in keys]
    require_core().count_keys(_sources(sources), _base(base), same, same, 0, counts)
    return counts[:, 0]


def select_largest(sources: Sequence[Source], counts: Sequence[int], *, base: Source | None) -> list[Threshold]:
    """Returns thresholds, as `reference_passes.select_largest` does."""
    found = require_core().select_largest(_sources(sources), _base(base), [int(count) for count in counts])
    return [Threshold(*threshold) for threshold in found]


def draw(mask: Mask, size: int) -> np.ndarray:
    """Returns what a mask draws, as `reference_passes.draw` does."""
    bits = np.empty(size // 64 + 2, np.uint64)
    require_core().draw(_mask(mask), size, bits)
    return bits


def masked_sums(sources: Sequence[Source], masks: Sequence[Mask], *, base: Source | None) -> np.ndarray:
    """Returns sums of magnitudes, as `reference_passes.masked_sums` does, up to the rounding of float64."""
    sums = np.empty((len(sources), 2), np.float64)
    require_core().masked_sums(_sources(sources), _base(base), [_mask(mask) for mask in masks], sums)
    return sums


def merge_masked(
    sources: Sequence[Source],
    masks: Sequence[Mask],
    *,
    base: Source | None,
    factors: Sequence[float],
    votes: Sequence[float] | None,
    shares: Sequence[float] | None,
    scale: float,
    target: Target,
) -> np.ndarray:
    """Writes a merge of what masks keep, as `reference_passes.merge_masked` does, bit for bit."""
    optional = [None if numbers is None else _floats(numbers) for numbers in (votes, shares)]
    counts = require_core().merge_masked(
        _sources(sources),
        _base(base),
        [_mask(mask) for mask in masks],
        _floats(factors),
        *optional,
        float(np.float32(scale)),
        _target(target),
    )
    return np.array(counts, np.int64)


def _floats(numbers: Sequence[float]) -> list[float]:
    return [float(number) for number in np.asarray(numbers, np.float32)]


def _mask(mask: Mask) -> tuple[Any, ...]:
    limits = [None if limit is None else (int(limit[0]), int(limit[1])) for limit in (mask.top, mask.but)]
    keep = None if mask.keep is None else float(np.float32(mask.keep))
    spread, columns = float(np.float32(mask.spread)), int(mask.columns)
    drawn = 0 if mask.drawn is None else mask.drawn.ctypes.data
    numbers = int(mask.model), int(mask.tensor), int(mask.seed)
    return *limits, keep, spread, columns, bool(mask.inverse), *numbers, drawn


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
