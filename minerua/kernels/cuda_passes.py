"""The passes on tensors that lie on a CUDA device, many tensors in one launch.

Twins of `reference_passes`: the same bits for `combine` and `merge_masked`, the same thresholds and counts, and sums in
float64 in a fixed order of their own; but for the payload of a NaN, which is the device's, and so its key. Sources are
`Source`s whose arrays and factors are contiguous CUDA tensors, without `rows` and `extra`.

Functions named `…_many` take one `Group` for each tensor and queue everything on torch's current stream; they wait for
the device only where they say so, and return device tensors otherwise. The others are for one tensor; they wait, and
return what their twins do. Temporary memory comes from torch's caching allocator.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from minerua.kernels import cuda_steps
from minerua.kernels.cuda_checks import check_groups, check_numbers, check_outs, check_weights
from minerua.kernels.cuda_steps import Weights, on_device
from minerua.kernels.cuda_tables import (
    SELECTION,
    Group,
    Tables,
    balanced_length,
    named_places,
    pieces_of,
    starts,
)
from minerua.kernels.sources import Mask, Source, Target, Threshold

__all__ = [
    "GRAM_ELEMENTS",
    "Group",
    "Weights",
    "combine",
    "combine_many",
    "count_equal",
    "count_equal_many",
    "gram",
    "gram_many",
    "histogram",
    "histogram_many",
    "load",
    "masked_sums",
    "masked_sums_many",
    "merge_masked",
    "merge_masked_many",
    "select_largest",
    "select_largest_many",
]

GRAM_ELEMENTS = 1 << 17
"""Elements of a piece of `gram`: always the same, so that a tensor's sums do not depend on what is beside it."""


# ── many tensors in one launch ───────────────────────────────────────────────────────────────────────────────────────


def combine_many(groups: Sequence[Group], coefficients: Sequence[Any], *, outs: Sequence[Any]) -> list[Any]:
    """Writes Σ_k c_k x_k, or with a base b + Σ_k c_k (x_k − b), of every group, as `reference_passes.combine` does.

    Args:
        groups: G >= 1, on one device.
        coefficients: For each group shape (K,), or (R, K) for R rows of equal length; any numbers, rounded to float32.
        outs: For each group a contiguous tensor of its size, float32, float16 or bfloat16; overlaps no source.

    Returns:
        For each group, on the device, shape (K + 2,), int64: how many numbers of each source, of the base, and of the
        result are not finite.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults, and nothing was queued.
        CoreUnavailable: The library is missing, or a launch failed.
    """
    faults = check_groups("combine", groups).of_each("coefficients", coefficients)
    numbers = check_numbers(faults, coefficients)
    check_outs(faults, outs).refuse()
    rows = [len(own) for own in numbers]
    tables = Tables(groups, [group.count + 2 for group in groups], outs)
    pieces = pieces_of([group.size for group in groups], rows)
    counts_of = np.repeat([group.count for group in groups], rows)
    pieces["at"] = starts(counts_of)[pieces["at"]]
    tables.named["pieces"] = pieces
    counts = cuda_steps.combined(tables, np.concatenate([own.reshape(-1) for own in numbers]))
    return list(counts.split(list(tables.results)))


def gram_many(groups: Sequence[Group], *, rows: Sequence[int] | None = None) -> list[Any]:
    """Returns all inner products of the δ_k of every group, row by row, as `reference_passes.gram` does.

    Args:
        groups: G >= 1, on one device.
        rows: For each group into how many rows of equal length it is cut; `None` means one.

    Returns:
        For each group, on the device, shape (R, K, K), float64, symmetric.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults.
        CoreUnavailable: The library is missing, or a launch failed.
    """
    counts = [1] * len(groups) if rows is None else list(rows)
    faults = check_groups("gram", groups).of_each("rows", counts)
    faults.each(lambda own, row: own.of_rows(row), counts).refuse()
    pieces = pieces_of([group.size for group in groups], counts, GRAM_ELEMENTS)
    squares = np.array([group.count**2 for group in groups], np.int64)
    out = cuda_steps.summed("minerua_cuda_gram", groups, pieces, np.repeat(squares, counts))
    parts = out.split([int(square) * row for square, row in zip(squares, counts, strict=True)])
    return [part.view(row, g.count, g.count) for part, row, g in zip(parts, counts, groups, strict=True)]


