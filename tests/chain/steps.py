"""Skills and plans for tests of the executor, and a pool that must be at rest after each of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from hypothesis import strategies as st

from minerua.chain.graph import Graph, Step
from minerua.chain.plan import ExecutionPlan, Place, PlannedStep, Unit
from minerua.chain.running.executor import ChainExecutor
from minerua.kernels.pool import ResourcePool
from minerua.values import Skill, TensorSpec

from .naive import graph_of, wired

ROWS = TensorSpec("rows", ("batch", 4), "float32")
CAPACITY = {"cpu": 2, "host_bytes": 1 << 30}


@pytest.fixture(autouse=True)
def pool() -> Iterator[ResourcePool]:
    """A pool; whatever a test does, nothing of it is leased afterwards and no thread of an executor is left."""
    before = set(threading.enumerate())
    pool = ResourcePool(CAPACITY)
    yield pool
    statistics = pool.statistics()
    assert pool.in_use == dict.fromkeys(CAPACITY, 0)
    assert (statistics.waiting, dict(statistics.live), dict(statistics.leaks)) == (0, {}, {})
    left = [t for t in set(threading.enumerate()) - before if t.name.startswith("minerua") and t.is_alive()]
    for thread in left:
        thread.join(5.0)
    assert [thread.name for thread in left if thread.is_alive()] == []


def function(name: str, call: Callable[..., Any], inputs: str = "x", outputs: str = "y", **more: Any) -> Skill:
    """A skill of whole numbers; ports are given as words, and more flags by name."""
    types = {"in_type": int, "out_type": int, **{k: more.pop(k) for k in ("in_type", "out_type") if k in more}}
    return Skill(
        name,
        call=call,
        inputs=dict.fromkeys(inputs.split(), types["in_type"]),
        outputs=dict.fromkeys(outputs.split(), types["out_type"]),
        **more,
    )


class Errors:
    """An observer that notes how runs ended."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def run_finished(self, run_id: int, trace: object, error: BaseException | None) -> None:
        self.texts.append(str(error))


INCREMENT = function("increment", lambda x: {"y": x + 1})
ADD = function("add", lambda a, b: {"y": a + b}, "a b")


def placed(graph: Graph, places: Mapping[str, Place] | Place, **planned: Any) -> ExecutionPlan:
    """A plan with every step by itself, at the place that is said."""
    units = [
        Unit(
            (PlannedStep(step, step.skill.setups[0], **planned),),
            places if isinstance(places, str) else places.get(step.name, "thread"),
        )
        for step in graph.steps
    ]
    return ExecutionPlan(graph, tuple(units))


def run(graph: Graph, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """The outputs of one run of the plain plan."""
    with ChainExecutor(ExecutionPlan.plain(graph), **options) as executor:
        return dict(executor.run(inputs))


def line(count: int, skill: Skill = INCREMENT) -> Graph:
    steps = [wired("s0", skill, {"x": "n"})]
    steps += [wired(f"s{k}", skill, {"x": f"s{k - 1}.y"}) for k in range(1, count)]
    return graph_of(*steps, outputs={"y": f"s{count - 1}.y"})


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Random graphs with alternatives, conditions, optional inputs and every policy that needs no array."""
    steps: list[Step] = []
    for k in range(draw(st.integers(1, 8))):
        known = ["n", "m", *(f"s{i}.y" for i in range(k))]
        sources = st.lists(st.sampled_from(known), min_size=1, max_size=3, unique=True).map(tuple)
        wires = {port: draw(sources) for port in ("a", "b")}
        when = draw(st.lists(st.sampled_from([w + r for r in known for w in ("", "not ")]), max_size=1))
        more: dict[str, Any] = {"missing": {"a": draw(st.sampled_from(["skip", "skip", "omit"]))}}
        if draw(st.booleans()):
            more["defaults"] = {"b": 7}
        factor = draw(st.integers(-2, 2))
        skill = Skill(
            f"mix{k}",
            call=lambda b, a=3, factor=factor: {"y": a * factor + b},
            inputs={"a": int, "b": int},
            outputs={"y": int},
            optional=("a",),
        )
        steps.append(wired(f"s{k}", skill, wires, when, **more))
    ends = {f"o{k}": f"s{k}.y" for k in range(len(steps)) if k % 2 == 0 or k == len(steps) - 1}
    return graph_of(*steps, outputs=ends, optional=("m",))
