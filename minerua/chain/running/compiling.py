"""A plan made ready: names become slots of an array, dependencies become counts, so that a run is an array walk."""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import pairwise
from typing import Any, Literal, NamedTuple, final
from weakref import WeakValueDictionary

import numpy as np

from minerua.chain.graph import Graph, Missing, PortType, Source, Step
from minerua.chain.plan import ExecutionPlan, PlannedStep, Unit
from minerua.chain.running.branches import Branches, branches_of
from minerua.chain.writing.ports import PortCheck
from minerua.errors import ChainError, unknown
from minerua.values import Skill, TensorSpec

Kind = Literal["function", "generator", "coroutine", "async generator"]

NOWHERE = -1
"""The slot of an output that nobody reads."""


def kind_of(call: Callable[..., Any]) -> Kind:
    """Returns how a callable gives its results; objects count as their `__call__`."""
    for one in (call, getattr(call, "__call__", None)):  # noqa: B004 - its function is wanted, not whether it has one
        function: Any = inspect.unwrap(one) if inspect.isfunction(one) else one
        while hasattr(function, "func"):  # functools.partial
            function = function.func
        if inspect.iscoroutinefunction(function):
            return "coroutine"
        if inspect.isasyncgenfunction(function):
            return "async generator"
        if inspect.isgeneratorfunction(function):
            return "generator"
    return "function"


# ── one at a time ────────────────────────────────────────────────────────────────────────────────────────────────────


@final
class Turn:
    """Who may call a skill that is not safe for threads: one at a time, in the order in which they asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._is_taken = False
        self._waiting: deque[Callable[[], object]] = deque()

    def take(self, when_free: Callable[[], object]) -> bool:
        """Takes the turn; if somebody else has it, `when_free` is called once it is the caller's."""
        with self._lock:
            if self._is_taken:
                self._waiting.append(when_free)
                return False
            self._is_taken = True
            return True

    def withdraw(self, when_free: Callable[[], object]) -> None:
        """Waits no longer."""
        with self._lock:
            if when_free in self._waiting:
                self._waiting.remove(when_free)

    def give(self) -> None:
        """Hands the turn to whoever waits longest."""
        with self._lock:
            heir = self._waiting.popleft() if self._waiting else None
            self._is_taken = heir is not None
        if heir is not None:
            heir()


_turns: WeakValueDictionary[int, Turn] = WeakValueDictionary()
_turns_lock = threading.Lock()


def turn_of(skill: Skill) -> Turn | None:
    """Returns the turn that all steps share which use a skill's function, whatever chain they are in."""
    if skill.thread_safe:
        return None
    with _turns_lock:  # whoever holds the turn holds the skill too, so the id is not given to another function
        key = id(skill.call if skill.call is not None else skill.load)
        turn = _turns.get(key)
        if turn is None:
            turn = _turns[key] = Turn()
        return turn


# ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class PortCode(NamedTuple):
    """How one input of a step gets its value."""

    port: str
    slots: tuple[int, ...]
    policy: Missing | Literal["default"]
    default: Any
    type: PortType


