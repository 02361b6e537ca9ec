"""What passes over tensors read and write: sources, masks and targets.

A source is one model's tensor as it lies on disk or in memory, with whatever turns it into the tensor that is meant
(a LoRA adapter's factors, another order of rows), so that nothing has to be written out before it is merged.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

NONE_KEPT = (1 << 31, 0)
"""The `Threshold` above every number: nothing is among the largest."""

ALL_KEPT = (0, 1 << 62)
"""The `Threshold` below every number: everything is among the largest."""


class Threshold(NamedTuple):
    """Which numbers are among the largest of a tensor, exactly, ties included.

    Numbers are ordered by magnitude, the largest first, and equal ones by flat index, the lowest first. The key of a
    number is the 31 bits of |δ| in float32, which order as the magnitudes do.

    Args:
        key: Numbers with a greater key are among the largest.
        equal: How many of those with this very key are, the first by flat index.
    """

    key: int
    equal: int


class Mask(NamedTuple):
    """Which elements of a task vector are kept; an element must pass all parts.

    Args:
        top: Keep only what is among these largest; `None` keeps all.
        but: Drop what is among these largest; `None` drops nothing.
        keep: Keep with this probability, in [0, 1]; `None` keeps all.
        spread: The probability of an element runs from `keep - spread` for the smallest magnitude of its row to
            `keep + spread` for the largest, linearly in its rank.
        columns: Length of a row, for `spread`.
        inverse: Divide a kept element by its own probability.
        model: Which model it is, in the counter of the random numbers: below 2^32.
        tensor: Which tensor it is, in the counter of the random numbers: below 2^32.
        seed: Key of the random numbers: below 2^64.
        drawn: What `passes.draw` returned for this very mask without a spread, so that it is drawn once for several
            passes; `None` draws in each.
    """

    top: tuple[int, int] | None = None
    but: tuple[int, int] | None = None
    keep: float | None = None
    spread: float = 0.0
    columns: int = 1
    inverse: bool = False
    model: int = 0
    tensor: int = 0
    seed: int = 0
    drawn: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """One model's tensor, read in float32 wherever it is needed; never copied as a whole.

    Element (i, j) of the tensor, seen as a matrix with `columns` columns, is

        stored[i, j] + Σ_r left[i, r] · right[r, j]

    with `stored` = `array`, or, where `rows` is given, row `rows[i]` of `array`, and for a negative number row
    `-1 - rows[i]` of `extra`.

    Args:
        array: Contiguous; float32, float16 or bfloat16; borrowed. Its shape is the tensor's, unless `rows` is given.
        left: Shape (m, r), float32, contiguous; or `None`.
        right: Shape (r, n), float32, contiguous; or `None`.
        rows: Shape (m,), int64; or `None`. Arrays with `rows` have two dimensions.
        extra: Shape (e, n), float32, contiguous; rows that `array` lacks; or `None`.
    """

    array: np.ndarray
    left: np.ndarray | None = None
    right: np.ndarray | None = None
    rows: np.ndarray | None = None
    extra: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's extents."""
        return self.array.shape if self.rows is None else (len(self.rows), *self.array.shape[1:])

    @property
    def size(self) -> int:
        """How many elements the tensor has."""
        return math.prod(self.shape)


@dataclass(frozen=True, eq=False)
class Target:
    """Where a merged tensor goes: an array, or a file at an offset that nobody else writes to.

    Args:
        dtype: The element type to round to, once, to nearest even: float32, float16 or bfloat16.
        array: A writable, contiguous array of the tensor's size; or `None`.
        file: A file descriptor open for writing, if there is no array.
        offset: First byte in the file.
    """

    dtype: np.dtype
    array: np.ndarray | None = None
    file: int = -1
    offset: int = 0

    def write(self, begin: int, values: np.ndarray) -> None:
        """Writes elements, rounding them to the target's type.

        Args:
            begin: Flat index of the first.
            values: Any shape, a floating dtype.

        Raises:
            OSError: The system refused.
        """
        with np.errstate(over="ignore"):  # beyond the range becomes infinity, which whoever writes reports
            rounded = np.ascontiguousarray(values, dtype=self.dtype).reshape(-1)
        if self.array is not None:
            self.array.reshape(-1)[begin : begin + rounded.size] = rounded
            return
        content = memoryview(rounded.view(np.uint8).data)
        written = 0
        while written < len(content):
            written += os.pwrite(self.file, content[written:], self.offset + begin * self.dtype.itemsize + written)
