"""Steps of the passes on CUDA tensors: each queues work for checked groups on a stream, and waits for nothing."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from minerua.kernels import cuda
from minerua.kernels.cuda_tables import (
    PLACE,
    SELECTION,
    SUM,
    Group,
    Sent,
    Tables,
    balanced_length,
    empty,
    is_ranked,
    mask_rows,
    pieces_of,
    places_of,
    starts,
    zeros,
)
from minerua.kernels.sources import Mask, Source

SELECTED_TOGETHER = 256
"""Sources whose histograms are in memory at the same time: 192 MiB."""

RANKED_ELEMENTS = 1 << 24
"""Elements whose ranks are looked for at the same time: sorting takes some 30 bytes for each."""

UPPER_BINS, LOWER_BINS = 1 << 15, 1 << 16


@dataclass(frozen=True)
class Weights:
    """What `merge_masked` does with the kept parts of one tensor's task vectors.

    Args:
        factors: f, K numbers, rounded to float32.
        votes: v, K numbers, rounded to float32; or `None`: all take part.
        shares: s, K numbers, rounded to float32; or `None`: the divisor is 1. Needs `votes`.
        scale: Rounded to float32.
    """

    factors: Sequence[float]
    votes: Sequence[float] | None = None
    shares: Sequence[float] | None = None
    scale: float = 1.0

    @property
    def election(self) -> int:
        """The number that capi.h has for it."""
        return int(self.votes is not None) + int(self.shares is not None)

    @property
    def numbers(self) -> np.ndarray:
        """What the kernel reads: factors, votes, shares and the scale, float32."""
        none = [0.0] * len(self.factors)
        votes, shares = (none if given is None else given for given in (self.votes, self.shares))
        return np.array([*self.factors, *votes, *shares, self.scale], np.float32)


def on_device(groups: Sequence[Group]) -> AbstractContextManager[int | None]:
    """Makes the groups' device the current one, and gives the address of torch's stream on it."""
    return cuda.on(groups[0].device)


def over(sent: Sent, pieces: str = "pieces") -> Any:
    """Returns the first argument of the library's functions: the tables, over the pieces of that name."""
    return ctypes.byref(sent.over(pieces))


def combined(tables: Tables, coefficients: np.ndarray) -> Any:
    """Queues `combine`; returns the counts of all groups, one behind the other."""
    tables.named["coefficients"] = coefficients
    with on_device(tables.groups) as stream:
        sent, counts = tables.send(), zeros(sum(tables.results), tables.groups[0].device)
        cuda.call_pass("minerua_cuda_combine", over(sent), sent.address("coefficients"), counts.data_ptr(), stream)
    return counts


def values_of(source: Source, begin: int, end: int) -> Any:
    """Queues the reading of elements [begin, end) of a source; returns them, float32, flat."""
    group = Group([source])
    out = empty(end - begin, "float32", group.device)
    tables = Tables([group], [3], [out])
    tables.tensors["out"] -= begin * 4  # the kernel writes element i to place i
    tables.named["pieces"] = pieces_of([end - begin])
    tables.named["pieces"]["begin"] += begin
    combined(tables, np.ones(1, np.float32))
    return out


# ── sums ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def summed(
    name: str,
    groups: Sequence[Group],
    pieces: np.ndarray,
    widths: np.ndarray,
    masks: Sequence[Sequence[Mask]] | None = None,
) -> Any:
    """Queues a pass that leaves numbers for every piece, and their sums.

    Args:
        name: The library's function.
        groups: The tensors.
        pieces: `at` is the number of the row that a piece is of.
        widths: For every row, how many numbers a piece of it leaves.
        masks: For every group, if the pass has masks.

    Returns:
        Every row's sums, one behind the other, float64, on the device.
    """
    per_row = np.bincount(pieces["at"], minlength=len(widths))
    lengths, row = widths[pieces["at"]], np.zeros(len(widths), SUM)
    row["first"], row["pieces"], row["width"], row["out"] = starts(per_row * widths), per_row, widths, starts(widths)
    pieces["at"] = starts(lengths)
    tables = Tables(groups, [0] * len(groups))
    tables.named |= {"pieces": pieces, "sums": row}
    with on_device(groups) as stream:
        partial = empty(max(1, int(lengths.sum())), "float64", groups[0].device)
        out = empty(int(widths.sum()), "float64", groups[0].device)
        held = add_masks(tables, masks) if masks is not None else []
        sent = tables.send()
        own = [] if masks is None else [cut_masks(sent, stream)]
        cuda.call_pass(name, over(sent), *own, partial.data_ptr(), stream)
        addresses = (sent.address("sums"), len(row), partial.data_ptr(), out.data_ptr())
        cuda.call_pass("minerua_cuda_sum_pieces", *addresses, stream)
        del held  # freed behind the work queued, on its stream
    return out


# ── counts ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def selections(wanted: Sequence[int]) -> np.ndarray:
    """Returns the table of selections, none of which has begun."""
    table = np.zeros(len(wanted), SELECTION)
    table["remaining"] = wanted
    return table


def counted(sent: Sent, rows: int, is_lower: bool, stream: int | None) -> Any:
    """Queues a histogram of `rows` sources; returns its bins, one row behind the other."""
    counts = zeros(rows * (LOWER_BINS if is_lower else UPPER_BINS), sent.memory.device)
    prefixes = sent.address("selections") if is_lower else None
    cuda.call_pass("minerua_cuda_histogram", over(sent), prefixes, counts.data_ptr(), stream)
    return counts


