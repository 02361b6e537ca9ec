"""Graphs made by hand, and the plainest way to carry them out: what every plan must give."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from minerua.chain.graph import Condition, Graph, Source, Step
from minerua.chain.plan import ExecutionPlan
from minerua.chain.planning.measuring import Runner
from minerua.values import JoinedStep, Setup, Skill


def source(text: str) -> Source:
    step, _, port = text.rpartition(".")
    return Source(step or None, port)


def wired(
    name: str,
    skill: Skill,
    wires: Mapping[str, str | tuple[str, ...]] | None = None,
    when: Iterable[str] = (),
    **more: Any,
) -> Step:
    """A step whose sources and conditions are written as chains write them."""
    several = {port: (given,) if isinstance(given, str) else given for port, given in (wires or {}).items()}
    inputs = {port: tuple(map(source, given)) for port, given in several.items()}
    conditions = tuple(Condition(source(text.removeprefix("not ")), not text.startswith("not ")) for text in when)
    return Step(name, skill, inputs, when=conditions, **more)


def graph_of(*steps: Step, outputs: Mapping[str, str | tuple[str, ...]], optional: tuple[str, ...] = ()) -> Graph:
    """A graph whose inputs are those that its steps take."""
    wanted = {one for outs in outputs.values() for one in ((outs,) if isinstance(outs, str) else outs)}
    taken = [s for step in steps for several in step.inputs.values() for s in several]
    taken += [c.source for step in steps for c in step.when] + [source(one) for one in wanted]
    inputs = {s.port: int for s in taken if s.step is None}
    ends = {n: tuple(map(source, (o,) if isinstance(o, str) else o)) for n, o in outputs.items()}
    return Graph("made", inputs, optional, steps, ends)


def carry_out(graph: Graph, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Runs the steps one after the other; returns the outputs that are there."""
    values: dict[Source, Any] = {Source(None, name): value for name, value in inputs.items()}
    for step in graph.steps:
        if all(s in values and bool(values[s]) == wanted for s, wanted in step.when):
            taken = _taken(step, values)
            if taken is not None:
                call = step.skill.call or step.skill.load(step.skill.setups[0])  # type: ignore[misc]
                values |= {Source(step.name, port): value for port, value in call(**taken).items()}
    found = {name: [values[s] for s in sources if s in values] for name, sources in graph.outputs.items()}
    return {name: several[0] for name, several in found.items() if several}


def _taken(step: Step, values: Mapping[Source, Any]) -> dict[str, Any] | None:
    taken = dict(step.constants)
    for port, sources in step.inputs.items():
        there = [values[s] for s in sources if s in values]
        policy = step.missing.get(port, "omit" if port in step.skill.optional else "skip")
        if there:
            taken[port] = there[0]
        elif port in step.defaults:
            taken[port] = step.defaults[port]
        elif policy == "zeros":
            taken[port] = 0
        elif policy == "fail":
            raise LookupError(port)
        elif policy == "skip":
            return None
    return taken


def unit_order(plan: ExecutionPlan) -> list[str]:
    return [planned.step.name for unit in plan.units for planned in unit.steps]


def is_sound(plan: ExecutionPlan) -> bool:
    """Whether every step is there once, and units need units before them only."""
    seen: set[str] = set()
    for unit in plan.units:
        for planned in unit.steps:
            if not seen.issuperset(planned.step.needs):
                return False
            seen.add(planned.step.name)
    names = unit_order(plan)
    return sorted(names) == sorted(plan.graph.by_name) and len(set(names)) == len(names)


def simulate(plan: ExecutionPlan, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Runs a plan unit after unit, as they come."""
    by_name = {planned.step.name: planned.step for unit in plan.units for planned in unit.steps}
    steps = tuple(by_name[name] for name in unit_order(plan))
    graph = plan.graph
    return carry_out(Graph(graph.name, graph.inputs, graph.optional, steps, graph.outputs), inputs)


@contextmanager
def open_naively(plan: ExecutionPlan) -> Iterator[Runner]:
    yield Naive(lambda inputs: simulate(plan, inputs))


class Naive(Runner):
    def __init__(self, once: Callable[[Mapping[str, Any]], Any]) -> None:
        self.run = once  # type: ignore[method-assign]

    async def arun(self, inputs: Mapping[str, Any], /) -> Any:
        return self.run(inputs)


# ── skills that can be joined ────────────────────────────────────────────────────────────────────────────────────────


def join(steps: Sequence[JoinedStep]) -> Skill | None:
    """One skill that calls the skills of the steps one after the other."""
    inputs = {n: step.skill.inputs[p] for step in steps for p, (owner, n) in step.inputs.items() if owner is None}
    outputs = {f"{step.name}_{port}": step.skill.outputs[port] for step in steps for port in step.outputs}

    def call(**given: Any) -> dict[str, Any]:
        values: dict[tuple[str | None, str], Any] = {(None, name): value for name, value in given.items()}
        for step in steps:
            taken = {port: values[where] for port, where in step.inputs.items() if where in values}
            made = _callable(step.skill)(**taken)
            values |= {(step.name, port): value for port, value in made.items()}
        return {f"{step.name}_{port}": values[step.name, port] for step in steps for port in step.outputs}

    name = "+".join(step.skill.name for step in steps)
    return Skill(name, call, inputs, outputs, pure=True, setups=steps[0].skill.setups, join=join)


def _callable(skill: Skill) -> Callable[..., Any]:
    return skill.call or skill.load(skill.setups[0])  # type: ignore[misc]


def add(version: str = "1", **more: Any) -> Skill:
    """a + b, where b may be left out."""

    def call(a: int, b: int = 0) -> dict[str, int]:
        return {"y": (a + b) % 1_000_003, "odd": (a + b) % 2}

    more = {"pure": True, **more}
    return Skill(f"add{version}", call, {"a": int, "b": int}, {"y": int, "odd": int}, version, optional=("b",), **more)


THREADS = (Setup(), Setup(threads=1), Setup(shared_threads=True))