def histogram_many(groups: Sequence[Group], *, prefixes: Sequence[Sequence[int]] | None = None) -> list[Any]:
    """Counts the magnitudes of every group by the bits of their keys, as `reference_passes.histogram` does.

    Args:
        groups: G >= 1, on one device.
        prefixes: `None`, or for each group K upper parts of keys, each in [0, 32768).

    Returns:
        For each group, on the device, shape (K, 32768), or with prefixes (K, 65536), int64.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults.
        CoreUnavailable: The library is missing, or a launch failed.
    """
    faults = check_groups("histogram", groups).of_each("prefixes", prefixes)
    faults.each(lambda own, x: own.of_whole_numbers("prefixes", x, 0, (1 << 15) - 1), prefixes).refuse()
    tables = Tables(groups, [group.count for group in groups])
    tables.named["pieces"] = pieces_of([g.size for g in groups], longest=balanced_length(groups))
    tables.named["selections"] = cuda_steps.selections([0] * sum(tables.results))
    if prefixes is not None:
        tables.named["selections"]["key"] = [int(prefix) << 16 for own in prefixes for prefix in own]
    with on_device(groups) as stream:
        counts = cuda_steps.counted(tables.send(), sum(tables.results), prefixes is not None, stream)
    return list(counts.view(sum(tables.results), -1).split(list(tables.results)))


