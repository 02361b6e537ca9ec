"""Parameter groups: which weights decay, and which have settings of their own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from minerua.errors import LearningError
from minerua.learning.settings import with_numbers

KINDS = ("bias", "norm", "embedding", "vector")
"""What `no_decay` can name besides patterns: biases, the weights of norm layers, of embeddings, and all parameters of
fewer than two dimensions."""

_BIAS = re.compile(r"bias|bias_.*|.*_bias")
_NORM = re.compile(r".*(Norm|Norm\dd)")
_RATE = "rate"  # what training files call torch's lr


@dataclass(frozen=True, eq=False)
class _Named:
    """A parameter with everything that is known of it.

    Args:
        parameter: The parameter.
        names: All its names, the first in the module's order first; more than one where it is tied.
        kinds: Which of `KINDS` it is.
    """

    parameter: nn.Parameter
    names: tuple[str, ...]
    kinds: frozenset[str]


def parameter_groups(
    module: nn.Module,
    *,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] = ("bias", "norm"),
    rules: Sequence[Mapping[str, Any]] = (),
    named: Iterable[tuple[str, nn.Parameter]] | None = None,
) -> list[dict[str, Any]]:
    r"""Returns groups for an optimizer: every trainable parameter is in exactly one.

    A pattern is a regular expression for one or more whole parts of a dotted name: `head` finds `head.weight` and
    `model.head.bias`, not `heads.weight`; `layers\.[0-3]` finds all below the first four layers. A tied parameter is
    found by any of its names, and appears once. Parameters with equal settings share a group. Groups, and parameters in
    a group, are in the order of the module.

    Args:
        module: Whose parameters are meant.
        weight_decay: Of every parameter that neither `no_decay` nor a rule speaks of.
        no_decay: Kinds of `KINDS`, or patterns: their weight decay is 0.
        rules: Mappings with `match`, a pattern, and settings for what it finds, such as `lr` (or `rate`) and
            `weight_decay`. The first rule that finds a parameter holds, and what it says goes before `no_decay`.
        named: Which parameters, as pairs of name and parameter; by default all of the module.

    Returns:
        Dictionaries with `params`, `weight_decay` and whatever rules set.

    Raises:
        LearningError: A rule or a pattern finds nothing, or is none; no parameter can be trained; lists all faults.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> groups = parameter_groups(layer, weight_decay=0.1)
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(1, 0.1), (1, 0.0)]
    """
    found = list(_parameters(module, named))
    trained = [one for one in found if one.parameter.requires_grad]
    faults = [] if trained else [f"none of the {len(found)} parameters can be trained: all are frozen"]
    faults += _pattern_faults(no_decay, found)
    faults += _rule_faults(rules, found)
    if faults:
        raise LearningError("parameters cannot be grouped", faults)
    groups: dict[str, dict[str, Any]] = {}
    for one in trained:
        settings = _settings(one, weight_decay, no_decay, rules)
        group = groups.setdefault(repr(sorted(settings.items())), {"params": [], **settings})
        group["params"].append(one.parameter)
    return list(groups.values())


def _settings(
    one: _Named, weight_decay: float, no_decay: Sequence[str], rules: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    decays = not any(entry in one.kinds if entry in KINDS else _finds(entry, one) for entry in no_decay)
    rule = next((rule for rule in rules if _finds(rule["match"], one)), {})
    own = {("lr" if key == _RATE else key): with_numbers(one) for key, one in rule.items() if key != "match"}
    return {"weight_decay": weight_decay if decays else 0.0, **own}


# ── parameters and what they are ─────────────────────────────────────────────────────────────────────────────────────


def _parameters(module: nn.Module, named: Iterable[tuple[str, nn.Parameter]] | None) -> Iterator[_Named]:
    """Yields every parameter once, in the module's order."""
    owners: dict[int, list[nn.Module]] = {}
    for owner in module.modules():
        for parameter in owner.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(owner)
    found: dict[int, tuple[nn.Parameter, list[str]]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False) if named is None else named:
        found.setdefault(id(parameter), (parameter, []))[1].append(name)
    for parameter, names in found.values():
        kinds = frozenset(_kinds(parameter, names, owners.get(id(parameter), [])))
        yield _Named(parameter, tuple(names), kinds)


def _kinds(parameter: nn.Parameter, names: Sequence[str], owners: Sequence[nn.Module]) -> Iterator[str]:
    if any(_BIAS.fullmatch(name.rpartition(".")[2]) for name in names):
        yield "bias"
    if parameter.ndim < 2:
        yield "vector"
    if any(isinstance(owner, nn.Embedding | nn.EmbeddingBag) for owner in owners):
        yield "embedding"
    if any(_NORM.fullmatch(type(owner).__name__) for owner in owners):
        yield "norm"


# ── patterns ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _finds(pattern: str, one: _Named) -> bool:
    whole = re.compile(rf"(.*\.)?({pattern})(\..*)?")
    return any(whole.fullmatch(name) for name in one.names)


def _pattern_faults(no_decay: Sequence[str], found: Sequence[_Named]) -> Iterator[str]:
    for entry in no_decay:
        if entry not in KINDS:
            fault = _match_fault(entry, found)
            if fault:
                yield f"no_decay: {entry!r} is none of {', '.join(KINDS)}; as a pattern, {fault}"


def _rule_faults(rules: Sequence[Mapping[str, Any]], found: Sequence[_Named]) -> Iterator[str]:
    left = [one for one in found if one.parameter.requires_grad]
    for number, rule in enumerate(rules):
        place, pattern = f"rules[{number}]", rule.get("match")
        if not isinstance(pattern, str):
            yield f"{place} has no match: name the parameters that it is for, such as match: head"
            continue
        fault = _match_fault(pattern, found)
        mine = [] if fault else [one for one in left if _finds(pattern, one)]
        if fault or not mine:
            yield f"{place}: {fault or repr(pattern) + ' finds only what an earlier rule has found; put it first'}"
        if not set(rule) - {"match"}:
            yield f"{place} sets nothing; give it a setting, such as lr, or leave it out"
        if {"lr", _RATE} <= set(rule):
            yield f"{place} sets rate and lr, which are the same; leave one out"
        left = [one for one in left if one not in mine]


def _match_fault(pattern: str, found: Sequence[_Named]) -> str:
    """Returns why a pattern finds no parameter that can be trained; empty if it finds one."""
    try:
        matches = [one for one in found if _finds(pattern, one)]
    except re.error as error:
        return f"{pattern!r} is not a regular expression ({error})"
    if any(one.parameter.requires_grad for one in matches):
        return ""
    if matches:
        return f"{pattern!r} finds {len(matches)} parameters, all of them frozen"
    parts = dict.fromkeys(part for one in found for name in one.names for part in (name, *name.split(".")))
    near = difflib.get_close_matches(pattern, list(parts), n=2)
    hint = (
        f"; did you mean {' or '.join(map(repr, near))}?" if near else f"; the first is {next(iter(parts), 'none')!r}"
    )
    return f"{pattern!r} finds none of the {len(found)} parameters{hint}"
