"""From a chain as it is written to a graph that can run, or to everything that is wrong with it."""

from __future__ import annotations

import heapq
import inspect
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minerua.chain.graph import Graph, Missing, PortType, Retry, Source, Step
from minerua.chain.writing.absence import absence_faults
from minerua.chain.writing.extents import Extents, shape_faults
from minerua.chain.writing.ports import described, dtype_of, short, type_fits, value_faults
from minerua.chain.writing.wiring import Placed, Wiring, wired
from minerua.errors import MineruaError, unknown
from minerua.values import Skill, SkillContext, TensorSpec

if TYPE_CHECKING:
    from minerua.chain.writing.chain import SkillChain, SkillTask

MOST_SECONDS = 1e9
"""How long anything may wait: thirty years. Systems cannot wait much longer, which shows only when they do."""


def checked(
    chain: SkillChain, skills: Mapping[str, Skill], context: SkillContext
) -> tuple[tuple[str, ...], Graph | None]:
    """Checks a chain from end to end.

    Args:
        chain: As it is written.
        skills: Skill name → skill.
        context: What skills that are made from settings may look at.

    Returns:
        Every fault once, and the graph if there is none.
    """
    faults = list(_name_faults(chain))
    steps = _looked_up(chain, skills, context, faults)
    for step in steps.values():
        faults += _setting_faults(step)
    wiring = wired(chain, steps)
    faults += wiring.faults
    order, circles = _order(wiring)
    faults += [f"the steps need each other in a circle: {' -> '.join(circle)}" for circle in circles]
    constants = {name: _constants(step, context, faults) for name, step in steps.items()}
    faults += _connection_faults(chain, steps, wiring, constants, skills)
    faults += _condition_faults(chain, steps, wiring)
    missing, wrong = absence_faults(chain, steps, wiring, order)
    faults += wrong
    if faults:
        return tuple(dict.fromkeys(faults)), None
    done = tuple(
        _step(placed, placed.skill, wiring, constants[name], missing[name])
        for name, placed in ((name, steps[name]) for name in order)
        if placed.skill is not None  # none of them is, or there were faults
    )
    return (), Graph(chain.name, dict(chain.inputs), chain.optional, done, dict(wiring.outputs))


def _step(
    placed: Placed,
    skill: Skill,
    wiring: Wiring,
    constants: tuple[dict[str, Any], dict[str, Any]],
    missing: Mapping[str, Missing],
) -> Step:
    task = placed.task
    inputs = wiring.inputs[placed.name]
    fixed, defaults = constants
    never_there = {port: value for port, value in defaults.items() if port not in inputs}
    return Step(
        placed.name,
        skill,
        inputs={port: inputs[port] for port in skill.inputs if port in inputs},
        constants={**fixed, **never_there},
        when=wiring.conditions[placed.name],
        missing=dict(missing),
        defaults={port: value for port, value in defaults.items() if port in inputs},
        timeout_seconds=task.timeout_seconds,
        retry=task.retry,
        isolated=task.isolated,
        provider=placed.provider,
    )


# ── names ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _name_faults(chain: SkillChain) -> Iterator[str]:
    if not isinstance(chain.name, str) or not chain.name:
        yield f"the chain's name is {chain.name!r}; give it a text that is not empty"
    if not chain.tasks:
        yield f"the chain {chain.name!r} has no steps; add one"
    for side, names in (("input", chain.inputs), ("output", chain.outputs or ())):
        for name in names:
            if not _is_identifier(name):
                yield f"{side} {name!r} of the chain: a name must be a Python identifier, such as image"
    for name in chain.optional:
        if name not in chain.inputs:
            yield f"optional inputs: {unknown('input of the chain', str(name), tuple(chain.inputs))}"
    for name, port in chain.inputs.items():
        yield from _port_faults(port, f"input {name!r} of the chain")


def _is_identifier(name: object) -> bool:
    return isinstance(name, str) and name.isidentifier()


def _port_faults(port: object, where: str) -> Iterator[str]:
    if not isinstance(port, type | TensorSpec):
        yield f"{where} has the type {short(port)}; expected a Python type such as str, or a TensorSpec"
    elif isinstance(port, TensorSpec) and dtype_of(port.dtype) is None:
        yield f"{where} has the dtype {port.dtype!r}, which numpy does not know; write float32, int64 and so on"


# ── skills ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _looked_up(
    chain: SkillChain, skills: Mapping[str, Skill], context: SkillContext, faults: list[str]
) -> dict[str, Placed]:
    """Returns step name → step with its skill, in the order in which they were added."""
    steps: dict[str, Placed] = {}
    for stage, tasks in enumerate(chain.stages):
        for task in tasks:
            name = task.title
            if not _is_identifier(name):
                faults.append(f"step {name!r}: a step's name must be a Python identifier, without dots, such as see")
            if name in steps:
                faults.append(f"step {name!r}: two steps have this name; rename one")
            skill, provider = _find(task, skills, faults)
            if skill is not None:
                skill = _configured(skill, task, context, faults)
            steps.setdefault(name, Placed(task, name, stage, skill, provider))
    return steps