@final
class StepCode:
    """A step made ready.

    Attributes are read in the innermost loop, so they are plain: what they mean stands in `Step` and `PlannedStep`.
    """

    __slots__ = (
        "_has_all_inputs",
        "call",
        "check_inputs",
        "check_outputs",
        "conditions",
        "constants",
        "frees",
        "has_arrays",
        "inputs",
        "is_joined",
        "is_only_joined",
        "is_simple",
        "kept",
        "kind",
        "name",
        "path",
        "planned",
        "ports",
        "reads",
        "reference",
        "requirements",
        "skill",
        "skill_name",
        "step",
        "turn",
        "unit",
        "uses_process",
    )

    def __init__(
        self,
        planned: PlannedStep,
        unit: int,
        slots: Mapping[Source, int],
        path: tuple[str, ...],
        *,
        uses_process: bool = False,
    ) -> None:
        step = planned.step
        self.planned, self.step, self.skill = planned, step, step.skill
        self.name, self.skill_name, self.unit, self.path = step.name, step.skill.name, unit, path
        self.call = step.skill.call
        self.kind: Kind = "function" if self.call is None else kind_of(self.call)
        self.uses_process = uses_process
        self.reference: Any = _reference(planned) if uses_process else None
        self.constants = {port: shared(value) for port, value in step.constants.items()}
        self.ports = tuple(_ports(step, slots))
        self.inputs = tuple((port.port, port.slots[0]) for port in self.ports if port.slots)
        self.conditions = tuple((slots[source], wanted, source) for source, wanted in step.when)
        self.kept = tuple((port, slots.get(Source(step.name, port), NOWHERE)) for port in step.skill.outputs)
        self.reads = _read_slots(step, slots)
        self.frees: tuple[int, ...] = ()  # those of `reads` that nobody else reads
        check = PortCheck(step.skill.inputs, step.skill.outputs, step.skill.optional)
        self.check_inputs, self.check_outputs = check.inputs, check.outputs
        kinds = (*step.skill.inputs.values(), *step.skill.outputs.values())
        self.is_joined = bool(planned.batch_rows and self.kind == "function" and self.skill.batchable)
        self.has_arrays = any(isinstance(kind, TensorSpec) for kind in kinds)
        self.turn = turn_of(step.skill)
        self.requirements: Any = None
        self.is_simple = self.is_only_joined = False
        self._has_all_inputs = False

    def find_simple(self, sure: Collection[int]) -> None:
        """Finds out whether the step is a plain call, or one that is only joined, whose inputs are always there."""
        self._has_all_inputs = all(len(port.slots) == 1 and port.slots[0] in sure for port in self.ports)
        self.is_simple = self._is_simple()
        self.is_only_joined = self.is_joined and self._is_certain()

    def _is_certain(self) -> bool:
        """Returns whether all that can become of the step is that its call returns or raises, once."""
        planned, step = self.planned, self.step
        can_differ = planned.cached or step.when or step.timeout_seconds is not None or step.retry.attempts > 1
        return self._has_all_inputs and not can_differ and not self.uses_process

    def _is_simple(self) -> bool:
        has_extras = self.planned.batch_rows or self.turn is not None or self.requirements is not None
        is_plain = self.call is not None and self.kind == "function"
        return bool(is_plain and self._is_certain() and not has_extras)

    def settle(self, call: Callable[..., Any]) -> None:
        """Takes a model that stays loaded for good: from now on its calls cost what those of a function cost."""
        if kind_of(call) == "function":
            self.call = call
            self.is_simple = self._is_simple()


def _reference(planned: PlannedStep) -> Any:
    """Returns what a worker process is told to call."""
    from minerua.chain.running.workers import reference_to  # few chains have isolated steps

    return reference_to(planned.step.skill, planned.setup)


def _ports(step: Step, slots: Mapping[Source, int]) -> Iterable[PortCode]:
    """Yields all inputs that can have a value, those included that only a policy gives one."""
    names = dict.fromkeys([*step.inputs, *step.defaults, *step.missing])
    for port in names:
        if port in step.constants:
            continue
        policy: Any = "default" if port in step.defaults else step.missing.get(port)
        policy = policy or ("omit" if port in step.skill.optional else "skip")
        sources = tuple(slots[source] for source in step.inputs.get(port, ()))
        yield PortCode(port, sources, policy, shared(step.defaults.get(port)), step.skill.inputs.get(port, object))


def _read_slots(step: Step, slots: Mapping[Source, int]) -> tuple[int, ...]:
    sources = [source for several in step.inputs.values() for source in several]
    sources += [condition.source for condition in step.when]
    return tuple(dict.fromkeys(slots[source] for source in sources))


def shared(value: Any) -> Any:
    """Returns a value as steps get it: arrays as read-only views of the same memory, the rest as it is."""
    if isinstance(value, np.ndarray) and value.flags.writeable:
        value = value.view()
        value.flags.writeable = False
    return value


# ── units and programs ───────────────────────────────────────────────────────────────────────────────────────────────


