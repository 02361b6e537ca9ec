"""Traces say what happened, in forms that tools load; observers hear of it and cannot break it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

import pytest

from minerua.chain.graph import Graph
from minerua.chain.plan import ExecutionPlan
from minerua.chain.running.executor import ChainExecutor
from minerua.chain.running.trace import Span, Trace
from minerua.errors import StepFailed
from minerua.kernels.pool import ResourcePool

from ..naive import graph_of, wired
from ..steps import ADD, INCREMENT, function, placed, pool

__all__ = ["pool"]


def diamond() -> Graph:
    async def slow(x: int) -> dict[str, int]:
        await asyncio.sleep(0.002)
        return {"y": x}

    return graph_of(
        wired("see", INCREMENT, {"x": "n"}),
        wired("read", function("slow", slow), {"x": "n"}),
        wired("join", ADD, {"a": "see.y", "b": "read.y"}),
        wired("never", INCREMENT, {"x": "n"}, ["not n"]),
        outputs={"y": "join.y", "z": "never.y"},
    )


def trace_of(graph: Graph, **options: Any) -> Trace:
    with ChainExecutor(ExecutionPlan.plain(graph), **options) as executor:
        return executor.run({"n": 1}).trace


def test_every_step_is_in_the_trace_with_its_times_and_place() -> None:
    trace = trace_of(diamond())
    spans = {span.step: span for span in trace.spans}
    assert set(spans) == {"see", "read", "join", "never"}
    assert all(trace.start_ns <= span.start_ns <= span.end_ns <= trace.end_ns for span in trace.spans)
    assert spans["join"].start_ns >= max(spans["see"].end_ns, spans["read"].end_ns)
    assert spans["read"].where == "loop"
    assert spans["read"].seconds >= 0.002
    assert (spans["never"].outcome, spans["join"].outcome) == ("skipped", "ok")
    assert (spans["never"].attempts, spans["join"].attempts) == (0, 1)
    assert trace.seconds >= 0.002


def test_the_trace_says_how_long_a_step_waited_for_the_pool(pool: ResourcePool) -> None:
    lease = pool.acquire({"cpu": 2})
    import threading

    threading.Timer(0.02, lease.release).start()
    skill = function("needy", lambda x: {"y": x}, resources={"cpu": 1})
    lease.hand_over()
    (span,) = trace_of(graph_of(wired("a", skill, {"x": "n"}), outputs={"y": "a.y"}), pool=pool).spans
    assert 0.005e9 < span.pool_wait_ns < 5e9


def test_the_trace_says_how_long_a_step_waited_for_a_thread() -> None:
    skill = function("busy", lambda x: time.sleep(0.01) or {"y": x})
    graph = graph_of(*(wired(f"s{k}", skill, {"x": "n"}) for k in range(3)), outputs={"y": "s0.y"})
    with ChainExecutor(placed(graph, "caller")) as executor:
        waits = [span.worker_wait_ns for span in executor.run({"n": 1}).trace.spans]
    assert waits[0] < 0.01e9 <= waits[1] < waits[2]


def test_chrome_loads_the_trace() -> None:
    trace = trace_of(diamond())
    document = json.loads(json.dumps(trace.chrome()))
    events = [event for event in document["traceEvents"] if event["ph"] == "X"]
    names = {event["tid"]: event["args"]["name"] for event in document["traceEvents"] if event["name"] == "thread_name"}
    assert [event["name"] for event in events] == [span.step for span in trace.spans]
    assert [names[event["tid"]] for event in events] == [span.where for span in trace.spans]
    for event, span in zip(events, trace.spans, strict=True):
        assert event["ts"] == pytest.approx((span.start_ns - trace.start_ns) / 1000)
        assert event["dur"] == pytest.approx((span.end_ns - span.start_ns) / 1000)
        assert event["args"]["skill"] == span.skill


def test_open_telemetry_gets_one_parent_and_its_steps() -> None:
    before = time.time_ns()
    trace = trace_of(diamond())
    document = json.loads(json.dumps(trace.open_telemetry()))
    assert document == trace.open_telemetry(), "two calls give the same ids"
    (resource,) = document["resourceSpans"]
    assert {"key": "service.name", "value": {"stringValue": "minerua"}} in resource["resource"]["attributes"]
    root, *steps = resource["scopeSpans"][0]["spans"]
    assert "parentSpanId" not in root
    assert {span["parentSpanId"] for span in steps} == {root["spanId"]}
    assert {span["traceId"] for span in (root, *steps)} == {trace.trace_id}
    assert len({span["spanId"] for span in (root, *steps)}) == len(steps) + 1
    assert all(len(span["traceId"]) == 32 and len(span["spanId"]) == 16 for span in (root, *steps))
    assert before - 1e9 < int(root["startTimeUnixNano"]) <= int(root["endTimeUnixNano"]) < time.time_ns() + 1e9
    attributes = {one["key"]: one["value"] for one in steps[0]["attributes"]}
    assert attributes["minerua.step"] == {"stringValue": trace.spans[0].step}
    assert attributes["minerua.attempts"] == {"intValue": str(trace.spans[0].attempts)}
    assert attributes["minerua.cache_hit"] == {"boolValue": False}
    assert set(attributes["minerua.pool_wait_us"]) == {"doubleValue"}


def test_a_failure_has_the_status_of_one() -> None:
    span = Span(0, "a", "s", "main", 1, 2, outcome="failed")
    spans = Trace("c", 1, [span], 0, 3, 0).open_telemetry()["resourceSpans"][0]["scopeSpans"][0]["spans"]
    assert [one["status"] for one in spans] == [{"code": 1}, {"code": 2, "message": "failed"}]


def test_the_text_is_a_table() -> None:
    records = [
        (0, "see", "cnn", "main", 1_000_000, 3_000_000, 500_000),
        Span(1, "fuse", "mlp", "cache", 3_000_000, 3_500_000, attempts=0, is_cache_hit=True),
        Span(2, "end", "sum", "batch", 3_500_000, 4_000_000, batch_rows=8),
    ]
    assert Trace("look", 7, records, 0, 4_000_000, 0).text().splitlines() == [
        "chain look, run 7: 4.000 ms",
        "step  skill  where  start  took   pool wait  worker wait  tries  notes      outcome",
        "see   cnn    main   1.000  2.000  0.500      0.000        1                 ok",
        "fuse  mlp    cache  3.000  0.500  0.000      0.000        0      cache hit  ok",
        "end   sum    batch  3.500  0.500  0.000      0.000        1      8 rows     ok",
    ]


# ── observers ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Watcher:
    """Notes everything."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.finished: list[Span] = []
        self.ended: list[tuple[int, Trace, BaseException | None]] = []

    def step_started(self, run_id: int, step: str) -> None:
        self.started.append(step)

    def step_finished(self, run_id: int, span: Span) -> None:
        self.finished.append(span)

    def run_finished(self, run_id: int, trace: Trace, error: BaseException | None) -> None:
        self.ended.append((run_id, trace, error))


