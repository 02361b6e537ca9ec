"""Going over a tensor in pieces: for methods that need statistics of a tensor before they can merge it.

Memory is bounded by a piece, or by a row where a row has to be seen as a whole, however large the tensor is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np

    from minerua.kernels.sources import Target, Threshold
    from minerua.values import MergeTensors

Made = TypeVar("Made")

PIECE_ELEMENTS = 1 << 18
"""Elements in a piece: with the few arrays that a method makes of them, a piece stays in a processor's cache."""


class Piece(NamedTuple):
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


def each(tensors: MergeTensors, make: Callable[[Piece], Made], *, unit: int = 1) -> Iterator[Made]:
    """Yields what a function makes of a tensor's pieces, in their order; several threads work ahead of the caller.

    Args:
        tensors: The tensor, of all models.
        make: Called with one piece at a time, from several threads, without numpy's warnings: what is not finite is
            counted where it is written.
        unit: Elements that stay together: the length of a row.
    """
    return each_of(spans(size_of(tensors.shape), unit), lambda begin, end: make(read(tensors, begin, end)))


def each_of(ranges: Iterable[tuple[int, int]], make: Callable[[int, int], Made]) -> Iterator[Made]:
    """Yields what a function makes of ranges of elements, in order; as `each`, with other ranges.

    Args:
        ranges: First and last element of each.
        make: Called with both, from several threads, without numpy's warnings.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from minerua.kernels import num_threads

    def quietly(begin: int, end: int) -> Made:
        with np.errstate(all="ignore"):
            return make(begin, end)

    with ExitStack() as stack:
        pool: ThreadPoolExecutor | None = None
        ahead: deque[Future[Made]] = deque()
        for (begin, end), is_last in _with_last(ranges):
            if is_last and pool is None:  # nothing to run beside it
                yield quietly(begin, end)
                continue
            pool = pool or stack.enter_context(ThreadPoolExecutor(num_threads()))
            ahead.append(pool.submit(quietly, begin, end))
            if len(ahead) > num_threads():
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _with_last(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], bool]]:
    before: tuple[int, int] | None = None
    for item in ranges:
        if before is not None:
            yield before, False
        before = item
    if before is not None:
        yield before, True


def write(tensors: MergeTensors, target: Target, merge: Callable[[Piece], np.ndarray], *, unit: int = 1) -> np.ndarray:
    """Merges a tensor piece by piece and writes what comes out.

    Args:
        tensors: The tensor, of all models.
        target: Where it goes.
        merge: Takes a piece and returns the merged elements, shape (n,), float32; called from several threads.
        unit: Elements that stay together: the length of a row.

    Returns:
        Shape (K + 2,), int64: how many numbers of each expert, of the base, and of the result are not finite.
    """
    import numpy as np

    counts = np.zeros(len(tensors.experts) + 2, np.int64)
    for found in each(tensors, lambda piece: write_piece(piece, target, merge(piece)), unit=unit):
        counts += found
    return counts


def write_piece(piece: Piece, target: Target, merged: np.ndarray) -> np.ndarray:
    """Writes a merged piece; returns counts as `write` does."""
    import numpy as np

    target.write(piece.begin, merged)
    rounded = merged.astype(target.dtype).astype(np.float32)
    return np.array(
        [np.count_nonzero(~np.isfinite(array)) for array in (*piece.experts, piece.base, rounded)], np.int64
    )


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
    values: Callable[[Callable[[np.ndarray], Any]], Iterable[Any]], counts: Callable[[int, int], Sequence[int]]
) -> list[Threshold]:
    """Returns the thresholds that keep exactly so many of the largest numbers of a sequence, without holding it.

    The sequence is gone over twice: the bits of a float32 that is not negative order as the number does, so that a
    histogram of the upper 15 bits finds where a threshold lies, and one of the lower 16 bits what it is.

    Args:
        values: Takes a function of an array and yields what it makes of the numbers from the first to the last, in
            pieces of any size, float32, none negative; called twice, with the same numbers.
        counts: Takes how many numbers there are and how many of them are not zero; returns how many are to be kept,
            one number or more, each in [0, size].

    Returns:
        One `Threshold` per count; of equal numbers the first in the sequence are kept.

    Example:
        >>> import numpy as np
        >>> numbers = [np.float32([1, 3]), np.float32([3, 3])]
        >>> [two] = select_largest(lambda use: map(use, numbers), lambda size, nonzero: [2])
        >>> two.key == int(np.float32(3).view(np.uint32)), two.equal
        (True, 2)
    """
    import numpy as np

    from minerua.kernels.sources import NONE_KEPT, Threshold

    upper, size, nonzero = np.zeros(1 << 15, np.int64), 0, 0
    for histogram, own_size, own_nonzero in values(_upper_bits):
        upper += histogram
        size, nonzero = size + own_size, nonzero + own_nonzero
    wanted = list(counts(size, nonzero))
    places = [find_bin(upper, count) if count else (0, 0) for count in wanted]
    if not any(wanted):
        return [Threshold(*NONE_KEPT)] * len(wanted)
    prefixes = [prefix for prefix, _ in places]
    lower: np.ndarray = sum(values(partial(_lower_bits, prefixes)), start=np.zeros((len(prefixes), 1 << 16), np.int64))
    found = []
    for count, (prefix, left), histogram in zip(wanted, places, lower, strict=True):
        low, equal = find_bin(histogram, left) if count else (0, 0)
        found.append(Threshold(prefix << 16 | low, equal) if count else Threshold(*NONE_KEPT))
    return found


def _upper_bits(values: np.ndarray) -> tuple[np.ndarray, int, int]:
    import numpy as np

    from minerua.kernels import passes

    return passes.histogram([passes.Source(values)], base=None)[0], values.size, int(np.count_nonzero(values))


def _lower_bits(prefixes: Sequence[int], values: np.ndarray) -> np.ndarray:
    from minerua.kernels import passes

    return passes.histogram([passes.Source(values)] * len(prefixes), base=None, prefixes=prefixes)


def among_largest(values: np.ndarray, threshold: tuple[int, int]) -> np.ndarray:
    """Returns, shape (n,), bool, which of n numbers are among the largest, as `Threshold` defines it.

    Args:
        values: Shape (n,), float32, none negative.
        threshold: A key, and how many of the numbers with this very key are among them, the first.

    Example:
        >>> import numpy as np
        >>> among_largest(np.float32([1, 3, 3, 4]), (int(np.float32(3).view(np.uint32)), 1)).tolist()
        [False, True, False, True]
    """
    import numpy as np

    key, equal = threshold
    keys = keys_of(values)
    kept = keys > key
    kept[np.flatnonzero(keys == key)[:equal]] = True
    return kept


def keys_of(values: np.ndarray) -> np.ndarray:
    """Returns the keys of numbers that are not negative: their bits, uint32."""
    import numpy as np

    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def find_bin(histogram: np.ndarray, count: int) -> tuple[int, int]:
    """Returns the bin in which the count-th largest number lies, and how many of those in it are needed."""
    import numpy as np

    above = np.cumsum(histogram[::-1])  # numbers in this bin and in all higher ones, the highest first
    place = int(np.searchsorted(above, count))
    needed = count - (int(above[place - 1]) if place else 0)
    return len(histogram) - 1 - place, needed
