"""A plan that parts once: its shape is found, both branches run at a time, and no end of one harms the other."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
import time
from typing import Any

import pytest
from hypothesis import given, settings

from minerua.chain.graph import Graph
from minerua.chain.plan import ExecutionPlan
from minerua.chain.running import forked
from minerua.chain.running.compiling import Program
from minerua.chain.running.executor import ChainExecutor
from minerua.chain.running.stopping import cancelled
from minerua.errors import RunCancelled, StepFailed
from minerua.kernels.pool import ResourcePool

from ..naive import carry_out, graph_of, wired
from ..steps import ADD, INCREMENT, Errors, function, graphs, placed, pool

__all__ = ["pool"]


def diamond(own: Any = INCREMENT, side: Any = INCREMENT) -> Graph:
    """One step, two side by side, one that needs both, and one more; the first branch has the smaller index."""
    return graph_of(
        wired("first", INCREMENT, {"x": "n"}),
        wired("own", own, {"x": "first.y"}),
        wired("side", side, {"x": "first.y"}),
        wired("both", ADD, {"a": "own.y", "b": "side.y"}),
        wired("last", INCREMENT, {"x": "both.y"}),
        outputs={"y": "last.y"},
    )


def shape(graph: Graph, places: Any = "thread", **options: Any) -> tuple[list[str], ...] | None:
    found = Program(placed(graph, places), **options).branches
    if found is None:
        return None
    rows = (found.before, found.own, found.side, found.after)
    return tuple([unit.steps[0].name for unit in row] for row in rows)


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes for every run whether it went the short way."""
    ways: list[str] = []
    carry = forked.carry_out_forked

    def note(*arguments: Any) -> None:
        ways.append("forked")
        carry(*arguments)

    monkeypatch.setattr("minerua.chain.running.executor.carry_out_forked", note)
    return ways


# ── shapes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_diamond_parts_once() -> None:
    assert shape(diamond()) == (["first"], ["own"], ["side"], ["both", "last"])


def test_branches_of_several_steps_without_a_beginning_and_an_end() -> None:
    graph = graph_of(
        wired("a1", INCREMENT, {"x": "n"}),
        wired("b1", INCREMENT, {"x": "m"}),
        wired("a2", INCREMENT, {"x": "a1.y"}),
        wired("b2", INCREMENT, {"x": "b1.y"}),
        outputs={"a": "a2.y", "b": "b2.y"},
    )
    assert shape(graph) == ([], ["a1", "a2"], ["b1", "b2"], [])


def test_the_branch_that_must_stay_with_the_caller_does() -> None:
    assert shape(diamond(), {"first": "caller", "side": "caller"}) == (["first"], ["side"], ["own"], ["both", "last"])
    assert shape(diamond(), {"own": "caller", "side": "caller"}) is None


def test_other_shapes_are_left_to_the_scheduler() -> None:
    line = graph_of(wired("a", INCREMENT, {"x": "n"}), wired("b", INCREMENT, {"x": "a.y"}), outputs={"y": "b.y"})
    three = graph_of(*(wired(f"s{k}", INCREMENT, {"x": "n"}) for k in range(3)), outputs={"y": "s0.y"})
    twice = graph_of(
        wired("a", INCREMENT, {"x": "n"}),
        wired("b", INCREMENT, {"x": "n"}),
        wired("c", ADD, {"a": "a.y", "b": "b.y"}),
        wired("d", INCREMENT, {"x": "c.y"}),
        wired("e", INCREMENT, {"x": "c.y"}),
        outputs={"d": "d.y", "e": "e.y"},
    )
    for graph in (line, three, twice):
        assert shape(graph) is None
    assert shape(diamond(), in_loop=True) is None


