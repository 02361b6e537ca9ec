"""Runs a chain on examples and measures what its steps cost, each by itself, under each of its setups."""

from __future__ import annotations

import asyncio
import inspect
import statistics
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol, final

from minerua.chain.graph import Graph, Step
from minerua.chain.plan import ExecutionPlan, PlannedStep, Unit
from minerua.chain.planning.profile import MachineCosts, Profile, StepCost, graph_key, signature, size_bytes
from minerua.values import Setup, Skill


class Runner(Protocol):
    """Carries out a plan, as `ChainExecutor` does."""

    def run(self, inputs: Mapping[str, Any], /) -> Any:
        """Runs it once."""
        ...

    async def arun(self, inputs: Mapping[str, Any], /) -> Any:
        """Runs it once, beside other runs in the same event loop."""
        ...


OpenPlan = Callable[[ExecutionPlan], AbstractContextManager[Runner]]
"""Makes a plan ready to run, with its own models loaded."""

CALL_SECONDS = 0.2
"""How long a step is called again and again under one setup, at most; two calls there are at least."""

WORTH_OVERLAP_SECONDS = 50e-6
"""Shorter steps are never worth a thread, so that nobody needs to know how well they share processors."""

PROBE_BYTES = 1 << 20

Choose = Callable[[Skill], Sequence[Setup]]
"""Which of a skill's setups are measured, the first of them also to find out what steps are given."""


@final
@dataclass(frozen=True, eq=False)
class Call:
    """One call of a step, as it came by while its chain ran."""

    inputs: Mapping[str, Any]
    outputs: Any
    seconds: float


# ── what steps are given ─────────────────────────────────────────────────────────────────────────────────────────────


def all_setups(skill: Skill) -> Sequence[Setup]:
    """Returns all setups of a skill, the default first."""
    return skill.setups


def record_calls(
    graph: Graph, examples: Sequence[Mapping[str, Any]], open_plan: OpenPlan, *, choose: Choose = all_setups
) -> list[dict[str, Call]]:
    """Runs a chain on every example once, one step after the other; returns per example what the steps were given.

    Args:
        graph: The chain. Isolated steps run, but what happens in their processes is not seen.
        examples: The inputs of one run each.
        open_plan: Runs a plan.
        choose: Which setups may be used.
    """
    seen: dict[str, Call] = {}
    steps = tuple(step if step.isolated else _recorded(step, seen) for step in graph.steps)
    watched = replace(graph, steps=steps)
    units = tuple(
        Unit((PlannedStep(step, choose(step.skill)[0]),), place="process" if step.isolated else "caller")
        for step in watched.steps
    )
    found = []
    with open_plan(ExecutionPlan(watched, units)) as runner:
        for example in examples:
            seen.clear()
            runner.run(example)
            found.append(dict(seen))
    return found


def _recorded(step: Step, seen: dict[str, Call]) -> Step:
    def note(inputs: Mapping[str, Any], outputs: Any, started: float) -> None:
        seen[step.name] = Call(inputs, outputs, time.perf_counter() - started)

    skill, load = step.skill, step.skill.load
    if skill.call is not None:
        return replace(step, skill=replace(skill, call=_watched(skill.call, note)))
    if load is not None:
        return replace(step, skill=replace(skill, load=lambda setup: _watched(load(setup), note)))
    return step


def _watched(call: Callable[..., Any], note: Callable[[Mapping[str, Any], Any, float], None]) -> Callable[..., Any]:
    """Returns a callable of the same kind that notes every call."""

    def plain(**inputs: Any) -> Any:
        started = time.perf_counter()
        outputs = call(**inputs)
        note(inputs, outputs, started)
        return outputs

    async def awaited(**inputs: Any) -> Any:
        started = time.perf_counter()
        outputs = await call(**inputs)
        note(inputs, outputs, started)
        return outputs

    def generating(**inputs: Any) -> Iterator[Any]:
        started, outputs = time.perf_counter(), None
        for outputs in call(**inputs):
            yield outputs
        note(inputs, outputs, started)

    async def generating_async(**inputs: Any) -> AsyncIterator[Any]:
        started, outputs = time.perf_counter(), None
        async for outputs in call(**inputs):
            yield outputs
        note(inputs, outputs, started)

    if inspect.iscoroutinefunction(call):
        return awaited
    if inspect.isasyncgenfunction(call):
        return generating_async
    return generating if inspect.isgeneratorfunction(call) else plain


# ── what they cost ───────────────────────────────────────────────────────────────────────────────────────────────────