def _find(task: SkillTask, skills: Mapping[str, Skill], faults: list[str]) -> tuple[Skill | None, str]:
    """Returns a step's skill and the plugin that provides it."""
    if isinstance(task.skill, Skill):
        return task.skill, ""
    try:
        skill = skills[task.skill]
        provider = getattr(skills, "provider", None)
        return skill, "" if provider is None else str(provider(task.skill))
    except MineruaError as error:  # a registry's own words: who might have it, or who quarrels over it
        faults.append(f"step {task.title!r}: {'; '.join([error.message, *error.faults])}")
    except KeyError:
        faults.append(f"step {task.title!r}: {unknown('skill', str(task.skill), tuple(skills))}")
    return None, ""


def _configured(skill: Skill, task: SkillTask, context: SkillContext, faults: list[str]) -> Skill | None:
    """Returns the skill that a step's settings describe; the skill itself if it takes none."""
    where = f"step {task.title!r}"
    if skill.configure is None:
        if task.settings:
            faults.append(
                f"{where}: skill {skill.name!r} takes no settings, found {', '.join(map(str, task.settings))}"
            )
    else:
        try:
            skill = skill.configure(task.settings, context)
        except Exception as error:  # noqa: BLE001 - a plugin's own code, told with everything else that is wrong
            faults.append(f"{where}: its settings cannot be used: {_in_one_line(error)}")
            return None
    if not isinstance(skill, Skill) or (skill.call is None) == (skill.load is None):
        faults.append(f"{where}: its skill must have either call or load, found {short(skill)}")
        return None
    wrong = [
        fault
        for side in (skill.inputs, skill.outputs)
        for port, kind in side.items()
        for fault in _port_faults(kind, f"{where}: port {port!r} of skill {skill.name!r}")
    ]
    faults += wrong
    return None if wrong else skill


def _in_one_line(error: Exception) -> str:
    text = "; ".join([error.message, *error.faults]) if isinstance(error, MineruaError) else str(error)
    return " ".join(f"{text or type(error).__name__}".split())


# ── settings of a step ───────────────────────────────────────────────────────────────────────────────────────────────


def _setting_faults(step: Placed) -> Iterator[str]:
    task, where = step.task, f"step {step.name!r}"
    if task.timeout_seconds is not None and not _is_number(task.timeout_seconds, above=0, most=MOST_SECONDS):
        yield (
            f"{where}: timeout_seconds is {task.timeout_seconds!r}; expected seconds above 0 and up to "
            f"{MOST_SECONDS:g}, or nothing for ever"
        )
    yield from _retry_faults(task.retry, where)
    call = None if step.skill is None else step.skill.call
    if task.isolated and (inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call)):
        yield f"{where} is isolated, but its skill is a coroutine, which can be stopped where it is; leave isolated out"


def _retry_faults(retry: object, where: str) -> Iterator[str]:
    if not isinstance(retry, Retry):
        yield f"{where}: retry is {short(retry)}; expected a Retry"
        return
    if type(retry.attempts) is not int or retry.attempts < 1:
        yield f"{where}: retry.attempts is {retry.attempts!r}; expected a count from 1, the first attempt included"
    for name, least in (("delay_seconds", 0.0), ("factor", 1.0), ("most_seconds", 0.0)):
        value = getattr(retry, name)
        if not _is_number(value, least=least, most=MOST_SECONDS):
            yield f"{where}: retry.{name} is {value!r}; expected a number from {least:g} to {MOST_SECONDS:g}"