@final
class UnitCode:
    """A unit made ready.

    Args:
        index: Its place in its program.
        unit: As planned.
        steps: Its steps, made ready.
        in_loop: Whether its runs are in an event loop.
    """

    __slots__ = ("after", "index", "is_simple", "needs", "rank", "steps", "unit", "where")

    def __init__(self, index: int, unit: Unit, steps: tuple[StepCode, ...], in_loop: bool) -> None:
        self.index, self.unit, self.steps = index, unit, steps
        self.rank = -unit.priority
        self.is_simple = all(step.is_simple for step in steps)
        self.where = tuple(_where(step, unit, in_loop) for step in steps)
        self.needs = 0
        self.after: tuple[UnitCode, ...] = ()

    def find_simple(self) -> None:
        """Finds out whether all its steps are plain calls."""
        self.is_simple = all(step.is_simple for step in self.steps)

    def settle(self, code: StepCode, call: Callable[..., Any]) -> None:
        """Takes the model of one of its steps that stays loaded for good."""
        code.settle(call)
        self.find_simple()


def _where(step: StepCode, unit: Unit, in_loop: bool) -> Literal["own", "shared", "loop"]:
    """Returns who may take up a step: one thread at a time, any, or the event loop."""
    if in_loop and step.is_joined and not step.planned.cached:
        return "loop"  # it is only handed in there; the call itself is made in a thread of the batcher
    blocks = step.call is None or step.planned.cached or step.planned.batch_rows or step.uses_process
    if step.kind in ("coroutine", "async generator") and not blocks:
        return "loop"
    return "own" if unit.place == "caller" else "shared"


@final
class Program:
    """A plan made ready for many runs; never changes.

    Args:
        plan: The plan.
        outputs: The outputs of the chain that are wanted; `None` for all, and then every step runs.
        prepare: Makes a skill's resources ready for the pool.
        in_loop: Whether its runs are in an event loop, which then hands in the calls that are joined with others.

    Raises:
        ChainError: If the plan does not have every step once after what it needs, or an output is unknown.
    """

    def __init__(
        self,
        plan: ExecutionPlan,
        outputs: Collection[str] | None = None,
        prepare: Callable[[Mapping[str, int]], Any] | None = None,
        *,
        in_loop: bool = False,
    ) -> None:
        graph = self.graph = plan.graph
        self.name = graph.name
        _refuse_unsound(plan)
        _refuse_unknown_outputs(graph, outputs)
        wanted = {name: graph.outputs[name] for name in graph.outputs if outputs is None or name in outputs}
        units = _needed_units(plan, None if outputs is None else wanted)
        slots = _slots(graph, units)
        self.inputs = tuple((name, slots.get(Source(None, name), NOWHERE)) for name in graph.inputs)
        self.outputs = tuple((name, tuple(slots[source] for source in wanted[name])) for name in wanted)
        self.steps: dict[str, StepCode] = {}
        self.units = tuple(self._unit(index, unit, slots, prepare, in_loop) for index, unit in enumerate(units))
        self.readers = self._count_readers(len(slots))
        self._wire(graph, slots)
        self.door = PortCheck(graph.inputs, {}, graph.optional)
        follow = all(second in first.after for first, second in pairwise(self.units))
        self._is_line = follow and all(unit.where[0] == "own" for unit in self.units)
        self._is_plain = False
        self._branches = None if in_loop else branches_of(self.units)
        self.is_joined_line = in_loop and follow and all(code.is_only_joined for code in self.steps.values())
        """Whether its steps follow one another, all of them handed in by the loop."""
        self.has_timeouts = any(s.step.timeout_seconds is not None for s in self.steps.values())

    @property
    def is_plain_line(self) -> bool:
        """Whether its units follow one another in the caller's thread, all of them plain calls; once so, always."""
        return self._is_line and self._are_plain

    @property
    def branches(self) -> Branches | None:
        """How its units part once, if they do and all of them are plain calls; for runs that a thread waits for."""
        return self._branches if self._branches is not None and self._are_plain else None

    @property
    def _are_plain(self) -> bool:
        if not self._is_plain:
            self._is_plain = all(unit.is_simple for unit in self.units)
        return self._is_plain

    def _unit(self, index: int, unit: Unit, slots: Mapping[Source, int], prepare: Any, in_loop: bool) -> UnitCode:
        for planned in unit.steps:
            step = planned.step
            path = max((self.steps[need].path for need in step.needs), key=len, default=())
            uses_process = step.isolated or unit.place == "process"
            code = StepCode(planned, index, slots, (*path, step.name), uses_process=uses_process)
            if prepare is not None and step.skill.resources:
                code.requirements = prepare(step.skill.resources)
            self.steps[step.name] = code
        return UnitCode(index, unit, tuple(self.steps[planned.step.name] for planned in unit.steps), in_loop)

    def _count_readers(self, slots: int) -> list[int]:
        readers = [0] * slots
        for code in self.steps.values():
            for slot in code.reads:
                readers[slot] += 1
        for _, sources in self.outputs:
            for slot in sources:
                readers[slot] += 1
        for code in self.steps.values():
            code.frees = tuple(slot for slot in code.reads if readers[slot] == 1)
            code.reads = tuple(slot for slot in code.reads if readers[slot] > 1)
        return readers

    def _wire(self, graph: Graph, slots: Mapping[Source, int]) -> None:
        """Connects the units, and finds those that are plain calls."""
        sure = {slots[source] for source in slots if source.step is None and source.port not in graph.optional}
        after: dict[int, list[UnitCode]] = {unit.index: [] for unit in self.units}
        for unit in self.units:
            needed = {self.steps[need].unit for step in unit.steps for need in step.step.needs} - {unit.index}
            unit.needs = len(needed)
            for index in sorted(needed):
                after[index].append(unit)
            for code in unit.steps:
                code.find_simple(sure)
                if _always_runs(code, sure):
                    sure |= {slot for _, slot in code.kept}
            unit.find_simple()
        for unit in self.units:
            unit.after = tuple(after[unit.index])


