"""What every source of rows offers: a look through all of them, then any usable row by its number."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from minerua.learning.rows import BadRows, RowError


@dataclass(frozen=True, eq=False)
class Scanned:
    """What a look through a source has found; usable rows are numbered from 0 in the source's order.

    Args:
        hashes: Shape (n,), uint64: what stands for each usable row's key.
        codes: Shape (n,), int32: the position of each usable row's label in `names`; empty where labels are no classes.
        names: The labels that occur, in the order of their first occurrence; all declared ones where they are declared.
        blank_lines: Empty lines, which are no rows.
        checked: Whether every row was read.
    """

    hashes: np.ndarray
    codes: np.ndarray
    names: tuple[str, ...]
    blank_lines: int = 0
    checked: bool = True


class Source(Protocol):
    """Rows that can be looked through once and then read in any order, by several processes at a time.

    A source can be pickled; what it has opened is opened again where it arrives.
    """

    def scan(self, bad: BadRows) -> Scanned:
        """Looks at every row; counts those that cannot be used, and numbers the others."""
        ...

    def read(self, i: int) -> tuple[Any, Any]:
        """Returns inputs and target of usable row i; the target is `None` where `Scanned.codes` have it."""
        ...

    def place(self, i: int) -> str:
        """Returns where usable row i stands, for messages."""
        ...


class Hashes:
    """Collects what a scan finds about usable rows."""

    def __init__(self) -> None:
        self._hashes, self._codes = array("Q"), array("i")  # an eighth of what lists of numbers take

    def __len__(self) -> int:
        return len(self._hashes)

    def add(self, hash: int, code: int | None) -> None:
        """Adds a usable row."""
        self._hashes.append(hash)
        if code is not None:
            self._codes.append(code)

    def scanned(self, names: Sequence[str], **rest: Any) -> Scanned:
        """Returns what was collected."""
        hashes, codes = np.array(self._hashes, np.uint64), np.array(self._codes, np.int32)
        return Scanned(hashes, codes, tuple(names), **rest)


def check_inputs(value: np.ndarray, first: tuple[int, ...] | None) -> None:
    """Refuses inputs that are not finite, or shaped otherwise than the first usable row's.

    Raises:
        RowError: With what was found.
    """
    if first is not None and value.shape != first:
        raise RowError("another shape", f"{list(value.shape)} where the first row has {list(first)}")
    if value.dtype.kind in "fc" and not np.isfinite(value).all():
        raise RowError("not finite", f"{np.count_nonzero(~np.isfinite(value))} of {value.size} inputs")