def test_steps_that_are_no_plain_calls_are_left_to_the_scheduler() -> None:
    async def later(x: int) -> dict[str, int]:
        return {"y": x}

    assert shape(diamond(function("later", later))) is None


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_whatever_the_shape_results_are_those_of_one_step_after_the_other(graph: Graph) -> None:
    inputs = {"n": 3, "m": 5}
    given_inputs = {name: inputs[name] for name in graph.inputs}
    with ChainExecutor(placed(graph, "thread")) as executor:
        for _ in range(3):
            assert dict(executor.run(given_inputs)) == carry_out(graph, given_inputs)


# ── runs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_both_branches_run_at_a_time_and_the_trace_has_every_step(marked: list[str]) -> None:
    met = threading.Barrier(2, timeout=10)

    def meet(x: int) -> dict[str, int]:
        met.wait()
        return {"y": x}

    with ChainExecutor(placed(diamond(function("a", meet), function("b", meet)), "thread")) as executor:
        for n in range(20):
            result = executor.run({"n": n})
            assert dict(result) == {"y": 2 * (n + 1) + 1}
            assert sorted(span.step for span in result.trace.spans) == ["both", "first", "last", "own", "side"]
            places = {span.step: span.where for span in result.trace.spans}
            assert places["own"] == places["both"] == threading.current_thread().name != places["side"]
    assert marked == ["forked"] * 20


def test_a_caller_that_finds_no_worker_does_both_branches_itself(marked: list[str]) -> None:
    gate = threading.Event()
    with ChainExecutor(placed(diamond(), "thread"), threads=1) as executor:
        executor._means.crew.submit(gate.wait)  # the only worker is busy
        result = executor.run({"n": 1})
        gate.set()
    assert dict(result) == {"y": 7}
    assert {span.where for span in result.trace.spans} == {threading.current_thread().name}
    assert marked == ["forked"]


def test_runs_inside_steps_of_runs_end_although_all_workers_wait(marked: list[str]) -> None:
    with ChainExecutor(placed(diamond(), "thread"), threads=2) as inner:
        nested = function("nested", lambda x: {"y": inner.run({"n": x})["y"]})
        with ChainExecutor(placed(diamond(nested, nested), "thread"), threads=1) as outer:
            threads = [threading.Thread(target=lambda: outer.run({"n": 1})) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
            assert not any(thread.is_alive() for thread in threads)


def test_the_side_sees_the_caller_s_context_variables() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    read = function("read", lambda x: {"y": variable.get()})
    variable.set(7)
    with ChainExecutor(placed(diamond(read, read), "thread")) as executor:
        assert executor.run({"n": 0})["y"] == 15


def test_values_are_freed_when_nobody_reads_them_any_more() -> None:
    import weakref

    class Value:
        pass

    born: list[weakref.ref[Value]] = []

    def make(x: object) -> dict[str, object]:
        value = Value()
        born.append(weakref.ref(value))
        return {"y": value}

    types = {"in_type": object, "out_type": object}
    maker = function("make", make, **types)
    count = function("count", lambda a, b: {"y": sum(one() is not None for one in born)}, "a b", **types)
    late = function("late", lambda x: {"y": (x, sum(one() is not None for one in born))}, **types)
    graph = graph_of(
        wired("a", maker, {"x": "n"}),
        wired("b", maker, {"x": "n"}),
        wired("c", count, {"a": "a.y", "b": "b.y"}),
        wired("d", late, {"x": "c.y"}),
        outputs={"y": "d.y"},
    )
    with ChainExecutor(placed(graph, "thread")) as executor:
        assert executor.run({"n": 1})["y"] == (2, 0)


# ── bad ends ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["own", "side"])
def test_a_branch_that_fails_ends_the_run_and_the_executor_goes_on(where: str, pool: ResourcePool) -> None:
    asked: list[bool] = []
    began = threading.Event()

    def fail(x: int) -> dict[str, int]:
        began.wait(5)
        raise ValueError("no good")

    def patient(x: int) -> dict[str, int]:
        began.set()
        until = time.monotonic() + 5
        while not cancelled() and time.monotonic() < until:
            time.sleep(0.001)
        asked.append(cancelled())
        return {"y": x}

    errors = Errors()
    skills = {"own": function("patient", patient), "side": function("patient", patient), where: function("f", fail)}
    with ChainExecutor(placed(diamond(**skills), "thread"), pool=pool, observers=[errors]) as executor:
        for _ in range(3):
            began.clear()
            with pytest.raises(StepFailed, match=rf"step '{where}' .* raised ValueError: no good"):
                executor.run({"n": 1})
    assert asked == [True] * 3  # the other branch was told, and waited for
    assert len(errors.texts) == 3


def test_if_both_branches_fail_one_error_tells_both() -> None:
    met = threading.Barrier(2, timeout=10)

    def call(x: int) -> dict[str, int]:
        met.wait()
        time.sleep(0.02)
        raise ValueError("no good")

    both = function("breaks", call)
    with (
        ChainExecutor(placed(diamond(both, both), "thread")) as executor,
        pytest.raises(StepFailed, match="no good") as caught,
    ):
        executor.run({"n": 1})
    assert len(caught.value.faults) == 1
    assert {"own", "side"} == {caught.value.step, "own" if "step 'own'" in caught.value.faults[0] else "side"}


def test_a_side_that_does_not_stop_is_left_behind_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "GRACE_SECONDS", 0.05)
    began, gate = threading.Event(), threading.Event()

    def hang(x: int) -> dict[str, int]:
        began.set()
        gate.wait(20)
        return {"y": x}

    def fail(x: int) -> dict[str, int]:
        began.wait(10)
        raise ValueError("no good")

    with ChainExecutor(placed(diamond(function("fail", fail), function("hang", hang)), "thread")) as executor:
        start = time.monotonic()
        with pytest.raises(StepFailed, match="no good"):
            executor.run({"n": 1})
        assert time.monotonic() - start < 5
        means = executor._means
        assert not means.wait_for_strays(0.01)
        assert means.crew._lent == 1
        gate.set()
        assert means.wait_for_strays(10)
        assert means.crew._lent == 0