def measure_steps(
    graph: Graph,
    examples: Sequence[Mapping[str, Any]],
    profile: Profile,
    *,
    open_plan: OpenPlan,
    repeats: int = 20,
    chain: str | None = None,
    choose: Choose = all_setups,
) -> None:
    """Measures every step by itself under each of its setups, and keeps that in the profile.

    A step that is not pure is called once per example, by the run that finds out what steps are given; its effects are
    not repeated.

    Args:
        graph: The chain.
        examples: The inputs of one run each.
        profile: Takes what is measured.
        open_plan: Runs a plan.
        repeats: How often a call is timed at most.
        chain: `graph_key` of the chain as it was written; default: of this graph.
        choose: Which setups are measured.
    """
    known: set[tuple[str, str, str]] = set()
    for example, calls in zip(examples, record_calls(graph, examples, open_plan, choose=choose), strict=True):
        inputs = {name: signature(call.inputs) for name, call in calls.items()}
        profile.record_inputs(chain or graph_key(graph), signature(example), inputs)
        for name, call in calls.items():
            skill = graph.by_name[name].skill
            key = (skill.name, skill.version, inputs[name])
            if key not in known:
                known.add(key)
                _measure_setups(skill, call, profile, repeats, choose(skill))


def _measure_setups(skill: Skill, call: Call, profile: Profile, repeats: int, setups: Sequence[Setup]) -> None:
    outputs = call.outputs if isinstance(call.outputs, Mapping) else {}
    seen = StepCost(call.seconds, size_bytes(call.inputs), size_bytes(outputs))
    if not skill.pure:
        profile.record(skill, setups[0], signature(call.inputs), seen)
        return
    for setup in setups:
        ability = loaded(skill, setup)
        seconds = time_call(ability, call.inputs, repeats)
        overlap = _overlap(ability, call.inputs, seconds) if skill.thread_safe else None
        profile.record(skill, setup, signature(call.inputs), replace(seen, seconds=seconds, overlap=overlap))


def loaded(skill: Skill, setup: Setup) -> Callable[..., Any]:
    """Returns what can be called: the skill's own function, or a model loaded for this one use."""
    if skill.call is not None:
        return skill.call
    if skill.load is None:
        raise TypeError(f"skill {skill.name!r} must be configured before it can be measured; take the steps of a graph")
    return skill.load(setup)


def time_call(call: Callable[..., Any], inputs: Mapping[str, Any], repeats: int) -> float:
    """Returns the shortest time of a call, in seconds, without the first: what disturbs a call only makes it longer."""
    times: list[float] = []
    _complete(call, inputs)
    began = time.perf_counter()
    while len(times) < 2 or (len(times) < repeats and time.perf_counter() - began < CALL_SECONDS):
        started = time.perf_counter()
        _complete(call, inputs)
        times.append(time.perf_counter() - started)
    return min(times)


def _complete(call: Callable[..., Any], inputs: Mapping[str, Any]) -> None:
    """Calls and waits for the result, whatever kind of callable it is."""
    result = call(**inputs)
    if inspect.isgenerator(result):
        for _ in result:
            pass
    elif inspect.isasyncgen(result) or inspect.isawaitable(result):
        asyncio.run(_awaited(result))


async def _awaited(result: Any) -> None:
    if inspect.isawaitable(result):
        await result
        return
    async for _ in result:
        pass


def _overlap(call: Callable[..., Any], inputs: Mapping[str, Any], seconds: float) -> float | None:
    """Returns how much of their time two threads save that call at a time: 1 all of it, 0 nothing.

    Python code that holds the interpreter's lock saves nothing, nor does a model that already uses all processors.
    """
    if seconds < WORTH_OVERLAP_SECONDS or inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call):
        return None
    count = max(1, min(50, round(5e-3 / seconds)))

    def work() -> None:
        for _ in range(count):
            _complete(call, inputs)

    alone, both = [], []
    for _ in range(3):
        alone.append(_timed(work, 1))
        both.append(_timed(work, 2))
    return max(0.0, min(1.0, 2 - min(both) / min(alone)))


def _timed(work: Callable[[], None], threads: int) -> float:
    several = [threading.Thread(target=work) for _ in range(threads)]
    started = time.perf_counter()
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    return time.perf_counter() - started


# ── what everything else costs ───────────────────────────────────────────────────────────────────────────────────────


def measure_machine() -> MachineCosts:
    """Measures what handing over to a thread and looking up by content cost here."""
    import numpy as np

    from minerua.chain.keeping.cache import ContentCache

    cache = ContentCache(PROBE_BYTES)
    probe = Skill("probe", call=dict, inputs={"x": object}, outputs={"x": object}, pure=True)
    large = {"x": np.zeros(PROBE_BYTES, np.uint8)}
    small = {"x": np.zeros(8, np.uint8)}
    hash_small = _best(lambda: cache.key(probe, small))
    hash_large = _best(lambda: cache.key(probe, large))
    return MachineCosts(
        hand_over_seconds=_hand_over(),
        hash_seconds=hash_small,
        hash_bytes_per_second=PROBE_BYTES / max(hash_large - hash_small, 1e-9),
        measured=True,
    )


def _hand_over() -> float:
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        times = [_seconds(lambda: pool.submit(int).result()) for _ in range(50)]
    return statistics.median(times)


def _best(act: Callable[[], Any]) -> float:
    return min(_seconds(act) for _ in range(20))


def _seconds(act: Callable[[], Any]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started