def batches(groups: Sequence[Group]) -> Iterator[slice]:
    """Yields stretches of groups with at most SELECTED_TOGETHER sources, or one group."""
    begin = sources = 0
    for g, group in enumerate(groups):
        if g > begin and sources + group.count > SELECTED_TOGETHER:
            yield slice(begin, g)
            begin, sources = g, 0
        sources += group.count
    yield slice(begin, len(groups))


def selected(groups: Sequence[Group], counts: Sequence[Sequence[int]], stream: int | None) -> Any:
    """Queues the search for the largest numbers; returns the bytes of the finished selections."""
    tables = Tables(groups, [group.count for group in groups])
    tables.named["pieces"] = pieces_of([group.size for group in groups], longest=balanced_length(groups))
    tables.named["selections"] = selections([int(count) for own in counts for count in own])
    sent, rows = tables.send(), sum(tables.results)
    for is_lower in (False, True):
        bins = counted(sent, rows, is_lower, stream)
        arguments = (sent.address("selections"), rows, bins.data_ptr(), int(is_lower))
        cuda.call_pass("minerua_cuda_narrow", *arguments, stream)
    return sent.view("selections")


def counted_equal(sent: Sent, pieces: str, stream: int | None) -> Any:
    """Queues a count of the keys of places; returns it for every piece."""
    counts = zeros(sent.over(pieces).piece_count, sent.memory.device)
    if len(counts):
        arguments = (over(sent, pieces), sent.address("places"), counts.data_ptr())
        cuda.call_pass("minerua_cuda_count_equal", *arguments, stream)
    return counts


# ── masks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def by_rank(masks: Sequence[Sequence[Mask]]) -> Iterator[list[int]]:
    """Yields the numbers of the groups that can go together: those with a spread go alone."""
    ranked = [any(is_ranked(mask) for mask in own) for own in masks]
    if plain := [g for g, alone in enumerate(ranked) if not alone]:
        yield plain
    yield from ([g] for g, alone in enumerate(ranked) if alone)


def add_masks(tables: Tables, masks: Sequence[Sequence[Mask]]) -> list[Any]:
    """Adds the tables of masks and of what must be found for them; returns tensors to hold until the work is queued."""
    rows, held = [], []
    for group, own in zip(tables.groups, masks, strict=True):
        table = mask_rows(own, group.size, group.base is not None)
        for k, mask in enumerate(own):
            if is_ranked(mask) and group.size:
                held.append(probabilities(group, k, mask))
                table[k]["probabilities"] = held[-1].data_ptr()
        rows.append(table)
    tables.named["masks"] = np.concatenate(rows)
    tables.named["places"], tables.named["place_pieces"] = places_of(tables.groups, masks)
    return held


def cut_masks(sent: Sent, stream: int | None) -> int:
    """Queues the search for where budgets of equal keys end; returns where the masks lie."""
    masks = sent.address("masks")
    if places := sent.places["places"][1] // PLACE.itemsize:
        counts = counted_equal(sent, "place_pieces", stream)
        arguments = (over(sent, "place_pieces"), sent.address("places"), places, counts.data_ptr(), masks)
        cuda.call_pass("minerua_cuda_cut_ties", *arguments, stream)
    return masks


def probabilities(group: Group, k: int, mask: Mask) -> Any:
    """Returns the probability of each element of source k by its rank in its row, as `reference_passes` defines it."""
    torch: Any = sys.modules["torch"]
    keep, spread = np.float32(mask.keep), np.float32(mask.spread)
    keys = (_terms(group, k).view(torch.int32) & 0x7FFFFFFF).view(-1, mask.columns)
    out = empty(group.size, "float32", group.device).view(-1, mask.columns)
    places = torch.arange(mask.columns - 1, -1, -1, device=group.device)
    # A tensor on purpose: torch multiplies by the reciprocal of a plain number, which rounds otherwise.
    most = torch.full((), mask.columns - 1, dtype=torch.float32, device=group.device)
    rows = max(1, RANKED_ELEMENTS // mask.columns)
    for own, result in zip(keys.split(rows), out.split(rows), strict=True):
        order = torch.sort(own, dim=1, descending=True, stable=True).indices  # equal ones by index
        ranks = torch.empty_like(order).scatter_(1, order, places.expand_as(order))
        result.copy_(ranks.float().div(most.expand_as(result)).mul_(float(np.float32(2) * spread)))
        result.add_(float(keep - spread))
    return out


def _terms(group: Group, k: int) -> Any:
    """Returns the elements of source k less the base, float32, flat."""
    values = values_of(group.sources[k], 0, group.size)
    return values if group.base is None else values.sub_(values_of(group.base, 0, group.size))


def merged(
    groups: Sequence[Group], masks: Sequence[Sequence[Mask]], weights: Sequence[Weights], outs: Sequence[Any]
) -> list[Any]:
    """Queues merges of what masks keep; returns each group's counts, on the device."""
    tables = Tables(groups, [group.count + 2 for group in groups], outs)
    numbers = [own.numbers for own in weights]
    tables.tensors["first_number"] = starts([len(own) for own in numbers])
    tables.tensors["election"] = [own.election for own in weights]
    tables.named |= {"pieces": pieces_of([group.size for group in groups]), "numbers": np.concatenate(numbers)}
    with on_device(groups) as stream:
        held = add_masks(tables, masks)
        sent, counts = tables.send(), zeros(sum(tables.results), groups[0].device)
        arguments = (over(sent), cut_masks(sent, stream), sent.address("numbers"), counts.data_ptr())
        cuda.call_pass("minerua_cuda_merge_masked", *arguments, stream)
        del held  # freed behind the work queued, on its stream
    return list(counts.split(list(tables.results)))
