"""The shape of a plan that parts once: some units in a row, two rows side by side, and some in a row again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minerua.chain.running.compiling import UnitCode


@dataclass(frozen=True, eq=False)
class Branches:
    """A plan that parts once.

    Args:
        before: What comes first, in order.
        own: The branch for the thread that did that: the more urgent of the two, if the other may have another one.
        side: The branch for another thread.
        after: What comes last, in order.
    """

    before: tuple[UnitCode, ...]
    own: tuple[UnitCode, ...]
    side: tuple[UnitCode, ...]
    after: tuple[UnitCode, ...]


def branches_of(units: Sequence[UnitCode]) -> Branches | None:
    """Returns how units part once and meet again; `None` if they part otherwise, or may not be side by side.

    Args:
        units: Of a program, each after those that it needs.
    """
    needs: dict[int, set[int]] = {unit.index: set() for unit in units}
    for unit in units:
        for other in unit.after:
            needs[other.index].add(unit.index)
    left = list(units)
    before = _row(left, needs, set())
    done = {unit.index for unit in before}
    heads = _ready(left, needs, done)
    if len(heads) != 2:
        return None
    rows = []
    for head in sorted(heads, key=lambda unit: (unit.rank, unit.index)):
        left.remove(head)
        rows.append((head, *_row(left, needs, {*done, head.index}, after=head)))
    done |= {unit.index for row in rows for unit in row}
    after = _row(left, needs, done)
    own, side = rows if _is_shared(rows[1]) else rows[::-1]
    return Branches(tuple(before), own, side, tuple(after)) if not left and _is_shared(side) else None


def _row(
    left: list[UnitCode], needs: dict[int, set[int]], done: set[int], *, after: UnitCode | None = None
) -> list[UnitCode]:
    """Takes units from those that are left as long as one follows the other; of a branch, as long as they need it."""
    row: list[UnitCode] = []
    last = after
    while True:
        ready = [unit for unit in _ready(left, needs, done) if last is None or last.index in needs[unit.index]]
        if len(ready) != 1:
            return row
        last = ready[0] if after is not None else None
        row.append(ready[0])
        left.remove(ready[0])
        done = {*done, ready[0].index}


def _ready(left: Collection[UnitCode], needs: dict[int, set[int]], done: set[int]) -> list[UnitCode]:
    return [unit for unit in left if needs[unit.index] <= done]


def _is_shared(row: Sequence[UnitCode]) -> bool:
    """Whether any thread may take up these units."""
    return all(unit.where[0] == "shared" for unit in row)
