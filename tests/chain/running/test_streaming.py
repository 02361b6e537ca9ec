"""Partial results come as steps give them; a slow reader slows the steps, one that leaves stops them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from minerua.chain.graph import Graph
from minerua.chain.plan import ExecutionPlan
from minerua.chain.running.executor import PARTIALS_WAITING, ChainExecutor
from minerua.chain.running.partials import Partial
from minerua.errors import ChainError, StepFailed
from minerua.kernels.pool import ResourcePool
from minerua.values import Skill

from ..naive import graph_of, wired
from ..steps import INCREMENT, Errors, function, placed, pool

__all__ = ["pool"]


def counting(*, is_async: bool, notes: list[Any], count: int = 3, **more: Any) -> Skill:
    """A generator that yields x, x + 1 and so on."""

    def generate(x: int) -> Iterator[dict[str, int]]:
        try:
            for k in range(count):
                notes.append(k)
                yield {"y": x + k}
        finally:
            notes.append("closed")

    async def generate_async(x: int) -> AsyncIterator[dict[str, int]]:
        try:
            for k in range(count):
                notes.append(k)
                yield {"y": x + k}
                await asyncio.sleep(0)
        finally:
            notes.append("closed")

    return function("count", generate_async if is_async else generate, **more)


def then_increment(skill: Skill) -> Graph:
    return graph_of(wired("a", skill, {"x": "n"}), wired("b", INCREMENT, {"x": "a.y"}), outputs={"y": "b.y"})


def read(executor: ChainExecutor, way: str, **options: Any) -> list[tuple[str, Any, bool]]:
    async def read_async() -> list[Partial]:
        return [partial async for partial in executor.astream({"n": 1}, **options)]

    partials = list(executor.stream({"n": 1}, **options)) if way == "stream" else asyncio.run(read_async())
    return [(partial.step, partial.outputs["y"], partial.last) for partial in partials]


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5.0
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.001)
    return holds()


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("way", ["stream", "astream"])
@pytest.mark.parametrize("needs", [{}, {"cpu": 1}])
def test_what_generators_yield_comes_at_once_and_every_result_when_its_step_ends(
    pool: ResourcePool, is_async: bool, way: str, needs: dict[str, int]
) -> None:
    graph = then_increment(counting(is_async=is_async, notes=[], resources=needs))
    with ChainExecutor(ExecutionPlan.plain(graph), pool=pool) as executor:
        assert read(executor, way) == [("a", 1, False), ("a", 2, False), ("a", 3, True), ("b", 4, True)]
        assert executor.run({"n": 1})["y"] == 4, "without a reader the last that is yielded is the result"


def test_partial_arrays_are_read_only_views() -> None:
    array = np.zeros(4)

    def generate(x: int) -> Iterator[dict[str, np.ndarray]]:
        yield {"y": array}
        yield {"y": array}

    graph = graph_of(wired("a", function("g", generate, out_type=np.ndarray), {"x": "n"}), outputs={"y": "a.y"})
    with ChainExecutor(ExecutionPlan.plain(graph)) as executor:
        for partial in executor.stream({"n": 1}):
            assert np.shares_memory(partial.outputs["y"], array)
            assert not partial.outputs["y"].flags.writeable


@pytest.mark.parametrize("is_async", [False, True])
def test_a_slow_reader_slows_the_steps(is_async: bool) -> None:
    notes: list[Any] = []
    graph = then_increment(counting(is_async=is_async, notes=notes, count=100))
    with ChainExecutor(ExecutionPlan.plain(graph)) as executor:
        stream = executor.stream({"n": 0})
        assert next(stream).outputs["y"] == 0
        assert eventually(lambda: len(notes) >= PARTIALS_WAITING)
        time.sleep(0.02)
        assert len(notes) <= PARTIALS_WAITING + 3
        assert len(list(stream)) == 100
    assert notes == [*range(100), "closed"]


def test_a_slow_reader_does_not_slow_other_runs() -> None:
    graph = then_increment(counting(is_async=False, notes=[], count=100))
    with ChainExecutor(ExecutionPlan.plain(graph), threads=1) as executor:
        stream = executor.stream({"n": 0})
        next(stream)
        assert asyncio.run(executor.arun({"n": 1}))["y"] == 101
        stream.close()


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("needs", [{}, {"cpu": 1}])
def test_closing_the_iterator_stops_the_run_and_closes_the_generator(
    pool: ResourcePool, is_async: bool, needs: dict[str, int]
) -> None:
    notes: list[Any] = []
    graph, heard = then_increment(counting(is_async=is_async, notes=notes, count=1000, resources=needs)), Errors()
    with ChainExecutor(ExecutionPlan.plain(graph), pool=pool, observers=[heard]) as executor:
        stream = executor.stream({"n": 0})
        next(stream)
        stream.close()
        assert eventually(lambda: notes[-1] == "closed")
        assert len(notes) < 100
        assert eventually(lambda: pool.in_use["cpu"] == 0)
    assert heard.texts == ["a run of chain 'made' was cancelled: its stream was closed"]


def test_an_iterator_that_is_forgotten_stops_its_run() -> None:
    notes: list[Any] = []
    graph = then_increment(counting(is_async=False, notes=notes, count=1000))
    with ChainExecutor(ExecutionPlan.plain(graph)) as executor:
        for _ in executor.stream({"n": 0}):
            break
        assert eventually(lambda: notes[-1] == "closed")


def test_leaving_an_async_stream_stops_the_run() -> None:
    notes: list[Any] = []

    async def read_one(executor: ChainExecutor) -> None:
        stream = executor.astream({"n": 0})
        await anext(stream)
        await stream.aclose()
        assert notes[-1] == "closed"

    graph = then_increment(counting(is_async=True, notes=notes, count=1000))
    with ChainExecutor(ExecutionPlan.plain(graph)) as executor:
        asyncio.run(read_one(executor))


@pytest.mark.parametrize("way", ["stream", "astream"])
def test_an_error_comes_after_what_was_given_before_it(way: str) -> None:
    def fail(x: int) -> Any:
        raise ValueError("broken")

    graph = graph_of(
        wired("a", INCREMENT, {"x": "n"}), wired("b", function("bad", fail), {"x": "a.y"}), outputs={"y": "b.y"}
    )
    seen: list[Partial] = []

    def read_sync(executor: ChainExecutor) -> None:
        for partial in executor.stream({"n": 1}):
            seen.append(partial)  # noqa: PERF402 - an error comes while it is read

    async def read_async(executor: ChainExecutor) -> None:
        async for partial in executor.astream({"n": 1}):
            seen.append(partial)  # noqa: PERF401 - as above

    with ChainExecutor(ExecutionPlan.plain(graph)) as executor, pytest.raises(StepFailed, match="ValueError: broken"):
        read_sync(executor) if way == "stream" else asyncio.run(read_async(executor))
    assert [partial.step for partial in seen] == ["a"]


@pytest.mark.parametrize("is_async", [False, True])
def test_wrong_partial_outputs_are_refused_in_a_stream(is_async: bool) -> None:
    def generate(x: int) -> Iterator[dict[str, Any]]:
        yield {"y": "text"}
        yield {"y": 1}

    async def generate_async(x: int) -> AsyncIterator[dict[str, Any]]:
        yield {"y": "text"}
        yield {"y": 1}

    skill = function("wrong", generate_async if is_async else generate)
    with (
        ChainExecutor(ExecutionPlan.plain(then_increment(skill))) as executor,
        pytest.raises(StepFailed, match="it yielded what it may not: 'y', an output, must be integer"),
    ):
        list(executor.stream({"n": 1}))


@pytest.mark.parametrize("is_async", [False, True])
def test_a_generator_that_yields_nothing_has_no_result(is_async: bool) -> None:
    skill = counting(is_async=is_async, notes=[], count=0)
    with (
        ChainExecutor(ExecutionPlan.plain(then_increment(skill))) as executor,
        pytest.raises(StepFailed, match="its generator yielded nothing; the last that it yields is the result"),
    ):
        executor.run({"n": 1})


def test_inputs_are_checked_before_the_first_partial_result_is_asked_for() -> None:
    with ChainExecutor(ExecutionPlan.plain(then_increment(INCREMENT))) as executor, pytest.raises(ChainError):
        executor.stream({"m": 1})


def test_two_streams_at_a_time_do_not_mix() -> None:
    graph = then_increment(counting(is_async=False, notes=[], count=50))
    found: dict[int, list[int]] = {}

    def read_all(executor: ChainExecutor, n: int) -> None:
        found[n] = [partial.outputs["y"] for partial in executor.stream({"n": n}) if partial.step == "a"]

    with ChainExecutor(placed(graph, "thread"), threads=2) as executor:
        threads = [threading.Thread(target=read_all, args=(executor, 1000 * n)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {1000 * n: [1000 * n + k for k in range(50)] for n in range(4)}
