"""Formulas over what is there, held to their truth tables."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.chain.writing import presence
from minerua.chain.writing.presence import FALSE, TRUE, Atom, Presence, TooLarge

NAMES = "abcd"
Tree = Any  # a name, or (kind, children)

trees = st.recursive(
    st.sampled_from([*NAMES, *(f"not {name}" for name in NAMES)]),
    lambda children: st.tuples(st.sampled_from(["all", "any", "implies"]), st.lists(children, min_size=2, max_size=3)),
    max_leaves=12,
)


def build(formulas: Presence, tree: Tree) -> int:
    if isinstance(tree, str):
        return formulas.atom("given", tree.removeprefix("not "), holds=not tree.startswith("not "))
    parts = [build(formulas, child) for child in tree[1]]
    if tree[0] == "implies":
        return formulas.implies(parts[0], parts[1])
    return formulas.all_of(parts) if tree[0] == "all" else formulas.any_of(parts)


def truth(tree: Tree, values: dict[str, bool]) -> bool:
    if isinstance(tree, str):
        return values[tree.removeprefix("not ")] != tree.startswith("not ")
    parts = [truth(child, values) for child in tree[1]]
    if tree[0] == "implies":
        return parts[1] or not parts[0]
    return all(parts) if tree[0] == "all" else any(parts)


def table(tree: Tree) -> list[bool]:
    rows = itertools.product((False, True), repeat=len(NAMES))
    return [truth(tree, dict(zip(NAMES, row, strict=True))) for row in rows]


@settings(deadline=None)
@given(trees, trees)
def test_formulas_are_the_same_exactly_if_they_mean_the_same(one: Tree, other: Tree) -> None:
    formulas = Presence()
    assert (build(formulas, one) == build(formulas, other)) is (table(one) == table(other))


@settings(deadline=None)
@given(trees)
def test_a_counterexample_makes_the_formula_false_whatever_the_rest_and_there_is_one_unless_it_is_true(
    tree: Tree,
) -> None:
    formulas = Presence()
    formula = build(formulas, tree)
    fixed = {atom.reference: holds for atom, holds in formulas.counterexample(formula)}
    if all(table(tree)):
        assert formula == TRUE
        assert fixed == {}
        return
    rows = (dict(zip(NAMES, row, strict=True)) for row in itertools.product((False, True), repeat=len(NAMES)))
    assert not any(truth(tree, row) for row in rows if fixed.items() <= row.items())


def test_a_counterexample_is_as_short_as_can_be() -> None:
    formulas = Presence()
    both = formulas.all_of([formulas.atom("given", name) for name in NAMES])
    assert len(formulas.counterexample(both)) == 1
    assert formulas.counterexample(formulas.atom("true", "a.ok")) == [(Atom("true", "a.ok"), False)]
    assert formulas.all_of([]) == TRUE
    assert formulas.any_of([]) == FALSE


def test_diagrams_and_atoms_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    formulas = Presence()
    atoms = [formulas.atom("given", str(number)) for number in range(presence.MOST_ATOMS)]
    assert formulas.counterexample(formulas.any_of(atoms))
    with pytest.raises(TooLarge):
        formulas.atom("given", "one more")
    monkeypatch.setattr(presence, "MOST_NODES", len(atoms))
    with pytest.raises(TooLarge):
        formulas.all_of(atoms)