def count_equal_many(groups: Sequence[Group], keys: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Counts the numbers of each δ_k that have exactly one key, as `reference_passes.count_equal`; waits.

    Args:
        groups: G >= 1, on one device.
        keys: For each group K keys, each in [0, 2^31).

    Returns:
        For each group shape (K,), int64, on the host.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults.
        CoreUnavailable: The library is missing, or a launch failed.
    """
    faults = check_groups("count_equal", groups).of_each("keys", keys)
    faults.each(lambda own, x: own.of_whole_numbers("keys", x, 0, (1 << 31) - 1), keys).refuse()
    tables = Tables(groups, [group.count for group in groups])
    rows = [(0, g, k, int(key), 0) for g, own in enumerate(keys) for k, key in enumerate(own)]
    tables.named["places"], tables.named["pieces"] = named_places(groups, rows)
    with on_device(groups) as stream:
        counts = cuda_steps.counted_equal(tables.send(), "pieces", stream).cpu().numpy()
    totals = np.zeros(len(rows), np.int64)
    np.add.at(totals, tables.named["pieces"]["tensor"], counts)
    return np.split(totals, starts(tables.results)[1:])


def select_largest_many(groups: Sequence[Group], counts: Sequence[Sequence[int]]) -> list[list[Threshold]]:
    """Finds which numbers of each δ_k are its largest, as `reference_passes.select_largest` does.

    Everything is queued before the device is waited for, once, however many groups there are.

    Args:
        groups: G >= 1, on one device.
        counts: For each group K numbers in [0, size]: how many are wanted.

    Returns:
        For each group K thresholds.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults.
        CoreUnavailable: The library is missing, or a launch failed.
    """
    faults = check_groups("select_largest", groups).of_each("counts", counts)
    faults.each(lambda own, x: own.of_whole_numbers("counts", x, 0, own.size), counts).refuse()
    torch: Any = sys.modules["torch"]
    with on_device(groups) as stream:
        queued = [cuda_steps.selected(groups[part], counts[part], stream) for part in cuda_steps.batches(groups)]
        found = torch.cat(queued).cpu().numpy().view(SELECTION)
    thresholds = [Threshold(int(row["key"]), int(row["remaining"])) for row in found]
    firsts = starts([group.count for group in groups])
    return [thresholds[first : first + group.count] for first, group in zip(firsts, groups, strict=True)]


def masked_sums_many(groups: Sequence[Group], masks: Sequence[Sequence[Mask]]) -> list[Any]:
    """Sums the magnitudes of every group before and after masks, as `reference_passes.masked_sums` does.

    Args:
        groups: G >= 1, on one device.
        masks: For each group K masks.

    Returns:
        For each group, on the device, shape (K, 2), float64.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults.
        CoreUnavailable: The library is missing, or a launch failed.
    """
    faults = check_groups("masked_sums", groups).of_each("masks", masks)
    faults.each(lambda own, x: own.of_masks(x), masks).refuse()
    sums: list[Any] = [None] * len(groups)
    for part in cuda_steps.by_rank(masks):
        chosen = [groups[g] for g in part]
        pieces = pieces_of([group.size for group in chosen])
        widths = np.array([2 * group.count for group in chosen], np.int64)
        out = cuda_steps.summed("minerua_cuda_masked_sums", chosen, pieces, widths, [masks[g] for g in part])
        for g, own in zip(part, out.split([int(width) for width in widths]), strict=True):
            sums[g] = own.view(-1, 2)
    return sums


def merge_masked_many(
    groups: Sequence[Group], masks: Sequence[Sequence[Mask]], weights: Sequence[Weights], *, outs: Sequence[Any]
) -> list[Any]:
    """Writes b + scale · Σ_k f_k d_k ÷ divisor of every group, as `reference_passes.merge_masked` does.

    Groups whose masks have a spread go one after another, because a probability is held for each of their elements.

    Args:
        groups: G >= 1, on one device.
        masks: For each group K masks.
        weights: For each group what is done with what they keep.
        outs: For each group a contiguous tensor of its size, float32, float16 or bfloat16; overlaps no source.

    Returns:
        For each group, on the device, shape (K + 2,), int64: how many numbers of each source, of the base, and of the
        result are not finite.

    Raises:
        KernelError: Arguments that cannot be taken; lists all faults, and nothing was queued.
        CoreUnavailable: The library is missing, or a launch failed.
    """
    faults = check_groups("merge_masked", groups).of_each("masks", masks).of_each("weights", weights)
    faults.each(lambda own, x: own.of_masks(x), masks).each(check_weights, weights)
    check_outs(faults, outs).refuse()
    counts: list[Any] = [None] * len(groups)
    for part in cuda_steps.by_rank(masks):
        chosen, own_masks = [groups[g] for g in part], [masks[g] for g in part]
        merged = cuda_steps.merged(chosen, own_masks, [weights[g] for g in part], [outs[g] for g in part])
        for g, own in zip(part, merged, strict=True):
            counts[g] = own
    return counts


# ── one tensor ───────────────────────────────────────────────────────────────────────────────────────────────────────


def load(source: Source, begin: int, end: int) -> np.ndarray:
    """Returns elements, as `reference_passes.load` does; waits for the device."""
    group = Group([source])
    check_groups("load", [group]).each(lambda own, last: own.of_range(begin, last, own.size), [end]).refuse()
    return np.asarray(cuda_steps.values_of(source, begin, end).cpu().numpy())


def combine(sources: Sequence[Source], coefficients: Any, *, base: Source | None, target: Target) -> np.ndarray:
    """Writes weighted sums, as `reference_passes.combine` does, bit for bit; waits for the device."""
    return _host(combine_many([Group(sources, base)], [coefficients], outs=[target.array]))


def gram(sources: Sequence[Source], *, base: Source | None, rows: int = 1) -> np.ndarray:
    """Returns inner products, as `reference_passes.gram` does, up to float64's rounding; waits for the device."""
    return _host(gram_many([Group(sources, base)], rows=[rows]))


def histogram(sources: Sequence[Source], *, base: Source | None, prefixes: Sequence[int] | None = None) -> np.ndarray:
    """Counts magnitudes, as `reference_passes.histogram` does; waits for the device."""
    return _host(histogram_many([Group(sources, base)], prefixes=None if prefixes is None else [prefixes]))


def count_equal(sources: Sequence[Source], *, base: Source | None, keys: Sequence[int]) -> np.ndarray:
    """Counts equal keys, as `reference_passes.count_equal` does; waits for the device."""
    return count_equal_many([Group(sources, base)], [keys])[0]


def select_largest(sources: Sequence[Source], counts: Sequence[int], *, base: Source | None) -> list[Threshold]:
    """Returns thresholds, as `reference_passes.select_largest` does; waits for the device."""
    return select_largest_many([Group(sources, base)], [counts])[0]


def masked_sums(sources: Sequence[Source], masks: Sequence[Mask], *, base: Source | None) -> np.ndarray:
    """Returns sums of magnitudes, as `reference_passes.masked_sums`, up to float64's rounding; waits for the device."""
    return _host(masked_sums_many([Group(sources, base)], [masks]))


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
    """Writes a merge of what masks keep, as `reference_passes.merge_masked`, bit for bit; waits for the device."""
    weights = Weights(factors, votes, shares, scale)
    return _host(merge_masked_many([Group(sources, base)], [masks], [weights], outs=[target.array]))


def _host(results: Sequence[Any]) -> np.ndarray:
    return np.asarray(results[0].cpu().numpy())
