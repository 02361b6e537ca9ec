"""Passes over tensors of any size, a tile at a time: what merge methods are made of.

Every function checks what comes, then calls the compiled core, or its twin in `reference_passes` where the core is
missing or MINERUA_BACKEND=reference asks for it. Memory stays bounded whatever the tensors' size, and the same input
gives the same bits, whatever the number of threads and the instruction set. Sources are borrowed and never written to;
a target must not overlap them. Everything may be called from several threads at once.

The K sources are called x_k, the base b, and δ_k = x_k − b (in float32) the task vectors; without a base δ_k = x_k.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from minerua.kernels import compiled, compiled_passes, reference_passes
from minerua.kernels.arrays import described
from minerua.kernels.pass_checks import Faults
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
    "draw",
    "gram",
    "histogram",
    "load",
    "masked_sums",
    "merge_masked",
    "select_largest",
]


_Door = TypeVar("_Door", bound=Callable[..., Any])


def _or_on_device(door: _Door) -> _Door:
    """Sends sources that lie on a CUDA device to the twin of that name there, which checks them itself."""

    @functools.wraps(door)
    def chosen(sources: Any, *arguments: Any, **named: Any) -> Any:
        first = sources if isinstance(sources, Source) else next(iter(sources), None)
        if isinstance(first, Source) and described(first.array).is_cuda:
            from minerua.kernels import cuda_passes

            return getattr(cuda_passes, door.__name__)(sources, *arguments, **named)
        return door(sources, *arguments, **named)

    return cast(_Door, chosen)


@_or_on_device
def load(source: Source, begin: int, end: int) -> np.ndarray:
    """Returns elements [begin, end) of a source, in flat order.

    Args:
        source: Any source.
        begin: Flat index of the first, at least 0.
        end: Flat index after the last, at most the source's size.

    Returns:
        Shape (end − begin,), float32; fresh.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults.

    Example:
        >>> import numpy as np
        >>> one = np.ones((2, 1), np.float32)
        >>> load(Source(np.zeros((2, 2), np.float32), left=one, right=np.array([[3, 4]], np.float32)), 1, 4)
        array([4., 3., 4.], dtype=float32)
    """
    faults = Faults("load").of_sources([source], None)
    if not faults.found:
        faults.of_range(begin, end, source.size)
    faults.refuse()
    return _twin().load(source, begin, end)


@_or_on_device
def combine(sources: Sequence[Source], coefficients: Any, *, base: Source | None, target: Target) -> np.ndarray:
    """Writes Σ_k c_k x_k, or with a base b + Σ_k c_k (x_k − b), summed in float32 in the order of k, rounded once.

    Args:
        sources: K >= 1 sources of one shape.
        coefficients: Shape (K,), or (R, K) for R rows of equal length; any numbers, rounded to float32.
        base: One more source, or `None`.
        target: Where the result goes.

    Returns:
        Shape (K + 2,), int64: how many numbers of each source, of the base, and of the result are not finite.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults, and nothing was written.
        OSError: The system refused to write; the file's content is then undefined.

    Example:
        >>> import numpy as np
        >>> merged = np.empty(2, np.float32)
        >>> two = [Source(np.array([1, 2], np.float32)), Source(np.array([3, np.inf], np.float32))]
        >>> combine(two, [0.5, 0.5], base=None, target=Target(merged.dtype, merged))
        array([0, 1, 0, 1])
        >>> merged
        array([ 2., inf], dtype=float32)
    """
    faults = Faults("combine").of_sources(sources, base).of_target(target)
    numbers = faults.coefficients(coefficients)
    faults.refuse()
    return _twin().combine(sources, numbers, base=base, target=target)


@_or_on_device
def gram(sources: Sequence[Source], *, base: Source | None, rows: int = 1) -> np.ndarray:
    """Returns all inner products of the δ_k, row by row.

    Args:
        sources: K >= 1 sources of one shape.
        base: One more source, or `None`.
        rows: R >= 1; into how many rows of equal length the tensor is cut.

    Returns:
        Shape (R, K, K), float64, symmetric; products and sums in float64. The reference sums in another order: the two
        agree to the rounding of float64.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults.

    Example:
        >>> import numpy as np
        >>> gram([Source(np.array([3, 4], np.float32))], base=None)
        array([[[25.]]])
    """
    faults = Faults("gram").of_sources(sources, base)
    faults.of_rows(rows)
    faults.refuse()
    return _twin().gram(sources, base=base, rows=rows)


@_or_on_device
def histogram(sources: Sequence[Source], *, base: Source | None, prefixes: Sequence[int] | None = None) -> np.ndarray:
    """Counts the magnitudes |δ_k| by the bits of their keys: the 31 bits of a magnitude in float32 order as it does.

    Args:
        sources: K >= 1 sources of one shape.
        base: One more source, or `None`.
        prefixes: `None`, or K upper parts of keys, each in [0, 32768).

    Returns:
        Without prefixes shape (K, 32768): how many numbers have each upper part, key >> 16. With prefixes shape
        (K, 65536): how many of the numbers with that upper part have each lower part, key & 0xffff. int64.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults.

    Example:
        >>> import numpy as np
        >>> counts = histogram([Source(np.array([1, -1, 2], np.float32))], base=None)
        >>> counts[0, 0x3F80], counts[0, 0x4000], counts.sum()
        (np.int64(2), np.int64(1), np.int64(3))
    """
    faults = Faults("histogram").of_sources(sources, base)
    faults.of_whole_numbers("prefixes", prefixes, 0, (1 << 15) - 1)
    faults.refuse()
    return _twin().histogram(sources, base=base, prefixes=prefixes)


@_or_on_device
def count_equal(sources: Sequence[Source], *, base: Source | None, keys: Sequence[int]) -> np.ndarray:
    """Counts the numbers of each δ_k that have exactly one key.

    Args:
        sources: K >= 1 sources of one shape.
        base: One more source, or `None`.
        keys: K keys, each in [0, 2^31).

    Returns:
        Shape (K,), int64.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults.

    Example:
        >>> import numpy as np
        >>> count_equal([Source(np.array([1, -1, 2], np.float32))], base=None, keys=[0x3F800000])
        array([2])
    """
    faults = Faults("count_equal").of_sources(sources, base)
    faults.of_whole_numbers("keys", keys, 0, (1 << 31) - 1)
    faults.refuse()
    return _twin().count_equal(sources, base=base, keys=keys)


@_or_on_device
def select_largest(sources: Sequence[Source], counts: Sequence[int], *, base: Source | None) -> list[Threshold]:
    """Finds which numbers of each δ_k are its largest by magnitude, exactly; among equal ones the first by index count.

    Args:
        sources: K >= 1 sources of one shape; one may come several times.
        counts: K numbers in [0, size]: how many are wanted. NaN counts as larger than everything.
        base: One more source, or `None`.

    Returns:
        K thresholds, for `Mask.top` or `Mask.but`.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults.

    Example:
        >>> import numpy as np
        >>> select_largest([Source(np.array([1, -1, 2, 1], np.float32))], [2], base=None)
        [Threshold(key=1065353216, equal=1)]
    """
    faults = Faults("select_largest").of_sources(sources, base)
    faults.of_whole_numbers("counts", counts, 0, faults.size)
    faults.refuse()
    return _twin().select_largest(sources, counts, base=base)


def draw(mask: Mask, size: int) -> np.ndarray:
    """Draws a random mask once, for several passes over the same tensor.

    Args:
        mask: With `keep` and without a spread.
        size: How many elements the tensor has.

    Returns:
        Shape (size // 64 + 2,), uint64, for `Mask.drawn`: bit i % 64 of number i // 64 says whether element i is drawn;
        bits beyond the size mean nothing.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults.

    Example:
        >>> mask = Mask(keep=0.5)
        >>> mask = mask._replace(drawn=draw(mask, 100))
        >>> mask.drawn.shape
        (3,)
    """
    faults = Faults("draw")
    if mask.keep is None or mask.spread != 0 or size < 0:
        given = f"keep={mask.keep}, spread={mask.spread}"
        faults.found.append(f"the mask has {given}, the tensor {size} elements; pass a probability, and no spread")
    faults.refuse()
    return _twin().draw(mask, size)


@_or_on_device
def masked_sums(sources: Sequence[Source], masks: Sequence[Mask], *, base: Source | None) -> np.ndarray:
    """Sums magnitudes before and after masks.

    Args:
        sources: K >= 1 sources of one shape.
        masks: K masks; `inverse` is not applied.
        base: One more source, or `None`.

    Returns:
        Shape (K, 2), float64: Σ|δ_k| and Σ|kept δ_k|. The reference sums in another order: the two agree to the
        rounding of float64.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults.

    Example:
        >>> import numpy as np
        >>> masked_sums([Source(np.array([1, -3], np.float32))], [Mask(top=(0x40000000, 0))], base=None)
        array([[4., 3.]])
    """
    Faults("masked_sums").of_sources(sources, base).of_masks(masks).refuse()
    return _twin().masked_sums(sources, masks, base=base)


@_or_on_device
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
    """Writes b + scale · Σ_k f_k d_k ÷ divisor, of the kept parts d_k of the task vectors δ_k.

    Per element: d_k is δ_k where it is kept (divided by its probability where the mask says `inverse`), else 0. With
    `votes`, the elected sign is + if Σ_k v_k d_k >= 0 and − otherwise, and only models whose v_k d_k has the elected
    sign take part (zero has no sign). With `shares`, the divisor is Σ s_k over those that take part, 1 if that is 0.
    All in float32, in the order of k, rounded once.

    Args:
        sources: K >= 1 sources of one shape.
        masks: K masks.
        base: One more source; `None` means zero.
        factors: f, K numbers, rounded to float32.
        votes: v, K numbers, rounded to float32; or `None`: all take part.
        shares: s, K numbers, rounded to float32; or `None`: the divisor is 1. Needs `votes`.
        scale: Rounded to float32.
        target: Where the result goes.

    Returns:
        Shape (K + 2,), int64: how many numbers of each source, of the base, and of the result are not finite.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults, and nothing was written.
        OSError: The system refused to write; the file's content is then undefined.

    Example:
        >>> import numpy as np
        >>> merged = np.empty(2, np.float32)
        >>> two = [Source(np.array([1, 2], np.float32)), Source(np.array([-3, 4], np.float32))]
        >>> merge_masked(two, [Mask(), Mask()], base=None, factors=[1, 1], votes=[1, 1], shares=[1, 1], scale=1,
        ...              target=Target(merged.dtype, merged))
        array([0, 0, 0, 0])
        >>> merged
        array([-3.,  3.], dtype=float32)
    """
    faults = Faults("merge_masked").of_sources(sources, base).of_masks(masks).of_target(target)
    numbers = {"factors": factors, "votes": votes, "shares": shares}
    for name, given in numbers.items():
        faults.of_numbers(name, given, optional=name != "factors")
    faults.of_numbers("scale", [scale], count=1)
    if shares is not None and votes is None:
        faults.found.append("shares are given without votes; pass votes too, or shares=None")
    faults.refuse()
    return _twin().merge_masked(
        sources, masks, base=base, factors=factors, votes=votes, shares=shares, scale=scale, target=target
    )


def _twin() -> Any:
    """Returns the module that carries passes out."""
    if compiled.forced_reference() or compiled.core is None:
        return reference_passes
    return compiled_passes
