"""What a recipe's parameters come to for one tensor: filters, gradients over layers, and who overrides whom.

A model's own setting overrides its slice's, that one its module's, that one the recipe's, and where all are silent the
method's default holds. A setting may be silent too: where none of its filters fits, the next place is asked.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import TypeAlias

from minerua.errors import unknown
from minerua.merge.recipes.ingredients import Recipe, Rule, Scalar, Setting, Settings
from minerua.values import MergeMethodSpec, MergeParameter
from minerua.weights.header import shown

Value: TypeAlias = float | bool | str
"""A parameter's value for one tensor, of the parameter's kind."""

_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "t", "y", "1"), True),
    **dict.fromkeys(("false", "no", "off", "f", "n", "0"), False),
}
_LONGEST_NUMBER = 100


def resolve(parameter: MergeParameter, places: Sequence[Settings], *, tensor: str, t: float) -> Value | None:
    """Returns a parameter's value for a tensor.

    Args:
        parameter: Which.
        places: What is said at each place, the one that overrides the others first.
        tensor: The tensor's name, which filters look at.
        t: Where the tensor's layer lies between the first, 0, and the last, 1.

    Returns:
        The value; `None` if nobody says anything and the parameter has no default.

    Example:
        >>> rules = (Rule((0.0, 1.0), filter="mlp"), Rule(0.5))
        >>> settings = {"t": Setting(rules)}
        >>> [resolve(MergeParameter("t"), [settings], tensor=name, t=0.25) for name in ("mlp.up", "norm")]
        [0.25, 0.5]
    """
    for place in places:
        setting = place.get(parameter.name)
        value = None if setting is None else evaluate(setting, parameter, tensor=tensor, t=t)
        if value is not None:
            return value
    return parameter.default


def evaluate(setting: Setting, parameter: MergeParameter, *, tensor: str, t: float) -> Value | None:
    """Returns what one setting comes to for a tensor, or `None` where it is silent.

    A list of numbers is a gradient: with n numbers, t lies between two neighbours, and the value on the line between
    them. A list of texts or flags is not interpolated: the value is the one at index ⌊t (n − 1)⌋. Of several rules the
    first whose filter fits holds, even if its list is empty and says nothing.

    Args:
        setting: Checked by `setting_faults` before.
        parameter: What it is a setting of.
        tensor: The tensor's name.
        t: In [0, 1].
    """
    for rule in setting.rules:
        if rule.filter is None or rule.filter == "*" or (tensor and rule.filter in tensor):
            return _along(rule.value, parameter, t)
    return None


def _along(value: Scalar | tuple[Scalar, ...], parameter: MergeParameter, t: float) -> Value | None:
    if not isinstance(value, tuple):
        return _read(parameter, value)
    if not value:
        return None
    place = t * (len(value) - 1)
    before = int(place)
    if parameter.kind != "number":
        return _read(parameter, value[before])
    share = place - before
    left, right = (_number(value[index]) for index in (before, min(before + 1, len(value) - 1)))
    return (1 - share) * left + share * right


def _read(parameter: MergeParameter, value: Scalar) -> Value:
    if parameter.kind == "number":
        return _number(value)
    if parameter.kind == "flag":
        return _flag(value) is True
    return str(value)


def _number(value: Scalar) -> float:
    """Returns a number, also one that YAML takes for a text, such as `1e-4`; NaN for what is none."""
    if isinstance(value, str) and len(value) > _LONGEST_NUMBER:
        return math.nan
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except ValueError:
        return math.nan


def _flag(value: Scalar) -> bool | None:
    """Returns a flag, also one written as 0, 1 or a quoted word, as mergekit takes them; `None` for what is none."""
    if isinstance(value, str):
        return _WORDS.get(value.lower())
    return bool(value) if value in (0, 1) else None


# ── all faults, before anything is resolved ──────────────────────────────────────────────────────────────────────────


def setting_faults(
    recipe: Recipe, method: MergeMethodSpec, *, known: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Checks every setting of a recipe against what a method takes.

    Args:
        recipe: Any.
        method: How it is merged.
        known: Names of parameters that other methods take; mergekit's users often leave them in a recipe.

    Returns:
        Faults: names that no method knows, values of another kind, and values out of range. Notes: what is said without
        effect, as in mergekit: parameters of other methods, and parameters of the whole merge below one model.
    """
    faults: list[str] = []
    notes: list[str] = []
    parameters = {parameter.name: parameter for parameter in method.parameters}
    for name, setting in _named_settings(recipe):
        parameter = parameters.get(name)
        if parameter is not None:
            faults += _value_faults(parameter, setting)
        elif name in known:
            notes.append(f"{setting.place} has no effect: {method.name} does not take it")
        else:
            faults.append(f"{setting.place}: {unknown(f'parameter of {method.name}', name, list(parameters))}")
    for given in recipe.all_inputs():
        for name in given.parameters:
            if name in parameters and not parameters[name].per_model:
                place = given.parameters[name].place
                notes.append(f"{place} has no effect below one model: {name} holds for the whole merge")
    return faults, notes


def _named_settings(recipe: Recipe) -> Iterator[tuple[str, Setting]]:
    for part in recipe.parts():
        yield from part.parameters.items()


def _value_faults(parameter: MergeParameter, setting: Setting) -> Iterator[str]:
    for rule in setting.rules:
        for value in _values(rule):
            fault = _fault(parameter, value)
            if fault:
                yield f"{setting.place}: {fault}, found {shown(value)}"


def _values(rule: Rule) -> tuple[Scalar, ...]:
    return rule.value if isinstance(rule.value, tuple) else (rule.value,)


def _fault(parameter: MergeParameter, value: Scalar) -> str | None:
    """Returns what is wrong with a value, or `None`."""
    if parameter.kind == "flag":
        return None if _flag(value) is not None else "must be either true or false"
    if parameter.kind == "text":
        return None if isinstance(value, str) else "must be a text, in quotes if need be"
    number = _number(value)
    if not math.isfinite(number):
        return "must be a number"
    if parameter.fewest is not None and number < parameter.fewest:
        return f"must be at least {parameter.fewest:g}"
    if parameter.most is not None and number > parameter.most:
        return f"must be at most {parameter.most:g}"
    return None
