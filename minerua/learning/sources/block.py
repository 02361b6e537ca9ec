"""Rows as a look through a file finds them: sound ones many at a time, each other one by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, final

import numpy as np

from minerua.learning.rows import RowError


class Row(NamedTuple):
    """A row as a look through a file finds it.

    Args:
        offset: Its first byte, or its number where a format counts rows.
        length: Its bytes, line end included.
        line: Its first line, or its number, counted from 1.
        values: What it has in the wanted columns; `None` if it is bad, empty if it is blank.
        error: What is wrong with it.
    """

    offset: int
    length: int
    line: int
    values: Sequence[Any] | None
    error: RowError | None = None


@final
class Block:
    """Rows, one after the other, that are neither blank nor bad as far as their format goes; at least one.

    Args:
        offsets: Shape (n,), integers: as in `Row`.
        lengths: The same.
        lines: The same.
        columns: For each wanted column what the n rows have there.

    Example:
        >>> block = Block(np.array([0, 4]), np.array([4, 4]), np.array([1, 2]), [("1", "3"), ("2", "4")])
        >>> list(block.rows())[1]
        Row(offset=4, length=4, line=2, values=['3', '4'], error=None)
        >>> [len(half) for half in block.halves()]
        [1, 1]
    """

    def __init__(
        self, offsets: np.ndarray, lengths: np.ndarray, lines: np.ndarray, columns: Sequence[Sequence[Any]]
    ) -> None:
        self.offsets, self.lengths, self.lines, self.columns = offsets, lengths, lines, columns

    def __len__(self) -> int:
        return len(self.offsets)

    def rows(self) -> Iterator[Row]:
        """Yields the rows one by one."""
        places = (column.tolist() for column in (self.offsets, self.lengths, self.lines))
        for offset, length, line, *values in zip(*places, *self.columns, strict=True):
            yield Row(offset, length, line, values)

    def halves(self) -> tuple[Block, Block]:
        """Returns the first and the second half of two rows or more."""
        middle = len(self) // 2
        return self._part(slice(None, middle)), self._part(slice(middle, None))

    def _part(self, part: slice) -> Block:
        columns = [column[part] for column in self.columns]
        return Block(self.offsets[part], self.lengths[part], self.lines[part], columns)


def singly(found: Iterable[Block | Row]) -> Iterator[Row]:
    """Yields what a format has found row by row."""
    for one in found:
        if isinstance(one, Block):
            yield from one.rows()
        else:
            yield one
