"""What passes over many CUDA tensors are told: tables of sources, tensors, pieces and masks, as capi.h lays them out.

Nothing here waits for the device. Tables are put together on the host and sent in one copy from pinned memory, on the
current stream.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minerua.kernels import cuda
from minerua.kernels.arrays import dtype_name
from minerua.kernels.sources import ALL_KEPT, NONE_KEPT, Mask, Source

SOURCE = np.dtype([("data", "u8"), ("left", "u8"), ("right", "u8"), ("rank", "i4"), ("dtype", "i4")])
TENSOR = np.dtype(
    [
        *[(name, "i8") for name in ("size", "columns", "out", "first_number", "first_result")],
        *[(name, "i4") for name in ("first_source", "source_count", "has_base", "out_dtype", "election", "reserved")],
    ]
)
PIECE = np.dtype([("begin", "i8"), ("at", "i8"), ("count", "i4"), ("tensor", "i4")])
SELECTION = np.dtype([("remaining", "i8"), ("key", "u4"), ("reserved", "u4")])
PLACE = np.dtype(
    [
        *[("equal", "i8"), ("first_piece", "i8"), ("piece_count", "i4"), ("tensor", "i4"), ("source", "i4")],
        *[("key", "u4"), ("is_top", "i4"), ("reserved", "i4")],
    ]
)
MASK = np.dtype(
    [
        *[("top_cut", "i8"), ("but_cut", "i8"), ("seed", "u8"), ("probabilities", "u8"), ("top_key", "u4")],
        *[("but_key", "u4"), ("model", "u4"), ("tensor", "u4"), ("limit", "u4"), ("probability", "f4")],
        *[("draws", "i4"), ("inverse", "i4")],
    ]
)
SUM = np.dtype([("first", "i8"), ("pieces", "i8"), ("width", "i8"), ("out", "i8")])

PIECE_ELEMENTS = 1 << 16
"""What one block of threads goes through, at most; a multiple of 64."""

ALIGNMENT = 16


@dataclass(frozen=True, eq=False)
class Group:
    """The sources of one tensor that a pass goes over, on a device.

    Args:
        sources: K >= 1 sources of one shape, whose `array`, `left` and `right` are contiguous CUDA tensors, all on one
            device; without `rows` and `extra`.
        base: One more of the kind, or `None`.
    """

    sources: Sequence[Source]
    base: Source | None = None

    @property
    def size(self) -> int:
        """How many elements each source has."""
        return self.sources[0].size

    @property
    def count(self) -> int:
        """K, the number of sources."""
        return len(self.sources)

    @property
    def device(self) -> Any:
        """Where the sources lie."""
        first: Any = self.sources[0].array
        return first.device


@dataclass
class Tables:
    """The tables of one pass; `send` copies them to the device.

    Args:
        groups: One for each tensor.
        results: How many results each tensor has, in the unit of the pass.
        outs: Where results go that are tensors, one for each; or nothing.
    """

    groups: Sequence[Group]
    results: Sequence[int]
    outs: Sequence[Any] = ()
    named: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.named["sources"] = np.array([row for group in self.groups for row in _source_rows(group)], SOURCE)
        self.named["tensors"] = self._tensors()

    def _tensors(self) -> np.ndarray:
        rows = np.zeros(len(self.groups), TENSOR)
        rows["size"] = [group.size for group in self.groups]
        rows["columns"] = [_columns(group.sources[0]) for group in self.groups]
        rows["source_count"] = [group.count for group in self.groups]
        rows["has_base"] = [group.base is not None for group in self.groups]
        rows["first_source"] = starts(rows["source_count"] + rows["has_base"])
        rows["first_result"] = starts(self.results)
        if self.outs:
            rows["out"] = [out.data_ptr() for out in self.outs]
            rows["out_dtype"] = [code_of(out) for out in self.outs]
        return rows

    @property
    def tensors(self) -> np.ndarray:
        """The table of tensors, one row for each group."""
        return self.named["tensors"]

    def send(self) -> Sent:
        """Copies all tables to the device, on the current stream."""
        sizes = [-(-table.nbytes // ALIGNMENT) * ALIGNMENT for table in self.named.values()]
        content = np.zeros(sum(sizes), np.uint8)
        offsets = [int(start) for start in starts(sizes)]
        for offset, table in zip(offsets, self.named.values(), strict=True):
            content[offset : offset + table.nbytes] = np.ascontiguousarray(table).view(np.uint8).reshape(-1)
        memory = cuda.queued(content, self.groups[0].device)
        places = {
            name: (offset, table.nbytes) for (name, table), offset in zip(self.named.items(), offsets, strict=True)
        }
        return Sent(memory, places, int(self.tensors["source_count"].max()))


@dataclass(frozen=True)
class Sent:
    """Tables on the device.

    Args:
        memory: A tensor of bytes that holds them all.
        places: Offset and length in it, in bytes, by name.
        most_sources: The largest number of sources of a tensor.
    """

    memory: Any
    places: dict[str, tuple[int, int]]
    most_sources: int

    def address(self, name: str) -> int:
        """Returns where a table lies."""
        return int(self.memory.data_ptr()) + self.places[name][0]

    def view(self, name: str) -> Any:
        """Returns a table's bytes, as a tensor that shares them."""
        offset, length = self.places[name]
        return self.memory[offset : offset + length]

    def over(self, pieces: str = "pieces") -> cuda.Pass:
        """Returns what a function of the library is told, over the pieces of that name."""
        count = self.places[pieces][1] // PIECE.itemsize
        addresses = [self.address(name) for name in ("sources", "tensors", pieces)]
        return cuda.Pass(*addresses, count, self.most_sources, 0)