def _is_number(value: object, *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return is_number and least <= value <= most and value > above  # type: ignore[operator]


# ── order ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _order(wiring: Wiring) -> tuple[tuple[str, ...], list[list[str]]]:
    """Returns the steps in an order in which they can run, the first added first; and a circle for each that cannot."""
    place = {name: index for index, name in enumerate(wiring.inputs)}
    needs = {name: wiring.needs(name) for name in place}
    waits = {name: len(needs[name]) for name in place}
    dependants: dict[str, list[str]] = {name: [] for name in place}
    for name, needed in needs.items():
        for other in needed:
            dependants[other].append(name)
    ready = [place[name] for name in place if not waits[name]]
    names, order = list(place), list[str]()
    while ready:
        name = names[heapq.heappop(ready)]
        order.append(name)
        for other in dependants[name]:
            waits[other] -= 1
            if not waits[other]:
                heapq.heappush(ready, place[other])
    return tuple(order), _circles({name: needs[name] for name in names if waits[name]})


def _circles(needs: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """Returns circles among steps of which each needs another or itself, each from its first step; no two share one."""
    seen: set[str] = set()
    circles = []
    places = {name: place for place, name in enumerate(needs)}
    for start in needs:
        path: list[str] = []
        name: str | None = start
        while name is not None and name not in seen:
            seen.add(name)
            path.append(name)
            name = next((other for other in needs[name] if other in needs), None)
        if name in path:
            circle = path[path.index(name) :][::-1]
            first = circle.index(min(circle, key=places.__getitem__))
            circles.append([*circle[first:], *circle[: first + 1]])
    return circles


# ── constants and defaults ───────────────────────────────────────────────────────────────────────────────────────────


def _constants(step: Placed, context: SkillContext, faults: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a step's constants and defaults as its skill takes them."""
    results: list[dict[str, Any]] = []
    extents: dict[str, int] = {}
    for kind, values in (("constant", step.task.constants), ("default", step.task.defaults)):
        taken = {}
        for port, value in values.items():
            wanted = None if step.skill is None else step.skill.inputs.get(port)
            where = f"step {step.name!r}"
            if wanted is None:
                if step.skill is not None and kind == "default":
                    known = tuple(step.skill.inputs)
                    faults.append(f"{where}, defaults: {unknown(f'input of skill {step.skill.name!r}', port, known)}")
                continue
            taken[port] = _as_wanted(value, wanted, context.folder)
            bound = extents if kind == "constant" else {}
            faults += value_faults({port: wanted}, {port: taken[port]}, where=f"a {kind} of {where}", extents=bound)
        results.append(taken)
    return results[0], results[1]


def _as_wanted(value: object, port: PortType, folder: Path) -> object:
    """Makes arrays of lists and numbers, and paths of texts, because files hold neither; else returns the value."""
    if isinstance(port, TensorSpec) and isinstance(value, list | tuple | int | float):
        try:
            array = np.asarray(value, dtype_of(port.dtype))
        except (ValueError, TypeError, OverflowError):
            return value
        array.flags.writeable = False
        return array
    return folder / value if port is Path and isinstance(value, str) else value


# ── connections ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _connection_faults(
    chain: SkillChain,
    steps: Mapping[str, Placed],
    wiring: Wiring,
    constants: Mapping[str, tuple[dict[str, Any], dict[str, Any]]],
    skills: Mapping[str, Skill],
) -> Iterator[str]:
    """Yields what does not fit where it is connected to: types, dtypes and shapes."""
    extents = Extents()
    for name, step in steps.items():
        if step.skill is None:
            continue
        for port, value in constants[name][0].items():
            wanted = step.skill.inputs[port]
            if isinstance(wanted, TensorSpec) and isinstance(value, np.ndarray) and value.ndim == len(wanted.shape):
                shape_faults(extents, [(None, value.shape, f"the constant {name}.{port}")], (name, wanted.shape))
        for port, sources in wiring.inputs[name].items():
            if port in step.skill.inputs:
                target = Source(name, port)
                yield from _source_faults(chain, steps, target, step.skill.inputs[port], sources, skills, extents)


def _source_faults(
    chain: SkillChain,
    steps: Mapping[str, Placed],
    target: Source,
    wanted: PortType,
    sources: tuple[Source, ...],
    skills: Mapping[str, Skill],
    extents: Extents,
) -> Iterator[str]:
    fitting = []
    for source in sources:
        given = _type_of(chain, steps, source)
        if given is None:
            continue
        reason = f"{source} -> {target}"
        if not type_fits(given, wanted):
            yield f"{reason}: {source} is {described(given)}, and {target} wants {described(wanted)}" + _adapters(
                given, wanted, skills
            )
        elif isinstance(given, TensorSpec):
            fitting.append((source, given, reason))
    if isinstance(wanted, TensorSpec) and fitting:
        shapes = [(source.step, given.shape, reason) for source, given, reason in fitting]
        shown = " or ".join(f"{source} is {described(given)}" for source, given, _ in fitting)
        for fault in shape_faults(extents, shapes, (target.step, wanted.shape)):
            yield f"{fitting[0][2]}: {shown}, and {target} wants {described(wanted)}: {fault}"


def _type_of(chain: SkillChain, steps: Mapping[str, Placed], source: Source) -> PortType | None:
    """Returns what a source gives; `None` where its skill was not found."""
    if source.step is None:
        given = chain.inputs[source.port]
        return given if isinstance(given, type | TensorSpec) else None
    skill = steps[source.step].skill
    return None if skill is None else skill.outputs[source.port]


def _adapters(given: PortType, wanted: PortType, skills: Mapping[str, Skill]) -> str:
    """Returns a hint at skills that make the one from the other; empty if there is none."""
    names: list[str] = []
    for name in skills:
        skill = skills[name]
        needed = [kind for port, kind in skill.inputs.items() if port not in skill.optional]
        takes = len(needed) == 1 and needed[0] is not object and type_fits(given, needed[0])
        if takes and any(type_fits(kind, wanted) for kind in skill.outputs.values()):
            names.append(repr(name))
    return f"; between them could stand the skill {' or '.join(names[:2])}" if names else ""


def _condition_faults(chain: SkillChain, steps: Mapping[str, Placed], wiring: Wiring) -> Iterator[str]:
    for name, conditions in wiring.conditions.items():
        for source, _ in conditions:
            given = _type_of(chain, steps, source)
            is_flag = given is bool or (isinstance(given, TensorSpec) and (given.dtype, given.shape) == ("bool", ()))
            if given is not None and not is_flag:
                yield f"step {name!r}, when: {source} is {described(given)}; a condition must be flag"
