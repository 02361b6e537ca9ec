"""Passes over tensors of any size, a tile at a time: what merge methods are made of."""

from __future__ import annotations

from minerua.kernels.reference_passes import (
    combine,
    count_equal,
    gram,
    histogram,
    load,
    masked_sums,
    merge_masked,
    select_largest,
)
from minerua.kernels.sources import ALL_KEPT, NONE_KEPT, Mask, Source, Target, Threshold

__all__ = [
    "ALL_KEPT",
    "NONE_KEPT",
    "Mask",
    "Source",
    "Target",
    "Threshold",
    "combine",
    "count_equal",
    "gram",
    "histogram",
    "load",
    "masked_sums",
    "merge_masked",
    "select_largest",
]
