"""Where steps run and what starts first: a rewritten chain with choices becomes an execution plan.

Nothing is measured here. What is not known is decided as the plain plan decides it, and the reasons say so.
"""

from __future__ import annotations

import heapq
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import final

from minerua.chain.graph import Graph, Step
from minerua.chain.plan import ExecutionPlan, Place, PlannedStep, Unit
from minerua.chain.planning.profile import MachineCosts, StepCost
from minerua.values import Setup, Skill

NOMINAL_SECONDS = 1e-3
"""What a step is taken to last in the order of starts where nothing was measured: all the same."""

UNIT_SECONDS, STEP_SECONDS = 4e-6, 2e-6
"""About what the executor itself spends on scheduling a unit, and on each of its steps."""


@final
@dataclass(frozen=True, eq=False)
class Choices:
    """What distinguishes two plans of one rewritten chain.

    Args:
        setups: Step name → how its skill is loaded; a step that is not here has its skill's default.
        parallel: Whether branches that are worth it run beside one another in threads.
        fused: Whether steps that run one after the other in one place are scheduled as one.
        cached: The steps whose results are looked up and kept.
        batched: Step name → how many rows the calls of concurrent runs may have together.
    """

    setups: Mapping[str, Setup] = field(default_factory=dict)
    parallel: bool = True
    fused: bool = True
    cached: frozenset[str] = frozenset()
    batched: Mapping[str, int] = field(default_factory=dict)

    def setup(self, step: Step) -> Setup:
        """Returns how a step's skill is loaded."""
        return self.setups.get(step.name, step.skill.setups[0])


@final
@dataclass(frozen=True, eq=False)
class Estimates:
    """What is known of the costs of one chain's steps.

    Args:
        find: `find(step, setup)` returns what one call costs, or `None`.
        costs: What hand-overs and look-ups cost.
        processors: How many steps of one run can really run at a time.
        most_threads: How many threads one step may have; 0 for as many as there are processors for a run.
    """

    find: Callable[[Step, Setup], StepCost | None]
    costs: MachineCosts
    processors: int
    most_threads: int = 0

    def seconds(self, step: Step, setup: Setup) -> float | None:
        """Returns how long one call takes, or `None` where that is not known."""
        cost = self.find(step, setup)
        return None if cost is None else cost.seconds


# ── plans ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def arrange(
    graph: Graph, choices: Choices, estimates: Estimates, *, parts: Mapping[str, tuple[str, ...]] | None = None
) -> ExecutionPlan:
    """Returns the plan that carries out a graph with these choices.

    Args:
        graph: The rewritten chain.
        choices: See there.
        estimates: What is known of the costs.
        parts: Step name → the steps of the chain as it was written that it stands for; default: itself.
    """
    named = {step.name: (step.name,) for step in graph.steps} | dict(parts or {})
    planned = {
        step.name: PlannedStep(
            step,
            choices.setup(step),
            cached=step.name in choices.cached,
            batch_rows=choices.batched.get(step.name, 0),
            parts=named[step.name],
            seconds=estimates.seconds(step, choices.setup(step)),
        )
        for step in graph.steps
    }
    places = {name: _place(name, graph, planned, choices, estimates) for name in planned}
    left = graph.seconds_to_end({name: _nominal(one) for name, one in planned.items()})
    runs = _runs(graph, {name: place for name, (place, _) in places.items()}, fused=choices.fused)
    units = tuple(
        Unit(tuple(planned[name] for name in run), places[run[0]][0], max(left[name] for name in run)) for run in runs
    )
    return ExecutionPlan(graph, units, reasons={name: reason for name, (_, reason) in places.items()})


def _nominal(planned: PlannedStep) -> float:
    return NOMINAL_SECONDS if planned.seconds is None else planned.seconds


def _place(
    name: str, graph: Graph, planned: Mapping[str, PlannedStep], choices: Choices, estimates: Estimates
) -> tuple[Place, str]:
    """Returns where a step runs, and why."""
    step, seconds = planned[name].step, planned[name].seconds
    hand_over = estimates.costs.hand_over_seconds
    if step.isolated:
        return "process", "isolated: a process of its own can be stopped at any time"
    if is_coroutine(step.skill):
        return "loop", "a coroutine"
    if step.timeout_seconds is not None:
        return "thread", "in a thread, so that its time limit can be kept"
    if not beside(graph, name):
        return "caller", "where the caller is: nothing could run beside it"
    if not choices.parallel:
        return "caller", "where the caller is: one after the other is faster here"
    if seconds is None:
        return "thread", "in a thread, because the chain branches; not measured"
    if seconds < hand_over:
        return "caller", f"where the caller is: {told(seconds)} are less than a hand-over of {told(hand_over)}"
    return "thread", "in a thread, beside the other branches"


def is_coroutine(skill: Skill) -> bool:
    """Whether a skill's call is awaited; of one that loads a model only its loader knows."""
    return inspect.iscoroutinefunction(skill.call) or inspect.isasyncgenfunction(skill.call)


def beside(graph: Graph, name: str) -> bool:
    """Whether some step needs this one as little as it needs that step."""
    return name in _branching(graph)


@lru_cache(maxsize=64)  # asked for every step of every plan of a few graphs
def _branching(graph: Graph) -> frozenset[str]:
    """Returns the steps that some other step may run beside."""
    bits = {step.name: 1 << number for number, step in enumerate(graph.steps)}
    before, after = dict.fromkeys(bits, 0), dict.fromkeys(bits, 0)
    for step in graph.steps:
        for name in step.needs:
            before[step.name] |= before[name] | bits[name]
    for step in reversed(graph.steps):
        for name in graph.dependants[step.name]:
            after[step.name] |= after[name] | bits[name]
    every = (1 << len(bits)) - 1
    return frozenset(name for name, bit in bits.items() if before[name] | bit | after[name] != every)


