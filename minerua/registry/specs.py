"""What a plugin may provide, and when a spec is valid."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from minerua.errors import unknown
from minerua.values import (
    EvaluatorSpec,
    Exhibit,
    LossSpec,
    MergeMethodSpec,
    MergeParameter,
    ModelSpec,
    OptimizerSpec,
    Setup,
    Skill,
    TensorSpec,
)


class Kind(NamedTuple):
    """One kind of thing that plugins provide.

    Args:
        hook: The hook that provides it.
        attribute: The mapping of `Registry` that holds it.
        singular: What one of them is called in a message.
        spec: The type of one of them.
        callables: Its fields that must be callable.
        optional: Its fields that must be callable or `None`.
    """

    hook: str
    attribute: str
    singular: str
    spec: type
    callables: tuple[str, ...]
    optional: tuple[str, ...] = ()


KINDS = (
    Kind("minerua_skills", "skills", "skill", Skill, (), ("call", "load", "configure", "join")),
    Kind("minerua_optimizers", "optimizers", "optimizer", OptimizerSpec, ("build",)),
    Kind("minerua_losses", "losses", "loss", LossSpec, ("call",), ("count",)),
    Kind(
        "minerua_evaluators",
        "evaluators",
        "evaluator",
        EvaluatorSpec,
        ("items", "evaluate"),
        ("inputs", "configure", "evaluate_many", "exhibit"),
    ),
    Kind("minerua_models", "models", "model", ModelSpec, ("build",), ("activations", "module", "configure", "open")),
    Kind("minerua_merge_methods", "merge_methods", "merge method", MergeMethodSpec, ("merge",), ("prepare", "check")),
)

_NAME = re.compile("[a-z][a-z0-9]*(-[a-z0-9]+)*")
_USES = ("weights", "grams", "model", "tiles", "tensors")


def spec_faults(kind: Kind, spec: Any) -> list[str]:
    """Returns everything that is wrong with one spec, without calling it; empty if it is valid.

    Args:
        kind: The kind it was provided as.
        spec: Whatever the hook returned.

    Example:
        >>> spec_faults(KINDS[2], LossSpec("Huber Loss", None))
        ["name 'Huber Loss' is not lower-case words joined by '-'", "call of 'Huber Loss' is a NoneType, not callable"]
    """
    if not isinstance(spec, kind.spec):
        home = next((k.hook for k in KINDS if isinstance(spec, k.spec)), None)
        hint = f"; {home} is the hook for it" if home else ""
        return [f"expected a {kind.spec.__name__}, found {with_article(spec)}{hint}"]
    name: Any = getattr(spec, "name")  # noqa: B009 - a strange subclass may have anything there
    faults = _name_faults(name)
    for field in kind.callables:
        if not callable(value := getattr(spec, field)):
            faults.append(f"{field} of {name!r} is {with_article(value)}, not callable")
    for field in kind.optional:
        if (value := getattr(spec, field)) is not None and not callable(value):
            faults.append(f"{field} of {name!r} is {with_article(value)}, not callable")
    version = getattr(spec, "version", "1")
    if not isinstance(version, str) or not version:
        faults.append(f"version of {name!r} is {version!r}; expected a text that is not empty")
    if isinstance(spec, Skill):
        faults += [*_skill_faults(spec, repr(name)), *_port_faults(spec)]
    if isinstance(spec, MergeMethodSpec):
        faults += _merge_method_faults(spec, repr(name))
    return faults


def _name_faults(name: object) -> list[str]:
    if isinstance(name, str) and _NAME.fullmatch(name):
        return []
    return [f"name {name!r} is not lower-case words joined by '-'"]


def _merge_method_faults(spec: MergeMethodSpec, label: str) -> list[str]:
    choices = (("uses", _USES), ("base", ("required", "optional", "ignored")))
    faults = [
        f"{field} of {label} is {getattr(spec, field)!r}; expected one of {', '.join(map(repr, known))}"
        for field, known in choices
        if getattr(spec, field) not in known
    ]
    if spec.prepare is not None and spec.uses != "tensors":
        faults.append(f"prepare of {label} is given, but uses is {spec.uses!r}; only methods with 'tensors' prepare")
    parameters: Any = spec.parameters
    if not isinstance(parameters, tuple) or not all(isinstance(one, MergeParameter) for one in parameters):
        return [*faults, f"parameters of {label} are {parameters!r}; expected a tuple of MergeParameter"]
    names = [parameter.name for parameter in parameters]
    repeated = sorted({name for name in names if names.count(name) > 1})
    return [*faults, *(f"parameter {name!r} of {label} is given twice" for name in repeated)]


_MAKERS = ("call", "load", "configure")


def _skill_faults(skill: Skill, label: str) -> Iterator[str]:
    given = [field for field in _MAKERS if getattr(skill, field) is not None]
    if len(given) != 1:
        shown = " and ".join(given) or "none of them"
        yield f"skill {label} has {shown}; exactly one of call, load and configure is needed"
    yield from _optional_faults(skill, label)
    resources: Any = skill.resources
    if not isinstance(resources, Mapping):
        yield f"resources of {label} is {with_article(resources)}, not a mapping from names to counts"
    else:
        for name, count in resources.items():
            if not isinstance(name, str) or not name or not _is_count(count):
                yield f"resources of {label}: {name!r} is {count!r}; expected a name, and a whole number from 0"
    for field in ("pure", "batchable", "thread_safe"):
        if not isinstance(getattr(skill, field), bool):
            yield f"{field} of {label} is {getattr(skill, field)!r}; expected True or False"
    setups: Any = skill.setups
    if not isinstance(setups, tuple) or not setups or not all(isinstance(setup, Setup) for setup in setups):
        yield f"setups of {label} are {setups!r}; expected a tuple of Setup with at least one, the default first"
    if skill.loaded_bytes is not None and not _is_count(skill.loaded_bytes):
        yield f"loaded_bytes of {label} is {skill.loaded_bytes!r}; expected a whole number from 0, or None"


def _optional_faults(skill: Skill, label: str) -> Iterator[str]:
    optional: Any = skill.optional
    if not isinstance(optional, tuple):
        yield f"optional of {label} is {with_article(optional)}, not a tuple of names of inputs"
        return
    known = tuple(map(str, skill.inputs)) if isinstance(skill.inputs, Mapping) else ()
    for name in optional:
        if name not in known:
            yield f"optional of {label}: {unknown('input', str(name), known)}"


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _port_faults(skill: Skill) -> list[str]:
    faults: list[str] = []
    for side in ("inputs", "outputs"):
        ports: Any = getattr(skill, side)
        if not isinstance(ports, Mapping):
            faults.append(f"{side} of {skill.name!r} is {with_article(ports)}, not a mapping from names to types")
            continue
        for port, what in ports.items():
            place = f"{side}[{port!r}] of {skill.name!r}"
            if not isinstance(port, str) or not port.isidentifier():
                faults.append(f"{place}: the name must be a Python identifier, because it is passed by keyword")
            if isinstance(what, TensorSpec):
                faults += _tensor_faults(what, place)
            elif not isinstance(what, type):
                faults.append(f"{place} is {what!r}; expected a Python type such as str, or a TensorSpec")
    return faults


def _tensor_faults(tensor: TensorSpec, place: str) -> list[str]:
    faults = []
    if not isinstance(tensor.shape, tuple) or not all(map(_is_extent, tensor.shape)):
        faults.append(f"{place} has the shape {tensor.shape!r}; expected a tuple of counts and names such as 'batch'")
    if not tensor.dtype or not isinstance(tensor.dtype, str):
        faults.append(f"{place} has the dtype {tensor.dtype!r}; expected numpy's name of it, such as 'float32'")
    return faults


def _is_extent(extent: object) -> bool:
    return extent != "" if isinstance(extent, str) else _is_count(extent)


def exhibit_faults(shown: Any, ids: Sequence[str]) -> list[str]:
    """Returns what is wrong with what the `exhibit` of an evaluator returned; empty if it can be shown.

    Args:
        shown: Whatever it returned.
        ids: The items that it was asked for.

    Example:
        >>> exhibit_faults([Exhibit("a", text="yes"), Exhibit("c", text="no")], ["a", "b"])
        ["exhibit shows item 'c', which it was not asked for"]
    """
    if not isinstance(shown, list | tuple):
        return [f"exhibit returned {with_article(shown)}; return a list with an Exhibit per item"]
    strange = [one for one in shown if not isinstance(one, Exhibit)]
    if strange:
        return [f"exhibit returned {with_article(strange[0])} among its things; each is an Exhibit"]
    items = [one.item for one in shown]
    faults = [f"exhibit shows item {item!r}, which it was not asked for" for item in items if item not in ids]
    twice = next((item for item in items if items.count(item) > 1), None)
    return faults if twice is None else [*faults, f"exhibit shows item {twice!r} more than once; one Exhibit is enough"]


def with_article(value: object) -> str:
    """Returns the name of a value's type for a sentence: `"an int"`, `"a LossSpec"`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
