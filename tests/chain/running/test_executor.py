"""Plans are carried out: the right results, as early as can be, nothing copied, nothing held."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minerua.chain.graph import Graph, Source, Step
from minerua.chain.plan import ExecutionPlan, PlannedStep, Unit
from minerua.chain.running.executor import ChainExecutor
from minerua.errors import ChainError, StepFailed
from minerua.kernels.pool import ResourcePool
from minerua.values import Skill

from ..naive import carry_out, graph_of, wired
from ..steps import ADD, INCREMENT, ROWS, function, graphs, line, placed, pool, run

__all__ = ["pool"]


# ── results ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(graphs(), st.integers(-2, 2), st.none() | st.integers(-1, 1), st.sampled_from([1, 4]), st.data())
@settings(max_examples=60, deadline=None)
def test_every_plan_gives_what_the_plainest_way_gives(
    graph: Graph, n: int, m: int | None, threads: int, data: st.DataObject
) -> None:
    inputs = {name: value for name, value in (("n", n), ("m", m)) if name in graph.inputs and value is not None}
    expected = carry_out(graph, inputs)
    places = {s.name: data.draw(st.sampled_from(["caller", "thread"])) for s in graph.steps}
    for plan in (ExecutionPlan.plain(graph), placed(graph, places), one_unit(graph)):
        with ChainExecutor(plan, threads=threads) as executor:
            result = executor.run(inputs)
            assert dict(result) == expected
            assert set(result.absent) == set(graph.outputs) - set(expected)
            assert dict(asyncio.run(executor.arun(inputs))) == expected


def one_unit(graph: Graph) -> ExecutionPlan:
    return ExecutionPlan(graph, (Unit(tuple(PlannedStep(step) for step in graph.steps), "caller"),))


def test_equal_runs_from_many_threads_give_equal_results() -> None:
    steps = [wired(f"m{k}", INCREMENT, {"x": "n"}) for k in range(6)]
    total = function("sum", lambda **xs: {"y": sum(xs.values())}, " ".join(f"x{k}" for k in range(6)))
    graph = graph_of(*steps, wired("sum", total, {f"x{k}": f"m{k}.y" for k in range(6)}), outputs={"y": "sum.y"})
    with ChainExecutor(ExecutionPlan.plain(graph), most_runs=3) as executor, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda n: executor.run({"n": n})["y"], range(60)))
    assert found == [6 * (n + 1) for n in range(60)]


def test_two_hundred_runs_at_a_time_in_one_loop() -> None:
    async def slow(x: int) -> dict[str, int]:
        await asyncio.sleep(0.001)
        return {"y": x + 1}

    steps = [wired("a", function("slow", slow), {"x": "n"}), wired("b", INCREMENT, {"x": "a.y"})]
    graph = graph_of(*steps, wired("c", ADD, {"a": "a.y", "b": "b.y"}), outputs={"y": "c.y"})

    async def all_of_them(executor: ChainExecutor) -> list[Any]:
        return [r["y"] for r in await asyncio.gather(*(executor.arun({"n": n}) for n in range(200)))]

    with ChainExecutor(ExecutionPlan.plain(graph)) as executor:
        assert asyncio.run(all_of_them(executor)) == [2 * n + 3 for n in range(200)]


def test_only_what_the_wanted_outputs_need_runs() -> None:
    called = []
    note = function("note", lambda x: called.append(x) or {"y": x})
    graph = graph_of(
        wired("a", INCREMENT, {"x": "n"}), wired("b", note, {"x": "n"}), outputs={"one": "a.y", "two": "b.y"}
    )
    with ChainExecutor(ExecutionPlan.plain(graph)) as executor:
        assert dict(executor.run({"n": 1}, outputs=["one"])) == {"one": 2}
        assert called == []
        with pytest.raises(ChainError, match=r"(?s)outputs that were asked for.*did you mean 'one'"):
            executor.run({"n": 1}, outputs=["on"])


def test_zeros_stand_for_an_absent_array_with_the_extents_of_the_others() -> None:
    join = Skill("join", call=lambda a, b: {"y": a + b}, inputs={"a": ROWS, "b": ROWS}, outputs={"y": ROWS})
    step = Step("join", join, {"a": (Source(None, "a"),), "b": (Source(None, "b"),)}, missing={"b": "zeros"})
    graph = Graph("two", {"a": ROWS, "b": ROWS}, ("b",), (step,), {"y": (Source("join", "y"),)})
    given_rows = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(run(graph, {"a": given_rows})["y"], given_rows)


def test_zeros_of_unknown_extent_are_an_error() -> None:
    take = Skill("take", call=lambda a: {"y": 1}, inputs={"a": ROWS}, outputs={"y": int})
    step = Step("take", take, {"a": (Source(None, "a"),)}, missing={"a": "zeros"})
    graph = Graph("one", {"a": ROWS}, ("a",), (step,), {"y": (Source("take", "y"),)})
    with pytest.raises(StepFailed, match="no other input tells how many; give a default"):
        run(graph, {})


def test_an_absent_input_fails_where_it_is_said_to() -> None:
    graph = graph_of(wired("a", INCREMENT, {"x": "n"}, missing={"x": "fail"}), outputs={"y": "a.y"}, optional=("n",))
    with pytest.raises(StepFailed, match="lacks its input 'x', and is to fail then"):
        run(graph, {})


def test_a_condition_without_truth_is_an_error_of_its_step() -> None:
    array = function("array", lambda x: {"y": np.zeros(3)}, out_type=object)
    steps = (wired("a", array, {"x": "n"}), wired("b", INCREMENT, {"x": "n"}, ["a.y"]))
    with pytest.raises(StepFailed, match=r"depends on a\.y, which is neither true nor false: it raised ValueError"):
        run(graph_of(*steps, outputs={"y": "b.y"}), {"n": 1})


def test_the_result_says_which_output_is_absent() -> None:
    graph = graph_of(wired("a", INCREMENT, {"x": "n"}, ["n"]), outputs={"y": "a.y"})
    with ChainExecutor(ExecutionPlan.plain(graph)) as executor:
        result = executor.run({"n": 0})
        assert (len(result), result.absent, repr(result)) == (0, ("y",), "<Result of made: nothing, absent: y>")
        with pytest.raises(KeyError, match="every step that could have given it was skipped"):
            result["y"]
        with pytest.raises(KeyError, match="'z'"):
            result["z"]


# ── the door ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_all_faults_of_the_inputs_are_told_at_once() -> None:
    graph = graph_of(wired("a", ADD, {"a": "left", "b": "right"}), outputs={"y": "a.y"})
    with pytest.raises(ChainError, match="was not given what it takes") as caught:
        run(graph, {"lefd": 1, "right": "x"})
    faults = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 3
    assert "'left', an input of the chain 'made', is missing" in faults
    assert "did you mean 'left'" in faults
    assert "must be integer, found text 'x'" in faults


def test_a_plan_that_does_not_fit_is_refused() -> None:
    graph = line(2)
    first, second = (Unit((PlannedStep(step),)) for step in graph.steps)
    refused = pytest.raises(ChainError, match="cannot be carried out; plan it afresh")
    with refused as caught:
        ChainExecutor(ExecutionPlan(graph, (second, first)))
    assert caught.value.faults == ("step 's1' comes before 's0', which it needs",)
    with refused as caught:
        ChainExecutor(ExecutionPlan(graph, (first, second, first)))
    assert caught.value.faults == ("step 's0' is there twice",)
    with refused as caught:
        ChainExecutor(ExecutionPlan(graph, (first,)))
    assert caught.value.faults == ("step 's1' is not in it",)


# ── as early as can be ───────────────────────────────────────────────────────────────────────────────────────────────


def barrier_graph(*, is_async: bool) -> Graph:
    """0.05 s, then 0.35 s, beside 0.40 s; a tenth of it."""

    def sleeper(name: str, seconds: float) -> Skill:
        async def slow(x: int) -> dict[str, int]:
            await asyncio.sleep(seconds)
            return {"y": x + 1}

        return function(name, slow if is_async else lambda x: time.sleep(seconds) or {"y": x + 1})

    steps = [
        wired("fast", sleeper("fast", 0.02), {"x": "n"}),
        wired("slow", sleeper("slow", 0.16), {"x": "n"}),
        wired("after", sleeper("after", 0.14), {"x": "fast.y"}),
    ]
    return graph_of(*steps, wired("end", ADD, {"a": "slow.y", "b": "after.y"}), outputs={"y": "end.y"})


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("way", ["run", "arun"])
def test_a_step_does_not_wait_for_others_than_its_own(is_async: bool, way: str, hold_to_budget: Any) -> None:
    with ChainExecutor(ExecutionPlan.plain(barrier_graph(is_async=is_async))) as executor:

        def seconds() -> float:
            start = time.perf_counter()
            result = executor.run({"n": 1}) if way == "run" else asyncio.run(executor.arun({"n": 1}))
            assert result["y"] == 5
            return time.perf_counter() - start

        hold_to_budget(seconds, 0.16 * 1.15)


def test_the_most_urgent_of_the_ready_units_starts_first() -> None:
    order: list[str] = []

    def note(name: str) -> Skill:
        return function(name, lambda x: order.append(name) or {"y": x})

    steps = [wired(name, note(name), {"x": "n"}) for name in "abcd"]
    graph = graph_of(*steps, outputs={name: f"{name}.y" for name in "abcd"})
    urgent = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 3.0}
    units = tuple(Unit((PlannedStep(s),), "caller", urgent[s.name]) for s in steps)
    with ChainExecutor(ExecutionPlan(graph, units)) as executor:
        executor.run({"n": 1})
    assert order == ["b", "d", "c", "a"]


def test_units_of_the_caller_run_one_at_a_time() -> None:
    inside, most = [0], [0]

    def busy(x: int) -> dict[str, int]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.005)
        inside[0] -= 1
        return {"y": x}

    graph = graph_of(
        *(wired(f"s{k}", function("busy", busy), {"x": "n"}) for k in range(4)),
        outputs={f"o{k}": f"s{k}.y" for k in range(4)},
    )
    with ChainExecutor(placed(graph, "caller")) as executor:
        executor.run({"n": 1})
        asyncio.run(executor.arun({"n": 1}))
    assert most == [1]


def test_a_skill_that_is_not_safe_for_threads_is_called_by_one_at_a_time() -> None:
    inside, most = [0], [0]

    def busy(x: int) -> dict[str, int]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.002)
        inside[0] -= 1
        return {"y": x}

    skill = function("busy", busy, thread_safe=False)
    steps = [wired(f"s{k}", skill, {"x": "n"}) for k in range(3)]
    graph = graph_of(*steps, outputs={f"o{k}": f"s{k}.y" for k in range(3)})
    with (
        ChainExecutor(ExecutionPlan.plain(graph)) as executor,
        ChainExecutor(ExecutionPlan.plain(graph)) as another,
        ThreadPoolExecutor(4) as threads,
    ):
        list(threads.map(lambda k: (executor, another)[k % 2].run({"n": k}), range(8)))
    assert most == [1]


# ── memory ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_arrays_pass_without_copies_as_read_only_views() -> None:
    seen: list[np.ndarray] = []

    def look(x: np.ndarray) -> dict[str, np.ndarray]:
        seen.append(x)
        return {"y": x}

    graph = line(5, function("look", look, in_type=np.ndarray, out_type=np.ndarray))
    graph = Graph("look", {"n": np.ndarray}, (), graph.steps, graph.outputs)
    mine = np.zeros(2_500_000)  # 20 MB
    result = run(graph, {"n": mine})["y"]
    assert len(seen) == 5
    assert all(np.shares_memory(array, mine) and not array.flags.writeable for array in (*seen, result))
    assert mine.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        seen[0][0] = 1.0


def test_a_result_is_freed_at_its_last_use() -> None:
    alive: list[weakref.ref[np.ndarray]] = []
    counts: list[int] = []

    def make(x: Any) -> dict[str, np.ndarray]:
        counts.append(sum(ref() is not None for ref in alive))
        array = np.zeros(1000)
        alive.append(weakref.ref(array))
        return {"y": array}

    graph = line(6, function("make", make, in_type=object, out_type=object))
    graph = Graph("made", {"n": object}, (), graph.steps, graph.outputs)
    for plan in (ExecutionPlan.plain(graph), placed(graph, "thread"), one_unit(graph)):
        alive.clear()
        counts.clear()
        with ChainExecutor(plan) as executor:
            result = executor.run({"n": 0})
            assert counts == [0, 1, 1, 1, 1, 1]
            assert sum(ref() is not None for ref in alive) == 1
            del result
            gc.collect()
            assert sum(ref() is not None for ref in alive) == 0


# ── resources ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("is_async", [False, True])
def test_a_step_holds_what_it_needs_just_while_it_runs(pool: ResourcePool, is_async: bool) -> None:
    held: list[int] = []

    def look(x: int) -> dict[str, int]:
        held.append(pool.in_use["cpu"])
        return {"y": x + 1}

    async def look_async(x: int) -> dict[str, int]:
        return look(x)

    needy = function("look", look_async if is_async else look, resources={"cpu": 2})
    free = function("look", look)
    graph = graph_of(
        wired("a", needy, {"x": "n"}),
        wired("b", free, {"x": "a.y"}),
        wired("c", needy, {"x": "b.y"}),
        outputs={"y": "c.y"},
    )
    assert run(graph, {"n": 0}, pool=pool) == {"y": 3}
    assert held == [2, 0, 2]


@pytest.mark.parametrize("is_async", [False, True])
def test_steps_that_wait_for_the_pool_block_no_thread(pool: ResourcePool, is_async: bool) -> None:
    most, lock = [0], threading.Lock()

    def use(x: int) -> dict[str, int]:
        with lock:
            most[0] = max(most[0], pool.in_use["cpu"])
        time.sleep(0.001)
        return {"y": x + 1}

    async def use_async(x: int) -> dict[str, int]:
        most[0] = max(most[0], pool.in_use["cpu"])
        await asyncio.sleep(0.001)
        return {"y": x + 1}

    skill = function("use", use_async if is_async else use, resources={"cpu": 1})
    steps = [wired(f"s{k}", skill, {"x": "n"}) for k in range(12)]
    graph = graph_of(*steps, outputs={f"o{k}": f"s{k}.y" for k in range(12)})

    async def several(executor: ChainExecutor) -> list[dict[str, Any]]:
        return [dict(r) for r in await asyncio.gather(*(executor.arun({"n": n}) for n in range(8)))]

    with ChainExecutor(ExecutionPlan.plain(graph), pool=pool, threads=2) as executor:
        assert asyncio.run(several(executor)) == [{f"o{k}": n + 1 for k in range(12)} for n in range(8)]
        assert set(executor.run({"n": 1}).values()) == {2}
        spans = executor.run({"n": 1}).trace.spans
    assert 1 <= most[0] <= 2
    assert len(spans) == 12


def test_a_skill_that_needs_more_than_there_is_is_an_error_of_its_step(pool: ResourcePool) -> None:
    skill = function("big", lambda x: {"y": x}, resources={"cpu": 3})
    with pytest.raises(StepFailed, match=r"step 's0'.*raised RequirementTooLarge"):
        run(line(1, skill), {"n": 1}, pool=pool)


def test_a_closed_pool_is_an_error_of_the_step_that_needed_it() -> None:
    closed = ResourcePool({"cpu": 1})
    skill = function("needy", lambda x: {"y": x}, resources={"cpu": 1})
    with ChainExecutor(ExecutionPlan.plain(line(2, skill)), pool=closed) as executor:
        closed.close()
        with pytest.raises(StepFailed, match=r"step 's0'.*raised PoolClosed"):
            executor.run({"n": 1})
