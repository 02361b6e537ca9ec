"""What the passes refuse, and the sentences for it: all faults at once, each with its numbers and its remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from minerua.errors import KernelError
from minerua.kernels.arrays import DTYPES, as_float32
from minerua.kernels.sources import Mask, Source, Target


class Faults:
    """Collects what is wrong with the arguments of one pass; `refuse` says all of it.

    Args:
        operation: The pass, for the message.
    """

    def __init__(self, operation: str) -> None:
        self.operation = operation
        self.found: list[str] = []
        self.count = 0
        """How many sources there are."""
        self.size = 0
        """How many elements each of them has."""

    def refuse(self) -> None:
        """Raises everything that was found.

        Raises:
            KernelError: Something was; lists all faults.
        """
        if self.found:
            message = f"{self.operation} cannot take these arguments ({len(self.found)} faults):"
            raise KernelError(message, self.found)

    def of_sources(self, sources: Sequence[Source], base: Source | None) -> Faults:
        """Looks at the sources, at their factors and rows, and whether they are of one shape."""
        named = [(f"source {k}", source) for k, source in enumerate(sources)]
        self.count = len(named)
        if not named:
            self.found.append("there are 0 sources; pass at least one")
        for name, source in [*named, *([("the base", base)] if base is not None else [])]:
            faults = list(_source_faults(name, source))
            self.found += faults
            if not faults and named[0][0] != name and isinstance(named[0][1], Source):
                self._compare(name, source, named[0][1])
        if named and isinstance(named[0][1], Source):
            self.size = named[0][1].size
        return self

    def of_target(self, target: Target) -> Faults:
        """Looks at where the result is to go."""
        if target.dtype not in DTYPES.values():
            self.found.append(f"the target's dtype is {target.dtype}; use one of {', '.join(DTYPES)}")
        if target.array is not None:
            self.found += _array_faults(target, self.size)
        elif target.file < 0 or target.offset < 0:
            text = f"the target is file {target.file} at byte {target.offset}"
            self.found.append(f"{text}; pass an array, or an open file descriptor and an offset from 0 on")
        return self

    def of_masks(self, masks: Sequence[Mask]) -> Faults:
        """Looks at the masks, one for each source."""
        if len(masks) != self.count:
            self.found.append(f"there are {len(masks)} masks for {self.count} sources; pass one for each")
        for k, mask in enumerate(masks):
            self.found += [f"mask {k} {fault}" for fault in _mask_faults(mask, self.size)]
        columns = {mask.columns for mask in masks if _has_spread(mask)}
        if len(columns) > 1:
            self.found.append(f"masks with a spread have rows of {sorted(columns)} elements; use one length for all")
        return self

    def coefficients(self, given: Any) -> np.ndarray:
        """Returns coefficients as float32 of shape (R, K)."""
        numbers = as_float32(given)
        if numbers is None or numbers.ndim not in (1, 2) or numbers.shape[-1] != self.count:
            shape = "no numbers" if numbers is None else f"of shape {numbers.shape}"
            self.found.append(f"coefficients are {shape}, must have ({self.count},), or (R, {self.count}) for R rows")
            return np.zeros((1, self.count), np.float32)
        self.of_rows(1 if numbers.ndim == 1 else len(numbers))
        return np.ascontiguousarray(numbers.reshape(-1, max(1, self.count)))

    def of_rows(self, rows: int) -> None:
        """Looks whether a tensor can be cut into so many rows."""
        if rows < 1 or self.size % rows:
            self.found.append(f"{self.size} elements cannot be cut into {rows} rows of equal length; use a divisor")

    def of_range(self, begin: int, end: int, size: int) -> None:
        """Looks whether [begin, end) lies within a tensor."""
        if not 0 <= begin <= end <= size:
            self.found.append(f"elements {begin} to {end} were asked for; the source has {size}")

    def of_whole_numbers(self, name: str, given: Sequence[int] | None, fewest: int, most: int) -> None:
        """Looks whether there is a whole number within limits for each source."""
        if given is None:
            return
        if len(given) != self.count or any(int(x) != x or not fewest <= x <= most for x in given):
            wanted = f"{self.count} whole numbers from {fewest} to {most}"
            self.found.append(f"{name} are {_listed(given)}, must be {wanted}, one for each source")

    def of_numbers(self, name: str, given: Sequence[float] | None, *, optional: bool = False, count: int = 0) -> None:
        """Looks whether there is a number for each source."""
        if given is None and optional:
            return
        numbers = as_float32(given)
        wanted = count or self.count
        if numbers is None or numbers.shape != (wanted,):
            self.found.append(f"{name} are {_listed(given)}, must be {wanted} numbers")

    def _compare(self, name: str, source: Source, first: Source) -> None:
        if source.shape != first.shape:
            self.found.append(f"{name} has shape {source.shape}, source 0 has {first.shape}; they must be alike")


def _source_faults(name: str, source: Any) -> Iterator[str]:
    if not isinstance(source, Source) or not isinstance(source.array, np.ndarray):
        yield f"{name} is a {type(source).__name__}; pass a Source of a numpy array"
        return
    array = source.array
    if array.dtype.name not in DTYPES or not array.dtype.isnative:
        yield f"{name} has dtype {array.dtype}; convert it to one of {', '.join(DTYPES)}, in native byte order"
    if not array.flags.c_contiguous:
        yield f"{name} is not contiguous in row-major order; copy it with numpy.ascontiguousarray"
    if source.rows is not None and array.ndim != 2:
        yield f"{name} has rows to choose, and {array.ndim} dimensions; it needs 2"
        return
    columns = array.shape[-1] if array.ndim else 1
    if (source.left is None) != (source.right is None):
        yield f"{name} has one low-rank factor without the other; pass left and right, or neither"
    elif source.left is not None and source.right is not None:
        rank = len(source.right)
        rows = len(array) if source.rows is None and array.ndim == 2 else source.size // max(1, columns)
        yield from _part_faults(f"{name}'s left", source.left, np.float32, (rows, rank))
        yield from _part_faults(f"{name}'s right", source.right, np.float32, (rank, columns))
    if source.extra is not None:
        yield from _part_faults(f"{name}'s extra", source.extra, np.float32, (len(source.extra), columns))
    if source.rows is not None:
        yield from _row_faults(name, source, source.rows)


def _row_faults(name: str, source: Source, rows: np.ndarray) -> Iterator[str]:
    yield from _part_faults(f"{name}'s rows", rows, np.int64, (len(rows),))
    extra = 0 if source.extra is None else len(source.extra)
    if len(rows) and not -extra <= int(rows.min()) <= int(rows.max()) < len(source.array):
        found = f"rows {int(rows.min())} to {int(rows.max())}"
        yield f"{name} takes {found}, of {len(source.array)} stored and {extra} extra ones (−1 is the first extra)"


def _part_faults(name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> Iterator[str]:
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        found = f"{array.dtype} of shape {array.shape}" + ("" if array.flags.c_contiguous else ", not contiguous")
        yield f"{name} is {found}; it must be contiguous {np.dtype(dtype)} of shape {shape}"


def _array_faults(target: Target, size: int) -> Iterator[str]:
    array: Any = target.array
    if not isinstance(array, np.ndarray):
        yield f"the target's array is a {type(array).__name__}; pass a numpy array"
        return
    if array.dtype != target.dtype or array.size != size:
        found = f"{array.dtype} with {array.size} elements"
        yield f"the target's array is {found}; it must be {target.dtype} with {size}"
    if not array.flags.c_contiguous or not array.flags.writeable:
        yield "the target's array is read-only, or not contiguous; pass one that can be filled in order"


def _mask_faults(mask: Mask, size: int) -> Iterator[str]:
    for name, threshold in (("top", mask.top), ("but", mask.but)):
        if threshold is not None and not (0 <= threshold[0] <= 1 << 31 and 0 <= threshold[1] <= 1 << 62):
            yield f"has {name}={tuple(threshold)}; a key is at most 2^31 and a number of equal ones at most 2^62"
    if _has_spread(mask) and not (1 <= mask.columns < 1 << 31 and size % mask.columns == 0):
        yield f"has rows of {mask.columns} elements, the tensor has {size}; use the length of its rows"
    if not (0 <= mask.model < 1 << 32 and 0 <= mask.tensor < 1 << 32 and 0 <= mask.seed < 1 << 64):
        found = f"model {mask.model}, tensor {mask.tensor}, seed {mask.seed}"
        yield f"has {found}; they must be at least 0, and below 2^32, 2^32 and 2^64"

    if mask.drawn is not None and not _is_drawn(mask, size):
        yield "has a drawn that does not belong to it; pass what draw(mask, size) returned, for a mask without a spread"


def _is_drawn(mask: Mask, size: int) -> bool:
    """Whether what was drawn may be read as bits of a tensor of this size."""
    drawn: Any = mask.drawn
    fits = isinstance(drawn, np.ndarray) and drawn.dtype == np.uint64 and drawn.shape == (size // 64 + 2,)
    return fits and drawn.flags.c_contiguous and mask.keep is not None and mask.spread == 0


def _has_spread(mask: Mask) -> bool:
    return mask.keep is not None and mask.spread != 0


def _listed(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= 60 else f"{text[:57]}..."
