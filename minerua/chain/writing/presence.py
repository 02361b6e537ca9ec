"""When is a value there? Decided exactly, for chains with optional inputs and conditional steps.

What a caller leaves out and how conditions turn out are the atoms; that a value is there is a formula over them. A
formula is kept as a reduced ordered decision diagram, so that equal formulas are the same object, and whether one can
be false, and how, is read off it. (Bryant 1986, Graph-based algorithms for Boolean function manipulation, section 4.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, final

MOST_NODES = 20_000
"""How large the diagrams of one chain may become; beyond that a value counts as one that may be absent."""


MOST_ATOMS = 150
"""How many optional inputs and conditions are told apart; the diagrams are walked recursively, one call per atom."""


class Atom(NamedTuple):
    """Something that may be so or not.

    Args:
        kind: `"given"`: the caller gives the chain's input. `"true"`: a condition's source is true.
        reference: The input, or the condition's source.
    """

    kind: str
    reference: str


class Formula(NamedTuple):
    """A node of a decision diagram: if the atom holds, what `high` says, else what `low` says.

    The two leaves have the largest number and themselves for neither.
    """

    number: int
    low: int
    high: int


FALSE, TRUE = 0, 1


class TooLarge(Exception):
    """The diagrams have outgrown `MOST_NODES` or `MOST_ATOMS`; never leaves the room."""


@final
class Presence:
    """The formulas of one chain; they are numbers, equal if they mean the same."""

    def __init__(self) -> None:
        self._atoms: list[Atom] = []
        self._numbers: dict[Atom, int] = {}
        self._nodes = [Formula(1 << 60, FALSE, FALSE), Formula(1 << 60, TRUE, TRUE)]
        self._ids: dict[Formula, int] = {}
        self._done: dict[tuple[int, int, int], int] = {}

    def atom(self, kind: str, reference: str, *, holds: bool = True) -> int:
        """Returns the formula that an atom holds, or that it does not.

        Raises:
            TooLarge: If there are more than `MOST_ATOMS`.
        """
        atom = Atom(kind, reference)
        if atom not in self._numbers:
            if len(self._atoms) >= MOST_ATOMS:
                raise TooLarge
            self._numbers[atom] = len(self._atoms)
            self._atoms.append(atom)
        return self._node(self._numbers[atom], FALSE if holds else TRUE, TRUE if holds else FALSE)

    def all_of(self, formulas: Iterable[int]) -> int:
        """Returns the formula that all hold.

        Raises:
            TooLarge: If that takes more than `MOST_NODES`.
        """
        result = TRUE
        for formula in formulas:
            result = self._choose(result, formula, FALSE)
        return result

    def any_of(self, formulas: Iterable[int]) -> int:
        """Returns the formula that at least one holds.

        Raises:
            TooLarge: If that takes more than `MOST_NODES`.
        """
        result = FALSE
        for formula in formulas:
            result = self._choose(result, TRUE, formula)
        return result

    def implies(self, condition: int, formula: int) -> int:
        """Returns the formula that one holds wherever another does.

        Raises:
            TooLarge: If that takes more than `MOST_NODES`.
        """
        return self._choose(condition, formula, TRUE)

    def counterexample(self, formula: int) -> list[tuple[Atom, bool]]:
        """Returns atoms with their truth that make a formula false, as few as possible.

        Empty if none can, and if none is needed: a formula that is `FALSE` needs nothing to be so.
        """
        ways: dict[int, list[tuple[Atom, bool]] | None] = {FALSE: [], TRUE: None}

        def way(node: int) -> list[tuple[Atom, bool]] | None:
            if node not in ways:
                number, low, high = self._nodes[node]
                branches = [(truth, way(child)) for truth, child in ((False, low), (True, high))]
                found = [[(self._atoms[number], truth), *rest] for truth, rest in branches if rest is not None]
                ways[node] = min(found, key=len) if found else None
            return ways[node]

        return way(formula) or []

    def _choose(self, condition: int, then: int, otherwise: int) -> int:
        """Returns the formula "if `condition`, then `then`, else `otherwise`"."""
        if condition in (FALSE, TRUE):
            return then if condition else otherwise
        key = (condition, then, otherwise)
        if key not in self._done:
            if len(self._done) >= 10 * MOST_NODES:
                raise TooLarge
            top = min(self._nodes[formula].number for formula in key)
            low, high = (self._choose(*(self._branch(f, top, holds) for f in key)) for holds in (False, True))
            self._done[key] = self._node(top, low, high)
        return self._done[key]

    def _branch(self, formula: int, number: int, holds: bool) -> int:
        """Returns what is left of a formula once an atom is known; no atom before it occurs in the formula."""
        node = self._nodes[formula]
        return formula if node.number != number else node.high if holds else node.low

    def _node(self, number: int, low: int, high: int) -> int:
        if low == high:
            return low
        node = Formula(number, low, high)
        if node not in self._ids:
            if len(self._nodes) >= MOST_NODES:
                raise TooLarge
            self._ids[node] = len(self._nodes)
            self._nodes.append(node)
        return self._ids[node]