def _always_runs(code: StepCode, sure: Collection[int]) -> bool:
    return not code.step.when and all(
        port.policy != "skip" or any(slot in sure for slot in port.slots) for port in code.ports
    )


def _refuse_unsound(plan: ExecutionPlan) -> None:
    """Raises an error unless the plan has every step of its graph once, after what it needs."""
    order = [planned.step for unit in plan.units for planned in unit.steps]
    faults, seen = [], set[str]()
    for step in order:
        if step.name in seen:
            faults.append(f"step {step.name!r} is there twice")
        faults += [
            f"step {step.name!r} comes before {need!r}, which it needs" for need in step.needs if need not in seen
        ]
        seen.add(step.name)
    faults += [f"step {name!r} is not in it" for name in plan.graph.by_name if name not in seen]
    if faults:
        raise ChainError(f"the plan for chain {plan.graph.name!r} cannot be carried out; plan it afresh", faults)


def _refuse_unknown_outputs(graph: Graph, outputs: Collection[str] | None) -> None:
    faults = [unknown("output", name, tuple(graph.outputs)) for name in outputs or () if name not in graph.outputs]
    if faults:
        raise ChainError(f"chain {graph.name!r} does not have the outputs that were asked for", faults)


def _needed_units(plan: ExecutionPlan, wanted: Mapping[str, tuple[Source, ...]] | None) -> tuple[Unit, ...]:
    """Returns the units with the steps that the wanted outputs need; all of them if nothing is said."""
    if wanted is None:
        return plan.units
    todo = [source.step for sources in wanted.values() for source in sources if source.step is not None]
    needed: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in needed:
            needed.add(name)
            todo += plan.graph.by_name[name].needs
    parts = ((unit, tuple(one for one in unit.steps if one.step.name in needed)) for unit in plan.units)
    return tuple(Unit(steps, unit.place, unit.priority) for unit, steps in parts if steps)


def _slots(graph: Graph, units: Iterable[Unit]) -> dict[Source, int]:
    """Numbers all values that somebody reads, or that the chain gives out."""
    steps = [planned.step for unit in units for planned in unit.steps]
    read = [source for step in steps for several in step.inputs.values() for source in several]
    read += [condition.source for step in steps for condition in step.when]
    read += [source for sources in graph.outputs.values() for source in sources]
    made = {Source(None, name) for name in graph.inputs}
    made |= {Source(step.name, port) for step in steps for port in step.skill.outputs}
    return {source: slot for slot, source in enumerate(dict.fromkeys(one for one in read if one in made))}
