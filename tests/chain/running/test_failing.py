"""Steps that fail end their run with one clear error; those that may are tried again."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.chain.graph import Graph, Retry, Source, Step
from minerua.chain.plan import ExecutionPlan
from minerua.chain.running.executor import ChainExecutor
from minerua.chain.running.stopping import cancelled
from minerua.errors import StepFailed
from minerua.kernels.pool import ResourcePool
from minerua.values import Skill, TensorSpec

from ..naive import carry_out, graph_of, wired
from ..steps import ROWS, function, graphs, line, placed, pool, run

__all__ = ["pool"]


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def raising(error: BaseException) -> Any:
    def call(**_: Any) -> Any:
        raise error

    return call


def test_the_error_names_chain_path_step_skill_plugin_and_inputs(pool: ResourcePool) -> None:
    image = TensorSpec("image", ("batch", 4), "float32")
    see = Skill("cnn", call=lambda image: {"y": image}, inputs={"image": image}, outputs={"y": image})
    broken = Skill(
        "fusion", call=raising(ZeroDivisionError("by zero")), inputs={"a": image, "words": str}, resources={"cpu": 1}
    )
    steps = (
        Step("see", see, {"image": (Source(None, "image"),)}),
        Step("fuse", broken, {"a": (Source("see", "y"),)}, {"words": "secret"}, provider="plugin 'mine' (mine 2.0)"),
    )
    graph = Graph("look", {"image": image}, (), steps, {})
    with pytest.raises(StepFailed) as caught:
        run(graph, {"image": np.zeros((8, 4), np.float32)}, pool=pool)
    assert str(caught.value) == (
        "chain 'look', see → fuse: step 'fuse' (skill 'fusion' of plugin 'mine' (mine 2.0)) raised ZeroDivisionError: "
        "by zero; its inputs: words: text of 6, a: float32[8, 4]"
    )
    assert (caught.value.chain, caught.value.step, caught.value.skill) == ("look", "fuse", "fusion")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize("simple", [True, False])
@pytest.mark.parametrize(
    ("outputs", "fault"),
    [
        ({}, "'y', an output, is missing"),
        ({"y": 1, "z": 2}, "no port is named 'z'"),
        ({"y": "text"}, "'y', an output, must be integer, found text 'text'"),
        (None, "a mapping from names to values is wanted as an output"),
    ],
)
def test_wrong_outputs_are_refused(outputs: Any, fault: str, simple: bool, pool: ResourcePool) -> None:
    skill = function("wrong", lambda x: outputs, resources={} if simple else {"cpu": 1})
    with pytest.raises(StepFailed, match="returned what it may not") as caught:
        run(line(3, skill), {"n": 1}, pool=pool)
    assert any(fault in one for one in caught.value.faults)


@pytest.mark.parametrize("array", [np.zeros((3, 4), np.float32), np.zeros((2, 5), np.float32), np.zeros((2, 4))])
def test_arrays_of_the_wrong_shape_or_dtype_are_refused(array: np.ndarray) -> None:
    skill = Skill("wrong", call=lambda x: {"y": array}, inputs={"x": ROWS}, outputs={"y": ROWS})
    graph = Graph("g", {"n": ROWS}, (), (Step("s", skill, {"x": (Source(None, "n"),)}),), {"y": (Source("s", "y"),)})
    with pytest.raises(StepFailed, match="returned what it may not") as caught:
        run(graph, {"n": np.zeros((2, 4), np.float32)})
    assert "'y', an output, must be float32[batch, 4], found" in caught.value.faults[0]


@pytest.mark.parametrize("simple", [True, False])
def test_inputs_that_disagree_are_refused(simple: bool, pool: ResourcePool) -> None:
    skill = Skill("two", call=lambda a, b: {}, inputs={"a": ROWS, "b": ROWS}, resources={} if simple else {"cpu": 1})
    other = TensorSpec("rows", ("other", 4), "float32")
    step = Step("s", skill, {"a": (Source(None, "a"),), "b": (Source(None, "b"),)})
    graph = Graph("g", {"a": ROWS, "b": other}, (), (step,), {})
    with pytest.raises(StepFailed, match="was given what it does not take") as caught:
        run(graph, {"a": np.zeros((2, 4), np.float32), "b": np.zeros((3, 4), np.float32)}, pool=pool)
    assert "axis 0 has 3 instead of 2" in caught.value.faults[0]


def test_what_needs_a_failed_step_does_not_run_and_other_failures_are_told_beside_the_first(pool: ResourcePool) -> None:
    called: list[str] = []
    gate = threading.Barrier(2)

    def fail(x: int, first: bool) -> Any:
        gate.wait(5)
        if not first:
            while not cancelled():
                time.sleep(0.001)
        raise ValueError("first" if first else "second")

    steps = [
        wired("a", function("a", lambda x: fail(x, True), resources={"cpu": 1}), {"x": "n"}),
        wired("b", function("b", lambda x: fail(x, False), resources={"cpu": 1}), {"x": "n"}),
        wired("c", function("c", lambda x: called.append("c") or {"y": x}), {"x": "a.y"}),
    ]
    graph = graph_of(*steps, outputs={"y": "c.y", "z": "b.y"})
    with pytest.raises(StepFailed, match="raised ValueError: first") as caught:
        run(graph, {"n": 1}, pool=pool)
    assert called == []
    assert len(caught.value.faults) == 1
    assert "step 'b'" in caught.value.faults[0]


@pytest.mark.parametrize("place", ["caller", "thread"])
@pytest.mark.parametrize("way", ["run", "arun"])
def test_an_interrupt_in_a_step_passes_through_after_everything_is_released(
    pool: ResourcePool, place: Any, way: str
) -> None:
    holding = function("hold", lambda x: {"y": x}, resources={"cpu": 1})
    interrupted = function("stop", raising(KeyboardInterrupt()), resources={"cpu": 1})
    graph = graph_of(wired("a", holding, {"x": "n"}), wired("b", interrupted, {"x": "a.y"}), outputs={"y": "b.y"})
    with ChainExecutor(placed(graph, place), pool=pool) as executor:
        with pytest.raises(KeyboardInterrupt):
            executor.run({"n": 1}) if way == "run" else asyncio.run(executor.arun({"n": 1}))
        assert pool.in_use == {"cpu": 0, "host_bytes": 0}


def test_an_error_whose_text_raises_is_told_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    with pytest.raises(StepFailed, match="its text raises RuntimeError"):
        run(line(1, function("mute", raising(Mute()))), {"n": 1})


@given(graphs(), st.data())
@settings(max_examples=40, deadline=None)
def test_a_run_fails_where_the_plainest_way_fails(graph: Graph, data: st.DataObject) -> None:
    broken = data.draw(st.sampled_from(graph.steps)).name
    steps = tuple(
        Step(s.name, Skill("bad", raising(ValueError("broken")), s.skill.inputs, s.skill.outputs, optional=("a",)),
             s.inputs, when=s.when, missing=s.missing, defaults=s.defaults) if s.name == broken else s
        for s in graph.steps
    )  # fmt: skip
    graph = Graph(graph.name, graph.inputs, graph.optional, steps, graph.outputs)
    inputs = {name: 1 for name in graph.inputs if name not in graph.optional}
    try:
        expected: Mapping[str, Any] | None = carry_out(graph, inputs)
    except ValueError:
        expected = None
    if expected is not None:
        assert run(graph, inputs) == expected
        return
    with pytest.raises(StepFailed) as caught:
        run(graph, inputs)
    assert caught.value.step == broken


# ── retry ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_async", [False, True])
def test_a_step_that_raised_is_tried_again(pool: ResourcePool, is_async: bool) -> None:
    tries: list[float] = []

    def call(x: int) -> dict[str, int]:
        tries.append(time.monotonic())
        if len(tries) < 3:
            raise OSError("not yet")
        return {"y": x}

    async def call_async(x: int) -> dict[str, int]:
        return call(x)

    skill = function("flaky", call_async if is_async else call, resources={"cpu": 1})
    step = wired("a", skill, {"x": "n"}, retry=Retry(3, delay_seconds=0.01, factor=2.0))
    with ChainExecutor(ExecutionPlan.plain(graph_of(step, outputs={"y": "a.y"})), pool=pool, threads=1) as executor:
        result = executor.run({"n": 4})
    assert result["y"] == 4
    assert result.trace.spans[0].attempts == 3
    assert tries[1] - tries[0] >= 0.01
    assert tries[2] - tries[1] >= 0.02


def test_the_last_attempt_counts() -> None:
    step = wired("a", function("bad", raising(OSError("gone"))), {"x": "n"}, retry=Retry(2, delay_seconds=0.001))
    with pytest.raises(StepFailed, match=r"raised OSError: gone \(attempt 2 of 2\)"):
        run(graph_of(step, outputs={"y": "a.y"}), {"n": 1})
