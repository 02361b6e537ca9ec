"""Rows of different lengths as batches: filled up on the left, longest first, the same for the same rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class Padded:
    """Rows side by side.

    Args:
        ids: Shape (rows, longest), int64; each row ends at the right edge.
        mask: Shape (rows, longest), int64: 1 where a row has an id.
        positions: Shape (rows, longest), int64: 0 at a row's first id.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor


def padded(rows: Sequence[Sequence[int]], device: torch.device) -> Padded:
    """Returns rows as a batch; what they are filled up with is never looked at."""
    import numpy as np
    import torch

    longest = max(map(len, rows))
    ids, mask = np.zeros((len(rows), longest), np.int64), np.zeros((len(rows), longest), np.int64)
    for k, row in enumerate(rows):
        ids[k, longest - len(row) :] = row
        mask[k, longest - len(row) :] = 1
    positions = np.maximum(mask.cumsum(axis=1) - 1, 0)
    return Padded(*(torch.from_numpy(array).to(device) for array in (ids, mask, positions)))


def batches(lengths: Sequence[int], size: int, *, most_ids: int | None = None) -> Iterator[list[int]]:
    """Yields the numbers of rows that go together: longest first, so that memory runs out at once or never.

    Args:
        lengths: Of all rows; equal ones keep their order.
        size: The most rows of a batch.
        most_ids: The most ids of a batch, filling included; a row that is longer goes alone.
    """
    order = sorted(range(len(lengths)), key=lambda k: (-lengths[k], k))
    start = 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        count = size if most_ids is None else max(1, min(size, most_ids // longest))
        yield order[start : start + count]
        start += count
