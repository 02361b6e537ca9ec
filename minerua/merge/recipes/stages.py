"""Merges of merges: a recipe may name another document of its text where a model is expected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from graphlib import CycleError, TopologicalSorter

from minerua.merge.recipes.ingredients import ModelRef, Recipe


def ordered(recipes: Sequence[Recipe]) -> tuple[Recipe, ...]:
    """Returns the recipes so that each comes after those it needs; the text's order where there is a choice.

    Args:
        recipes: As `parse_recipes` returns them.

    Example:
        >>> last = Recipe("linear", base=ModelRef("first"))
        >>> [recipe.name for recipe in ordered([last, Recipe("linear", name="first")])]
        ['first', None]
    """
    by_name = {recipe.name: recipe for recipe in recipes}
    sorter = TopologicalSorter({recipe.name: _needs(recipe, recipes) for recipe in recipes})
    sorter.prepare()
    places = {recipe.name: place for place, recipe in enumerate(recipes)}
    found: list[Recipe] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=places.__getitem__)
        found += [by_name[name] for name in ready]
        sorter.done(*ready)
    return tuple(found)


def stage_faults(recipes: Sequence[Recipe]) -> list[str]:
    """Returns what is wrong between the recipes of one text: names given twice, and circles."""
    names = [recipe.name for recipe in recipes]
    faults = [
        f"document {number}: the name {name!r} belongs to document {names.index(name) + 1} already"
        if name is not None
        else f"document {number}: has no name, as document {names.index(None) + 1}; only the last stage goes without"
        for number, name in enumerate(names, 1)
        if names.index(name) < number - 1
    ]
    if not faults:
        try:
            TopologicalSorter({recipe.name: _needs(recipe, recipes) for recipe in recipes}).prepare()
        except CycleError as error:
            faults.append(f"stages that need each other in a circle: {' → '.join(str(name) for name in error.args[1])}")
    return faults


def _needs(recipe: Recipe, recipes: Sequence[Recipe]) -> list[str]:
    """Returns the names of the stages that a recipe names as models."""
    names = {other.name for other in recipes if other.name is not None}
    return [path for path in dict.fromkeys(reference.path for reference in _named(recipe)) if path in names]


def _named(recipe: Recipe) -> Iterator[ModelRef]:
    yield from recipe.references
    yield from recipe.tokenizer.references if recipe.tokenizer else ()
