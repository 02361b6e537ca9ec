"""Rewriting a chain so that it does less: steps that nobody needs are dropped, equal ones become one.

Every pass is a function from a graph to a `Rewrite`. It keeps results: whoever runs the new graph gets what the old one
gives, for all inputs, whatever is absent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final

from minerua.chain.graph import Condition, Graph, Missing, Source, Step
from minerua.errors import ChainError, unknown
from minerua.values import Skill

Policy = Missing | Literal["default"]
"""What a step does where an input is absent, with the case that it takes a default."""


@final
@dataclass(frozen=True, eq=False)
class Rewrite:
    """What a pass made of a graph.

    Args:
        graph: The new graph.
        changes: One sentence per change.
        parts: Step of the new graph → the steps of the old one that it stands for; those that are not here are as they
            were.
    """

    graph: Graph
    changes: tuple[str, ...] = ()
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


# ── steps that nobody needs ──────────────────────────────────────────────────────────────────────────────────────────


def drop_dead(graph: Graph, outputs: Iterable[str] | None = None) -> Rewrite:
    """Drops the pure steps that no requested output needs, and the outputs that nobody requested.

    A step that is not pure stays, with all that it needs: its effects are wanted.

    Args:
        graph: The chain.
        outputs: Names of the requested outputs; `None` requests all.

    Raises:
        ChainError: If the chain has no output of such a name; every one is named.
    """
    wanted = requested(graph, outputs)
    live = needed_for(graph, wanted) | needed_by_effects(graph)
    steps = tuple(step for step in graph.steps if step.name in live)
    changes = [f"step {s.name!r} is left out: no requested output needs it" for s in graph.steps if s.name not in live]
    return Rewrite(replace(graph, steps=steps, outputs=wanted), tuple(changes))


def requested(graph: Graph, outputs: Iterable[str] | None) -> Mapping[str, tuple[Source, ...]]:
    """Returns the outputs of these names with their sources, in the order of the chain.

    Raises:
        ChainError: If the chain has no output of such a name; every one is named.
    """
    if outputs is None:
        return graph.outputs
    names = list(outputs)
    faults = [unknown("output", name, tuple(graph.outputs)) for name in names if name not in graph.outputs]
    if faults:
        raise ChainError(f"chain {graph.name!r} cannot give what was requested", faults)
    return {name: sources for name, sources in graph.outputs.items() if name in names}


def needed_for(graph: Graph, outputs: Mapping[str, tuple[Source, ...]]) -> set[str]:
    """Returns the names of the steps that these outputs need, directly or not."""
    return _upstream(graph, {s.step for sources in outputs.values() for s in sources if s.step is not None})


def needed_by_effects(graph: Graph) -> set[str]:
    """Returns the names of the steps that may have effects, and of those that they need."""
    return _upstream(graph, {step.name for step in graph.steps if not step.skill.pure})


def _upstream(graph: Graph, names: set[str]) -> set[str]:
    found = set(names)
    for step in reversed(graph.steps):  # whoever needs a step comes after it
        if step.name in found:
            found.update(step.needs)
    return found


# ── equal steps ──────────────────────────────────────────────────────────────────────────────────────────────────────


def merge_equal(graph: Graph) -> Rewrite:
    """Makes one step of pure steps with the same skill, sources, constants, conditions and policies.

    The first of them stays. What only differed in which of them it took from is equal then, and merged as well.
    """
    merged: dict[str, str] = {}
    kept: list[Step] = []
    alike: dict[Any, list[Step]] = {}
    for written in graph.steps:
        step = rewired(written, lambda source: _renamed(source, merged))
        twins = alike.setdefault(_likeness(step), []) if step.skill.pure else []
        twin = next((other for other in twins if _are_equal(step, other)), None)
        if twin is None:
            kept.append(step)
            twins.append(step)
        else:
            merged[step.name] = twin.name
    outputs = {name: renamed(sources, lambda s: _renamed(s, merged)) for name, sources in graph.outputs.items()}
    changes = tuple(f"step {name!r} is the same as {first!r} and takes its results" for name, first in merged.items())
    parts = {
        first: (first, *(name for name, other in merged.items() if other == first))
        for first in dict.fromkeys(merged.values())
    }
    return Rewrite(replace(graph, steps=tuple(kept), outputs=outputs), changes, parts)


def is_same_skill(one: Skill, other: Skill) -> bool:
    """Whether two skills give the same results by what they say of themselves: name, version, ports, function.

    A skill that loads a model is known by name and version; its loader may be made anew for every step.
    """
    kept = ("name", "version", "call", "inputs", "outputs", "optional", "setups")
    return one is other or (
        (one.load is None) == (other.load is None) and all(getattr(one, name) == getattr(other, name) for name in kept)
    )


def _likeness(step: Step) -> Any:
    """Returns what equal steps have in common and can be looked up by."""
    return (
        step.skill.name,
        step.skill.version,
        tuple(sorted(step.inputs.items())),
        frozenset(step.when),
        tuple(sorted(step.missing.items())),
        (step.timeout_seconds, step.retry, step.isolated),
    )


def _are_equal(one: Step, other: Step) -> bool:
    return (
        is_same_skill(one.skill, other.skill)
        and is_same_value(dict(one.constants), dict(other.constants))
        and is_same_value(dict(one.defaults), dict(other.defaults))
    )


def is_same_value(one: Any, other: Any) -> bool:
    """Whether two values are the same for every skill: of one type, and equal; 1, 1.0 and True are three values."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same_value(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same_value, one, other))
    if hasattr(one, "dtype"):
        same_kind = one.dtype == other.dtype and one.shape == other.shape
        return one is other or (same_kind and bool((one == other).all()))
    return one is other or bool(one == other)


# ── shared by the passes ─────────────────────────────────────────────────────────────────────────────────────────────


def policy(step: Step, port: str) -> Policy:
    """Returns what a step does where this input is absent.

    Where the chain says nothing, an optional input of the skill is omitted, and for any other the step is skipped.
    """
    if port in step.defaults:
        return "default"
    return step.missing.get(port, "omit" if port in step.skill.optional else "skip")


def rewired(step: Step, rename: Callable[[Source], Source]) -> Step:
    """Returns the step with other sources; sources and conditions that become the same are there once."""
    inputs = {port: renamed(sources, rename) for port, sources in step.inputs.items()}
    when = tuple(dict.fromkeys(Condition(rename(source), wanted) for source, wanted in step.when))
    return replace(step, inputs=inputs, when=when)


def renamed(sources: Iterable[Source], rename: Callable[[Source], Source]) -> tuple[Source, ...]:
    """Returns the sources under their new names, each once."""
    return tuple(dict.fromkeys(map(rename, sources)))


def _renamed(source: Source, merged: Mapping[str, str]) -> Source:
    return source if source.step is None else Source(merged.get(source.step, source.step), source.port)


def ordered(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Returns the steps in an order in which they can run, as near as possible to the one that they come in."""
    waiting = {step.name: step for step in steps}
    done: list[Step] = []
    while waiting:
        ready = next((step for step in waiting.values() if not any(name in waiting for name in step.needs)), None)
        if ready is None:
            raise ChainError(f"steps that need one another in a circle: {', '.join(waiting)}; cut one of the edges")
        done.append(waiting.pop(ready.name))
    return tuple(done)
