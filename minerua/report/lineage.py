"""The ancestors of a child, nearest first, and where each stands in a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from minerua.report.replay import Child

CAP = 60
"""How many ancestors a picture shows at most: what a person can still follow."""

ROW = 9
"""How many stand side by side in a picture at most: what fits a page."""


@dataclass(frozen=True)
class Lineage:
    """A child and its ancestors: a graph without circles, each genome once.

    Args:
        children: The child first, then its nearest ancestors by number of generations; seeds are always among them.
        total: How many ancestors there are, shown or not, the child itself not counted.
        generations: The longest way from the child to a seed, in births.
    """

    children: tuple[Child, ...]
    total: int
    generations: int

    @property
    def hidden(self) -> int:
        """How many ancestors are left out."""
        return self.total - (len(self.children) - 1)


def lineage_of(digest: str, by_digest: Mapping[str, Child], *, cap: int = CAP) -> Lineage:
    """Returns the ancestors of a child.

    Equal genomes are one node, with the parents of the one that was born first. Of equally near ancestors the younger
    come first.

    Args:
        digest: The child's name.
        by_digest: Every seed and child of the run.
        cap: How many ancestors to keep; seeds are kept in any case.
    """
    order = _nearest_first(digest, by_digest)
    kept = {child.digest for child in order[: cap + 1]}
    shown = tuple(child for child in order if child.digest in kept or not child.parents)
    while len(shown) > cap + 1 and any(child.parents for child in shown[1:]):
        last = max(position for position, child in enumerate(shown) if child.parents)
        shown = shown[:last] + shown[last + 1 :]
    return Lineage(shown, len(order) - 1, _height(order))


def _nearest_first(digest: str, by_digest: Mapping[str, Child]) -> list[Child]:
    layer, order = [by_digest[digest]], [by_digest[digest]]
    seen = {digest}
    while layer:
        parents = {parent: by_digest[parent] for child in layer for parent in child.parents if parent not in seen}
        layer = sorted(parents.values(), key=lambda child: -child.id)
        seen |= parents.keys()
        order += layer
    return order


def _height(order: list[Child]) -> int:
    """The longest way down; parents are always older than their children, so age is a topological order."""
    height: dict[str, int] = {}
    for child in sorted(order, key=lambda child: child.id):
        height[child.digest] = 1 + max((height[p] for p in child.parents if p in height), default=-1)
    return max(height.values())


def layers(lineage: Lineage, *, row: int = ROW) -> list[list[Child]]:
    """Returns the children row by row for a picture: the child at the top, its seeds at the bottom.

    Every parent stands below each of its children, no row holds more than `row`, and within a row everyone stands near
    the middle of its children above.

    Source: Coffman and Graham 1972 (rows of bounded width); Sugiyama, Tagawa, Toda 1981 (ordering by barycentre).
    """
    depth: dict[str, int] = {}
    grid: list[list[Child]] = []
    for child in sorted(lineage.children, key=lambda child: -child.id):
        if child.parents or child is lineage.children[0]:
            _place(child, depth.get(child.digest, 0), grid, row)
            floor = next(y for y, placed in enumerate(grid) if child in placed)
            for parent in child.parents:
                depth[parent] = max(depth.get(parent, 0), floor + 1)
    seeds = [child for child in reversed(lineage.children) if not child.parents and child is not lineage.children[0]]
    seeds.sort(key=lambda child: child.id)
    grid = [placed for placed in grid if placed]
    return _ordered(grid) + [seeds[start : start + row] for start in range(0, len(seeds), row)]


def _place(child: Child, depth: int, grid: list[list[Child]], row: int) -> None:
    while depth < len(grid) and len(grid[depth]) >= row:
        depth += 1
    grid.extend([] for _ in range(depth + 1 - len(grid)))
    grid[depth].append(child)


def _ordered(grid: list[list[Child]]) -> list[list[Child]]:
    place: dict[str, float] = {}
    ordered: list[list[Child]] = []
    for placed in grid:
        pulls = {child.digest: _pull(child, ordered, place) for child in placed}
        placed = sorted(placed, key=lambda child: (pulls[child.digest], child.id))
        place |= {child.digest: x - (len(placed) - 1) / 2 for x, child in enumerate(placed)}
        ordered.append(placed)
    return ordered


def _pull(child: Child, above: list[list[Child]], place: Mapping[str, float]) -> float:
    children = [place[other.digest] for row in above for other in row if child.digest in other.parents]
    return sum(children) / len(children) if children else 0.0