def test_observers_hear_of_every_step_and_run() -> None:
    watcher = Watcher()
    trace = trace_of(diamond(), observers=[watcher])
    assert sorted(watcher.started) == ["join", "read", "see"]
    assert sorted(watcher.finished) == sorted(trace.spans)
    assert [(run_id, error) for run_id, _, error in watcher.ended] == [(1, None)]
    assert watcher.ended[0][1].spans == trace.spans


@pytest.mark.parametrize("needs", [{}, {"cpu": 1}])
def test_observers_hear_of_failures(pool: ResourcePool, needs: dict[str, int]) -> None:
    def fail(x: int) -> Any:
        raise ValueError("broken")

    watcher = Watcher()
    graph = graph_of(wired("a", function("bad", fail, resources=needs), {"x": "n"}), outputs={"y": "a.y"})
    with pytest.raises(StepFailed) as caught:
        trace_of(graph, observers=[watcher], pool=pool)
    assert [span.outcome for span in watcher.finished] == ["failed"]
    assert watcher.ended[0][2] is caught.value


def test_observers_may_have_one_method_only() -> None:
    class Few:
        seen = 0

        def step_finished(self, run_id: int, span: Span) -> None:
            self.seen += 1

    few = Few()
    trace_of(diamond(), observers=[few, object()])
    assert few.seen == 4


@pytest.mark.parametrize("method", ["step_started", "step_finished", "run_finished"])
def test_an_observer_that_raises_is_dropped_and_told_of_once(method: str) -> None:
    calls = []

    def fail(self: Any, *facts: Any) -> None:
        calls.append(facts)
        raise RuntimeError("faulty")

    faulty, watcher = type("Faulty", (), {method: fail})(), Watcher()
    graph = graph_of(wired("a", INCREMENT, {"x": "n"}), wired("b", INCREMENT, {"x": "a.y"}), outputs={"y": "b.y"})
    with ChainExecutor(placed(graph, "caller"), observers=[faulty, watcher]) as executor:
        with pytest.warns(RuntimeWarning, match="the observer Faulty raised RuntimeError: faulty; it is told nothing"):
            assert executor.run({"n": 1})["y"] == 3
        assert executor.run({"n": 1})["y"] == 3
    assert len(calls) == 1
    assert len(watcher.finished) == 4


def test_where_warnings_are_errors_the_reason_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Faulty:
        def step_finished(self, run_id: int, span: Span) -> None:
            raise RuntimeError("faulty")

    graph = graph_of(wired("a", INCREMENT, {"x": "n"}), outputs={"y": "a.y"})
    assert trace_of(graph, observers=[Faulty()]).spans[0].outcome == "ok"
    assert "the observer Faulty raised RuntimeError: faulty" in capsys.readouterr().err


def test_a_span_costs_little_memory() -> None:
    record = (0, "s", "s", "main", 1, 2, 0, 0)
    assert sys.getsizeof(record) < 200
