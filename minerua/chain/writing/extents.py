"""Do the shapes along all connections agree? Every named extent of every step is an unknown; connections equate two."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, final


class Extent(NamedTuple):
    """A named extent of a step, or of the chain itself (`step` is `None`)."""

    step: str | None
    name: str

    def __str__(self) -> str:
        return f"{self.name!r} of {'the chain' if self.step is None else f'step {self.step!r}'}"


Node = Extent | int
"""An unknown, or a count."""


@final
class Extents:
    """Equations between extents, and the reason for each: a union-find that can tell why.

    Example:
        >>> extents = Extents()
        >>> extents.equate(Extent("see", "width"), 64, "image -> see.pixels")
        >>> extents.equate(Extent("see", "width"), Extent("fuse", "size"), "see.grid -> fuse.grid")
        >>> extents.equate(Extent("fuse", "size"), 32, "read.row -> fuse.row")
        "'size' of step 'fuse' is 32 by read.row -> fuse.row, but 64 by see.grid -> fuse.grid, image -> see.pixels"
    """

    def __init__(self) -> None:
        self._parents: dict[Extent, Extent] = {}
        self._counts: dict[Extent, int] = {}
        self._reasons: dict[Extent, list[tuple[Node, str]]] = {}

    def equate(self, one: Node, other: Node, reason: str) -> str | None:
        """Takes up that two extents are equal.

        Args:
            one: An extent or a count; two counts are for the caller to compare.
            other: The same.
            reason: The connection that says so.

        Returns:
            What contradicts it, as a sentence; it is not taken up then.
        """
        if isinstance(one, int) or isinstance(other, int):
            if isinstance(one, int) and isinstance(other, int):
                return None if one == other else f"{one} is not {other}"
            extent, count = (one, other) if isinstance(one, Extent) else (other, one)
            return self._fix(extent, count, reason)  # type: ignore[arg-type]
        root, other_root = self._root(one), self._root(other)
        counts = (self._counts.get(root), self._counts.get(other_root))
        if root != other_root and None not in counts and counts[0] != counts[1]:
            ways = [f"{count} by {', '.join(self._why(x))}" for x, count in zip((one, other), counts, strict=True)]
            return f"{one} is {ways[0]}, but {other} is {ways[1]}"
        self._link(one, other, reason)
        if root != other_root:
            self._parents[root] = other_root
            if counts[0] is not None:
                self._counts[other_root] = counts[0]
        return None

    def count(self, extent: Extent) -> int | None:
        """Returns an extent's count, if some connection fixes it."""
        return self._counts.get(self._root(extent))

    def _fix(self, extent: Extent, count: int, reason: str) -> str | None:
        known = self._counts.setdefault(self._root(extent), count)
        if known != count:
            return f"{extent} is {count} by {reason}, but {known} by {', '.join(self._why(extent))}"
        self._reasons.setdefault(extent, []).append((count, reason))
        return None

    def _root(self, extent: Extent) -> Extent:
        while (parent := self._parents.get(extent, extent)) != extent:
            self._parents[extent] = self._parents.get(parent, parent)  # halves the way for the next one
            extent = parent
        return extent

    def _link(self, one: Extent, other: Extent, reason: str) -> None:
        self._reasons.setdefault(one, []).append((other, reason))
        self._reasons.setdefault(other, []).append((one, reason))

    def _why(self, extent: Extent) -> list[str]:
        """Returns the shortest way of connections from an extent to what fixed its count."""
        ways: dict[Extent, list[str]] = {extent: []}
        queue = deque([extent])
        while queue:
            here = queue.popleft()
            for node, reason in self._reasons.get(here, ()):
                if isinstance(node, int):
                    return list(dict.fromkeys([*ways[here], reason]))
                if node not in ways:
                    ways[node] = [*ways[here], reason]
                    queue.append(node)
        return []  # of an extent whose count nobody fixed


def shape_faults(
    extents: Extents,
    sources: Iterable[tuple[str | None, tuple[int | str, ...], str]],
    target: tuple[str | None, tuple[int | str, ...]],
) -> list[str]:
    """Equates the shapes of an input's sources with the input's; returns what contradicts.

    Where several sources have different counts on an axis, only one of them will be there, so a name on that axis is
    left open.

    Args:
        extents: Takes the equations up.
        sources: Step, shape and connection of each; as many axes as the target has.
        target: The step whose input it is, and the input's shape.
    """
    faults: list[str] = []
    several = list(sources)
    step, shape = target
    for axis, wanted in enumerate(shape):
        counts = {source_shape[axis] for _, source_shape, _ in several if isinstance(source_shape[axis], int)}
        for source_step, source_shape, reason in several:
            given = source_shape[axis]
            if isinstance(given, int) and isinstance(wanted, int):
                if given != wanted:
                    faults.append(f"axis {axis} has {given}, and {wanted} is wanted")
            elif isinstance(wanted, int) or not isinstance(given, int) or len(counts) == 1:
                left: Node = given if isinstance(given, int) else Extent(source_step, given)
                right: Node = wanted if isinstance(wanted, int) else Extent(step, wanted)
                fault = extents.equate(left, right, reason)
                faults += [f"axis {axis}: {fault}"] if fault else []
    return faults
