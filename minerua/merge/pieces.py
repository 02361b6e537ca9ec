"""Going over a tensor in pieces: for methods that need statistics of a tensor before they can merge it.

Memory is bounded by a piece, or by a row where a row has to be seen as a whole, however large the tensor is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from minerua.kernels.sources import Target, Threshold
    from minerua.values import MergeTensors

PIECE_ELEMENTS = 1 << 18
"""Elements in a piece: with the few arrays that a method makes of them, a piece stays in a processor's cache."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A range of a tensor's elements, of all models.

    Args:
        begin: Flat index of the first element.
        experts: Shape (K, n), float32.
        base: Shape (n,), float32; zeros where there is no base.
    """

    begin: int
    experts: np.ndarray
    base: np.ndarray

    @property
    def size(self) -> int:
        """How many elements it has."""
        return len(self.base)

    @property
    def deltas(self) -> np.ndarray:
        """The task vectors δ_k = x_k − b: shape (K, n), float32."""
        return self.experts - self.base


def spans(size: int, unit: int = 1) -> Iterator[tuple[int, int]]:
    """Yields ranges that cover [0, size) in order, each of whole units and of about `PIECE_ELEMENTS` elements.

    Args:
        size: How many elements there are, a multiple of `unit`.
        unit: Elements that stay together: the length of a row.

    Example:
        >>> list(spans(6))
        [(0, 6)]
    """
    step = max(PIECE_ELEMENTS // max(unit, 1), 1) * unit
    for begin in range(0, size, max(step, 1)):
        yield begin, min(begin + step, size)


def read(tensors: MergeTensors, begin: int, end: int) -> Piece:
    """Returns elements [begin, end) of all models."""
    import numpy as np

    from minerua.kernels import passes

    loaded = [passes.load(source, begin, end) for source in tensors.experts]
    experts = np.stack(loaded) if loaded else np.zeros((0, end - begin), np.float32)
    base = np.zeros(end - begin, np.float32) if tensors.base is None else passes.load(tensors.base, begin, end)
    return Piece(begin, experts, base)


def pieces(tensors: MergeTensors, *, unit: int = 1) -> Iterator[Piece]:
    """Yields a tensor's pieces in order, each of whole units; numpy's warnings are off while the caller uses them.

    Args:
        tensors: The tensor, of all models.
        unit: Elements that stay together: the length of a row.
    """
    for begin, end in spans(size_of(tensors.shape), unit):
        yield read(tensors, begin, end)


def write(parts: Iterable[Piece], target: Target, merge: Callable[[Piece], np.ndarray], *, models: int) -> np.ndarray:
    """Merges piece by piece and writes what comes out.

    Args:
        parts: The pieces; together they cover the tensor once.
        target: Where they go.
        merge: Takes a piece and returns the merged elements, shape (n,), float32.
        models: K, the number of experts.

    Returns:
        Shape (K + 2,), int64: how many numbers of each expert, of the base, and of the result are not finite.
    """
    import numpy as np

    counts = np.zeros(models + 2, np.int64)
    with np.errstate(all="ignore"):  # what is not finite is counted, and the caller reports it
        for part in parts:
            merged = merge(part)
            target.write(part.begin, merged)
            rounded = merged.astype(target.dtype).astype(np.float32)
            looked_at = (*part.experts, part.base, rounded)
            counts += [np.count_nonzero(~np.isfinite(array)) for array in looked_at]
    return counts


def size_of(shape: Sequence[int]) -> int:
    """Returns how many elements a tensor of this shape has.

    Example:
        >>> size_of((3, 4)), size_of(())
        (12, 1)
    """
    size = 1
    for extent in shape:
        size *= extent
    return size


def row_of(shape: Sequence[int]) -> int:
    """Returns how long a row is: the last extent; of a tensor without extents, and of one with an empty row, 1.

    Example:
        >>> row_of((3, 4)), row_of((5,)), row_of(())
        (4, 5, 1)
    """
    return max(shape[-1], 1) if shape else 1


# ── order statistics ─────────────────────────────────────────────────────────────────────────────────────────────────


def select_largest(
    values: Callable[[], Iterable[np.ndarray]], counts: Callable[[int, int], Sequence[int]]
) -> list[Threshold]:
    """Returns the thresholds that keep exactly so many of the largest numbers of a sequence, without holding it.

    The sequence is gone over twice: the bits of a float32 that is not negative order as the number does, so that a
    histogram of the upper 15 bits finds where a threshold lies, and one of the lower 16 bits what it is.

    Args:
        values: Goes over the numbers from the first to the last, in pieces of any size, float32, none negative; called
            twice, with the same result.
        counts: Takes how many numbers there are and how many of them are not zero; returns how many are to be kept,
            one number or more, each in [0, size].

    Returns:
        One `Threshold` per count; of equal numbers the first in the sequence are kept.

    Example:
        >>> import numpy as np
        >>> [two] = select_largest(lambda: [np.float32([1, 3]), np.float32([3, 3])], lambda size, nonzero: [2])
        >>> two.key == int(np.float32(3).view(np.uint32)), two.equal
        (True, 2)
    """
    import numpy as np

    from minerua.kernels.sources import NONE_KEPT, Threshold

    upper, size, nonzero = np.zeros(1 << 15, np.int64), 0, 0
    for part in values():
        keys = _keys(part)
        upper += np.bincount(keys >> 16, minlength=len(upper))
        size, nonzero = size + len(keys), nonzero + int(np.count_nonzero(keys))
    wanted = list(counts(size, nonzero))
    places = [find_bin(upper, count) if count else (-1, 0) for count in wanted]
    lower = {prefix: np.zeros(1 << 16, np.int64) for prefix, _ in places}
    for part in values():
        keys = _keys(part)
        for prefix, bins in lower.items():
            bins += np.bincount(keys[keys >> 16 == prefix] & 0xFFFF, minlength=len(bins))
    found = []
    for count, (prefix, left) in zip(wanted, places, strict=True):
        low, equal = find_bin(lower[prefix], left) if count else (0, 0)
        found.append(Threshold(prefix << 16 | low, equal) if count else Threshold(*NONE_KEPT))
    return found


class AmongLargest:
    """Says which numbers of a sequence are among its largest, one piece after another, from the first to the last.

    Args:
        threshold: As `select_largest` returned it.

    Example:
        >>> import numpy as np
        >>> kept = AmongLargest((int(np.float32(3).view(np.uint32)), 1))
        >>> kept(np.float32([1, 3])).tolist(), kept(np.float32([3, 4])).tolist()
        ([False, True], [False, True])
    """

    def __init__(self, threshold: tuple[int, int]) -> None:
        self._key, self._left = threshold

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Returns, shape (n,), bool, which of the next n numbers are among the largest."""
        import numpy as np

        keys = _keys(values)
        equal = keys == self._key
        kept = np.asarray((keys > self._key) | (equal & (np.cumsum(equal) <= self._left)))
        self._left -= min(self._left, int(np.count_nonzero(equal)))
        return kept


def _keys(values: np.ndarray) -> np.ndarray:
    import numpy as np

    return (np.ascontiguousarray(values, np.float32).view(np.uint32) & 0x7FFFFFFF).astype(np.int64)


def find_bin(histogram: np.ndarray, count: int) -> tuple[int, int]:
    """Returns the bin in which the count-th largest number lies, and how many of those in it are needed."""
    import numpy as np

    above = np.cumsum(histogram[::-1])  # numbers in this bin and in all higher ones, the highest first
    place = int(np.searchsorted(above, count))
    needed = count - (int(above[place - 1]) if place else 0)
    return len(histogram) - 1 - place, needed