def test_closing_the_executor_stops_a_run_that_waits_for_its_side() -> None:
    began = threading.Event()

    def patient(x: int) -> dict[str, int]:
        began.set()
        while not cancelled():
            time.sleep(0.001)
        return {"y": x}

    own = function("own", lambda x: {"y": x} if began.wait(10) else {})
    executor = ChainExecutor(placed(diamond(own, function("patient", patient)), "thread"))
    closer = threading.Thread(target=lambda: (began.wait(10), time.sleep(0.05), executor.close()))
    closer.start()
    with pytest.raises(RunCancelled, match="the executor was closed"):
        executor.run({"n": 1})
    closer.join(10)
    assert not closer.is_alive()


def test_an_interrupt_while_it_waits_for_its_side_ends_the_run() -> None:
    began = threading.Event()

    def patient(x: int) -> dict[str, int]:
        began.set()
        while not cancelled():
            time.sleep(0.001)
        return {"y": x}

    def interrupt(x: int) -> dict[str, int]:
        began.wait(10)
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        return {"y": x}

    graph = diamond(function("own", interrupt), function("patient", patient))
    with ChainExecutor(placed(graph, "thread")) as executor:
        with pytest.raises(KeyboardInterrupt):
            executor.run({"n": 1})
        assert executor._means.wait_for_strays(5)
    time.sleep(0.1)


def test_a_plan_with_a_time_for_the_run_goes_by_the_scheduler(marked: list[str]) -> None:
    with ChainExecutor(placed(diamond(), "thread")) as executor:
        assert executor.run({"n": 1}, timeout_seconds=10)["y"] == 7
        assert marked == []
        assert executor.run({"n": 1})["y"] == 7
    assert marked == ["forked"]


def test_the_plain_plan_of_a_diamond_goes_the_short_way(marked: list[str]) -> None:
    with ChainExecutor(ExecutionPlan.plain(diamond())) as executor:
        assert executor.run({"n": 1})["y"] == 7
    assert len(marked) <= 1