def pieces_of(sizes: Sequence[int], rows: Sequence[int] | None = None, longest: int | None = None) -> np.ndarray:
    """Cuts tensors, and where they have them their rows, into pieces.

    Args:
        sizes: Elements of each tensor.
        rows: Into how many rows of equal length each is cut; `None` means one.
        longest: Elements of a piece, at most; `None` means PIECE_ELEMENTS.

    Returns:
        Dtype `PIECE`; those of a tensor, and of a row, in order. `at` is the number of the row, of all rows.
    """
    found, counts, longest = [], rows or [1] * len(sizes), longest or PIECE_ELEMENTS
    for tensor, (size, count, first) in enumerate(zip(sizes, counts, starts(counts), strict=True)):
        length = size // count
        per_row = -(-length // longest)
        index = np.arange(count * per_row)
        row, offset = (index // per_row, index % per_row * longest) if per_row else (index, index)
        table = np.zeros(len(index), PIECE)
        table["begin"], table["at"] = row * length + offset, first + row
        table["count"], table["tensor"] = np.minimum(longest, length - offset), tensor
        found.append(table)
    return np.concatenate(found)


def balanced_length(groups: Sequence[Group]) -> int:
    """Returns how long the pieces of a histogram are: 2^17 to 2^20 elements, for some 1000 pieces if that can be.

    The longer they are, the fewer are the bins that blocks empty and add up.
    """
    total = sum(group.size * group.count for group in groups)
    return min(1 << 20, max(1, total >> 27) << 17)


def mask_rows(masks: Sequence[Mask], size: int, has_base: bool) -> np.ndarray:
    """Returns the table of one tensor's masks, and a row for its base; cuts that lie inside are not found yet."""
    table = np.zeros(len(masks) + has_base, MASK)
    for row, mask in zip(table, masks, strict=False):
        for name, limit in (("top", mask.top or ALL_KEPT), ("but", mask.but or NONE_KEPT)):
            row[f"{name}_key"], row[f"{name}_cut"] = limit[0], min(limit[1], size)
        keep = np.float32(1 if mask.keep is None else mask.keep)
        row["seed"], row["model"], row["tensor"] = mask.seed, mask.model, mask.tensor
        row["probability"], row["inverse"] = keep, mask.inverse
        row["draws"] = not keep >= 1 or is_ranked(mask)
        row["limit"] = np.floor(np.float64(keep) * 2.0**32) if 0 < keep < 1 else 0
    return table


def is_ranked(mask: Mask) -> bool:
    """Whether an element's probability depends on its rank in its row."""
    return mask.keep is not None and mask.spread != 0 and mask.columns > 1


def places_of(groups: Sequence[Group], masks: Sequence[Sequence[Mask]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the thresholds whose budget of equal keys may end inside a tensor, and the pieces to look for it in.

    Returns:
        Dtypes `PLACE` and `PIECE`; a piece's `tensor` is the number of its place.
    """
    rows = [
        (equal, tensor, k, key, is_top)
        for tensor, (group, own) in enumerate(zip(groups, masks, strict=True))
        for k, mask in enumerate(own)
        for limit, is_top in ((mask.top or ALL_KEPT, 1), (mask.but or NONE_KEPT, 0))
        for key, equal in [limit]
        if key < NONE_KEPT[0] and 0 < equal < group.size
    ]
    return named_places(groups, rows)


def named_places(
    groups: Sequence[Group], rows: Sequence[tuple[int, int, int, int, int]]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tables of places given as (equal, tensor, source, key, is_top), and of their pieces."""
    places = np.zeros(len(rows), PLACE)
    pieces = pieces_of([groups[row[1]].size for row in rows]) if rows else np.zeros(0, PIECE)
    for name, column in zip(("equal", "tensor", "source", "key", "is_top"), zip(*rows, strict=True), strict=False):
        places[name] = column
    places["piece_count"] = np.bincount(pieces["tensor"], minlength=len(rows))
    places["first_piece"] = starts(places["piece_count"])
    return places, pieces


def starts(lengths: Iterable[int] | np.ndarray) -> np.ndarray:
    """Returns where each of several stretches begins, one behind the other, int64."""
    ends = np.cumsum(np.array(list(lengths), np.int64))
    return np.concatenate([np.zeros(1, np.int64), ends])[:-1] if len(ends) else ends


def code_of(tensor: Any) -> int:
    """Returns a tensor's element type as the library numbers it."""
    return cuda.CODES[dtype_name(tensor.dtype)]


def empty(count: int, dtype: str, device: Any) -> Any:
    """Returns a tensor of torch's dtype of that name, not initialised."""
    torch: Any = sys.modules["torch"]
    return torch.empty(count, dtype=getattr(torch, dtype), device=device)


def zeros(count: int, device: Any) -> Any:
    """Returns that many int64 zeros."""
    torch: Any = sys.modules["torch"]
    return torch.zeros(count, dtype=torch.int64, device=device)


def _source_rows(group: Group) -> list[tuple[int, ...]]:
    return [_source_row(source) for source in (*group.sources, *([group.base] if group.base is not None else []))]


def _source_row(source: Source) -> tuple[int, ...]:
    array: Any = source.array
    left: Any = source.left
    right: Any = source.right
    factors = (0, 0, 0) if left is None else (left.data_ptr(), right.data_ptr(), len(right))
    return array.data_ptr(), *factors, code_of(array)


def _columns(source: Source) -> int:
    return max(1, source.shape[-1]) if len(source.shape) else 1