def _runs(graph: Graph, places: Mapping[str, Place], *, fused: bool) -> list[tuple[str, ...]]:
    """Returns the steps that are scheduled as one, in an order in which they can run."""
    names = [step.name for step in graph.steps]
    if not fused:
        return [(name,) for name in names]
    if names and all(place == "caller" for place in places.values()):
        return [tuple(names)]
    runs: list[list[str]] = []
    run_of: dict[str, list[str]] = {}
    for step in graph.steps:
        before = run_of.get(step.needs[0]) if len(step.needs) == 1 else None
        if before is not None and before[-1] == step.needs[0] and _continues(step, graph, places):
            before.append(step.name)
        else:
            before = [step.name]
            runs.append(before)
        run_of[step.name] = before
    return [tuple(run) for run in runs]


def _continues(step: Step, graph: Graph, places: Mapping[str, Place]) -> bool:
    """Whether a step can follow the only one that it needs without anybody looking."""
    (before,) = step.needs
    alone = graph.dependants[before] == (step.name,)
    limits = step.timeout_seconds, graph.by_name[before].timeout_seconds
    return alone and places[before] == places[step.name] in ("caller", "thread") and limits == (None, None)


def loading_order(plan: ExecutionPlan) -> tuple[tuple[Skill, Setup], ...]:
    """Returns the models of a plan, each once, in the order in which they are needed: what residency loads ahead.

    Of steps that could start at a time the one on the longer way to the end comes first.
    """
    ready = sorted((unit for unit in plan.units), key=lambda unit: -unit.priority)
    wanted = [(planned.step.skill, planned.setup) for unit in _by_start(plan, ready) for planned in unit.steps]
    loaded = [(skill, setup) for skill, setup in wanted if skill.load is not None]
    return tuple({(id(skill), setup): (skill, setup) for skill, setup in loaded}.values())


def _by_start(plan: ExecutionPlan, units: Sequence[Unit]) -> list[Unit]:
    """Returns the units in an order in which they can start, each as early as its priority allows."""
    waiting, done, started = list(units), set[str](), []
    while waiting:
        unit = next(unit for unit in waiting if done.issuperset(needs_of(unit)))
        waiting.remove(unit)
        started.append(unit)
        done.update(planned.step.name for planned in unit.steps)
    return started


def needs_of(unit: Unit) -> set[str]:
    """Returns the names of the steps outside of a unit that it needs."""
    own = {planned.step.name for planned in unit.steps}
    return {name for planned in unit.steps for name in planned.step.needs} - own


# ── how long a plan takes ────────────────────────────────────────────────────────────────────────────────────────────


def makespan(plan: ExecutionPlan, estimates: Estimates) -> float | None:
    """Returns how long a run of the plan should take, or `None` where the cost of a step is not known.

    Units start as the executor starts them: when what they need is there, by priority, as many at a time as there are
    processors for. What two calls of a step in two threads were measured to lose is taken off the processors.
    """
    if any(planned.seconds is None for unit in plan.units for planned in unit.steps):
        return None
    unit_of = {planned.step.name: index for index, unit in enumerate(plan.units) for planned in unit.steps}
    waits = [{unit_of[name] for name in needs_of(unit)} for unit in plan.units]
    order = sorted(range(len(plan.units)), key=lambda index: -plan.units[index].priority)
    running: list[tuple[float, int]] = []
    done, clock = set[int](), 0.0
    while len(done) < len(plan.units):
        for index in [index for index in order if waits[index] <= done]:
            if _has_room(index, [one for _, one in running], plan.units, estimates):
                order.remove(index)
                heapq.heappush(running, (clock + _unit_seconds(plan.units[index], estimates), index))
        clock, index = heapq.heappop(running)
        done.add(index)
    return clock


def _has_room(index: int, running: Sequence[int], units: Sequence[Unit], estimates: Estimates) -> bool:
    if not running:
        return True
    if units[index].place == "caller" and any(units[other].place == "caller" for other in running):
        return False
    return sum(_width(units[one], estimates) for one in (*running, index)) <= estimates.processors


def _width(unit: Unit, estimates: Estimates) -> int:
    """Returns how many processors a unit occupies."""
    return max(_step_width(planned, estimates) for planned in unit.steps)


def _step_width(planned: PlannedStep, estimates: Estimates) -> int:
    cost, threads = estimates.find(planned.step, planned.setup), planned.setup.threads
    if cost is not None and cost.overlap is not None:
        return 1 + round((1 - cost.overlap) * (estimates.processors - 1))
    if planned.step.skill.load is None:
        return 1
    return estimates.processors if threads is None else min(threads, estimates.processors)


def _unit_seconds(unit: Unit, estimates: Estimates) -> float:
    work = sum(planned.seconds or 0.0 for planned in unit.steps) + STEP_SECONDS * len(unit.steps) + UNIT_SECONDS
    return work + (0.0 if unit.place == "caller" else estimates.costs.hand_over_seconds)


def told(seconds: float) -> str:
    """Returns a duration for a person, with three digits.

    Example:
        >>> told(0.00123), told(0.0000456), told(12.3)
        ('1.23 ms', '45.6 µs', '12.3 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.2g} µs"
